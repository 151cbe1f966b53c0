//! ‖g_n‖: K's diagonal, of which each layer adds the squares.

use rayon::prelude::*;

use super::embedding::Runs;
use super::layer::{Layer, LinearSizes, Slab};
use super::products::{Pairs, dot};
use super::scale::finite;
use super::{PerSample, Sum};
use crate::error::Result;
use crate::shape::usize_of;

/// Rows of the small blocks on the diagonal.
const NARROW: usize = 64;

impl PerSample<'_> {
    /// ‖g_n‖ of every sample: the roots of K's diagonal, without the rest of it.
    ///
    /// # Errors
    /// As [`PerSample::gram`], but for its size.
    pub fn norms(&self) -> Result<Vec<f64>> {
        let mut sum = NormSum { squares: vec![0.0; self.samples()] };
        self.walk(&mut sum)?;
        let norms: Vec<f64> =
            sum.squares.iter().zip(&self.unit).map(|(square, unit)| unit * square.sqrt()).collect();
        finite(&norms, "squared norms leave f32's range")?;
        Ok(norms)
    }
}

/// Squared norms.
struct NormSum {
    squares: Vec<f64>,
}

impl Sum for NormSum {
    fn prefers_pairs(&self, sizes: &LinearSizes) -> bool {
        let rows = sizes.longest.max(NARROW as f64);
        sizes.moderate && rows * (sizes.inputs + sizes.outputs) <= sizes.inputs * sizes.outputs
    }

    fn pairs(&mut self, layer: &Layer<'_>) -> Result<()> {
        for chunk in &layer.chunks {
            let batches = layer.batches(chunk)?;
            let batch = &batches[0];
            let positions = batch.positions() as usize;
            let pairs = Pairs::new(layer, batch, batch)?;
            let at_once = (NARROW / positions.max(1)).max(1);
            for first in (0..chunk.samples.len()).step_by(at_once) {
                let samples = first..chunk.samples.len().min(first + at_once);
                let products = pairs.products(&samples, positions, &samples, positions)?;
                for at in 0..samples.len() {
                    self.squares[chunk.samples.start + first + at] += products[at * samples.len() + at];
                }
            }
        }
        Ok(())
    }

    fn slab(&mut self, job: &PerSample<'_>, slab: &Slab<'_>) -> Result<()> {
        let len = usize_of(slab.len).max(1);
        for chunk in &slab.chunks {
            let gradients: Vec<f32> = job.run.backend.download(&chunk.gradients)?;
            let of_sample = self.squares[chunk.samples.clone()].par_iter_mut().zip(gradients.par_chunks(len));
            of_sample.for_each(|(sum, g)| *sum += dot(g, g) / (chunk.scale * chunk.scale));
        }
        Ok(())
    }

    fn runs(&mut self, _: &PerSample<'_>, runs: &Runs<'_>) -> Result<()> {
        for run in &runs.runs {
            let g = runs.values(run);
            self.squares[run.sample] += dot(g, g) / (run.scale * run.scale);
        }
        Ok(())
    }
}
