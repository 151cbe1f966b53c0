//! Parameters that layers share: each has one owner, which is not tied itself, of the same shape and of a
//! kind whose gradients add to it.

use super::{CaptureLayer, LayerKind};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, printable};
use crate::shape::shape_text;

/// Checks what every layer says of whose its parameters are.
pub(super) fn check(checkpoint: &Checkpoint, layers: &[CaptureLayer]) -> Result<()> {
    for layer in layers {
        for (what, owner) in [("weight", &layer.tied.weight), ("bias", &layer.tied.bias)] {
            let Some(owner) = owner else { continue };
            check_tie(layers, layer, what, owner).map_err(|problem| {
                let (name, owner) = (printable(&layer.name), printable(owner));
                let problem = format!("layer {name} says that its {what} is {owner}'s: {problem}");
                Error::file(checkpoint.path(), problem)
            })?;
        }
    }
    Ok(())
}

fn check_tie(layers: &[CaptureLayer], layer: &CaptureLayer, what: &str, owner: &str) -> Result<(), String> {
    let owner = layers.iter().find(|other| other.name == owner).ok_or("there is no such layer")?;
    if owner.name == layer.name {
        return Err("a layer's own parameter is not tied; leave it out".into());
    }
    let is_weight = what == "weight";
    let tied_itself = if is_weight { &owner.tied.weight } else { &owner.tied.bias };
    if tied_itself.is_some() {
        return Err("which is tied itself; name the layer that it belongs to".into());
    }
    if is_weight { share_weight(layer, owner) } else { share_bias(layer, owner) }
}

fn share_weight(layer: &CaptureLayer, owner: &CaptureLayer) -> Result<(), String> {
    use LayerKind::{Conv, ConvTranspose, Embedding, Linear};
    let groups = |layer: &CaptureLayer| match &layer.kind {
        Conv(window) | ConvTranspose(window) => Some(window.groups),
        _ => None,
    };
    let rows = |layer: &CaptureLayer| matches!(layer.kind, Linear | Embedding { .. });
    let alike = layer.kind_name() == owner.kind_name() && groups(layer) == groups(owner);
    let both_rows = rows(layer) && rows(owner);
    if !alike && !both_rows {
        let (a, b) = (layer.kind_name(), owner.kind_name());
        return Err(format!(
            "a {a} and a {b} cannot share it; linear layers and embeddings can, and layers of one kind with the same groups"
        ));
    }
    same_shape(&layer.weight, &owner.weight)
}

fn share_bias(layer: &CaptureLayer, owner: &CaptureLayer) -> Result<(), String> {
    if !layer.bias || !owner.bias {
        return Err("both need a bias".into());
    }
    same_shape(&layer.bias_shape, &owner.bias_shape)
}

fn same_shape(ours: &[u64], theirs: &[u64]) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    Err(format!("the one is {}, the other {}", shape_text(ours), shape_text(theirs)))
}
