//! The uses of a layer: the positions and sizes of each, and which can lie in one buffer.

use super::InFile;
use crate::checkpoint::{CaptureLayer, LayerKind, TensorInfo, positions, same_shapes};
use crate::shape::elements;

/// Positions of a sample in one use's input.
pub(super) fn positions_of(layer: &CaptureLayer, tensor: &TensorInfo) -> u64 {
    match layer.kind {
        LayerKind::Linear => positions(&tensor.shape, 1),
        LayerKind::LayerNorm { axes, .. } | LayerKind::RmsNorm { axes, .. } => positions(&tensor.shape, axes),
        _ if by_channels(layer) => elements(&tensor.shape[2..]).unwrap_or(u64::MAX),
        _ => positions(&tensor.shape, 0),
    }
}

/// Whether channels come before positions, so that the uses of a sample count as separate samples.
pub(super) fn by_channels(layer: &CaptureLayer) -> bool {
    matches!(
        layer.kind,
        LayerKind::Conv(_)
            | LayerKind::ConvTranspose(_)
            | LayerKind::GroupNorm { .. }
            | LayerKind::BatchNorm { .. }
    )
}

/// Whether one [`Batch`](super::Batch) cannot hold all its uses.
pub(crate) fn has_several_sizes(layer: &CaptureLayer) -> bool {
    by_channels(layer) && layer.uses.iter().any(|one| one.input.shape != layer.uses[0].input.shape)
}

/// The layer as one or several of which a [`Batch`](super::Batch) can hold all uses, in the order in which
/// sizes first occur.
pub(crate) fn by_size(layer: &CaptureLayer) -> Vec<CaptureLayer> {
    if !has_several_sizes(layer) {
        return vec![layer.clone()];
    }
    let mut parts: Vec<CaptureLayer> = Vec::new();
    for one in &layer.uses {
        match parts.iter_mut().find(|part| part.uses[0].input.shape == one.input.shape) {
            Some(part) => part.uses.push(one.clone()),
            None => parts.push(CaptureLayer { uses: vec![one.clone()], ..layer.clone() }),
        }
    }
    parts
}

/// Whether two files' data of one layer may lie in one buffer.
pub(crate) fn joinable(a: InFile<'_>, b: InFile<'_>) -> bool {
    // Batch norm's statistics are each file's own.
    a.layer.running.is_none() && same_shapes(a.layer, b.layer)
}
