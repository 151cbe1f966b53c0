//! Inner products of rows of two matrices, of which sums of at most [`TERMS`] products are f32 and the rest is f64.

use std::ops::Range;

use rayon::prelude::*;

use super::OP;
use super::layer::Layer;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kernels::fisher::{Form, Gram, GramArgs, GramParams};
use crate::memory::{Element, View};
use crate::methods::captured::{Batch, small};
use crate::record::Recording;
use crate::shape::{DType, usize_of};

/// Terms of a sum in f32.
const TERMS: u32 = 8192;

/// Bytes of the pieces that are computed and read back at once: a device is waited for once for all of them.
const TOGETHER: u64 = 8 << 20;

/// Rows of two matrices that meet: `[rows, len]` each.
pub(super) struct Matrices<'a> {
    pub(super) backend: &'a Backend,
    pub(super) x: &'a View,
    pub(super) y: &'a View,
    pub(super) len: u32,
}

impl Matrices<'_> {
    /// Inner products of some rows of x with some of y, pieces of f32 added in f64.
    pub(super) fn products(&self, rows: &Range<usize>, columns: &Range<usize>) -> Result<Vec<f64>> {
        let caps = self.backend.caps();
        let [first_row, row_count, first_column, column_count] =
            [rows.start, rows.len(), columns.start, columns.len()].map(|size| small(size as u64));
        let (first_row, rows, first_column, columns) = (first_row?, row_count?, first_column?, column_count?);
        let kernel = Gram {
            form: Form::of(&caps, 1, rows.into(), columns.into())
                .for_positions(&[self.len.into(), TERMS.into()])
                .for_matrix_units(&caps),
            x: self.x.float(OP, "x")?,
            y: self.y.float(OP, "y")?,
            overwrite: true,
        };
        let pieces: Vec<u32> = (0..self.len).step_by(TERMS as usize).collect();
        let each = u64::from(rows) * u64::from(columns);
        if each == 0 {
            return Ok(Vec::new());
        }
        // Where a view may begin, whatever the device.
        let apart = each.next_multiple_of(64);
        let room = TOGETHER.min(caps.max_binding_bytes);
        let together = usize_of(room / (4 * apart)).clamp(1, pieces.len().max(1));
        let elements = |pieces: usize| apart * (pieces as u64 - 1) + each;
        let out = self.backend.alloc(elements(together), DType::F32)?;
        let mut sums = vec![0.0; usize_of(each)];
        for pieces in pieces.chunks(together) {
            let mut recording = Recording::new(self.backend);
            for (&first, offset) in pieces.iter().zip((0..).step_by(usize_of(4 * apart))) {
                let count = TERMS.min(self.len - first);
                let params =
                    GramParams { len: self.len, first, count, first_row, rows, first_column, columns };
                let out = View::new(out.memory().clone(), offset, each, Element::F32)?;
                let args = GramArgs { x: self.x.clone(), y: self.y.clone(), out };
                recording.dispatch(&kernel, params, args)?;
            }
            self.backend.run(&recording)?;
            let all: Vec<f32> = self.backend.download(&out.first(elements(pieces.len()))?)?;
            for piece in all.chunks(usize_of(apart)) {
                sums.iter_mut().zip(piece).for_each(|(sum, &piece)| *sum += f64::from(piece));
            }
        }
        Ok(sums)
    }
}

/// A linear layer's inputs and output gradients, position by position.
pub(super) struct Pairs<'a> {
    inputs: Matrices<'a>,
    gradients: Matrices<'a>,
}

impl<'a> Pairs<'a> {
    pub(super) fn new(layer: &'a Layer<'_>, ours: &'a Batch, theirs: &'a Batch) -> Result<Self> {
        let backend = layer.job.run.backend;
        let shape = &layer.captured().weight;
        let (Some(x), Some(y)) = (ours.input(), theirs.input()) else {
            return Err(Error::argument(OP, "a linear layer's inputs are numbers"));
        };
        Ok(Self {
            inputs: Matrices { backend, x, y, len: small(shape[1])? },
            gradients: Matrices { backend, x: ours.gradient(), y: theirs.gradient(), len: small(shape[0])? },
        })
    }

    /// Inner products of the gradients of samples with `s` positions and samples with `t`.
    pub(super) fn products(
        &self,
        rows: &Range<usize>,
        s: usize,
        columns: &Range<usize>,
        t: usize,
    ) -> Result<Vec<f64>> {
        let (m, n) = (rows.start * s..rows.end * s, columns.start * t..columns.end * t);
        let (a, b) = (self.inputs.products(&m, &n)?, self.gradients.products(&m, &n)?);
        let width = columns.len();
        let mut sums = vec![0.0; rows.len() * width];
        sums.par_chunks_mut(width).enumerate().for_each(|(m, sums)| {
            for position in m * s..(m + 1) * s {
                let at = position * width * t;
                let (a, b) = (&a[at..at + width * t], &b[at..at + width * t]);
                for (sum, (a, b)) in sums.iter_mut().zip(a.chunks(t).zip(b.chunks(t))) {
                    *sum += a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                }
            }
        });
        Ok(sums)
    }
}

/// a · b, in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
