//! Per-sample gradients of captured networks: their inner products, norms, products with a direction, and
//! weighted sums.
//!
//! With g_n = ∂ℓ_n/∂θ the rows of J `[N, P]`:
//!
//! | method | result | cost of a linear layer with T = N·t positions |
//! |---|---|---|
//! | [`PerSample::gram`] | K = J Jᵀ, K[m, n] = ⟨g_m, g_n⟩ | 2·T²·(i + o), or 2·T·i·o + 2·N²·i·o |
//! | [`PerSample::norms`] | ‖g_n‖ = √K[n, n] | 2·T·t·(i + o), or 2·T·i·o |
//! | [`PerSample::inner_products`] | J Δ = ⟨g_n, Δ⟩ | 2·T·i·o |
//! | [`PerSample::weighted_sum`] | Jᵀ x = Σ_n x_n g_n | 2·T·i·o |
//!
//! J is never stored. Inner products of a linear layer's weights need no gradient at all:
//!
//! ```text
//! ⟨g_m, g_n⟩ = Σ_{s,t} (b_ms · b_nt) (a_ms · a_nt)
//! ```
//!
//! which costs less where there are few positions; where it does not, and for every other layer, the
//! gradients of all samples are formed for a *slab* of parameters at a time (some rows of the weight), and K
//! grows by the slab's products. The cheaper is taken by counted operations. An embedding's gradient is 0 but
//! in the rows that a sample names, so its gradients are kept as runs (a sample and a row), and only runs of
//! one row meet.
//!
//! **Memory.** One slab (64 MiB, or less by the budget; at least one row of every sample), the layer's data
//! of all files where they fit in half of the host's budget (else of one file at a time, which is then read
//! again for each slab), and the result.
//!
//! **Numbers.** Products of at most 8192 terms are f32, and are added in f64. Gradients are those of the
//! summed loss: captures of a mean loss are multiplied by their batch size.
//!
//! Source: Wu et al., *An Improved Empirical Fisher Approximation for Natural Gradient Descent* (2024).

mod chunks;
mod directions;
mod embedding;
mod gram;
mod layer;
mod norms;
mod products;
mod scale;
mod weighted_sum;

use std::sync::Arc;

use crate::checkpoint::{Capture, CaptureLayer, LossReduction, same_network};
use crate::error::{Error, Result};
use crate::methods::captured::{by_size, units};
use crate::shape::usize_of;
use crate::stream::{Clock, Run};

use embedding::Runs;
use layer::{Layer, LinearSizes, Slab};

const OP: &str = "per-sample gradients";

/// Per-sample gradients of one network over some captures, samples in the order of the files.
#[derive(Debug)]
pub struct PerSample<'a> {
    captures: &'a [Capture],
    run: &'a Run<'a>,
    /// The first sample of each file, and their number.
    first: Vec<usize>,
    /// What the captured gradient of each sample is multiplied by: the batch size for a mean loss.
    unit: Vec<f64>,
    /// Counts where the time goes.
    clock: Arc<Clock>,
}

impl<'a> PerSample<'a> {
    /// The gradients that `captures` hold, to be formed with `run`.
    ///
    /// # Errors
    /// [`Error::Argument`] without captures; [`Error::Mismatch`] for captures of different networks.
    pub fn new(captures: &'a [Capture], run: &'a Run<'a>) -> Result<Self> {
        let Some(network) = captures.first() else {
            return Err(Error::argument(OP, "no capture was given"));
        };
        same_network(captures)?;
        let mut first = vec![0];
        let mut unit = Vec::new();
        for capture in captures {
            let samples = usize_of(capture.samples());
            let factor = match network.loss_reduction() {
                LossReduction::Sum => 1.0,
                LossReduction::Mean => samples as f64,
            };
            unit.resize(unit.len() + samples, factor);
            first.push(unit.len());
        }
        Ok(Self { captures, run, first, unit, clock: Arc::new(Clock::start()) })
    }

    /// The same, whose time `clock` counts.
    pub(super) fn timed_by(self, clock: &Arc<Clock>) -> Self {
        Self { clock: Arc::clone(clock), ..self }
    }

    /// Samples of all files.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.unit.len()
    }

    /// s_n = ‖∂ℓ_n/∂z_n‖² of every sample, z being the logits.
    ///
    /// # Errors
    /// What [`Capture::logit_grad_sq`] refuses.
    pub fn logit_grad_sq(&self) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(self.samples());
        for capture in self.captures {
            all.extend(capture.logit_grad_sq()?);
        }
        all.iter_mut().zip(&self.unit).for_each(|(s, unit)| *s *= unit * unit);
        Ok(all)
    }

    /// Shows `sum` every layer's gradients.
    fn walk(&self, sum: &mut dyn Sum) -> Result<()> {
        self.run.progress.begin(self.bytes());
        for unit in units(self.captures[0].layers())? {
            if let [at] = unit.layers[..] {
                let parts = self.parts(&[at]);
                let layer = Layer::new(self, &[at], &parts);
                unit.parameters.iter().try_for_each(|parameter| layer.show(parameter, sum))?;
            } else {
                // The gradients of the layers that share it are added in the slab.
                for parameter in &unit.parameters {
                    let members: Vec<usize> = parameter.layers().collect();
                    let parts = self.parts(&members);
                    Layer::new(self, &members, &parts).show(parameter, sum)?;
                }
            }
            self.run.progress.advance(unit.layers.iter().map(|&at| self.bytes_of(at)).sum());
        }
        Ok(())
    }

    /// Each file's layers, by size.
    fn parts(&self, layers: &[usize]) -> Vec<Vec<CaptureLayer>> {
        let of_file =
            |capture: &Capture| layers.iter().flat_map(|&at| by_size(&capture.layers()[at])).collect();
        self.captures.iter().map(of_file).collect()
    }

    /// Bytes of all captures' layers.
    fn bytes(&self) -> u64 {
        self.captures.iter().flat_map(Capture::layers).map(CaptureLayer::bytes).sum()
    }

    /// A layer's bytes in all files.
    fn bytes_of(&self, layer: usize) -> u64 {
        self.captures.iter().map(|capture| capture.layers()[layer].bytes()).sum()
    }
}

/// What sees the gradients of every layer once, in whichever form costs least.
trait Sum {
    /// Whether a linear layer's pairs of positions cost less than its gradients.
    fn prefers_pairs(&self, _: &LinearSizes) -> bool {
        false
    }

    /// A linear layer's weight, from its inputs and output gradients.
    fn pairs(&mut self, _: &Layer<'_>) -> Result<()> {
        Ok(())
    }

    /// The gradients of some parameters.
    fn slab(&mut self, job: &PerSample<'_>, slab: &Slab<'_>) -> Result<()>;

    /// The gradients of some rows of an embedding.
    fn runs(&mut self, job: &PerSample<'_>, runs: &Runs<'_>) -> Result<()>;
}
