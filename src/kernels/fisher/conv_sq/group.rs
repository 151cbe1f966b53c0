//! The host's way with all other groups: one matrix product each.

use std::ops::Range;

use super::layer::{Layer, Tap};
use crate::kernels::fisher::product::{Factors, Scratch};
use crate::kernels::fisher::registers::Left;

/// One group of a layer, or outputs inside one.
pub(super) struct Group<'a> {
    pub(super) layer: &'a Layer<'a>,
    pub(super) first_output: usize,
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

/// Rows are weight elements of an output channel, whose patches lie in a window as they are; columns are
/// output channels.
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
        // One channel after the other, each read from its first position to its last: reading a few positions of all
        // channels at a time keeps what is written in a first-level cache, but waits for each of them.
        let line = scratch.take(positions.len());
        for (column, output) in columns.clone().enumerate() {
            self.layer.grads(sample, self.first_output + output, positions.clone(), line);
            for (out, &b) in out.iter_mut().skip(column).step_by(stride).zip(&*line) {
                *out = b;
            }
        }
    }
}
