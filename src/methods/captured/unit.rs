//! Layers that share parameters, and those parameters.

use super::{WeightRows, bias_rows, weight_rows};
use crate::checkpoint::CaptureLayer;
use crate::error::Result;

/// Layers that share parameters: one alone, or those that are tied to each other.
pub(crate) struct Unit {
    /// The places of its layers among a capture's.
    pub(crate) layers: Vec<usize>,
    pub(crate) parameters: Vec<Parameter>,
}

/// One parameter, and the layers whose gradients add up to its own.
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) rows: WeightRows,
    /// Places of layers among a capture's, and what it is to them.
    members: Vec<(usize, Role)>,
}

/// Weight or bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Weight,
    Bias,
}

impl Unit {
    /// Whether a layer of it shares a parameter with another.
    pub(crate) fn is_tied(&self) -> bool {
        self.layers.len() > 1
    }

    /// What a layer adds gradients to: the places of its parameters in the unit, each with what it is to the layer.
    pub(crate) fn of_layer(&self, layer: usize) -> impl Iterator<Item = (usize, Role)> {
        let of_parameter = move |(at, parameter): (usize, &Parameter)| {
            parameter.members.iter().find(|member| member.0 == layer).map(|member| (at, member.1))
        };
        self.parameters.iter().enumerate().filter_map(of_parameter)
    }
}

/// The units of a network, in the order of their first layers.
pub(crate) fn units(layers: &[CaptureLayer]) -> Result<Vec<Unit>> {
    layers
        .iter()
        .enumerate()
        .map(|(place, layer)| {
            let mut parameters = vec![Parameter {
                name: format!("{}.weight", layer.name),
                rows: weight_rows(layer)?,
                members: vec![(place, Role::Weight)],
            }];
            if layer.bias {
                parameters.push(Parameter {
                    name: format!("{}.bias", layer.name),
                    rows: bias_rows(layer),
                    members: vec![(place, Role::Bias)],
                });
            }
            Ok(Unit { layers: vec![place], parameters })
        })
        .collect()
}
