//! K = J Jᵀ: the matrix, its place in memory, and the blocks by which each layer adds to its lower triangle.

use std::ops::Range;
use std::rc::Rc;

use rayon::prelude::*;

use super::chunks::Chunk;
use super::embedding::Runs;
use super::layer::{Layer, LinearSizes, Slab};
use super::products::{Matrices, Pairs, dot};
use super::scale::finite;
use super::{PerSample, Sum};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::methods::captured::{Batch, small};
use crate::stream::Stage;

/// Rows of a block of products.
const BLOCK: usize = 1024;

impl PerSample<'_> {
    /// Checks that K fits in memory.
    ///
    /// # Errors
    /// [`Error::Budget`] as [`PerSample::gram`].
    pub fn check_gram(&self) -> Result<()> {
        check_square(self.samples(), self.run.budget.host_bytes)
    }

    /// K = J Jᵀ, `[N, N]`, row-major, exactly symmetric.
    ///
    /// # Errors
    /// [`Error::Budget`] where 8·N² bytes are more than the host's budget or memory; [`Error::Tensor`] for
    /// values that are not finite or ids out of range; what kernels and backend refuse;
    /// [`Error::Interrupted`] between slabs.
    pub fn gram(&self) -> Result<Vec<f64>> {
        let samples = self.samples();
        let mut sum = GramSum { samples, gram: square_matrix(samples, self.run.budget.host_bytes)? };
        self.walk(&mut sum)?;
        let mut gram = sum.gram;
        self.clock.time(Stage::Compute, || self.complete(&mut gram));
        finite(&gram, "inner products leave f32's range")?;
        Ok(gram)
    }

    /// K of summed losses, and its upper triangle, from the lower one of the losses as they were captured.
    fn complete(&self, gram: &mut [f64]) {
        let samples = self.samples();
        for m in 0..samples {
            for n in 0..=m {
                gram[m * samples + n] *= self.unit[m] * self.unit[n];
                gram[n * samples + m] = gram[m * samples + n];
            }
        }
    }
}

/// K, of which the lower triangle is filled.
struct GramSum {
    samples: usize,
    gram: Vec<f64>,
}

impl GramSum {
    /// Adds a block, whose first sample pair is (m, n).
    fn add(&mut self, (m, n): (usize, usize), columns: usize, scale: f64, values: &[f64]) {
        for (row, values) in values.chunks(columns.max(1)).enumerate() {
            let start = (m + row) * self.samples + n;
            let into = &mut self.gram[start..start + values.len()];
            into.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / scale);
        }
    }

    /// Σ_{s,t} (b_ms · b_nt)(a_ms · a_nt) of two chunks' samples.
    fn add_pairs(
        &mut self,
        layer: &Layer<'_>,
        (chunk, ours): (&Chunk<'_>, &Batch),
        (other, theirs): (&Chunk<'_>, &Batch),
        same: bool,
    ) -> Result<()> {
        let (s, t) = (ours.positions() as usize, theirs.positions() as usize);
        let pairs = Pairs::new(layer, ours, theirs)?;
        for (rows, columns) in blocks((chunk.samples.len(), s), (other.samples.len(), t), same) {
            let products = pairs.products(&rows, s, &columns, t)?;
            let at = (chunk.samples.start + rows.start, other.samples.start + columns.start);
            self.add(at, columns.len(), 1.0, &products);
        }
        Ok(())
    }

    /// The products of a slab's gradients.
    fn add_slab(&mut self, backend: &Backend, slab: &Slab<'_>) -> Result<()> {
        for (c, x) in slab.chunks.iter().enumerate() {
            for (d, y) in slab.chunks[..=c].iter().enumerate() {
                let matrices = Matrices { backend, x: &x.gradients, y: &y.gradients, len: small(slab.len)? };
                for (rows, columns) in blocks((x.samples.len(), 1), (y.samples.len(), 1), c == d) {
                    let products = matrices.products(&rows, &columns)?;
                    let at = (x.samples.start + rows.start, y.samples.start + columns.start);
                    self.add(at, columns.len(), x.scale * y.scale, &products);
                }
            }
        }
        Ok(())
    }

    /// Each of K's rows is one task: its sample's runs against the runs of the same rows.
    fn add_runs(&mut self, runs: &Runs<'_>) {
        let mut of_sample: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.samples];
        let mut start = 0;
        for of_row in runs.runs.chunk_by(|a, b| a.row == b.row) {
            for (at, run) in of_row.iter().enumerate() {
                of_sample[run.sample].push((start, start + at));
            }
            start += of_row.len();
        }
        self.gram.par_chunks_mut(self.samples).zip(of_sample).for_each(|(sums, own)| {
            for (start, at) in own {
                let mine = &runs.runs[at];
                for other in &runs.runs[start..=at] {
                    let product = dot(runs.values(mine), runs.values(other));
                    sums[other.sample] += product / (mine.scale * other.scale);
                }
            }
        });
    }
}

impl Sum for GramSum {
    fn prefers_pairs(&self, sizes: &LinearSizes) -> bool {
        let LinearSizes { samples, positions, inputs, outputs, moderate, .. } = *sizes;
        let pairs = positions * positions * (inputs + outputs);
        moderate && pairs <= inputs * outputs * (positions + samples * samples)
    }

    fn pairs(&mut self, layer: &Layer<'_>) -> Result<()> {
        for (c, chunk) in layer.chunks.iter().enumerate() {
            let ours = layer.batches(chunk)?;
            for (d, other) in layer.chunks[..=c].iter().enumerate() {
                let theirs = if c == d { Rc::clone(&ours) } else { layer.batches(other)? };
                let add = || self.add_pairs(layer, (chunk, &ours[0]), (other, &theirs[0]), c == d);
                layer.job.clock.time(Stage::Compute, add)?;
            }
        }
        Ok(())
    }

    fn slab(&mut self, job: &PerSample<'_>, slab: &Slab<'_>) -> Result<()> {
        job.clock.time(Stage::Compute, || self.add_slab(job.run.backend, slab))
    }

    fn runs(&mut self, job: &PerSample<'_>, runs: &Runs<'_>) -> Result<()> {
        job.clock.time(Stage::Compute, || self.add_runs(runs));
        Ok(())
    }
}

/// Blocks of samples of one chunk against those of another, of which every block's rows (positions) are
/// within [`BLOCK`] where that is possible; of a chunk against itself, those that reach the diagonal or
/// below.
fn blocks(
    (m, m_positions): (usize, usize),
    (n, n_positions): (usize, usize),
    same: bool,
) -> Vec<(Range<usize>, Range<usize>)> {
    let step = |positions: usize| (BLOCK / positions.max(1)).max(1);
    let ranges = |all: usize, step: usize| (0..all).step_by(step).map(move |at| at..all.min(at + step));
    ranges(m, step(m_positions))
        .flat_map(|rows| ranges(n, step(n_positions)).map(move |columns| (rows.clone(), columns)))
        .filter(|(rows, columns)| !same || columns.start < rows.end)
        .collect()
}

/// The reason why there can be no matrix `[N, N]` of f64, if there is one.
fn check_square(samples: usize, budget: u64) -> Result<()> {
    let (flag, have) = match available_memory() {
        Some(available) if available < budget => {
            ("the memory that is free, or give fewer captures", available)
        }
        _ => ("--host-memory, or give fewer captures", budget),
    };
    match square_bytes(samples) {
        need if need > have => Err(too_large(samples, have, flag)),
        _ => Ok(()),
    }
}

fn square_bytes(samples: usize) -> u64 {
    (samples as u64).saturating_mul(samples as u64).saturating_mul(8)
}

fn too_large(samples: usize, have: u64, flag: &str) -> Error {
    let what = format!("the Gram matrix of {samples} samples, 8·N²,");
    Error::Budget { op: "gram".into(), what, need: square_bytes(samples), have, flag: flag.into() }
}

/// Zeros `[N, N]`, or the reason why there can be none.
fn square_matrix(samples: usize, budget: u64) -> Result<Vec<f64>> {
    check_square(samples, budget)?;
    let len = samples.saturating_mul(samples);
    let mut matrix = Vec::new();
    // Where the system does not say what is free, the allocator does.
    let refused = |_| too_large(samples, 0, "the memory that is free, or give fewer captures");
    matrix.try_reserve_exact(len).map_err(refused)?;
    matrix.resize(len, 0.0);
    Ok(matrix)
}

/// Bytes that can be taken without swapping, where the system says so.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_the_lower_triangle() {
        let (samples, positions) = (2500, 3);
        let mut seen = vec![false; samples * samples];
        for (rows, columns) in blocks((samples, positions), (samples, positions), true) {
            for m in rows {
                for n in columns.clone() {
                    assert!(!std::mem::replace(&mut seen[m * samples + n], true), "{m} {n} twice");
                }
            }
        }
        assert!((0..samples).all(|m| (0..=m).all(|n| seen[m * samples + n])));
    }

    #[test]
    fn a_matrix_beyond_memory_is_refused_with_the_figures() {
        let refusal = square_matrix(1000, 1 << 20).expect_err("8 MB in 1 MiB").to_string();
        assert!(refusal.contains("1048576") && refusal.contains("8000000"), "{refusal}");
        assert!(square_matrix(usize::MAX >> 24, u64::MAX).is_err());
        assert_eq!(square_matrix(3, u64::MAX).expect("small").len(), 9);
    }
}
