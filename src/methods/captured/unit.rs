//! Layers that share parameters, and those parameters.

use super::rows::{WeightRows, bias_rows, weight_rows};
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

impl Parameter {
    /// The layers whose gradients it adds up.
    pub(crate) fn layers(&self) -> impl Iterator<Item = usize> {
        self.members.iter().map(|member| member.0)
    }

    /// What it is to them.
    pub(crate) fn role(&self) -> Role {
        self.members[0].1
    }
}

/// The units of a network, in the order of their first layers.
pub(crate) fn units(layers: &[CaptureLayer]) -> Result<Vec<Unit>> {
    let mut units: Vec<Unit> = Vec::new();
    for places in connected(layers) {
        let owned = places.iter().flat_map(|&place| parameters(layers, &places, place));
        let parameters = owned.collect::<Result<Vec<_>>>()?;
        units.push(Unit { layers: places, parameters });
    }
    Ok(units)
}

/// A layer's own parameters, with the layers that share them.
fn parameters(layers: &[CaptureLayer], places: &[usize], place: usize) -> Vec<Result<Parameter>> {
    let layer = &layers[place];
    let parameter = |role: Role, what: &str, rows: Result<WeightRows>| {
        let shares = |&&other: &&usize| owner(&layers[other], role) == Some(&layer.name);
        let others = places.iter().filter(shares).map(|&other| (other, role));
        let members = std::iter::once((place, role)).chain(others).collect();
        Ok(Parameter { name: format!("{}.{what}", layer.name), rows: rows?, members })
    };
    let mut own = Vec::new();
    if layer.tied.weight.is_none() {
        own.push(parameter(Role::Weight, "weight", weight_rows(layer)));
    }
    if layer.bias && layer.tied.bias.is_none() {
        own.push(parameter(Role::Bias, "bias", Ok(bias_rows(layer))));
    }
    own
}

/// The owner of a parameter that is not the layer's own.
fn owner(layer: &CaptureLayer, role: Role) -> Option<&String> {
    match role {
        Role::Weight => layer.tied.weight.as_ref(),
        Role::Bias => layer.tied.bias.as_ref(),
    }
}

/// Layers that are tied to each other, directly or through others.
fn connected(layers: &[CaptureLayer]) -> Vec<Vec<usize>> {
    let mut group: Vec<usize> = (0..layers.len()).collect();
    for (place, layer) in layers.iter().enumerate() {
        for name in [&layer.tied.weight, &layer.tied.bias].into_iter().flatten() {
            let Some(other) = layers.iter().position(|other| other.name == *name) else { continue };
            let (one, two) = (group[place].min(group[other]), group[place].max(group[other]));
            group.iter_mut().filter(|at| **at == two).for_each(|at| *at = one);
        }
    }
    let members = |first: usize| (0..layers.len()).filter(|&place| group[place] == first).collect();
    (0..layers.len()).filter(|&place| group[place] == place).map(members).collect()
}
