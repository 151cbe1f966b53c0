//! An embedding's gradients, which are 0 but in the rows that a sample names: kept as runs, one for each row
//! of each sample.

use std::ops::Range;

use super::Sum;
use super::chunks::Chunk;
use super::layer::{Layer, ones};
use super::scale::{rounded, scale_of};
use crate::error::Result;
use crate::kernels::fisher::{EmbeddingIndex, Listed, Mode};
use crate::methods::captured::{Batch, Sides};
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::{DType, usize_of};
use crate::stream::Stage;

/// The gradients of an embedding's rows from `first_row` on: a run is what one sample adds to one row.
pub(super) struct Runs<'s> {
    pub(super) name: &'s str,
    pub(super) first_row: u32,
    pub(super) rows: u32,
    pub(super) dim: usize,
    /// By row, then sample.
    pub(super) runs: Vec<Run>,
    /// The runs' gradients, `dim` each.
    values: Vec<f32>,
}

pub(super) struct Run {
    pub(super) row: u32,
    pub(super) sample: usize,
    /// Where its values are, counted in runs.
    at: usize,
    /// What they are divided by.
    pub(super) scale: f64,
}

impl Runs<'_> {
    pub(super) fn values(&self, run: &Run) -> &[f32] {
        &self.values[run.at * self.dim..(run.at + 1) * self.dim]
    }
}

impl Layer<'_> {
    /// Shows `sum` an embedding's gradients, some rows at a time.
    pub(super) fn embedding(&self, sum: &mut dyn Sum, name: &str) -> Result<()> {
        let shape = &self.captured().weight;
        for rows in rows_within(&self.uses_of_rows()?, self.slab_bytes() / (4 * shape[1]).max(1)) {
            let mut runs = Runs {
                name,
                first_row: rows.start,
                rows: rows.len() as u32,
                dim: usize_of(shape[1]),
                runs: Vec::new(),
                values: Vec::new(),
            };
            self.chunks.iter().try_for_each(|chunk| self.add_runs(&mut runs, chunk))?;
            runs.runs.sort_by_key(|run| (run.row, run.sample));
            sum.runs(self.job, &runs)?;
        }
        Ok(())
    }

    /// How often each row is named.
    fn uses_of_rows(&self) -> Result<Vec<u64>> {
        let mut uses = vec![0; usize_of(self.captured().weight[0])];
        for chunk in &self.chunks {
            for &id in self.batches(chunk)?[0].ids().unwrap_or_default() {
                uses[id as usize] += 1;
            }
        }
        Ok(uses)
    }

    /// Adds what a chunk's samples add to the rows of `runs`.
    fn add_runs(&self, runs: &mut Runs<'_>, chunk: &Chunk<'_>) -> Result<()> {
        let batches = self.batches(chunk)?;
        self.job.clock.time(Stage::Compute, || self.add_runs_of(runs, chunk, &batches))
    }

    /// The same, from its data.
    fn add_runs_of(&self, runs: &mut Runs<'_>, chunk: &Chunk<'_>, batches: &[Batch]) -> Result<()> {
        let batch = &batches[0];
        let ids = batch.ids().unwrap_or_default();
        let rows = (runs.first_row, runs.rows);
        let index = EmbeddingIndex::new(ids, usize_of(batch.positions()), rows, Listed::Touched)?;
        let scale = scale_of(batches);
        let before = runs.runs.len();
        for (&row, of_row) in index.owner_row.iter().zip(index.owner_run.windows(2)) {
            runs.runs.extend((of_row[0]..of_row[1]).map(|run| Run {
                row: runs.first_row + row,
                sample: chunk.samples.start + index.run_sample[run as usize] as usize,
                at: before + run as usize,
                scale,
            }));
        }
        runs.values.extend(self.gradients_of_runs(batch, &index.by_run(), scale)?);
        Ok(())
    }

    /// The gradients of an index's runs, each its own row.
    fn gradients_of_runs(&self, batch: &Batch, index: &EmbeddingIndex, scale: f64) -> Result<Vec<f32>> {
        let backend = self.job.run.backend;
        let len = index.run_sample.len() as u64 * self.captured().weight[1];
        let (weight, out) = (ones(backend, batch)?, backend.alloc(len, DType::F32)?);
        let squares = Squares { mode: Mode::Gradients, gradient_scale: rounded(scale), ..Squares::default() };
        let mut recording = Recording::new(backend);
        let sides = Sides { weight: &weight, out: &out };
        batch.record_embedding(backend, &mut recording, index, squares, sides)?;
        backend.run(&recording)?;
        backend.download(&out)
    }
}

/// Ranges of rows with at most so many uses each (or one row), without the unused ends.
fn rows_within(uses: &[u64], most: u64) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut of_range = 0;
    for (row, &count) in (0..).zip(uses) {
        if count == 0 {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if of_range + count <= most => range.end = row + 1,
            _ => {
                ranges.push(row..row + 1);
                of_range = 0;
            }
        }
        of_range += count;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_embedding_are_cut_by_their_uses() {
        assert_eq!(rows_within(&[0, 3, 0, 2, 9, 1, 1, 0], 5), [1..4, 4..5, 5..7]);
        assert!(rows_within(&[0, 0], 5).is_empty());
    }
}
