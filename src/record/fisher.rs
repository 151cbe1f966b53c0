//! The exact Fisher of a layer's parameters, and sums of their gradients: which kernel in which form, in steps short enough
//! for a device.
//!
//! One call records everything for one parameter of one layer from one pair of buffers. A dispatch that takes
//! seconds trips a driver's watchdog, so on a device squares (and, where one square is long, outputs) are cut into ranges that
//! follow each other in one recording; the first range applies the epilogue, the others add.

use std::ops::Range;

use super::Recording;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kernels::fisher::{
    ConvSq, ConvSqArgs, ConvSqParams, Epilogue, Form, LinearSq, LinearSqArgs, LinearSqParams, LinearSqShared,
    LinearSqSharedArgs, LinearSqSharedParams, Mode, SumSq, SumSqArgs, SumSqParams,
};
use crate::memory::View;

/// How squares are formed and summed, or what else becomes of their gradients. See [`kernels::fisher`](crate::kernels::fisher).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squares {
    /// What becomes of the gradients: summed as squares, summed, or stored.
    pub mode: Mode,
    /// What becomes of the old value.
    pub epilogue: Epilogue,
    /// Consecutive samples whose gradients are added before squaring: 1 for the per-sample Fisher, B for the
    /// minibatch-joint one, the number of samples for the joint one.
    pub fold: u32,
    /// Factor of the result (of [`Mode::Squares`] here): 1/N for a mean, B² for captures of a mean loss, 1/`gradient_scale`² to undo a scale.
    pub factor: f32,
    /// Factor of the gradients before they are squared: a power of two where their squares are below f32.
    pub gradient_scale: f32,
}

impl Default for Squares {
    /// Overwrite with the plain per-sample sum.
    fn default() -> Self {
        Self { mode: Mode::Squares, epilogue: Epilogue::Overwrite, fold: 1, factor: 1.0, gradient_scale: 1.0 }
    }
}

/// The buffers of one parameter: its layer's input and output gradient, weights `[squares]`, and the result.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    /// The layer's input.
    pub input: &'a View,
    /// The gradient at the layer's output.
    pub grad_output: &'a View,
    /// One f32 weight for each square.
    pub weight: &'a View,
    /// The result, f32.
    pub out: &'a View,
}

/// A linear layer's sizes: input `[samples, positions, inputs]`, output gradient `[samples, positions, outputs]`, weight `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// n.
    pub samples: u32,
    /// t.
    pub positions: u32,
    /// i.
    pub inputs: u32,
    /// o.
    pub outputs: u32,
}

impl Linear {
    /// Records the Fisher diagonal of the layer's weight.
    ///
    /// # Errors
    /// What the kernels' `launch` and [`Recording::dispatch`] refuse.
    pub fn record(&self, recording: &mut Recording, squares: Squares, buffers: Buffers<'_>) -> Result<()> {
        self.record_outputs(recording, 0..self.outputs, squares, buffers)
    }

    /// As [`Linear::record`], for a range of outputs alone. `out` is `[outputs of the range, inputs]` (with [`Mode::Each`],
    /// `[squares, outputs of the range, inputs]`), or of the whole weight, whose other outputs stay as they were.
    ///
    /// # Errors
    /// As [`Linear::record`].
    pub fn record_outputs(
        &self,
        recording: &mut Recording,
        outputs: Range<u32>,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        if self.positions == 1 && squares.fold == 1 && squares.mode == Mode::Squares {
            return self.record_factorised(recording, outputs, squares, buffers);
        }
        let op = "fisher.linear";
        let kernel = LinearSqShared {
            form: self.form(recording, &outputs),
            mode: squares.mode,
            input: buffers.input.float(op, "input")?,
            grad_output: buffers.grad_output.float(op, "grad_output")?,
            overwrite: false,
        };
        let positions = u64::from(squares.fold.min(self.samples)) * u64::from(self.positions);
        let work = Work {
            squares: self.samples.div_ceil(squares.fold.max(1)),
            flops: positions.saturating_mul(2 * u64::from(self.inputs)),
            iterations: kernel.form.iterations(1, positions),
        };
        let out_first = first_held(buffers.out, &outputs, self.inputs.into());
        for piece in pieces(recording, squares.mode, work, outputs, 1) {
            let epilogue = piece.epilogue(squares);
            let params = LinearSqSharedParams {
                samples: self.samples,
                fold: squares.fold,
                first: piece.first,
                count: piece.count,
                positions: self.positions,
                inputs: self.inputs,
                outputs: self.outputs,
                first_output: piece.first_output,
                output_count: piece.output_count,
                out_first,
                decay: epilogue.decay(),
                gain: squares.epilogue.gain(squares.factor),
                gradient_scale: squares.gradient_scale,
            };
            let args = LinearSqSharedArgs {
                input: buffers.input.clone(),
                grad_output: buffers.grad_output.clone(),
                weight: buffers.weight.clone(),
                out: buffers.out.clone(),
            };
            let kernel = LinearSqShared { overwrite: epilogue.overwrites(), ..kernel };
            recording.dispatch(&kernel, params, args)?;
        }
        Ok(())
    }

    fn form(&self, recording: &Recording, outputs: &Range<u32>) -> Form {
        let form = Form::of(recording.caps(), 1, outputs.len() as u64, self.inputs.into());
        form.for_widths(&[outputs.start, self.outputs, self.inputs])
    }

    fn record_factorised(
        &self,
        recording: &mut Recording,
        outputs: Range<u32>,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let op = "fisher.linear";
        let kernel = LinearSq {
            form: self.form(recording, &outputs),
            input: buffers.input.float(op, "input")?,
            grad_output: buffers.grad_output.float(op, "grad_output")?,
            overwrite: false,
        };
        // The samples are the positions of one square.
        let work = Work { squares: self.samples, flops: 2 * u64::from(self.inputs), iterations: 3 };
        let out_first = first_held(buffers.out, &outputs, self.inputs.into());
        for piece in pieces(recording, squares.mode, work, outputs, 1) {
            let epilogue = piece.epilogue(squares);
            let params = LinearSqParams {
                samples: self.samples,
                first: piece.first,
                count: piece.count,
                inputs: self.inputs,
                outputs: self.outputs,
                first_output: piece.first_output,
                output_count: piece.output_count,
                out_first,
                decay: epilogue.decay(),
                gain: squares.epilogue.gain(squares.factor),
                gradient_scale: squares.gradient_scale,
            };
            let args = LinearSqArgs {
                input: buffers.input.clone(),
                grad_output: buffers.grad_output.clone(),
                weight: buffers.weight.clone(),
                out: buffers.out.clone(),
            };
            let kernel = LinearSq { overwrite: epilogue.overwrites(), ..kernel };
            recording.dispatch(&kernel, params, args)?;
        }
        Ok(())
    }
}

/// A convolution's or transposed convolution's sizes. Sizes are d, h, w; lower ranks have leading sizes of 1 (and no padding).
///
/// Input `[samples, inputs, d, h, w]`, output gradient `[samples, outputs, d, h, w]`; weight `[outputs, inputs / groups, kernel]`, of
/// a transposed one `[inputs, outputs / groups, kernel]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv {
    /// n.
    pub samples: u32,
    /// Input channels of the layer.
    pub inputs: u32,
    /// Output channels of the layer.
    pub outputs: u32,
    /// Groups.
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

    /// As [`Conv::record`], for a range of the weight's [rows](Self::rows) alone: inside one group, or whole groups. `out` is
    /// `[rows of the range, …]` (with [`Mode::Each`], `[squares, rows of the range, …]`), or of the whole weight, whose other rows stay as they
    /// were.
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
        let steps = [self.stride[2], self.dilation[2]];
        let kernel = ConvSq {
            form: Form::of(recording.caps(), groups.into(), rows.into(), columns)
                .for_positions(&[product(self.output)])
                .for_window(recording.caps(), steps, self.output[2], positions),
            mode: squares.mode,
            input: buffers.input.float("fisher.conv", "input")?,
            grad_output: buffers.grad_output.float("fisher.conv", "grad_output")?,
            overwrite: false,
        };
        let work = Work {
            squares: self.samples.div_ceil(squares.fold.max(1)),
            flops: positions.saturating_mul(2).saturating_mul(columns),
            iterations: kernel.form.iterations(1, positions),
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
                ..self.params(squares.fold)
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

    /// Checks the output's sizes against the input's. A transposed convolution may have up to max(stride, dilation) − 1 more, its
    /// `output_padding`.
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

/// The sizes of a layer's output gradient, whose sum over positions is the gradient of the layer's bias: `[samples, positions, outputs]`, or
/// `[samples, outputs, positions]` with `channels_first`, as convolutions have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bias {
    /// n.
    pub samples: u32,
    /// t.
    pub positions: u32,
    /// o.
    pub outputs: u32,
    /// Whether positions are the last axis.
    pub channels_first: bool,
}

impl Bias {
    /// Records the Fisher diagonal of the layer's bias. `weight` and `out` are as in [`Buffers`].
    ///
    /// # Errors
    /// What [`SumSq`]'s `launch` and [`Recording::dispatch`] refuse.
    pub fn record(
        &self,
        recording: &mut Recording,
        squares: Squares,
        grad_output: &View,
        weight: &View,
        out: &View,
    ) -> Result<()> {
        let positions = u64::from(squares.fold.min(self.samples)) * u64::from(self.positions);
        let kernel = SumSq {
            mode: squares.mode,
            lanes: SumSq::lanes(recording.caps(), self.channels_first, positions),
            grad_output: grad_output.float("fisher.bias", "grad_output")?,
            channels_first: self.channels_first,
            overwrite: false,
            octets: SumSq::octets(recording.caps(), self.channels_first, self.outputs, positions),
        };
        let work = Work {
            squares: self.samples.div_ceil(squares.fold.max(1)),
            // An addition for every element loaded: as long as this many operations of a product.
            flops: positions.saturating_mul(40).saturating_mul(self.outputs.into()),
            iterations: SumSq::iterations_of(kernel.lanes, positions),
        };
        for piece in pieces(recording, squares.mode, work, 0..1, 1) {
            let epilogue = piece.epilogue(squares);
            let params = SumSqParams {
                samples: self.samples,
                fold: squares.fold,
                first: piece.first,
                count: piece.count,
                positions: self.positions,
                outputs: self.outputs,
                decay: epilogue.decay(),
                gain: squares.epilogue.gain(squares.factor),
                gradient_scale: squares.gradient_scale,
            };
            let args =
                SumSqArgs { grad_output: grad_output.clone(), weight: weight.clone(), out: out.clone() };
            recording.dispatch(&SumSq { overwrite: epilogue.overwrites(), ..kernel }, params, args)?;
        }
        Ok(())
    }
}

/// The first output that `out` holds: the range's, where it is as long as that alone, else 0.
fn first_held(out: &View, range: &Range<u32>, width: u64) -> u32 {
    if out.len() == range.len() as u64 * width { range.start } else { 0 }
}

/// Operations of one dispatch: 50 ms of a device that reaches 200 GFLOP/s, the slowest that has a watchdog.
const FLOPS: u64 = 10_000_000_000;

/// Outputs are cut at multiples of this, the height of the largest tile.
const OUTPUTS: u64 = 128;

/// One dispatch's ranges of squares and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first: u32,
    count: u32,
    first_output: u32,
    output_count: u32,
}

impl Piece {
    /// What this piece does with the old value, given what the whole shall do: only a sum over squares is continued.
    fn epilogue(self, whole: Squares) -> Epilogue {
        if self.first == 0 || whole.mode == Mode::Each { whole.epilogue } else { Epilogue::Add }
    }
}

/// The squares of a step, and what each of them takes.
#[derive(Clone, Copy)]
struct Work {
    squares: u32,
    /// Operations an output.
    flops: u64,
    /// Loop iterations of an invocation.
    iterations: u64,
}

/// Cuts a step into dispatches of at most [`FLOPS`] operations and no more loop iterations than the device makes. Outputs
/// are cut at multiples of `multiple`; where each square has a result, which holds its outputs without a gap, they are not. The host has no
/// watchdog and gets one piece.
fn pieces(recording: &Recording, mode: Mode, work: Work, outputs: Range<u32>, multiple: u32) -> Vec<Piece> {
    let count = outputs.end.saturating_sub(outputs.start);
    let whole = Piece { first: 0, count: work.squares, first_output: outputs.start, output_count: count };
    let multiple = if mode == Mode::Each { count } else { multiple };
    let squares = recording.caps().max_iterations / work.iterations.max(1);
    match recording.backend {
        Backend::Host => vec![whole],
        Backend::Gpu(_) => cut(whole, work.flops, multiple, Most { flops: FLOPS, squares }),
    }
}

/// The most of one dispatch.
#[derive(Clone, Copy)]
struct Most {
    flops: u64,
    squares: u64,
}

fn cut(whole: Piece, flops: u64, multiple: u32, most: Most) -> Vec<Piece> {
    let step = u64::from(multiple).max(1) * OUTPUTS.div_ceil(u64::from(multiple).max(1));
    let outputs_at_once =
        (most.flops / flops.max(1) / step * step).clamp(step, u64::from(whole.output_count).max(step));
    let work = flops.max(1).saturating_mul(outputs_at_once.min(u64::from(whole.output_count)).max(1));
    let squares_at_once = (most.flops / work).min(most.squares).max(1);
    let mut pieces = Vec::new();
    for (first, count) in ranges(whole.count, squares_at_once) {
        for (first_output, output_count) in ranges(whole.output_count, outputs_at_once) {
            let first_output = whole.first_output + first_output;
            pieces.push(Piece { first, count, first_output, output_count });
        }
    }
    pieces
}

/// Consecutive ranges of at most `most` that cover `all`; one empty range for nothing.
fn ranges(all: u32, most: u64) -> Vec<(u32, u32)> {
    let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
    (0..all.div_ceil(most).max(1)).map(|i| (i * most, most.min(all - i * most))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_output_of_every_square_once_and_are_short() {
        for (count, outputs, flops, multiple) in [
            (0, 5, 10, 1),
            (7, 300, 10, 1),
            (7, 300, 100, 1),
            (3, 300, 1_000_000, 1),
            (5, 90, 100, 30),
            (4, 0, 9, 1),
        ] {
            let whole = Piece { first: 0, count, first_output: 0, output_count: outputs };
            let most = Most { flops: 20_000, squares: 4 };
            let pieces = cut(whole, flops, multiple, most);
            let mut seen = vec![0; count as usize * outputs as usize];
            for piece in &pieces {
                assert_eq!(piece.first_output % multiple, 0, "{piece:?}");
                let work = u64::from(piece.count) * u64::from(piece.output_count) * flops;
                let least = piece.count <= 1 && piece.output_count <= multiple * 128_u32.div_ceil(multiple);
                assert!(work <= most.flops || least, "{piece:?} takes {work}");
                assert!(u64::from(piece.count) <= most.squares, "{piece:?}");
                for s in piece.first..piece.first + piece.count {
                    for o in piece.first_output..piece.first_output + piece.output_count {
                        seen[(s * outputs + o) as usize] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{whole:?}");
            assert!(!pieces.is_empty(), "a step over nothing still applies its epilogue");
        }
    }
}
