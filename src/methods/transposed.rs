//! Which weights of a Fisher are those of transposed convolutions: their output channels lie along the second
//! axis, not the first.
//!
//! Shapes do not tell. `fisher` knows the layers and writes the names into its file; Fishers that were
//! recycled from an optimizer, or come from elsewhere, say nothing, and all their weights count as those of
//! other layers.

use std::collections::BTreeSet;

use crate::checkpoint::{Capture, CaptureLayer, Checkpoint, LayerKind};
use crate::error::{Error, Result};

/// The entry of a Fisher file's metadata: a JSON list of tensor names.
pub(super) const KEY: &str = "squisher.transposed";

/// The entry's text; nothing where there are no such weights.
pub(super) fn of_capture(capture: &Capture) -> Option<String> {
    let layers = capture.layers().iter().filter(|layer| matches!(layer.kind, LayerKind::ConvTranspose(_)));
    let parameters = layers.flat_map(CaptureLayer::parameters).map(|(name, _)| name);
    let names: BTreeSet<String> = parameters.filter(|name| name.ends_with(".weight")).collect();
    (!names.is_empty()).then(|| serde_json::Value::from_iter(names).to_string())
}

/// The names that a Fisher file states.
///
/// # Errors
/// [`Error::File`] for an entry that is not a list of names.
pub(super) fn of_fisher(fisher: &Checkpoint) -> Result<BTreeSet<String>> {
    let Some(text) = fisher.metadata().get(KEY) else { return Ok(BTreeSet::new()) };
    serde_json::from_str(text).map_err(|error| {
        Error::file(
            fisher.path(),
            format!("its metadata entry {KEY} is not a JSON list of tensor names: {error}"),
        )
    })
}
