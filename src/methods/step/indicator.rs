//! γ: how good a step is, by products of its direction with per-sample gradients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::{OP, check_labels};
use crate::checkpoint::{Capture, Checkpoint, Labels, same_layers};
use crate::error::{Error, Result};
use crate::methods::per_sample::PerSample;
use crate::stream::{Clock, Run};

/// How good a step is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Indicator {
    /// Δᵀ F Δ = Σ_n w_n ⟨ĝ_n, Δ⟩² over the samples of the weighted captures.
    pub curvature: f64,
    /// Δᵀ ∇L = Σ_n ⟨g_n, Δ⟩ over the data's.
    pub slope: f64,
    /// γ = √curvature / |slope|; infinite where Δ does not change the loss, which JSON gives as `null`.
    pub gamma: f64,
}

/// γ(Δ) = √(Δᵀ F Δ) / |Δᵀ ∇L| of the step that the checkpoint `direction` holds under the parameters' names.
///
/// `exact` are captures of all classes with their probabilities as weights (or of labels drawn from the
/// model, which estimates F); `data` are captures of the data's labels, for ∇L. F and ∇L are sums over
/// samples, not means: both are to be of the same samples, so that the weights add up to as many as there
/// are. Two passes of 2·N·t·i·o operations a linear layer; no N × N matrix.
///
/// # Errors
/// As [`PerSample::inner_products`]; [`Error::Mismatch`] for captures of other labels, and where `exact` and
/// `data` are not of one network, or not of as many samples.
pub fn indicator(exact: &[PathBuf], data: &[PathBuf], direction: &Path, run: &Run<'_>) -> Result<Indicator> {
    let open = |paths: &[PathBuf]| paths.iter().map(Capture::open).collect::<Result<Vec<_>>>();
    let clock = Arc::new(Clock::start());
    judge(&open(exact)?, &open(data)?, &Checkpoint::open(direction)?, (run, &clock))
}

/// [`indicator`] of files that are open; `clock` counts the time.
pub(super) fn judge(
    exact: &[Capture],
    data: &[Capture],
    direction: &Checkpoint,
    (run, clock): (&Run<'_>, &Arc<Clock>),
) -> Result<Indicator> {
    let weights = weights_of(exact, data)?;
    let products = |captures| PerSample::new(captures, run)?.timed_by(clock).inner_products(direction);
    let curvature: f64 =
        products(exact)?.iter().zip(&weights).map(|(product, w)| w * product * product).sum();
    let slope: f64 = products(data)?.iter().sum();
    let gamma = if slope == 0.0 { f64::INFINITY } else { curvature.sqrt() / slope.abs() };
    Ok(Indicator { curvature, slope, gamma })
}

/// The weights of `exact`'s samples, after what headers tell of both was checked.
pub(super) fn weights_of(exact: &[Capture], data: &[Capture]) -> Result<Vec<f64>> {
    if let Some(capture) = exact.iter().find(|capture| capture.labels() == Labels::Data) {
        let problem = format!(
            "--indicator: the Fisher is defined by the model's labels, and {} is of the data's; capture all classes",
            capture.path().display()
        );
        return Err(Error::mismatch(OP, problem));
    }
    check_labels(data, Labels::Data, "∇L is defined by the data's labels")?;
    if let (Some(one), Some(other)) = (exact.first(), data.first()) {
        same_layers(one, other)?;
    }
    let mut weights = Vec::new();
    for capture in exact {
        weights.extend(capture.sample_weight()?);
    }
    let (weight, samples) = (weights.iter().sum::<f64>(), data.iter().map(Capture::samples).sum::<u64>());
    if (weight - samples as f64).abs() > 1e-2 * samples as f64 {
        let problem = format!(
            "the weights under the model's labels add up to {weight}, and the data's captures have {samples} samples; capture both of the same samples"
        );
        return Err(Error::mismatch(OP, problem));
    }
    Ok(weights)
}
