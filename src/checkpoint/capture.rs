//! Capture files: what one batch's forward and backward pass left, layer by layer.
//!
//! A safetensors file with `format = "squisher-capture-1"` in its metadata and, as JSON, what each layer is:
//!
//! ```text
//! layers           {"fc": {"kind": "linear", "bias": true}, …}
//! loss_reduction   "sum" (default) or "mean": whether the gradients were divided by the batch size
//! labels           "data" (default), "sampled" or "all": whose labels the loss was of
//!
//! fc.input         [n, …]   what the layer was given; fc.input.0, fc.input.1, … where it was used several times
//! fc.grad_output   [n, …]   ∂loss/∂output of the same use
//! sample_weight    [n]      optional
//! logit_grad       [n, …]   optional, ∂loss/∂logits
//! ```
//!
//! A parameter that two layers share is one of them's, and the other says whose:
//!
//! ```text
//! layers           {"wte": {"kind": "embedding", "rows": 50257, "bias": false},
//!                   "head": {"kind": "linear", "bias": false, "tied": {"weight": "wte"}}}
//! ```
//!
//! The result is then `wte.weight` alone: the gradients of both layers are added before they are squared.
//! `tied` may name the owner of `weight`, of `bias`, or of both. Weights can be shared by linear layers and
//! embeddings (rows are outputs and ids) and by layers of one kind; any two layers can share a bias.
//!
//! Everything that headers can tell is checked on opening: kinds, shapes that fit each other, one batch size, no tensor
//! that belongs to nothing. Values are checked as they are read: NaN and infinity, and ids out of range, are
//! errors that name file, tensor and index. Several files are several batches of one network
//! ([`same_network`]).

mod kinds;
mod layer;
mod metadata;
mod network;
mod ties;
mod values;

use std::collections::BTreeSet;
use std::path::Path;

use super::open::{Checkpoint, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::shape::{DType, shape_text};

pub use kinds::{LayerKind, Window, positions};
pub use layer::{CaptureLayer, LayerUse, Tied};
pub use metadata::{CAPTURE_FORMAT, Labels, LossReduction, is_capture};
pub use network::same_network;
pub(crate) use network::{same_layers, same_shapes};
pub(crate) use values::widen_bytes;

const WEIGHT: &str = "sample_weight";
const LOGIT_GRAD: &str = "logit_grad";

/// An open capture file.
#[derive(Debug)]
pub struct Capture {
    checkpoint: Checkpoint,
    layers: Vec<CaptureLayer>,
    samples: u64,
    loss_reduction: LossReduction,
    labels: Labels,
}

impl Capture {
    /// Opens a capture file and checks everything that its header tells.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::File`] for a file that is not a capture or describes layers wrongly;
    /// [`Error::Tensor`] for a tensor that is missing, of the wrong type or shape, or that belongs to no layer.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        metadata::check_format(&checkpoint)?;
        let loss_reduction = metadata::loss_reduction(&checkpoint)?;
        let labels = metadata::labels(&checkpoint)?;
        let layers = metadata::layers(&checkpoint)?
            .into_iter()
            .map(|(name, described)| CaptureLayer::find(&checkpoint, name, described))
            .collect::<Result<Vec<_>>>()?;
        ties::check(&checkpoint, &layers)?;
        let capture = Self { samples: 0, layers, loss_reduction, labels, checkpoint };
        let samples = capture.check_samples()?;
        capture.refuse_strangers()?;
        capture.check_extras()?;
        Ok(Self { samples, ..capture })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The open file.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The layers, by name.
    #[must_use]
    pub fn layers(&self) -> &[CaptureLayer] {
        &self.layers
    }

    /// Samples of the batch.
    #[must_use]
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// What the gradients were divided by.
    #[must_use]
    pub fn loss_reduction(&self) -> LossReduction {
        self.loss_reduction
    }

    /// Whose labels the loss was of.
    #[must_use]
    pub fn labels(&self) -> Labels {
        self.labels
    }

    fn float(&self, tensor: &TensorInfo) -> Result<DType> {
        tensor.float().ok_or_else(|| wrong_type(&self.checkpoint, tensor, "f32, f16 or bf16"))
    }

    /// One batch size over all tensors.
    fn check_samples(&self) -> Result<u64> {
        let per_sample = self.layers.iter().flat_map(|layer| &layer.uses);
        let per_sample = per_sample.flat_map(|one| [&one.input, &one.grad_output]);
        let extra = [WEIGHT, LOGIT_GRAD].into_iter().filter_map(|name| self.checkpoint.get(name));
        let mut known: Option<(u64, &str)> = None;
        for tensor in per_sample.chain(extra) {
            let Some(&samples) = tensor.shape.first() else {
                return Err(self.refuse(tensor, "is a scalar, its first axis should count samples".into()));
            };
            let &mut (other, name) = known.get_or_insert((samples, tensor.name.as_str()));
            if other != samples {
                let (shape, name) = (shape_text(&tensor.shape), printable(name));
                let problem = format!("is {shape}, {samples} samples, while {name} has {other}");
                return Err(self.refuse(tensor, problem));
            }
        }
        known.map(|(samples, _)| samples).ok_or_else(|| Error::file(self.path(), "describes no layer"))
    }

    /// Weights are one float a sample, and there where labels are the model's; logit gradients are floats.
    fn check_extras(&self) -> Result<()> {
        let weight = self.checkpoint.get(WEIGHT);
        for tensor in weight.into_iter().chain(self.checkpoint.get(LOGIT_GRAD)) {
            self.float(tensor)?;
        }
        match weight {
            Some(weight) if weight.shape.len() != 1 => {
                Err(self.refuse(weight, format!("is {}, not [n]", shape_text(&weight.shape))))
            }
            None if self.labels != Labels::Data => {
                let problem = "its labels are the model's, so that each sample has a weight, and there is no sample_weight; capture again";
                Err(Error::file(self.path(), problem))
            }
            _ => Ok(()),
        }
    }

    /// A tensor that nothing refers to is a misspelt or forgotten one.
    fn refuse_strangers(&self) -> Result<()> {
        let uses = self.layers.iter().flat_map(|layer| &layer.uses);
        let mut known: BTreeSet<&str> =
            uses.flat_map(|one| [one.input.name.as_str(), one.grad_output.name.as_str()]).collect();
        let running = self.layers.iter().filter_map(|layer| layer.running.as_ref());
        known.extend(running.flat_map(|(mean, var)| [mean.name.as_str(), var.name.as_str()]));
        known.extend([WEIGHT, LOGIT_GRAD]);
        match self.checkpoint.tensors().iter().find(|tensor| !known.contains(tensor.name.as_str())) {
            None => Ok(()),
            Some(tensor) => {
                Err(self.refuse(tensor, "belongs to no layer that the metadata describes".into()))
            }
        }
    }

    fn refuse(&self, tensor: &TensorInfo, problem: String) -> Error {
        Error::tensor(self.path(), &tensor.name, problem)
    }
}

fn wrong_type(checkpoint: &Checkpoint, tensor: &TensorInfo, expected: &str) -> Error {
    let problem = format!("is {}, expected {expected}", tensor.dtype);
    Error::tensor(checkpoint.path(), &tensor.name, problem)
}
