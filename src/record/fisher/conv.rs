//! Records the Fisher diagonal of a convolution's weight.

use std::ops::Range;

use super::pieces::{Work, pieces};
use super::{Buffers, Squares, first_held};
use crate::error::{Error, Result};
use crate::kernels::fisher::{ConvSq, ConvSqArgs, ConvSqParams, STORES};
use crate::record::Recording;

/// A convolution's or transposed convolution's sizes. Sizes are d, h, w; lower ranks have leading sizes of 1
/// (and no padding).
///
/// Input `[samples, inputs, d, h, w]`, output gradient `[samples, outputs, d, h, w]`; weight
/// `[outputs, inputs / groups, kernel]`, of a transposed one `[inputs, outputs / groups, kernel]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Number of samples n.
    pub samples: u32,
    /// Input channels of the layer.
    pub inputs: u32,
    /// Output channels of the layer.
    pub outputs: u32,
    /// Number of groups, which share no weights.
    pub groups: u32,
    /// The layer's input sizes.
    pub input: [u32; 3],
    /// The layer's output sizes.
    pub output: [u32; 3],
    /// Kernel sizes.
    pub kernel: [u32; 3],
    /// Strides.
    pub stride: [u32; 3],
    /// Zeros before and after each axis.
    pub padding: [u32; 3],
    /// Distances of kernel elements.
    pub dilation: [u32; 3],
    /// Whether the layer is a transposed convolution.
    pub transposed: bool,
}

impl Conv {
    /// Records the Fisher diagonal of the layer's weight.
    ///
    /// # Errors
    /// [`Error::Shape`] for an output size that does not follow from the input's, and what [`ConvSq`]'s `launch` and
    /// [`Recording::dispatch`] refuse.
    pub fn record(&self, recording: &mut Recording, squares: Squares, buffers: Buffers<'_>) -> Result<()> {
        self.record_rows(recording, 0..self.rows(), squares, buffers)
    }

    /// Rows of the weight: its leading axis.
    #[must_use]
    pub fn rows(&self) -> u32 {
        if self.transposed { self.inputs } else { self.outputs }
    }

    /// As [`Conv::record`], for a range of the weight's [rows](Self::rows) alone: inside one group, or whole
    /// groups. `out` is `[rows of the range, …]` (with [`Mode::Each`](crate::kernels::fisher::Mode::Each),
    /// `[squares, rows of the range, …]`), or of the whole weight, whose other rows stay as they were.
    ///
    /// # Errors
    /// As [`Conv::record`].
    pub fn record_rows(
        &self,
        recording: &mut Recording,
        rows: Range<u32>,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        self.check_output()?;
        if self.transposed {
            // The sum is the same with the roles swapped: see `ConvSq`.
            let roles = Buffers { input: buffers.grad_output, grad_output: buffers.input, ..buffers };
            let layer = Self {
                inputs: self.outputs,
                outputs: self.inputs,
                input: self.output,
                output: self.input,
                ..*self
            };
            return layer.record_conv(recording, rows, squares, roles);
        }
        self.record_conv(recording, rows, squares, buffers)
    }

    fn record_conv(
        &self,
        recording: &mut Recording,
        range: Range<u32>,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let product = |sizes: [u32; 3]| sizes.map(u64::from).iter().product::<u64>();
        let groups = self.groups.max(1);
        let (rows, columns) =
            (self.outputs / groups, u64::from(self.inputs / groups).saturating_mul(product(self.kernel)));
        let positions = u64::from(squares.fold.min(self.samples)).saturating_mul(product(self.output));
        let whole = self.params(squares.fold);
        let kernel = ConvSq {
            form: whole.form(recording.caps()),
            mode: squares.mode,
            input: buffers.input.float("fisher.conv", "input")?,
            grad_output: buffers.grad_output.float("fisher.conv", "grad_output")?,
            overwrite: false,
            pointwise: whole.is_pointwise(),
        };
        let work = Work {
            squares: self.samples.div_ceil(squares.fold.max(1)),
            flops: positions.saturating_mul(2).saturating_mul(columns),
            iterations: whole.turns(kernel.form).saturating_add(STORES),
        };
        let multiple = if groups == 1 { 1 } else { rows };
        let out_first = first_held(buffers.out, &range, columns);
        for piece in pieces(recording, squares.mode, work, range, multiple) {
            let epilogue = piece.epilogue(squares);
            let params = ConvSqParams {
                first: piece.first,
                count: piece.count,
                first_output: piece.first_output,
                output_count: piece.output_count,
                out_first,
                decay: epilogue.decay(),
                gain: squares.epilogue.gain(squares.factor),
                gradient_scale: squares.gradient_scale,
                ..whole
            };
            let args = ConvSqArgs {
                input: buffers.input.clone(),
                grad_output: buffers.grad_output.clone(),
                weight: buffers.weight.clone(),
                out: buffers.out.clone(),
            };
            recording.dispatch(&ConvSq { overwrite: epilogue.overwrites(), ..kernel }, params, args)?;
        }
        Ok(())
    }

    fn params(&self, fold: u32) -> ConvSqParams {
        ConvSqParams {
            samples: self.samples,
            fold,
            first: 0,
            count: 0,
            channels: self.inputs,
            outputs: self.outputs,
            groups: self.groups,
            first_output: 0,
            output_count: 0,
            out_first: 0,
            input_d: self.input[0],
            input_h: self.input[1],
            input_w: self.input[2],
            grad_d: self.output[0],
            grad_h: self.output[1],
            grad_w: self.output[2],
            kernel_d: self.kernel[0],
            kernel_h: self.kernel[1],
            kernel_w: self.kernel[2],
            stride_d: self.stride[0],
            stride_h: self.stride[1],
            stride_w: self.stride[2],
            padding_d: self.padding[0],
            padding_h: self.padding[1],
            padding_w: self.padding[2],
            dilation_d: self.dilation[0],
            dilation_h: self.dilation[1],
            dilation_w: self.dilation[2],
            decay: 0.0,
            gain: 0.0,
            gradient_scale: 1.0,
        }
    }

    /// Checks the output's sizes against the input's. A transposed convolution may have up to max(stride,
    /// dilation) − 1 more, its `output_padding`.
    fn check_output(&self) -> Result<()> {
        for (axis, name) in ["d", "h", "w"].into_iter().enumerate() {
            let [input, output, kernel, stride, padding, dilation] =
                [self.input, self.output, self.kernel, self.stride, self.padding, self.dilation]
                    .map(|sizes| i128::from(sizes[axis]));
            let span = dilation * (kernel - 1) + 1;
            let stride = stride.max(1);
            let (least, most) = if self.transposed {
                let least = (input - 1) * stride - 2 * padding + span;
                (least, least + stride.max(dilation) - 1)
            } else {
                let room = input + 2 * padding - span;
                let size = if room < 0 { 0 } else { room / stride + 1 };
                (size, size)
            };
            if output < least || output > most {
                let expected = if least == most { least.to_string() } else { format!("{least} to {most}") };
                let what = format!("the output's axis {name}");
                return Err(Error::shape("fisher.conv", what, expected, output.to_string()));
            }
        }
        Ok(())
    }
}
