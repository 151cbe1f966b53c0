//! Squared per-sample weight gradients of a convolution.

use std::ops::Range;

use rayon::prelude::*;

use super::Mode;
use super::cases::{self, Numbers};
use super::product::{Factors, Form, Scratch, Store, products, sum_of_runs, windows};
use super::registers::Left;
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{
    Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Slice, noise, vectorised, widen_into,
};
use crate::kernels::shader;
use crate::reference;
use crate::shape::DType;

/// Sum over squares of squared weight gradients of a convolution in one, two or three dimensions:
///
/// ```text
/// out[o, c, k] ← decay · out[o, c, k]
///     + gain · Σ_s weight[s] · (Σ_{n ∈ s} Σ_p gradient_scale · b[n, o, p] · a[n, c, stride·p + dilation·k − padding])²
/// ```
///
/// with p over output positions, k over kernel offsets (both d, h, w), and a zero outside of the input. Lower ranks have leading
/// sizes of 1. With groups, c counts the channels of o's group alone.
///
/// - `input`        a `[n, c, d, h, w]`, f32, f16 or bf16
/// - `grad_output`  b `[n, o, d, h, w]`, f32, f16 or bf16; gradient of the *summed* loss
/// - `weight`       `[s]`, f32, one for each `fold` consecutive samples
/// - `out`          `[o, c / groups, kernel d, h, w]`, f32
///
/// **Transposed convolution.** Its output y[n, c, stride·p + dilation·k − padding] += x[n, o, p] · W[o, c, k] has the weight gradient
/// Σ_p x[n, o, p] · ∂ℓ/∂y[n, c, stride·p + dilation·k − padding]: the sum above with `grad_output` bound to x and `input` to the
/// gradient at y. That is exact, for groups too; the result is `[in, out / groups, kernel…]`, as transposed convolutions store it.
/// `output_padding` only makes y larger. (`gradient_scale` then scales x, which is the same for the product.)
///
/// A [`Mode`] other than squares sums or stores the gradients themselves; `out` is then of the weight's shape, or
/// `[s, output_count, c / groups, kernel…]`.
///
/// Patches are read where they lie: nothing is unfolded; the host copies the input rows of one block of positions, with their
/// padding, for one tile at a time. `grad_output` may be smaller than input, kernel and stride allow: what no position reaches adds nothing.
/// Inputs are to be finite: where a group is too narrow for a matrix product, the host multiplies some by zeros, and elements that do not see an
/// infinite one become NaN with those that do.
///
/// Must move a, b and out once; 2·n·p·o·c/groups·k operations and 3·s for each element. Bitwise repeatable: each element has one owner and a
/// fixed order. No samples or no positions: the sums are zeros. Definition: [`reference::fisher::conv`].
/// Cf. Dangel et al., *BackPACK* (2020), `SumGradSquared`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSq {
    /// The shader's form.
    pub form: Form,
    /// What becomes of the gradients.
    pub mode: Mode,
    /// Storage of the input.
    pub input: DType,
    /// Storage of the output's gradient.
    pub grad_output: DType,
    /// Whether the old value is not read.
    pub overwrite: bool,
}

crate::params! {
    /// The numbers of one [`ConvSq`] step.
    pub struct ConvSqParams {
        /// Samples in the buffers.
        samples: u32,
        /// Samples a square, at least 1.
        fold: u32,
        /// The first square of this step.
        first: u32,
        /// Squares of this step.
        count: u32,
        /// Input channels.
        channels: u32,
        /// Output channels.
        outputs: u32,
        /// Groups, which divide both.
        groups: u32,
        /// The first output channel of this step.
        first_output: u32,
        /// Output channels of this step: inside one group, or whole groups.
        output_count: u32,
        /// The first output that `out` holds, where a step's result is not in a buffer of the whole weight.
        out_first: u32,
        /// Input depth.
        input_d: u32,
        /// Input height.
        input_h: u32,
        /// Input width.
        input_w: u32,
        /// Depth of the output's gradient.
        grad_d: u32,
        /// Height of the output's gradient.
        grad_h: u32,
        /// Width of the output's gradient.
        grad_w: u32,
        /// Kernel depth.
        kernel_d: u32,
        /// Kernel height.
        kernel_h: u32,
        /// Kernel width.
        kernel_w: u32,
        /// Stride along the depth.
        stride_d: u32,
        /// Stride along the height.
        stride_h: u32,
        /// Stride along the width.
        stride_w: u32,
        /// Zeros before and after the depth.
        padding_d: u32,
        /// Zeros before and after the height.
        padding_h: u32,
        /// Zeros before and after the width.
        padding_w: u32,
        /// Distance of kernel elements along the depth.
        dilation_d: u32,
        /// Distance of kernel elements along the height.
        dilation_h: u32,
        /// Distance of kernel elements along the width.
        dilation_w: u32,
        /// Factor of the old value.
        decay: f32,
        /// Factor of the sum.
        gain: f32,
        /// Factor of `grad_output`.
        gradient_scale: f32,
    }
}

crate::args! {
    /// The buffers of one [`ConvSq`] step.
    pub struct ConvSqArgs / ConvSqSlices {
        /// The layer's input `[n, c, d, h, w]`.
        read input,
        /// The gradient at the layer's output `[n, o, d, h, w]`.
        read grad_output,
        /// One weight a square `[s]`.
        read weight,
        /// The result `[o, c / groups, d, h, w]`.
        write out,
    }
}

/// The last output position plus one along one axis, for an input of `input`: ⌊(input + 2·padding − dilation·(kernel − 1) − 1) / stride⌋ + 1,
/// none where the kernel is larger than the padded input.
fn reach(input: u64, kernel: u64, stride: u64, padding: u64, dilation: u64) -> u64 {
    (input + 2 * padding).checked_sub(dilation * (kernel - 1) + 1).map_or(0, |room| room / stride + 1)
}

impl ConvSqParams {
    fn input(&self) -> [u64; 3] {
        [self.input_d, self.input_h, self.input_w].map(u64::from)
    }

    fn grad(&self) -> [u64; 3] {
        [self.grad_d, self.grad_h, self.grad_w].map(u64::from)
    }

    fn kernel(&self) -> [u64; 3] {
        [self.kernel_d, self.kernel_h, self.kernel_w].map(u64::from)
    }

    fn stride(&self) -> [u64; 3] {
        [self.stride_d, self.stride_h, self.stride_w].map(u64::from)
    }

    fn padding(&self) -> [u64; 3] {
        [self.padding_d, self.padding_h, self.padding_w].map(u64::from)
    }

    fn dilation(&self) -> [u64; 3] {
        [self.dilation_d, self.dilation_h, self.dilation_w].map(u64::from)
    }

    /// Blocks, rows and columns of this step: groups, output channels of one, weight elements of an output channel.
    fn matrices(&self) -> (u64, u64, u64) {
        let [channels, outputs, groups, count] =
            [self.channels, self.outputs, self.groups, self.output_count].map(u64::from);
        let rows = (outputs / groups).min(count);
        let columns = channels / groups * self.kernel().iter().product::<u64>();
        (count.checked_div(rows).unwrap_or(0), rows, columns)
    }

    /// Windows of an output channel's weight, for [`Form::Window`].
    fn windows(&self) -> u64 {
        let channels = u64::from(self.channels) / u64::from(self.groups).max(1);
        channels * u64::from(self.kernel_d) * windows(self.kernel_h, self.kernel_w)
    }

    /// What has no meaning, or would leave u32 in the shader.
    fn check(&self) -> Result<()> {
        let op = ConvSq::NAME;
        let refuse = |problem: String| Err(Error::argument(op, problem));
        let Self { channels, outputs, groups, first_output, output_count, .. } = *self;
        if groups == 0 || !channels.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
            return refuse(format!(
                "{groups} groups do not divide {channels} input and {outputs} output channels"
            ));
        }
        let of_group = (outputs / groups).max(1);
        let inside = first_output % of_group + output_count <= of_group;
        let whole = first_output % of_group == 0 && output_count % of_group == 0;
        if !inside && !whole {
            return refuse(format!(
                "outputs {first_output}..{} are neither inside a group of {of_group} nor whole groups",
                u64::from(first_output) + u64::from(output_count)
            ));
        }
        for axis in 0..3 {
            let name = ["d", "h", "w"][axis];
            let [input, grad, kernel] = [self.input(), self.grad(), self.kernel()].map(|sizes| sizes[axis]);
            let [stride, padding, dilation] =
                [self.stride(), self.padding(), self.dilation()].map(|sizes| sizes[axis]);
            if kernel == 0 || stride == 0 || dilation == 0 {
                return refuse(format!("kernel, stride and dilation of axis {name} must be at least 1"));
            }
            let reach = reach(input, kernel, stride, padding, dilation);
            if grad > reach {
                return Err(Error::shape(
                    op,
                    format!("grad_output, axis {name},"),
                    format!(
                        "at most {reach} (input {input}, kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation})"
                    ),
                    grad.to_string(),
                ));
            }
            // The shader places patches with i32.
            let max = i32::MAX as u64;
            let asked = input + 2 * padding;
            if asked > max {
                return Err(Error::Limit { op: op.into(), limit: "padded input".into(), max, asked });
            }
        }
        Ok(())
    }
}

impl Kernel for ConvSq {
    const NAME: &'static str = "fisher.conv_sq";
    type Params = ConvSqParams;
    type Args = ConvSqArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        self.form.parts(shader!("fisher/conv_sq.wgsl"), shader!("lib/product_gather.wgsl"))
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        super::overrides(self.form, self.mode, self.input, self.grad_output, self.overwrite)
    }

    fn launch(&self, p: &ConvSqParams, args: &ConvSqArgs, caps: &Caps) -> Result<[u32; 3]> {
        super::check_range(Self::NAME, "outputs", (p.first_output, p.output_count), p.outputs.into())?;
        p.check()?;
        let [samples, fold, channels, outputs] = [p.samples, p.fold, p.channels, p.outputs].map(u64::from);
        super::check_fold(Self::NAME, fold)?;
        let squares = samples.div_ceil(fold);
        super::check_range(Self::NAME, "squares", (p.first, p.count), squares)?;
        let len = |first: [u64; 2], sizes: [u64; 3]| {
            super::len(Self::NAME, &[first[0], first[1], sizes[0], sizes[1], sizes[2]])
        };
        let input = len([samples, channels], p.input())?;
        args.input.expect(Self::NAME, "input", input, Some(self.input.into()))?;
        let grad_output = len([samples, outputs], p.grad())?;
        args.grad_output.expect(Self::NAME, "grad_output", grad_output, Some(self.grad_output.into()))?;
        args.weight.expect(Self::NAME, "weight", squares, Some(DType::F32.into()))?;
        let (blocks, rows, columns) = p.matrices();
        let range = (p.out_first, p.first_output, p.output_count);
        super::check_out(Self::NAME, self.mode, &args.out, range, [squares, outputs, columns])?;
        let positions = [p.grad_d, p.grad_h, p.grad_w].map(u64::from).iter().product();
        self.form.check_positions(Self::NAME, &[positions])?;
        self.form.check_window(Self::NAME, Some([p.stride_w, p.dilation_w]))?;
        let columns = if self.form == Form::Window { p.windows() } else { columns };
        self.form.grid(Self::NAME, self.mode.results(p.count.into()) * blocks, rows, columns, caps)
    }

    fn iterations(&self, p: &ConvSqParams, _: &ConvSqArgs) -> u64 {
        if self.form == Form::Window {
            // Three loops, of which each counts one more than it turns.
            let [lines, width] = [u64::from(p.grad_d) * u64::from(p.grad_h), p.grad_w.into()];
            let of_sample = lines.saturating_mul(width + 2).saturating_add(2);
            let of_square = of_sample.saturating_mul(p.fold.min(p.samples).into()).saturating_add(2);
            return self.mode.squares_of_one(p.count).saturating_mul(of_square).saturating_add(1);
        }
        let positions =
            [p.grad_d, p.grad_h, p.grad_w].map(u64::from).into_iter().fold(1, u64::saturating_mul);
        let positions = positions.saturating_mul(p.fold.min(p.samples).into());
        self.form.iterations(self.mode.squares_of_one(p.count), positions)
    }

    fn host(&self, p: &ConvSqParams, args: ConvSqSlices<'_>) {
        let (_, rows, columns) = p.matrices();
        let (rows, columns) = (rows as usize, columns as usize);
        let layer = Layer::new(p, args.input, args.grad_output, args.weight.cast(), self.mode.squared());
        let squares = p.first as usize..p.first as usize + p.count as usize;
        let store = Store { overwrite: self.overwrite, decay: p.decay, gain: p.gain };
        let written =
            super::written(self.mode, &squares, (p.first_output - p.out_first, p.output_count), columns);
        let first = p.first_output as usize;
        super::for_results(self.mode, squares, &mut args.out.cast()[written], |squares, out| {
            if layer.is_narrow() {
                let tasks = (p.output_count as usize).div_ceil(OUTPUTS);
                out.par_chunks_mut(OUTPUTS * columns).enumerate().for_each(|(task, out)| {
                    let start = first + task * OUTPUTS;
                    let outputs = start..start + out.len() / columns;
                    let sums = sum_of_runs(&squares, tasks, &mut Narrow::default(), |scratch, run| {
                        vectorised(
                            #[inline(always)]
                            || layer.narrow(&outputs, run, scratch),
                        )
                    });
                    store.apply(out, &sums);
                });
                return;
            }
            out.par_chunks_mut(rows * columns).enumerate().for_each(|(block, out)| {
                let group = Group { layer: &layer, first_output: first + block * rows };
                products(&group, (rows, columns), squares.clone(), out, store);
            });
        });
    }

    fn cost(&self, p: &ConvSqParams, _: &ConvSqArgs) -> Cost {
        let samples = super::samples_of(p.samples, p.fold, p.first, p.count);
        let (blocks, rows, columns) = p.matrices();
        let [channels, groups] = [p.channels, p.groups].map(u64::from);
        let input: u64 = blocks * (channels / groups.max(1)) * p.input().iter().product::<u64>();
        let positions: u64 = p.grad().iter().product();
        let elements = blocks * rows * columns;
        let results = self.mode.results(p.count.into()) * elements;
        let factors =
            samples * (input * self.input.size() + blocks * rows * positions * self.grad_output.size());
        Cost {
            bytes: factors + results * if self.overwrite { 4 } else { 8 },
            flops: elements * (2 * samples * positions + 3 * u64::from(p.count)),
        }
    }
}

/// A layer's sizes and buffers as the host uses them; sizes are d, h, w.
struct Layer<'a> {
    squared: bool,
    values: Slice<'a>,
    grad_output: Slice<'a>,
    weight: &'a [f32],
    samples: usize,
    fold: usize,
    channels: usize,
    outputs: usize,
    groups: usize,
    input: [usize; 3],
    grad: [usize; 3],
    kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    dilation: [usize; 3],
    gradient_scale: f32,
}

/// One weight element of an output channel: an input channel, and how far from the first of its patch: in planes of
/// the kernel, and in rows and columns of the input.
#[derive(Clone, Copy)]
struct Tap {
    channel: usize,
    plane: usize,
    row: usize,
    column: usize,
}

/// Positions of a sample that are taken together: `width` of one row, or all of some rows of one plane.
#[derive(Clone, Copy)]
struct Block {
    d: usize,
    h: usize,
    w: usize,
    rows: usize,
    width: usize,
}

/// At most so many positions are taken together, if they are not all of one row.
const POSITIONS: usize = 1024;

impl<'a> Layer<'a> {
    fn new(
        p: &ConvSqParams,
        values: Slice<'a>,
        grad_output: Slice<'a>,
        weight: &'a [f32],
        squared: bool,
    ) -> Self {
        let sizes = |sizes: [u64; 3]| sizes.map(|size| size as usize);
        Self {
            squared,
            values,
            grad_output,
            weight,
            samples: p.samples as usize,
            fold: p.fold as usize,
            channels: p.channels as usize,
            outputs: p.outputs as usize,
            groups: p.groups as usize,
            input: sizes(p.input()),
            grad: sizes(p.grad()),
            kernel: sizes(p.kernel()),
            stride: sizes(p.stride()),
            padding: sizes(p.padding()),
            dilation: sizes(p.dilation()),
            gradient_scale: p.gradient_scale,
        }
    }

    fn positions(&self) -> usize {
        self.grad.iter().product()
    }

    /// A column of an output channel's weights, with its channel counted over all groups.
    fn tap(&self, output: usize, column: usize) -> Tap {
        let [d, h, w] = self.kernel;
        let group = output / (self.outputs / self.groups);
        Tap {
            channel: group * (self.channels / self.groups) + column / (d * h * w),
            plane: column / (h * w) % d,
            row: column / w % h * self.dilation[1],
            column: column % w * self.dilation[2],
        }
    }

    /// The samples of a square.
    fn samples_of(&self, square: usize) -> Range<usize> {
        square * self.fold..self.samples.min((square + 1) * self.fold)
    }

    /// The block that starts where `positions` of a sample do.
    fn block(&self, positions: &Range<usize>) -> Block {
        let [_, height, width] = self.grad;
        let (row, w) = (positions.start / width, positions.start % width);
        let (d, h) = (row / height, row % height);
        let rows = self.block_rows().min(height - h).min(positions.len().div_ceil(width));
        Block { d, h, w, rows, width: self.block_width().min(width - w) }
    }

    fn block_rows(&self) -> usize {
        (POSITIONS / self.grad[2]).clamp(1, self.grad[1])
    }

    fn block_width(&self) -> usize {
        POSITIONS.min(self.grad[2])
    }

    /// Phases of an axis that taps meet: elements of the input a stride apart lie side by side in a window, each such phase
    /// behind the other.
    fn phases(&self, axis: usize) -> usize {
        self.stride[axis].min(self.reach(axis) + 1)
    }

    /// How far the last tap is from the first along an axis of the input.
    fn reach(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis]
    }

    /// Rows of a phase: those that the first tap meets, and further ones up to the last tap's.
    fn phase_height(&self) -> usize {
        self.block_rows() + self.reach(1) / self.stride[1]
    }

    /// Elements of a row of a phase: from one row of positions to the next, for every tap.
    fn pitch(&self) -> usize {
        self.block_width() + self.reach(2) / self.stride[2]
    }

    /// Where a tap's elements start in a window whose first channel is `first`.
    fn start(&self, tap: Tap, first: usize) -> usize {
        let [_, down, across] = self.stride;
        let plane = (tap.channel - first) * self.kernel[0] + tap.plane;
        let phase = (plane * self.phases(1) + tap.row % down) * self.phases(2) + tap.column % across;
        (phase * self.phase_height() + tap.row / down) * self.pitch() + tap.column / across
    }

    /// Copies what a block of positions meets of some channels, with zeros outside of the input.
    #[inline(always)]
    fn window<'s>(
        &self,
        sample: usize,
        channels: Range<usize>,
        block: Block,
        scratch: &'s mut Scratch,
    ) -> &'s [f32] {
        let (planes, rows, columns) = (self.kernel[0], self.phases(1), self.phases(2));
        let size = self.phase_height() * self.pitch();
        let out = scratch.take(channels.len() * planes * rows * columns * size);
        for (at, out) in out.chunks_exact_mut(size).enumerate() {
            let (plane, row, column) = (at / columns / rows, at / columns % rows, at % columns);
            let (channel, d) = (channels.start + plane / planes, plane % planes * self.dilation[0]);
            let inside = self.inside(block.w, column);
            for (h, out) in out.chunks_exact_mut(self.pitch()).enumerate() {
                let h = (block.h + h) * self.stride[1] + row;
                match self.row(sample, channel, block.d * self.stride[0] + d, h) {
                    Some(start) => {
                        out[..inside.start].fill(0.0);
                        out[inside.end..].fill(0.0);
                        let first = (block.w + inside.start) * self.stride[2] + column;
                        self.fetch(start + first - self.padding[2], &mut out[inside.clone()]);
                    }
                    None => out.fill(0.0),
                }
            }
        }
        out
    }

    /// The first element of an input row, if the row, counted with the padding, lies inside and has elements.
    #[inline(always)]
    fn row(&self, sample: usize, channel: usize, d: usize, h: usize) -> Option<usize> {
        let inside =
            |axis: usize, at: usize| at.checked_sub(self.padding[axis]).filter(|&at| at < self.input[axis]);
        let (d, h) = (inside(0, d)?, inside(1, h)?);
        Some((((sample * self.channels + channel) * self.input[0] + d) * self.input[1] + h) * self.input[2])
    }

    /// The elements of a phase's row that lie inside of the input, where position `w` is the first. Element q lies at
    /// column (w + q) · stride + phase, counted with the padding.
    fn inside(&self, w: usize, phase: usize) -> Range<usize> {
        let first_from =
            |column: usize| column.saturating_sub(phase).div_ceil(self.stride[2]).saturating_sub(w);
        let end = first_from(self.padding[2] + self.input[2]).min(self.pitch());
        first_from(self.padding[2]).min(end)..end
    }

    /// Input elements from `start`, a stride apart.
    #[inline(always)]
    fn fetch(&self, start: usize, out: &mut [f32]) {
        let stride = self.stride[2];
        if stride == 1 {
            return widen_into(self.values.range(start, out.len()), out);
        }
        let span = self.values.range(start, (out.len() - 1) * stride + 1);
        if span.element() == DType::F32.into() {
            for (out, &value) in out.iter_mut().zip(span.cast::<f32>().iter().step_by(stride)) {
                *out = value;
            }
            return;
        }
        for (i, out) in out.iter_mut().enumerate() {
            widen_into(span.range(i * stride, 1), std::slice::from_mut(out));
        }
    }

    /// Output gradients of consecutive positions of one channel, scaled.
    #[inline(always)]
    fn grads(&self, sample: usize, output: usize, positions: Range<usize>, out: &mut [f32]) {
        let start = (sample * self.outputs + output) * self.positions() + positions.start;
        widen_into(self.grad_output.range(start, positions.len()), out);
        if self.gradient_scale != 1.0 {
            out.iter_mut().for_each(|b| *b *= self.gradient_scale);
        }
    }

    /// Whether a group's matrix is too small for a matrix product to pay: depthwise and its like.
    fn is_narrow(&self) -> bool {
        self.outputs / self.groups < 4
            || self.channels / self.groups * self.kernel.iter().product::<usize>() < 4
    }

    /// The sums of some output channels over a run of squares, each element as a dot product.
    #[inline(always)]
    fn narrow(&self, outputs: &Range<usize>, squares: Range<usize>, scratch: &mut Narrow) -> Vec<f32> {
        let columns = self.channels / self.groups * self.kernel.iter().product::<usize>();
        let mut sums = vec![0.0; outputs.len() * columns];
        for square in squares.filter(|&square| self.weight[square] != 0.0) {
            for (output, sums) in outputs.clone().zip(sums.chunks_exact_mut(columns)) {
                self.narrow_square(output, square, scratch);
                for (sum, lanes) in sums.iter_mut().zip(&scratch.products) {
                    let p: f32 = lanes.iter().sum();
                    *sum += self.weight[square] * if self.squared { p * p } else { p };
                }
            }
        }
        sums
    }

    /// The products of one square.
    #[inline(always)]
    fn narrow_square(&self, output: usize, square: usize, scratch: &mut Narrow) {
        let columns = self.channels / self.groups * self.kernel.iter().product::<usize>();
        scratch.products.clear();
        scratch.products.resize(columns, [0.0; LANES]);
        for sample in self.samples_of(square) {
            let mut start = 0;
            while start < self.positions() {
                start += self.narrow_block(sample, output, start, scratch);
            }
        }
    }

    /// Adds a block of positions to each element's product; tells how many.
    ///
    /// Rows of gradients lie as far apart as those of the window, with zeros between them, so that all of them and a tap's elements
    /// make one long dot product: rows of images are shorter than a few vectors.
    #[inline(always)]
    fn narrow_block(&self, sample: usize, output: usize, start: usize, scratch: &mut Narrow) -> usize {
        let block = self.block(&(start..self.positions()));
        let pitch = self.pitch();
        let first = self.tap(output, 0).channel;
        let window =
            self.window(sample, first..first + self.channels / self.groups, block, &mut scratch.window);
        let grads = scratch.grads.take(block.rows * pitch);
        for (row, grads) in grads.chunks_exact_mut(pitch).enumerate() {
            let (grads, gap) = grads.split_at_mut(block.width);
            let start = start + row * block.width;
            self.grads(sample, output, start..start + block.width, grads);
            gap.fill(0.0);
        }
        let grads = &grads[..(block.rows - 1) * pitch + block.width];
        for (column, product) in scratch.products.iter_mut().enumerate() {
            let start = self.start(self.tap(output, column), first);
            dot(grads, &window[start..][..grads.len()], product);
        }
        block.rows * block.width
    }
}

/// Output channels that follow each other in memory and are taken together: one alone is read too shortly at a time to be
/// fetched ahead.
const OUTPUTS: usize = 16;

/// Interleaved sums of a dot product: four vectors that do not wait for each other.
const LANES: usize = 64;

/// Scratch of the narrow path.
#[derive(Default)]
struct Narrow {
    window: Scratch,
    grads: Scratch,
    products: Vec<[f32; LANES]>,
}

/// Adds the products of a and b to the sums.
#[inline(always)]
fn dot(a: &[f32], b: &[f32], sums: &mut [f32; LANES]) {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    // In registers, not in memory.
    let mut lanes = *sums;
    for (a, b) in a.iter().zip(b) {
        multiply_add(a, b, &mut lanes);
    }
    *sums = lanes;
    let (a, a_rest) = a_rest.as_chunks::<16>();
    let (b, b_rest) = b_rest.as_chunks::<16>();
    for ((a, b), sums) in a.iter().zip(b).zip(sums.as_chunks_mut::<16>().0) {
        multiply_add(a, b, sums);
    }
    multiply_add(a_rest, b_rest, sums);
}

#[inline(always)]
fn multiply_add(a: &[f32], b: &[f32], sums: &mut [f32]) {
    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
        *sum += a * b;
    }
}

/// One group of a layer, or outputs inside one.
struct Group<'a> {
    layer: &'a Layer<'a>,
    first_output: usize,
}

impl Group<'_> {
    /// The sample and its positions that a block of a square's positions is.
    fn sample(&self, square: usize, positions: &Range<usize>) -> (usize, Range<usize>) {
        let all = self.layer.positions();
        let (sample, start) = (positions.start / all, positions.start % all);
        (self.layer.samples_of(square).start + sample, start..start + positions.len())
    }

    fn tap(&self, row: usize) -> Tap {
        self.layer.tap(self.first_output, row)
    }
}

/// Rows are weight elements of an output channel, whose patches lie in a window as they are; columns are output channels.
impl Factors for Group<'_> {
    const TRANSPOSED: bool = true;
    const TILE: (usize, usize) = (768, 128);

    fn squared(&self) -> bool {
        self.layer.squared
    }

    fn positions(&self, square: usize) -> usize {
        self.layer.samples_of(square).len() * self.layer.positions()
    }

    fn block(&self, _: usize, positions: Range<usize>) -> Range<usize> {
        let all = self.layer.positions();
        let start = positions.start % all;
        let block = self.layer.block(&(start..all));
        positions.start..positions.start + block.rows * block.width
    }

    fn weight(&self, square: usize) -> f32 {
        self.layer.weight[square]
    }

    fn start(&self, rows: &Range<usize>, row: usize) -> usize {
        self.layer.start(self.tap(row), self.tap(rows.start).channel)
    }

    #[inline(always)]
    fn left<'a>(
        &'a self,
        square: usize,
        positions: &Range<usize>,
        rows: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Left<'a> {
        let (sample, positions) = self.sample(square, positions);
        let channels = self.tap(rows.start).channel..self.tap(rows.end - 1).channel + 1;
        let block = self.layer.block(&positions);
        let values = self.layer.window(sample, channels, block, scratch);
        Left { values, run: block.width, pitch: self.layer.pitch(), step: 1 }
    }

    #[inline(always)]
    fn right(
        &self,
        square: usize,
        positions: &Range<usize>,
        columns: &Range<usize>,
        scratch: &mut Scratch,
        out: &mut [f32],
        stride: usize,
    ) {
        let (sample, positions) = self.sample(square, positions);
        out.chunks_exact_mut(stride).for_each(|out| out[columns.len()..].fill(0.0));
        // One channel after the other, each read from its first position to its last: reading a few positions of all channels at a time
        // keeps what is written in a first-level cache, but waits for each of them.
        let line = scratch.take(positions.len());
        for (column, output) in columns.clone().enumerate() {
            self.layer.grads(sample, self.first_output + output, positions.clone(), line);
            for (out, &b) in out.iter_mut().skip(column).step_by(stride).zip(&*line) {
                *out = b;
            }
        }
    }
}

/// A layer and its input, for cases: sizes are d, h, w.
#[derive(Clone, Copy, Debug)]
struct Shape {
    samples: u32,
    fold: u32,
    channels: u32,
    outputs: u32,
    groups: u32,
    input: [u32; 3],
    kernel: [u32; 3],
    stride: [u32; 3],
    padding: [u32; 3],
    dilation: [u32; 3],
    /// Output positions that transposed convolutions have fewer of than fit.
    missing: u32,
}

impl Shape {
    /// `axes` of 1 to 3 dimensions have the same sizes; `input` is given for each.
    fn new<const N: usize>(
        (channels, input): (u32, [u32; N]),
        (outputs, kernel, stride, padding, dilation): (u32, u32, u32, u32, u32),
        groups: u32,
    ) -> Self {
        let axes =
            |value: u32, none: u32| std::array::from_fn(|axis| if axis + N < 3 { none } else { value });
        Self {
            samples: 3,
            fold: 1,
            channels,
            outputs,
            groups,
            input: std::array::from_fn(|axis| if axis + N < 3 { 1 } else { input[axis + N - 3] }),
            kernel: axes(kernel, 1),
            stride: axes(stride, 1),
            padding: axes(padding, 0),
            dilation: axes(dilation, 1),
            missing: 0,
        }
    }

    fn grad(&self) -> [u32; 3] {
        std::array::from_fn(|axis| {
            let [input, kernel, stride, padding, dilation] =
                [self.input, self.kernel, self.stride, self.padding, self.dilation]
                    .map(|sizes| u64::from(sizes[axis]));
            let reach = reach(input, kernel, stride, padding, dilation);
            u32::try_from(reach).expect("cases are small") - if axis == 2 { self.missing } else { 0 }
        })
    }

    fn params(&self, numbers: Numbers) -> ConvSqParams {
        let [grad_d, grad_h, grad_w] = self.grad();
        ConvSqParams {
            samples: self.samples,
            fold: self.fold,
            first: 0,
            count: self.samples.div_ceil(self.fold),
            channels: self.channels,
            outputs: self.outputs,
            groups: self.groups,
            first_output: 0,
            output_count: self.outputs,
            out_first: 0,
            input_d: self.input[0],
            input_h: self.input[1],
            input_w: self.input[2],
            grad_d,
            grad_h,
            grad_w,
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
            decay: numbers.decay,
            gain: numbers.gain,
            gradient_scale: numbers.gradient_scale,
        }
    }
}

/// BackPACK's catalogue of shapes (`test/extensions/firstorder`), then what it leaves out: groups, uneven sizes, edges.
fn shapes() -> Vec<Shape> {
    let one = Shape::new((3, [7]), (2, 2, 1, 0, 1), 1);
    let mut shapes = vec![
        one,
        Shape::new((2, [7]), (3, 2, 2, 0, 2), 1),
        Shape::new((3, [7]), (2, 2, 2, 1, 1), 1),
        Shape::new((3, [8]), (6, 2, 4, 2, 3), 1),
        Shape::new((3, [7]), (2, 2, 4, 2, 1), 1),
        Shape::new((3, [7, 7]), (2, 2, 1, 0, 1), 1),
        Shape::new((2, [7, 7]), (3, 2, 2, 0, 2), 1),
        Shape::new((3, [7, 7]), (2, 2, 2, 1, 1), 1),
        Shape::new((3, [8, 8]), (6, 2, 4, 2, 3), 1),
        Shape::new((3, [2, 7, 7]), (2, 2, 1, 0, 1), 1),
        Shape::new((2, [3, 7, 7]), (3, 2, 2, 0, 2), 1),
        Shape::new((3, [4, 8, 8]), (6, 2, 4, 2, 3), 1),
        // Groups of 2 and 3, depthwise, depthwise with a multiplier, narrow input.
        Shape::new((4, [7, 6]), (6, 3, 1, 1, 1), 2),
        Shape::new((6, [5, 7]), (9, 2, 2, 1, 1), 3),
        Shape::new((8, [6, 5]), (16, 3, 1, 1, 1), 2),
        Shape::new((5, [6, 7]), (5, 3, 1, 1, 1), 5),
        Shape::new((5, [9, 7]), (10, 3, 2, 1, 2), 5),
        Shape::new((1, [9]), (7, 1, 1, 0, 1), 1),
        // Columns and rows around a tile, more positions than a depth of workgroup memory or a product of the host.
        Shape::new((7, [4, 5]), (65, 3, 1, 1, 1), 1),
        Shape::new((15, [3, 3]), (9, 3, 1, 1, 1), 1),
        Shape::new((2, [41, 27]), (5, 3, 1, 1, 1), 1),
        // A kernel larger than the input it sees, and a row that never meets the input.
        Shape::new((2, [2, 2]), (4, 3, 1, 2, 2), 1),
        Shape::new((2, [1]), (4, 1, 1, 3, 1), 1),
    ];
    shapes.extend([
        Shape { kernel: [1, 3, 2], stride: [1, 2, 1], padding: [0, 0, 2], ..shapes[12] },
        Shape { samples: 0, ..one },
        Shape { samples: 1, ..one },
        Shape { samples: 40, ..one },
        Shape { samples: 7, fold: 3, ..one },
        Shape { samples: 7, fold: 3, ..shapes[14] },
        Shape { samples: 5, fold: 2, ..shapes[15] },
        Shape { samples: 4, fold: 4, ..shapes[6] },
        Shape { missing: 1, ..shapes[6] },
        // Rows and planes around a block of positions of the host (1024), and a tile of its (768 × 128).
        Shape::new((2, [1030]), (3, 3, 1, 1, 2), 1),
        Shape::new((4, [1300]), (4, 3, 2, 2, 2), 4),
        Shape::new((1, [2, 24, 23]), (4, 2, 1, 1, 1), 1),
        Shape { samples: 1, ..Shape::new((86, [3, 4]), (129, 3, 1, 1, 1), 1) },
    ]);
    shapes
}

impl Checked for ConvSq {
    fn cases() -> Vec<Case<Self>> {
        let mut out = Vec::new();
        let shapes = shapes();
        for form in cases::FORMS.into_iter().chain([Form::Window]) {
            let kernel = plain(form);
            let fits = |shape: &&Shape| form != Form::Window || shape.stride[2] == shape.dilation[2];
            out.extend(
                shapes.iter().filter(fits).map(|&shape| case(kernel, shape, Numbers::OVERWRITE, None)),
            );
            let (grouped, depthwise) = (shapes[14], shapes[16]);
            for numbers in [Numbers::ADD, Numbers::EMA, Numbers::SCALED] {
                out.extend([grouped, depthwise].map(|shape| case(kernel, shape, numbers, None)));
            }
            for mode in [Mode::Gradients, Mode::Each] {
                let kernel = Self { mode, ..kernel };
                for shape in [shapes[0], shapes[5], depthwise, shapes[18], shapes[24], shapes[27]] {
                    out.push(case(kernel, shape, Numbers::OVERWRITE, None));
                }
                out.push(case(kernel, grouped, Numbers::SCALED, None));
                let range = Shape { samples: 9, fold: 2, ..grouped };
                out.push(case(kernel, range, Numbers::ADD, Some([1, 3, 8, 8])));
                out.push(case(kernel, range, Numbers::ADD, Some([1, 3, 9, 5])));
                let kernel = Self { input: DType::BF16, grad_output: DType::F16, ..kernel };
                out.push(case(kernel, depthwise, Numbers::EMA, None));
            }
            let range = Shape { samples: 9, fold: 2, ..grouped };
            out.push(case(kernel, range, Numbers::ADD, Some([1, 3, 8, 8])));
            out.push(case(kernel, range, Numbers::ADD, Some([1, 3, 9, 5])));
            for mode in [Mode::Squares, Mode::Gradients] {
                let range = case(Self { mode, ..kernel }, range, Numbers::ADD, Some([1, 3, 9, 5]));
                // Weights of an output: 4 channels of a group, 3 × 3.
                let mut held = cases::held(range, 8 * 36..15 * 36);
                held.params.out_first = 8;
                out.push(held);
            }
            let range = Shape { samples: 4, ..depthwise };
            out.push(case(kernel, range, Numbers::ADD, Some([1, 2, 4, 6])));
            for (input, grad_output) in [
                (DType::F16, DType::F32),
                (DType::F32, DType::BF16),
                (DType::BF16, DType::BF16),
                (DType::F16, DType::F16),
            ] {
                let kernel = Self { input, grad_output, ..kernel };
                out.extend([grouped, depthwise].map(|shape| case(kernel, shape, Numbers::ADD, None)));
            }
        }
        out.extend(in_fours());
        out.extend(in_windows());
        out
    }

    fn bench(elements: u64) -> Bench<Self> {
        let channels = u32::try_from(elements.isqrt()).unwrap_or(u32::MAX).clamp(8, 64);
        layer(&Caps::host(), 16, channels, 1, 28)
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [(1, 16, 1, 8), (16, 64, 1, 28), (16, 256, 256, 28)]
            .map(|(samples, channels, groups, size)| layer(caps, samples, channels, groups, size))
            .into()
    }
}

/// Kernels around a window's four offsets, and rows around its slide.
fn in_windows() -> Vec<Case<ConvSq>> {
    let deep = Shape::new((2, [3, 9, 8]), (4, 2, 1, 1, 1), 2);
    let shapes = [
        Shape::new((6, [9, 11]), (6, 5, 1, 2, 1), 6),
        Shape::new((4, [12, 10]), (8, 7, 1, 3, 1), 4),
        Shape::new((3, [6, 20]), (3, 4, 1, 0, 1), 3),
        Shape::new((2, [23, 26]), (2, 9, 2, 4, 2), 2),
        Shape::new((3, [40]), (3, 8, 1, 4, 1), 3),
        Shape { kernel: [2, 5, 4], padding: [1, 2, 0], ..deep },
        Shape { input: [3, 9, 20], kernel: [3, 1, 6], stride: [1, 2, 3], dilation: [1, 1, 3], ..deep },
        Shape { samples: 5, fold: 2, ..deep },
    ];
    shapes.map(|shape| case(plain(Form::Window), shape, Numbers::OVERWRITE, None)).into()
}

/// Positions in multiples of four, whose samples and rows end inside of and between four of them.
fn in_fours() -> Vec<Case<ConvSq>> {
    let kernel = plain(Form::Quads);
    let shapes = [
        Shape::new((3, [8]), (6, 3, 1, 1, 1), 1),
        Shape::new((7, [4, 5]), (65, 3, 1, 1, 1), 1),
        Shape::new((2, [9, 8]), (5, 3, 2, 1, 2), 1),
        Shape::new((2, [4, 5, 3]), (17, 2, 1, 0, 1), 1),
        Shape { samples: 7, fold: 3, ..Shape::new((8, [6, 6]), (16, 3, 1, 1, 1), 2) },
        Shape { samples: 0, ..Shape::new((3, [8]), (6, 3, 1, 1, 1), 1) },
    ];
    let mut out: Vec<_> = shapes.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)).into();
    let range = Shape { samples: 9, fold: 2, ..shapes[4] };
    for mode in [Mode::Squares, Mode::Gradients, Mode::Each] {
        out.push(case(ConvSq { mode, ..kernel }, range, Numbers::ADD, Some([1, 3, 8, 8])));
    }
    for (input, grad_output) in [(DType::F16, DType::BF16), (DType::F32, DType::F16)] {
        out.push(case(ConvSq { input, grad_output, ..kernel }, shapes[1], Numbers::SCALED, None));
    }
    out
}

/// A 3 x 3 convolution that keeps channels and size; depthwise with as many groups as channels.
fn layer(caps: &Caps, samples: u32, channels: u32, groups: u32, size: u32) -> Bench<ConvSq> {
    let shape = Shape { samples, ..Shape::new((channels, [size, size]), (channels, 3, 1, 1, 1), groups) };
    let rows = u64::from(channels / groups);
    let positions = u64::from(size) * u64::from(size);
    let form = Form::of(caps, groups.into(), rows, 9 * rows).for_positions(&[positions]).for_window(
        caps,
        [1, 1],
        size,
        positions,
    );
    let map = u64::from(samples) * u64::from(channels) * u64::from(size) * u64::from(size);
    let floats = |len: u64, fill| (DType::F32.into(), len, fill);
    let kind = if groups == 1 { "" } else { "depthwise " };
    Bench {
        name: format!("n={samples} {channels} channels {kind}3x3 on {size}x{size} f32"),
        kernel: ConvSq { overwrite: true, ..plain(form) },
        params: shape.params(Numbers::OVERWRITE),
        buffers: vec![
            floats(map, Fill::Noise),
            floats(map, Fill::Noise),
            floats(samples.into(), Fill::Positive),
            floats(9 * u64::from(channels) * rows, Fill::Zero),
        ],
    }
}

fn plain(form: Form) -> ConvSq {
    let mode = Mode::Squares;
    ConvSq { form, mode, input: DType::F32, grad_output: DType::F32, overwrite: false }
}

/// `range`: the first square, their number, the first output, their number.
fn case(kernel: ConvSq, shape: Shape, numbers: Numbers, range: Option<[u32; 4]>) -> Case<ConvSq> {
    let kernel = ConvSq { overwrite: numbers.overwrite, ..kernel };
    let mut params = shape.params(numbers);
    if let Some([first, count, first_output, output_count]) = range {
        params = ConvSqParams { first, count, first_output, output_count, ..params };
    }
    let sizes = |sizes: [u32; 3]| sizes.map(|size| size as usize);
    let layer = reference::fisher::Conv {
        channels: shape.channels as usize,
        outputs: shape.outputs as usize,
        groups: shape.groups as usize,
        input: sizes(shape.input),
        grad: sizes(shape.grad()),
        kernel: sizes(shape.kernel),
        stride: sizes(shape.stride),
        padding: sizes(shape.padding),
        dilation: sizes(shape.dilation),
    };
    let (samples, fold) = (shape.samples as usize, shape.fold as usize);
    let of_input = layer.channels * layer.input.iter().product::<usize>();
    let of_grad = layer.outputs * layer.grad.iter().product::<usize>();
    let of_output = layer.channels / layer.groups * layer.kernel.iter().product::<usize>();
    let input = CaseBuffer::floats(kernel.input, &noise(1, samples * of_input));
    let grad_output = CaseBuffer::floats(kernel.grad_output, &numbers.grad_output(samples * of_grad));
    let weight = CaseBuffer::floats(DType::F32, &cases::weights(samples.div_ceil(fold), kernel.mode));
    let out = match kernel.mode {
        Mode::Each => numbers.out(samples.div_ceil(fold) * params.output_count as usize * of_output),
        _ => numbers.out(layer.outputs * of_output),
    };
    let (a, b, old) = (input.values(), grad_output.values(), out.values());
    let squares = params.first as usize..(params.first + params.count) as usize;
    let gradients = |a: &[f64], b: &[f64]| {
        let all = cases::gradients(samples, fold, |n| {
            let (a, b) = (&a[n * of_input..][..of_input], &b[n * of_grad..][..of_grad]);
            reference::fisher::conv(&layer, a, b)
        });
        all[squares.clone()].to_vec()
    };
    let magnitudes = gradients(&cases::abs(&a), &cases::abs(&b));
    let terms = fold * layer.grad.iter().product::<usize>();
    let weights = &weight.values()[squares.clone()];
    let first = params.first_output as usize * of_output;
    let elements = first..first + params.output_count as usize * of_output;
    let covered = cases::Covered { first: params.first as usize, elements };
    let terms = (&gradients(&a, &b)[..], &magnitudes[..], terms);
    let want = cases::wanted(kernel.mode, numbers, &covered, terms, weights, &old);
    Case {
        name: format!("{kernel:?} {shape:?} range={range:?} scale={:e}", numbers.gradient_scale),
        kernel,
        params,
        buffers: vec![input, grad_output, weight, out],
        want: vec![(3, want)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut ConvSqParams)) -> String {
        let shape = Shape::new((4, [7, 6]), (6, 3, 1, 1, 1), 2);
        let mut params = shape.params(Numbers::OVERWRITE);
        change(&mut params);
        params.check().expect_err("the change has no meaning").to_string()
    }

    #[test]
    fn what_has_no_meaning_is_refused_by_name() {
        assert!(refusal(|p| p.groups = 4).contains("4 groups do not divide 4 input and 6 output channels"));
        assert!(refusal(|p| p.groups = 0).contains("0 groups"));
        assert!(refusal(|p| p.stride_h = 0).contains("axis h must be at least 1"));
        assert!(refusal(|p| p.grad_w = 7).contains("grad_output, axis w, has 7, expected at most 6"));
        assert!(refusal(|p| p.kernel_h = 20).contains("expected at most 0"));
        assert!(
            refusal(|p| (p.first_output, p.output_count) = (2, 2)).contains("neither inside a group of 3")
        );
        assert!(refusal(|p| p.input_w = u32::MAX).contains("padded input is 2147483647"));
    }
}
