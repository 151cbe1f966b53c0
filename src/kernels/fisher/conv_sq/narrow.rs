//! The host's way with groups too narrow for a matrix product: each element of the result as a dot product.

use std::ops::Range;

use super::layer::Layer;
use crate::kernels::fisher::product::Scratch;

impl Layer<'_> {
    /// Whether a group's matrix is too small for a matrix product to pay: depthwise and its like.
    pub(super) fn is_narrow(&self) -> bool {
        self.outputs / self.groups < 4
            || self.channels / self.groups * self.kernel.iter().product::<usize>() < 4
    }

    /// The sums of some output channels over a run of squares, each element as a dot product.
    #[inline(always)]
    pub(super) fn narrow(
        &self,
        outputs: &Range<usize>,
        squares: Range<usize>,
        scratch: &mut Narrow,
    ) -> Vec<f32> {
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
    /// Rows of gradients lie as far apart as those of the window, with zeros between them, so that all of them and a
    /// tap's elements make one long dot product: rows of images are shorter than a few vectors.
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

/// Output channels that follow each other in memory and are taken together: one alone is read too shortly at
/// a time to be fetched ahead.
pub(super) const OUTPUTS: usize = 16;

/// Interleaved sums of a dot product: four vectors that do not wait for each other.
const LANES: usize = 64;

/// Scratch of the narrow path.
#[derive(Default)]
pub(super) struct Narrow {
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
