//! A layer as the host sees it: where the inputs of a block of positions lie, and copies of them.

use std::ops::Range;

use super::ConvSqParams;
use crate::kernel::{Slice, widen_into};
use crate::kernels::fisher::product::Scratch;
use crate::shape::DType;

/// A layer's sizes and buffers as the host uses them; sizes are d, h, w.
pub(super) struct Layer<'a> {
    pub(super) squared: bool,
    values: Slice<'a>,
    grad_output: Slice<'a>,
    pub(super) weight: &'a [f32],
    samples: usize,
    fold: usize,
    pub(super) channels: usize,
    pub(super) outputs: usize,
    pub(super) groups: usize,
    input: [usize; 3],
    grad: [usize; 3],
    pub(super) kernel: [usize; 3],
    stride: [usize; 3],
    padding: [usize; 3],
    dilation: [usize; 3],
    gradient_scale: f32,
}

/// One weight element of an output channel: an input channel, and how far from the first of its patch: in planes of
/// the kernel, and in rows and columns of the input.
#[derive(Clone, Copy)]
pub(super) struct Tap {
    pub(super) channel: usize,
    plane: usize,
    row: usize,
    column: usize,
}

/// Positions of a sample that are taken together: `width` of one row, or all of some rows of one plane.
#[derive(Clone, Copy)]
pub(super) struct Block {
    d: usize,
    h: usize,
    w: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
}

/// At most so many positions are taken together, if they are not all of one row.
const POSITIONS: usize = 1024;

impl<'a> Layer<'a> {
    pub(super) fn new(
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

    pub(super) fn positions(&self) -> usize {
        self.grad.iter().product()
    }

    /// A column of an output channel's weights, with its channel counted over all groups.
    pub(super) fn tap(&self, output: usize, column: usize) -> Tap {
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
    pub(super) fn samples_of(&self, square: usize) -> Range<usize> {
        square * self.fold..self.samples.min((square + 1) * self.fold)
    }

    /// The block that starts where `positions` of a sample do.
    pub(super) fn block(&self, positions: &Range<usize>) -> Block {
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

    /// Phases of an axis that taps meet: elements of the input a stride apart lie side by side in a window,
    /// each such phase behind the other.
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
    pub(super) fn pitch(&self) -> usize {
        self.block_width() + self.reach(2) / self.stride[2]
    }

    /// Where a tap's elements start in a window whose first channel is `first`.
    pub(super) fn start(&self, tap: Tap, first: usize) -> usize {
        let [_, down, across] = self.stride;
        let plane = (tap.channel - first) * self.kernel[0] + tap.plane;
        let phase = (plane * self.phases(1) + tap.row % down) * self.phases(2) + tap.column % across;
        (phase * self.phase_height() + tap.row / down) * self.pitch() + tap.column / across
    }

    /// Copies what a block of positions meets of some channels, with zeros outside of the input.
    #[inline(always)]
    pub(super) fn window<'s>(
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
                    // Where a stride is wider than the input, some phases meet padding alone.
                    Some(start) if !inside.is_empty() => {
                        out[..inside.start].fill(0.0);
                        out[inside.end..].fill(0.0);
                        let first = (block.w + inside.start) * self.stride[2] + column;
                        self.fetch(start + first - self.padding[2], &mut out[inside.clone()]);
                    }
                    _ => out.fill(0.0),
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
    pub(super) fn grads(&self, sample: usize, output: usize, positions: Range<usize>, out: &mut [f32]) {
        let start = (sample * self.outputs + output) * self.positions() + positions.start;
        widen_into(self.grad_output.range(start, positions.len()), out);
        if self.gradient_scale != 1.0 {
            out.iter_mut().for_each(|b| *b *= self.gradient_scale);
        }
    }
}
