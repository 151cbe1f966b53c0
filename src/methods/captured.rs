//! One layer's data of some files, where kernels can bind them, and the steps of its parameters.
//!
//! Files stream in pieces, so that what is in memory beside the layer's data is one piece. The uses of a
//! sample (a layer that is used several times has one parameter) lie one after the other: along the
//! positions, or, where channels come before positions, as samples of their own that are folded into one
//! square.

mod ahead;
mod held;
mod norms;
mod portion;
mod reading;
mod rows;
mod steps;
mod unit;
mod uses;
mod way;

use crate::backend::Backend;
use crate::checkpoint::{Capture, CaptureLayer, LayerKind};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::memory::View;
use crate::shape::GROUP_BYTES;

pub(crate) use ahead::Ahead;
pub(crate) use held::{Held, Share, hold, in_pieces, passes};
pub(crate) use portion::{Portion, ranges};
pub(crate) use rows::{WeightRows, cut};
pub(crate) use steps::Sides;
pub(crate) use unit::{Parameter, Role, Unit, units};
pub(crate) use uses::{by_size, has_several_sizes, joinable};

use reading::Reading;
use rows::weight_rows;
use uses::{by_channels, positions_of};

const OP: &str = "capture";

/// One layer in one file.
#[derive(Clone, Copy)]
pub(crate) struct InFile<'a> {
    pub(crate) capture: &'a Capture,
    pub(crate) layer: &'a CaptureLayer,
}

/// Bytes that one binding of one buffer can have, in whole groups.
fn room(caps: &Caps) -> u64 {
    caps.max_binding_bytes.min(caps.max_buffer_bytes) / GROUP_BYTES * GROUP_BYTES
}

/// Shaders count in u32.
pub(crate) fn small(size: u64) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::Limit {
        op: OP.into(),
        limit: "the most elements of one step".into(),
        max: u32::MAX.into(),
        asked: size,
    })
}

/// One layer's data of one or more files.
pub(crate) struct Batch {
    layer: CaptureLayer,
    /// Samples of all its files.
    samples: u64,
    /// Uses that count as separate samples (convolutions and norms over channels).
    parts: u64,
    /// Positions of a sample, or of a part.
    positions: u64,
    input: Input,
    gradient: View,
    /// The largest magnitude in `gradient`.
    largest: f32,
    /// The largest magnitude of what gradients are multiplied by: of the input, of an embedding's ones, of a norm's
    /// normalized values.
    largest_factor: f64,
    /// Batch norm's fixed (mean, 1/√(variance + eps)).
    fixed: Option<View>,
    /// Whether it is a part of the gradients of weight and bias.
    adds: [bool; 2],
}

enum Input {
    Floats(View),
    Ids(Vec<u32>),
}

impl Batch {
    /// Reads one layer of files that are [`joinable`]. With `scale`, one factor a sample, gradients are
    /// multiplied by it and f32.
    pub(crate) fn load(backend: &Backend, files: &[InFile<'_>], scale: &[f64]) -> Result<Self> {
        let samples = files.iter().map(|file| file.capture.samples()).sum();
        Self::read(backend, &Reading::of_files(files), scale, samples)
    }

    /// Reads a portion of a file; `scale` is its samples'.
    pub(crate) fn load_portion(
        backend: &Backend,
        capture: &Capture,
        portion: &Portion,
        scale: &[f64],
    ) -> Result<Self> {
        let files = [InFile { capture, layer: &portion.layer }];
        let inputs = Reading {
            samples: Some(portion.samples()),
            bands: portion.bands.as_ref().map(|bands| [&bands.input, &bands.grad_output]),
            ..Reading::of_files(&files)
        };
        let count = portion.samples().end - portion.samples().start;
        let batch = Self::read(backend, &inputs, scale, count)?;
        Ok(Self { adds: [Role::Weight, Role::Bias].map(|role| portion.adds_to(role)), ..batch })
    }

    fn read(backend: &Backend, inputs: &Reading<'_, '_>, scale: &[f64], samples: u64) -> Result<Self> {
        let InFile { capture, layer } = inputs.files[0];
        if has_several_sizes(layer) {
            let problem = "is used at several sizes, which is not supported for this kind of layer; capture each size in a file of its \
                           own network, or leave the layer out";
            return Err(Error::tensor(capture.path(), &layer.uses[0].input.name, problem));
        }
        let (input, largest_input) = match layer.kind {
            LayerKind::Embedding { rows } => (Input::Ids(inputs.ids(rows)?), 1.0),
            _ => {
                let (view, largest) = inputs.load(backend)?;
                (Input::Floats(view), largest)
            }
        };
        if let Input::Floats(view) = &input {
            norms::check_range(inputs.files[0], view.len().checked_div(samples).unwrap_or(0), largest_input)?;
        }
        let largest_factor = largest_factor(&layer.kind, largest_input.into());
        let (gradient, largest) = Reading { gradient: true, scale, ..inputs.clone() }.load(backend)?;
        let mut counts = layer.uses.iter().map(|one| positions_of(layer, &one.input));
        let (parts, positions) = match by_channels(layer) {
            true => (layer.uses.len() as u64, counts.next().unwrap_or(0)),
            false => (1, counts.sum()),
        };
        let fixed = norms::fixed_stats(backend, capture, layer)?;
        let (layer, adds) = (layer.clone(), [true; 2]);
        Ok(Self { layer, samples, parts, positions, input, gradient, largest, largest_factor, fixed, adds })
    }

    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// Whether it adds to the gradient of the layer's weight, or bias.
    pub(crate) fn adds_to(&self, role: Role) -> bool {
        self.adds[match role {
            Role::Weight => 0,
            Role::Bias => 1,
        }]
    }

    /// Positions of a sample, over all its uses.
    pub(crate) fn positions(&self) -> u64 {
        self.positions * self.parts
    }

    /// The gradients at the layer's output.
    pub(crate) fn gradient(&self) -> &View {
        &self.gradient
    }

    /// The layer's input, where it is numbers.
    pub(crate) fn input(&self) -> Option<&View> {
        match &self.input {
            Input::Floats(view) => Some(view),
            Input::Ids(_) => None,
        }
    }

    /// An embedding's ids.
    pub(crate) fn ids(&self) -> Option<&[u32]> {
        match &self.input {
            Input::Floats(_) => None,
            Input::Ids(ids) => Some(ids),
        }
    }

    /// The largest magnitude of the gradients at the layer's output.
    pub(crate) fn largest(&self) -> f64 {
        self.largest.into()
    }

    /// What no element of a sample's gradient exceeds: the largest of each factor, once for every number of a sample.
    pub(crate) fn gradient_bound(&self) -> f64 {
        if self.largest == 0.0 {
            // The other factor may be unbounded.
            return 0.0;
        }
        let terms = self.gradient.len().checked_div(self.samples).unwrap_or(0);
        // The bias's factors are ones.
        terms as f64 * self.largest() * self.largest_factor.max(1.0)
    }

    /// Whether both factors may be squared one by one: neither square leaves f32, nor does one vanish that is above
    /// 1e-26 of the largest.
    fn factors_square(&self, gradient_scale: f64) -> bool {
        let near_one = 2.0_f64.powi(-20)..=2.0_f64.powi(20);
        near_one.contains(&self.largest_factor) && self.largest() * gradient_scale <= 2.0_f64.powi(50)
    }

    /// The power of two that brings the largest gradient at the output near 1; at most 2^±60, whose square f32 can
    /// undo.
    pub(crate) fn gradient_scale(&self) -> f64 {
        if self.largest == 0.0 {
            return 1.0;
        }
        (-self.largest().log2().round()).clamp(-60.0, 60.0).exp2()
    }

    /// How the weight is cut.
    pub(crate) fn rows(&self) -> Result<WeightRows> {
        weight_rows(&self.layer)
    }
}

/// The largest magnitude by which a layer of a kind multiplies its output's gradients, given that of its input.
fn largest_factor(kind: &LayerKind, input: f64) -> f64 {
    match kind {
        // No value is more standard deviations from a mean than the root of how many values there are.
        LayerKind::LayerNorm { .. } | LayerKind::RmsNorm { .. } | LayerKind::GroupNorm { .. } => 65536.0,
        // Of other data's mean and variance.
        LayerKind::BatchNorm { .. } => f64::INFINITY,
        _ => input,
    }
}
