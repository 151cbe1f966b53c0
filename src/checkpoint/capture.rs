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
//! The result is then `wte.weight` alone: the gradients of both layers are added before they are squared. `tied` may name the owner of `weight`,
//! of `bias`, or of both. Weights can be shared by linear layers and embeddings (rows are outputs and ids) and by layers of one kind;
//! any two layers can share a bias.
//!
//! Everything that headers can tell is checked on opening: kinds, shapes that fit each other, one batch size, no tensor
//! that belongs to nothing. Values are checked as they are read: NaN and infinity, and ids out of range, are errors that name
//! file, tensor and index. Several files are several batches of one network ([`same_network`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::open::{Checkpoint, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::memory::Element;
use crate::shape::{DType, elements, shape_text};

/// The value of `format` in a capture's metadata.
pub const CAPTURE_FORMAT: &str = "squisher-capture-1";

const WEIGHT: &str = "sample_weight";
const LOGIT_GRAD: &str = "logit_grad";

/// What a layer is, with the numbers that its shapes do not tell.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LayerKind {
    /// y = x Wᵀ + b on the last axis.
    Linear,
    /// Convolution over 1, 2 or 3 axes.
    Conv(Window),
    /// Transposed convolution over 1, 2 or 3 axes.
    ConvTranspose(Window),
    /// Look-up of rows.
    Embedding {
        /// Rows of the table.
        rows: u32,
    },
    /// Layer normalisation over the last axes.
    LayerNorm {
        /// Added to the variance.
        eps: f64,
        /// How many axes.
        axes: usize,
    },
    /// Root-mean-square normalisation over the last axes.
    RmsNorm {
        /// Added to the mean square.
        eps: f64,
        /// How many axes.
        axes: usize,
    },
    /// Group normalisation.
    GroupNorm {
        /// Added to the variance.
        eps: f64,
        /// How many groups of channels.
        groups: u64,
    },
    /// Batch normalisation in evaluation mode.
    BatchNorm {
        /// Added to the variance.
        eps: f64,
    },
}

/// How a convolution's window moves, one number an axis.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Window {
    /// Size.
    pub kernel: Vec<u64>,
    /// Step.
    pub stride: Vec<u64>,
    /// Zeros added at either end.
    pub padding: Vec<u64>,
    /// Distance of a window's elements.
    pub dilation: Vec<u64>,
    /// Groups of channels that do not see each other.
    pub groups: u64,
    /// What a transposed convolution adds at one end of its output.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_padding: Vec<u64>,
}

/// Whether the captured gradients are those of a summed or of a mean loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReduction {
    /// ∂ℓ_n.
    #[default]
    Sum,
    /// ∂ℓ_n / B.
    Mean,
}

/// Whose labels the captured loss was of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// The data's.
    #[default]
    Data,
    /// Drawn from the model; `sample_weight` is 1/k.
    Sampled,
    /// Every class in turn; `sample_weight` is its probability.
    All,
}

/// One layer of a capture.
#[derive(Clone, Debug)]
pub struct CaptureLayer {
    /// Its name, to which `.weight` and `.bias` are added.
    pub name: String,
    /// What it is.
    pub kind: LayerKind,
    /// Whether it has a bias.
    pub bias: bool,
    /// Its uses in the order of the forward pass.
    pub uses: Vec<LayerUse>,
    /// The shape of its weight.
    pub weight: Vec<u64>,
    /// The shape of its bias, if it has one.
    pub bias_shape: Vec<u64>,
    /// Batch norm's running mean and variance.
    pub running: Option<(TensorInfo, TensorInfo)>,
    /// Which of its parameters are other layers'.
    pub tied: Tied,
}

/// The names of the layers whose parameters a layer shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tied {
    /// Whose weight is its weight, if not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// Whose bias is its bias, if not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<String>,
}

/// One use of a layer.
#[derive(Clone, Debug)]
pub struct LayerUse {
    /// What it was given.
    pub input: TensorInfo,
    /// ∂loss/∂output.
    pub grad_output: TensorInfo,
}

/// An open capture file.
#[derive(Debug)]
pub struct Capture {
    checkpoint: Checkpoint,
    layers: Vec<CaptureLayer>,
    samples: u64,
    loss_reduction: LossReduction,
    labels: Labels,
}

/// What a header entry says of a layer.
#[derive(Clone, Debug, Deserialize)]
struct RawLayer {
    #[serde(flatten)]
    kind: LayerKind,
    bias: bool,
    #[serde(default)]
    tied: Tied,
}

/// Whether a checkpoint says that it is a capture.
#[must_use]
pub fn is_capture(checkpoint: &Checkpoint) -> bool {
    checkpoint.metadata().get("format").is_some_and(|format| format.starts_with("squisher-capture-"))
}

impl Capture {
    /// Opens a capture file and checks everything that its header tells.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::File`] for a file that is no capture or describes layers wrongly;
    /// [`Error::Tensor`] for a tensor that is missing, of the wrong type or shape, or that belongs to no layer.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let metadata = checkpoint.metadata();
        match metadata.get("format").map(String::as_str) {
            Some(CAPTURE_FORMAT) => {}
            Some(other) if other.starts_with("squisher-capture-") => {
                let problem = format!(
                    "format is {}, this version reads \"{CAPTURE_FORMAT}\"; capture again or update squisher",
                    printable(other)
                );
                return Err(Error::file(checkpoint.path(), problem));
            }
            _ => {
                let problem = format!(
                    "no capture: its metadata lacks format = \"{CAPTURE_FORMAT}\"; examples/pytorch/capture.py writes captures"
                );
                return Err(Error::file(checkpoint.path(), problem));
            }
        }
        let choice = |key: &str| metadata.get(key).map(String::as_str);
        let loss_reduction = match choice("loss_reduction") {
            None | Some("sum") => LossReduction::Sum,
            Some("mean") => LossReduction::Mean,
            Some(other) => return Err(unknown(&checkpoint, "loss_reduction", other, "sum, mean")),
        };
        let labels = match choice("labels") {
            None | Some("data") => Labels::Data,
            Some("sampled") => Labels::Sampled,
            Some("all") => Labels::All,
            Some(other) => return Err(unknown(&checkpoint, "labels", other, "data, sampled, all")),
        };
        let layers = raw_layers(&checkpoint)?
            .into_iter()
            .map(|(name, raw)| layer(&checkpoint, name, raw))
            .collect::<Result<Vec<_>>>()?;
        check_ties(&checkpoint, &layers)?;
        let capture = Self { samples: 0, layers, loss_reduction, labels, checkpoint };
        let samples = capture.check_samples()?;
        capture.refuse_strangers()?;
        if labels != Labels::Data && capture.checkpoint.get(WEIGHT).is_none() {
            let problem = "its labels are the model's, so that each sample has a weight, and there is no sample_weight; capture again";
            return Err(Error::file(capture.path(), problem));
        }
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

    /// `sample_weight` `[n]`.
    ///
    /// # Errors
    /// [`Error::File`] where there is none; [`Error::Tensor`] for a weight that is no number or below 0.
    pub fn sample_weight(&self) -> Result<Vec<f64>> {
        let tensor = self.checkpoint.get(WEIGHT).ok_or_else(|| {
            let problem = "has no sample_weight, which weighting needs; store one weight a sample, or leave --weighted out";
            Error::file(self.path(), problem)
        })?;
        let weights = self.floats(tensor)?;
        match weights.iter().position(|&weight| weight < 0.0) {
            None => Ok(weights.into_iter().map(f64::from).collect()),
            Some(index) => {
                let problem = format!("{:e} at index {index}; a weight is at least 0", weights[index]);
                Err(Error::tensor(self.path(), WEIGHT, problem))
            }
        }
    }

    /// Whether there is a `logit_grad`.
    #[must_use]
    pub fn has_logit_grad(&self) -> bool {
        self.checkpoint.get(LOGIT_GRAD).is_some()
    }

    /// ‖∂ℓ_n/∂z_n‖² for every sample, in f64, of the loss as it was captured.
    ///
    /// # Errors
    /// [`Error::File`] where there is no `logit_grad`; [`Error::Tensor`] for NaN or infinity in it.
    pub fn logit_grad_sq(&self) -> Result<Vec<f64>> {
        let tensor = self.checkpoint.get(LOGIT_GRAD).ok_or_else(|| {
            let problem =
                "has no logit_grad, which the iEF needs: store ∂loss/∂logits [n, c] under that name";
            Error::file(self.path(), problem)
        })?;
        let values = self.floats(tensor)?;
        let row = values.len().checked_div(usize_of(self.samples)).unwrap_or(0).max(1);
        let sum_sq = |row: &[f32]| row.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        let mut sums: Vec<f64> = values.chunks(row).map(sum_sq).collect();
        sums.resize(usize_of(self.samples), 0.0);
        Ok(sums)
    }

    /// A float tensor's bytes as stored, every value finite.
    ///
    /// # Errors
    /// As [`Checkpoint::read`]; [`Error::Tensor`] with the index of the first NaN or infinity.
    pub fn read(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize_of(tensor.bytes)];
        self.read_range(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with whole elements of a float tensor from a byte offset on, every value finite.
    ///
    /// # Errors
    /// As [`Capture::read`].
    pub fn read_range(&self, tensor: &TensorInfo, byte_offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.checkpoint.read(tensor, byte_offset, bytes)?;
        let dtype = self.float(tensor)?;
        match first_not_finite(bytes, dtype) {
            None => Ok(()),
            Some(index) => {
                let index = byte_offset / dtype.size() + index as u64;
                let problem = format!(
                    "NaN or infinity at flat index {index} of {}; the run diverged or overflowed (in f16, scale the loss down)",
                    shape_text(&tensor.shape)
                );
                Err(Error::tensor(self.path(), &tensor.name, problem))
            }
        }
    }

    /// A float tensor's values.
    ///
    /// # Errors
    /// As [`Capture::read`].
    pub fn floats(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        let bytes = self.read(tensor)?;
        let dtype = self.float(tensor)?;
        let mut values = vec![0.0; bytes.len() / Element::from(dtype).bytes()];
        widen_bytes(&bytes, dtype, &mut values);
        Ok(values)
    }

    /// Some ids of an embedding's input, counted over the tensor, every one below `rows`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`]; [`Error::Tensor`] with the index of the first id out of range.
    pub fn ids(&self, tensor: &TensorInfo, ids: Range<u64>, rows: u32) -> Result<Vec<u32>> {
        const BYTES: u64 = 8;
        let mut bytes = vec![0; usize_of(BYTES * (ids.end - ids.start))];
        self.checkpoint.read(tensor, BYTES * ids.start, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let id = |(index, word): (u64, &[u8; 8])| {
            let id = i64::from_le_bytes(*word);
            u32::try_from(id).ok().filter(|id| *id < rows).ok_or_else(|| {
                let problem = format!("id {id} at flat index {index}, the table has rows 0..{rows}");
                Error::tensor(self.path(), &tensor.name, problem)
            })
        };
        (ids.start..).zip(words).map(id).collect()
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
            match known {
                None => known = Some((samples, &tensor.name)),
                Some((other, name)) if other != samples => {
                    let problem = format!(
                        "is {}, {samples} samples, while {} has {other}",
                        shape_text(&tensor.shape),
                        printable(name)
                    );
                    return Err(self.refuse(tensor, problem));
                }
                Some(_) => {}
            }
        }
        if let Some(weight) = self.checkpoint.get(WEIGHT) {
            self.float(weight)?;
            if weight.shape.len() != 1 {
                return Err(self.refuse(weight, format!("is {}, not [n]", shape_text(&weight.shape))));
            }
        }
        if let Some(logit_grad) = self.checkpoint.get(LOGIT_GRAD) {
            self.float(logit_grad)?;
        }
        known.map(|(samples, _)| samples).ok_or_else(|| Error::file(self.path(), "describes no layer"))
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

/// Requires that captures are batches of one network: the same layers, of the same kinds and shapes, under the same loss.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference and both files.
pub fn same_network(captures: &[Capture]) -> Result<()> {
    let Some((first, rest)) = captures.split_first() else { return Ok(()) };
    for other in rest {
        same_layers(first, other)?;
        if first.loss_reduction != other.loss_reduction || first.labels != other.labels {
            return Err(difference(
                (first, other),
                &format!(
                    "loss reduction and labels are {:?}, {:?} and {:?}, {:?}",
                    first.loss_reduction, first.labels, other.loss_reduction, other.labels
                ),
            ));
        }
    }
    Ok(())
}

/// Requires that two captures are of one network, whatever its loss.
pub(crate) fn same_layers(first: &Capture, other: &Capture) -> Result<()> {
    let layers = |capture: &Capture| -> BTreeMap<String, String> {
        capture.layers.iter().map(|layer| (layer.name.clone(), layer.describe())).collect()
    };
    let (ours, theirs) = (layers(first), layers(other));
    for name in ours.keys().chain(theirs.keys()) {
        let problem = match (ours.get(name), theirs.get(name)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => format!("layer {} is {a} and {b}", printable(name)),
            _ => format!("layer {} is in one alone", printable(name)),
        };
        return Err(difference((first, other), &problem));
    }
    Ok(())
}

fn difference((a, b): (&Capture, &Capture), problem: &str) -> Error {
    let (a, b) = (a.path().display(), b.path().display());
    Error::mismatch("captures", format!("{a} and {b} are not of one network: {problem}"))
}

/// Whether two files hold one layer's uses in the same types and, samples apart, shapes.
pub(crate) fn same_shapes(a: &CaptureLayer, b: &CaptureLayer) -> bool {
    let alike = |a: &TensorInfo, b: &TensorInfo| a.dtype == b.dtype && a.shape[1..] == b.shape[1..];
    a.uses.len() == b.uses.len()
        && a.uses
            .iter()
            .zip(&b.uses)
            .all(|(a, b)| alike(&a.input, &b.input) && alike(&a.grad_output, &b.grad_output))
}

impl CaptureLayer {
    /// Its tensors: the names of weight and bias, if it has one, with their shapes. Those that are another layer's are left out.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<u64>)> {
        let mut parameters = Vec::new();
        if self.tied.weight.is_none() {
            parameters.push((format!("{}.weight", self.name), self.weight.clone()));
        }
        if self.bias && self.tied.bias.is_none() {
            parameters.push((format!("{}.bias", self.name), self.bias_shape.clone()));
        }
        parameters
    }

    /// Kind, weight and bias, for comparison and for tables.
    #[must_use]
    pub fn describe(&self) -> String {
        let bias = if self.bias { " with bias" } else { "" };
        let tie = |what: &str, owner: &Option<String>| match owner {
            Some(owner) => format!(", its {what} {}'s", printable(owner)),
            None => String::new(),
        };
        let ties = tie("weight", &self.tied.weight) + &tie("bias", &self.tied.bias);
        format!("{:?} {}{bias}{ties}", self.kind, shape_text(&self.weight))
    }

    /// Bytes of all its uses.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.uses.iter().map(|one| one.input.bytes + one.grad_output.bytes).sum()
    }

    /// The kind's name, as in the file.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            LayerKind::Linear => "linear",
            LayerKind::Conv(_) => "conv",
            LayerKind::ConvTranspose(_) => "conv_transpose",
            LayerKind::Embedding { .. } => "embedding",
            LayerKind::LayerNorm { .. } => "layer_norm",
            LayerKind::RmsNorm { .. } => "rms_norm",
            LayerKind::GroupNorm { .. } => "group_norm",
            LayerKind::BatchNorm { .. } => "batch_norm",
        }
    }
}

fn unknown(checkpoint: &Checkpoint, key: &str, got: &str, known: &str) -> Error {
    Error::file(checkpoint.path(), format!("{key} is {}, expected one of {known}", printable(got)))
}

fn wrong_type(checkpoint: &Checkpoint, tensor: &TensorInfo, expected: &str) -> Error {
    let problem = format!("is {}, expected {expected}", tensor.dtype);
    Error::tensor(checkpoint.path(), &tensor.name, problem)
}

/// The metadata's `layers`, by name.
fn raw_layers(checkpoint: &Checkpoint) -> Result<BTreeMap<String, RawLayer>> {
    let Some(json) = checkpoint.metadata().get("layers") else {
        return Err(Error::file(checkpoint.path(), "its metadata has no \"layers\"; capture again"));
    };
    serde_json::from_str::<UniqueLayers>(json).map(|layers| layers.0).map_err(|error| {
        Error::file(checkpoint.path(), format!("\"layers\" of the metadata is not valid: {error}"))
    })
}

/// An object of layers in which no name comes twice.
struct UniqueLayers(BTreeMap<String, RawLayer>);

impl<'de> Deserialize<'de> for UniqueLayers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LayersVisitor;

        impl<'de> Visitor<'de> for LayersVisitor {
            type Value = UniqueLayers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of layers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueLayers, A::Error> {
                let mut layers = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let raw: RawLayer = map
                        .next_value()
                        .map_err(|error| A::Error::custom(format!("layer {}: {error}", printable(&name))))?;
                    if layers.contains_key(&name) {
                        return Err(A::Error::custom(format!("layer {} is given twice", printable(&name))));
                    }
                    layers.insert(name, raw);
                }
                Ok(UniqueLayers(layers))
            }
        }

        deserializer.deserialize_map(LayersVisitor)
    }
}

/// Finds a layer's tensors and checks their shapes.
fn layer(checkpoint: &Checkpoint, name: String, raw: RawLayer) -> Result<CaptureLayer> {
    let uses = uses(checkpoint, &name)?;
    let running = match raw.kind {
        LayerKind::BatchNorm { .. } => Some(running(checkpoint, &name)?),
        _ => None,
    };
    let mut weights = Vec::new();
    for one in &uses {
        check_types(checkpoint, &raw.kind, one)?;
        let shapes = Shapes { input: &one.input.shape, grad_output: &one.grad_output.shape };
        let weight = raw.kind.weight_shape(shapes).map_err(|problem| {
            let (input, grad) = (shape_text(shapes.input), shape_text(shapes.grad_output));
            let problem = format!("{problem} (input {input}, grad_output {grad})");
            Error::tensor(checkpoint.path(), &one.grad_output.name, problem)
        })?;
        weights.push(weight);
    }
    let weight = weights[0].clone();
    for (one, other) in uses.iter().zip(&weights) {
        let types = |one: &LayerUse| (one.input.dtype, one.grad_output.dtype);
        if *other != weight || types(one) != types(&uses[0]) {
            let problem = format!(
                "this use is of a weight {} of {:?}, the first of {} of {:?}",
                shape_text(other),
                types(one),
                shape_text(&weight),
                types(&uses[0])
            );
            return Err(Error::tensor(checkpoint.path(), &one.input.name, problem));
        }
    }
    if let Some((mean, var)) = &running {
        for tensor in [mean, var] {
            if tensor.shape != weight || tensor.float().is_none() {
                let expected = format!("floats of {}", shape_text(&weight));
                let got = format!("{} {}", tensor.dtype, shape_text(&tensor.shape));
                return Err(Error::tensor(
                    checkpoint.path(),
                    &tensor.name,
                    format!("is {got}, expected {expected}"),
                ));
            }
        }
    }
    let bias_shape = raw.kind.bias_shape(&weight);
    Ok(CaptureLayer {
        name,
        kind: raw.kind,
        bias: raw.bias,
        uses,
        weight,
        bias_shape,
        running,
        tied: raw.tied,
    })
}

/// Each shared parameter has one owner, which is not tied itself, of the same shape and of a kind whose gradients add to it.
fn check_ties(checkpoint: &Checkpoint, layers: &[CaptureLayer]) -> Result<()> {
    for layer in layers {
        for (what, owner) in [("weight", &layer.tied.weight), ("bias", &layer.tied.bias)] {
            let Some(owner) = owner else { continue };
            let refuse = |problem: String| {
                let (name, owner) = (printable(&layer.name), printable(owner));
                Err(Error::file(
                    checkpoint.path(),
                    format!("layer {name} says that its {what} is {owner}'s: {problem}"),
                ))
            };
            let Some(other) = layers.iter().find(|other| other.name == *owner) else {
                return refuse("there is no such layer".into());
            };
            if other.name == layer.name {
                return refuse("a layer's own parameter is not tied; leave it out".into());
            }
            if (what == "weight" && other.tied.weight.is_some())
                || (what == "bias" && other.tied.bias.is_some())
            {
                return refuse("which is tied itself; name the layer that it belongs to".into());
            }
            if let Err(problem) =
                if what == "weight" { share_weight(layer, other) } else { share_bias(layer, other) }
            {
                return refuse(problem);
            }
        }
    }
    Ok(())
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

/// `{layer}.input` and `{layer}.grad_output`, or the numbered ones of several uses.
fn uses(checkpoint: &Checkpoint, name: &str) -> Result<Vec<LayerUse>> {
    let pair = |suffix: &str| {
        let get = |what: &str| checkpoint.get(&format!("{name}.{what}{suffix}")).cloned();
        (get("input"), get("grad_output"))
    };
    let missing = |what: &str, suffix: &str| {
        let problem = "is missing; a layer has an input and a grad_output for every use";
        Err(Error::tensor(checkpoint.path(), format!("{name}.{what}{suffix}"), problem))
    };
    let mut found = Vec::new();
    for suffix in std::iter::once(String::new()).chain((0..).map(|at| format!(".{at}"))) {
        match pair(&suffix) {
            (Some(input), Some(grad_output)) => found.push(LayerUse { input, grad_output }),
            (Some(_), None) => return missing("grad_output", &suffix),
            (None, Some(_)) => return missing("input", &suffix),
            // The numbered ones follow the plain name.
            (None, None) if suffix.is_empty() => {}
            (None, None) => break,
        }
    }
    if found.is_empty() { missing("input", "") } else { Ok(found) }
}

/// Batch norm's running statistics.
fn running(checkpoint: &Checkpoint, name: &str) -> Result<(TensorInfo, TensorInfo)> {
    let get = |what: &str| {
        let full = format!("{name}.{what}");
        checkpoint.get(&full).cloned().ok_or_else(|| {
            let problem = "is missing: batch norm needs its running statistics; in training mode samples mix and there is \
                           no per-sample gradient, so capture in evaluation mode (`net.eval()`)";
            Error::tensor(checkpoint.path(), full.clone(), problem)
        })
    };
    Ok((get("running_mean")?, get("running_var")?))
}

fn check_types(checkpoint: &Checkpoint, kind: &LayerKind, one: &LayerUse) -> Result<()> {
    const FLOAT: &str = "f32, f16 or bf16";
    if one.grad_output.float().is_none() {
        return Err(wrong_type(checkpoint, &one.grad_output, FLOAT));
    }
    match kind {
        LayerKind::Embedding { .. } if one.input.dtype == Dtype::I64 => Ok(()),
        LayerKind::Embedding { .. } => Err(wrong_type(checkpoint, &one.input, "I64 ids")),
        _ if one.input.float().is_some() => Ok(()),
        _ => Err(wrong_type(checkpoint, &one.input, FLOAT)),
    }
}

/// The shapes of one use.
#[derive(Clone, Copy)]
struct Shapes<'a> {
    input: &'a [u64],
    grad_output: &'a [u64],
}

impl Shapes<'_> {
    fn equal(self) -> Result<(), String> {
        if self.input == self.grad_output { Ok(()) } else { Err("input and grad_output differ".into()) }
    }

    fn axes(self, least: usize) -> Result<(), String> {
        if self.input.len() >= least && self.grad_output.len() >= least {
            return Ok(());
        }
        Err(format!("expected at least {least} axes"))
    }
}

impl LayerKind {
    /// The weight's shape, or what does not fit.
    fn weight_shape(&self, shapes: Shapes<'_>) -> Result<Vec<u64>, String> {
        match self {
            Self::Linear => {
                shapes.axes(2)?;
                let (input, grad) = (split_last(shapes.input), split_last(shapes.grad_output));
                if input.0 != grad.0 {
                    return Err("all axes but the last should be equal".into());
                }
                Ok(vec![grad.1, input.1])
            }
            Self::Embedding { rows } => {
                let grad = split_last(shapes.grad_output);
                if grad.0 != shapes.input {
                    return Err("grad_output should have the axes of the ids and one more".into());
                }
                Ok(vec![(*rows).into(), grad.1])
            }
            Self::LayerNorm { axes, .. } | Self::RmsNorm { axes, .. } => {
                shapes.equal()?;
                shapes.axes(axes + 1)?;
                if *axes == 0 {
                    return Err("axes is 0, expected how many of the last axes are normalised".into());
                }
                Ok(shapes.input[shapes.input.len() - axes..].to_vec())
            }
            Self::GroupNorm { groups, .. } => {
                shapes.equal()?;
                shapes.axes(2)?;
                divides(*groups, shapes.input[1], "channels")?;
                Ok(vec![shapes.input[1]])
            }
            Self::BatchNorm { .. } => {
                shapes.equal()?;
                shapes.axes(2)?;
                Ok(vec![shapes.input[1]])
            }
            Self::Conv(window) => window.weight_shape(shapes.input, shapes.grad_output, false),
            Self::ConvTranspose(window) => window.weight_shape(shapes.input, shapes.grad_output, true),
        }
    }

    fn bias_shape(&self, weight: &[u64]) -> Vec<u64> {
        match self {
            Self::Linear | Self::Conv(_) => weight[..1].to_vec(),
            Self::ConvTranspose(window) => vec![weight[1] * window.groups],
            Self::Embedding { .. } => Vec::new(),
            _ => weight.to_vec(),
        }
    }
}

impl Window {
    /// The weight's shape, after the sizes of input and output were held against each other.
    fn weight_shape(&self, input: &[u64], output: &[u64], transposed: bool) -> Result<Vec<u64>, String> {
        let axes = self.kernel.len();
        let lists = [&self.stride, &self.padding, &self.dilation];
        if !(1..=3).contains(&axes) || lists.iter().any(|list| list.len() != axes) {
            return Err(
                "kernel, stride, padding and dilation should each have one number for 1, 2 or 3 axes".into(),
            );
        }
        if self.kernel.iter().chain(&self.stride).chain(&self.dilation).any(|&size| size == 0) {
            return Err("kernel, stride and dilation should be at least 1".into());
        }
        let output_padding =
            if self.output_padding.is_empty() { vec![0; axes] } else { self.output_padding.clone() };
        if output_padding.len() != axes || (!transposed && output_padding.iter().any(|&size| size != 0)) {
            return Err(
                "output_padding should have one number an axis, and is for conv_transpose alone".into()
            );
        }
        if input.len() != axes + 2 || output.len() != axes + 2 {
            return Err(format!("expected {} axes for a window of {axes}", axes + 2));
        }
        divides(self.groups, input[1], "input channels")?;
        divides(self.groups, output[1], "output channels")?;
        for axis in 0..axes {
            let expected = self.output_size(axis, input[axis + 2], transposed, output_padding[axis]);
            let got = output[axis + 2];
            if expected != Some(got) {
                let expected = expected.map_or_else(|| "none".to_owned(), |size| size.to_string());
                return Err(format!(
                    "axis {} of the output should have {expected} for this input and window, it has {got}",
                    axis + 2
                ));
            }
        }
        let (first, second) = if transposed { (input[1], output[1]) } else { (output[1], input[1]) };
        let mut weight = vec![first, second / self.groups];
        weight.extend(&self.kernel);
        Ok(weight)
    }

    /// The output's size along an axis for an input's, as PyTorch documents it; none where the window does not fit.
    fn output_size(&self, axis: usize, input: u64, transposed: bool, output_padding: u64) -> Option<u64> {
        let reach = self.dilation[axis].checked_mul(self.kernel[axis] - 1)?.checked_add(1)?;
        let padding = self.padding[axis].checked_mul(2)?;
        if transposed {
            let steps = input.checked_sub(1)?.checked_mul(self.stride[axis])?;
            return steps.checked_add(reach)?.checked_add(output_padding)?.checked_sub(padding);
        }
        let room = input.checked_add(padding)?.checked_sub(reach)?;
        Some(room / self.stride[axis] + 1)
    }
}

fn divides(groups: u64, channels: u64, what: &str) -> Result<(), String> {
    if groups > 0 && channels.is_multiple_of(groups) {
        return Ok(());
    }
    Err(format!("{groups} groups do not divide {channels} {what}"))
}

fn split_last(shape: &[u64]) -> (&[u64], u64) {
    match shape.split_last() {
        Some((last, rest)) => (rest, *last),
        None => (&[], 1),
    }
}

/// The product of a sample's axes between the first and the last `features`.
#[must_use]
pub fn positions(shape: &[u64], features: usize) -> u64 {
    elements(&shape[1..shape.len() - features]).unwrap_or(u64::MAX)
}

/// Index of the first NaN or infinity, told from the bits.
fn first_not_finite(bytes: &[u8], dtype: DType) -> Option<usize> {
    let sixteen = |exponent: u16| {
        bytes.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & exponent == exponent)
    };
    match dtype {
        DType::F32 => {
            let bad = |b: &[u8; 4]| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000;
            bytes.as_chunks::<4>().0.iter().position(bad)
        }
        DType::F16 => sixteen(0x7c00),
        DType::BF16 => sixteen(0x7f80),
    }
}

/// Little-endian storage as f32.
pub(crate) fn widen_bytes(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }
        DType::F16 => out
            .iter_mut()
            .zip(bytes.as_chunks::<2>().0)
            .for_each(|(v, b)| *v = half::f16::from_le_bytes(*b).to_f32()),
        DType::BF16 => out
            .iter_mut()
            .zip(bytes.as_chunks::<2>().0)
            .for_each(|(v, b)| *v = half::bf16::from_le_bytes(*b).to_f32()),
    }
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a tensor that is read fits the address space")
}
