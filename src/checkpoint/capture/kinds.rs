//! The kinds of layers, and which shapes of inputs, gradients, weights and biases fit together.

use serde::{Deserialize, Serialize};

use crate::shape::elements;

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

/// The shapes of one use.
#[derive(Clone, Copy)]
pub(super) struct Shapes<'a> {
    pub(super) input: &'a [u64],
    pub(super) grad_output: &'a [u64],
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
    /// The kind's name, as in the file.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Conv(_) => "conv",
            Self::ConvTranspose(_) => "conv_transpose",
            Self::Embedding { .. } => "embedding",
            Self::LayerNorm { .. } => "layer_norm",
            Self::RmsNorm { .. } => "rms_norm",
            Self::GroupNorm { .. } => "group_norm",
            Self::BatchNorm { .. } => "batch_norm",
        }
    }

    /// What is added to a variance, if there is one.
    fn eps(&self) -> Option<f64> {
        match self {
            Self::LayerNorm { eps, .. }
            | Self::RmsNorm { eps, .. }
            | Self::GroupNorm { eps, .. }
            | Self::BatchNorm { eps } => Some(*eps),
            Self::Linear | Self::Conv(_) | Self::ConvTranspose(_) | Self::Embedding { .. } => None,
        }
    }

    /// The weight's shape, or what does not fit.
    pub(super) fn weight_shape(&self, shapes: Shapes<'_>) -> Result<Vec<u64>, String> {
        if let Some(eps) = self.eps().filter(|eps| !(0.0..f64::INFINITY).contains(eps)) {
            return Err(format!("eps is {eps}, expected a finite number of at least 0"));
        }
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

    pub(super) fn bias_shape(&self, weight: &[u64]) -> Vec<u64> {
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
        self.check_lists(transposed)?;
        let axes = self.kernel.len();
        if input.len() != axes + 2 || output.len() != axes + 2 {
            return Err(format!("expected {} axes for a window of {axes}", axes + 2));
        }
        divides(self.groups, input[1], "input channels")?;
        divides(self.groups, output[1], "output channels")?;
        for axis in 0..axes {
            let (expected, got) = (self.output_size(axis, input[axis + 2], transposed), output[axis + 2]);
            if expected != Some(got) {
                let expected = expected.map_or_else(|| "none".to_owned(), |size| size.to_string());
                return Err(format!(
                    "axis {} of the output should have {expected} for this input and window, it has {got}",
                    axis + 2
                ));
            }
        }
        let (first, second) = if transposed { (input[1], output[1]) } else { (output[1], input[1]) };
        Ok([&[first, second / self.groups], &self.kernel[..]].concat())
    }

    /// Every list has one number an axis, and those that must be are above 0.
    fn check_lists(&self, transposed: bool) -> Result<(), String> {
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
        let extra = &self.output_padding;
        let fits = extra.is_empty() || extra.len() == axes;
        if !fits || (!transposed && extra.iter().any(|&size| size != 0)) {
            return Err(
                "output_padding should have one number an axis, and is for conv_transpose alone".into()
            );
        }
        Ok(())
    }

    /// The output's size along an axis for an input's, as PyTorch documents it; none where the window does not fit.
    fn output_size(&self, axis: usize, input: u64, transposed: bool) -> Option<u64> {
        let reach = self.dilation[axis].checked_mul(self.kernel[axis] - 1)?.checked_add(1)?;
        let padding = self.padding[axis].checked_mul(2)?;
        if transposed {
            let extra = self.output_padding.get(axis).copied().unwrap_or(0);
            let steps = input.checked_sub(1)?.checked_mul(self.stride[axis])?;
            return steps.checked_add(reach)?.checked_add(extra)?.checked_sub(padding);
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
