//! Natural-gradient steps of the empirical and the improved empirical Fisher, and how good a step is.
//!
//! With J `[N, P]` the per-sample gradients, K = J Jᵀ `[N, N]` and a damping λ:
//!
//! ```text
//! ef    Δ = Jᵀ (K + λI)⁻¹ 1      lowers every sample's loss by the same amount:   J Δ → 1 as λ → 0
//! ief   Δ = Jᵀ (K + λI)⁻¹ s      by as much as its logits' gradient allows:      J Δ → s,   s_n = ‖∂ℓ_n/∂z_n‖²
//! ```
//!
//! Both are (JᵀJ + λI)⁻¹ Jᵀ(…) by the push-through identity: N equations instead of P. The empirical Fisher's
//! step is the larger the smaller a sample's gradient is, which is a distortion ("inversely scaled
//! projection"); the improved one's target vanishes with it. A step is to be *subtracted*: θ ← θ − η Δ.
//!
//! *Plan*: every capture is opened and held against the others before an output is created. *Run*: K by
//! [`PerSample::gram`], in f64; K + λI is factored in place by Cholesky (faer), N³/3 operations and 8·N²
//! bytes in all; then Δ is a weighted gradient, [`PerSample::weighted_sum`], layer by layer.
//!
//! K comes from f32 captures: what is below 2⁻²⁰ of a sample's ‖g‖² is rounding. Where elimination leaves a
//! pivot no larger than that, K + λI is refused as singular, with the damping that would do.
//!
//! **How good is a step?** γ(Δ) = √(Δᵀ F Δ) / |Δᵀ ∇L| with the exact Fisher F = Σ_n Σ_c p_nc ĝ_nc ĝ_ncᵀ and L
//! = Σ_n ℓ_n: lower is better, the natural gradient F⁻¹∇L has the lowest there is, and a factor of Δ changes
//! nothing. See [`indicator()`].
//!
//! Source: Wu et al., *An Improved Empirical Fisher Approximation for Natural Gradient Descent* (2024), eq.
//! 5, 8 and 15; the indicator is its section 5.

mod indicator;
mod outputs;
mod solve;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::backend::Backend;
use crate::checkpoint::{Capture, CaptureLayer, Checkpoint, Labels};
use crate::error::{Error, Result};
use crate::methods::per_sample::PerSample;
use crate::shape::elements;
use crate::stream::{Clock, Run, Stage, Timings};

use indicator::weights_of;
pub use indicator::{Indicator, indicator};
use outputs::Outputs;
use solve::Solution;

const OP: &str = "step";

/// Which Fisher a step is of. See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// The empirical Fisher's.
    Ef,
    /// The improved empirical Fisher's.
    Ief,
}

impl fmt::Display for StepKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ef => "ef",
            Self::Ief => "ief",
        })
    }
}

impl FromStr for StepKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "ef" => Ok(Self::Ef),
            "ief" => Ok(Self::Ief),
            _ => Err(Error::argument("kind", format!("\"{text}\" is not one of ef, ief"))),
        }
    }
}

/// Which step is computed, and what is written.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// Which Fisher preconditions the step.
    pub kind: StepKind,
    /// λ, in units of ‖g_n‖².
    pub damping: f64,
    /// Where to write K, if anywhere.
    pub gram: Option<PathBuf>,
    /// Captures of the same samples under the model's labels, by which the step is judged; none: it is not.
    pub indicator: Vec<PathBuf>,
    /// Replace existing outputs.
    pub overwrite: bool,
}

/// What [`step`] would do. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StepPlan {
    /// Whose step.
    pub kind: StepKind,
    /// The damping λ.
    pub damping: f64,
    /// Samples over all files.
    pub samples: u64,
    /// Files.
    pub batches: usize,
    /// The tensors that would be written, with their shapes.
    pub tensors: Vec<(String, Vec<u64>)>,
    /// Bytes of all captures.
    pub bytes_to_read: u64,
    /// Bytes of the Gram matrix.
    pub gram_bytes: u64,
}

/// What a step gave.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    /// Which Fisher preconditions the step.
    pub kind: StepKind,
    /// The damping λ, in units of ‖g_n‖².
    pub damping: f64,
    /// Samples over all files.
    pub samples: u64,
    /// Number of capture files.
    pub batches: usize,
    /// ‖g_n‖ of every sample, in the order of the files.
    pub gradient_norms: Vec<f64>,
    /// ‖Δ‖ of the step as it was written.
    pub step_norm: f64,
    /// Δᵀ ∇L, L = Σ_n ℓ_n: how much the loss falls to first order where Δ is subtracted.
    pub slope: f64,
    /// The tensors written, with their shapes.
    pub tensors: Vec<(String, Vec<u64>)>,
    /// Elements written.
    pub elements: u64,
    /// Bytes of all captures.
    pub bytes_read: u64,
    /// Bytes of the outputs.
    pub bytes_written: u64,
    /// Where it ran.
    pub adapter: String,
    /// The step.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub output: PathBuf,
    /// K, if it was written.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub gram: Option<PathBuf>,
    /// How good the step is, if that was asked for.
    pub indicator: Option<Indicator>,
    /// Where the time went; reading includes the way to the device, computing and writing the way back, and
    /// writing the sync.
    pub timings: Timings,
}

/// What [`step`] would do, from headers, the weights of the indicator's samples and the budget.
///
/// # Errors
/// As [`step`], of what these show.
pub fn plan(captures: &[PathBuf], options: &StepOptions, run: &Run<'_>) -> Result<StepPlan> {
    let captures = captures.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    let (job, exact) = checked(&captures, options, run)?;
    let samples = job.samples() as u64;
    Ok(StepPlan {
        kind: options.kind,
        damping: options.damping,
        samples,
        batches: captures.len(),
        tensors: captures[0].layers().iter().flat_map(CaptureLayer::parameters).collect(),
        bytes_to_read: captures.iter().chain(&exact).map(|capture| capture.checkpoint().total_bytes()).sum(),
        gram_bytes: samples.saturating_mul(samples).saturating_mul(8),
    })
}

/// Computes a step from captures of the data's labels, writes it under the parameters' names to `out` and, if
/// asked for, K as one tensor `gram` `[N, N]`, f64, samples in the order of the files. With captures of the
/// model's labels, also its [`indicator()`], which is computed from the step as it was written.
///
/// # Errors
/// What [`Capture::open`], [`PerSample::new`] and [`indicator()`] refuse; [`Error::Argument`] for a damping
/// that is negative or no number; [`Error::Mismatch`] for labels that are not the data's, for K + λI without
/// an inverse, and for the iEF where a capture has no `logit_grad`; [`Error::Budget`] where K does not fit in
/// memory; what [`PerSample`]'s methods refuse; [`Error::Output`] where an output cannot be written. Where only the
/// indicator fails, the step has been written, and the log says so.
pub fn step(captures: &[PathBuf], options: &StepOptions, out: &Path, run: &Run<'_>) -> Result<StepReport> {
    let clock = Arc::new(Clock::start());
    let captures = captures.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    let (job, exact) = checked(&captures, options, run)?;
    let job = job.timed_by(&clock);
    let target = match options.kind {
        StepKind::Ef => vec![1.0; job.samples()],
        StepKind::Ief => clock.time(Stage::Read, || job.logit_grad_sq())?,
    };
    let inputs: Vec<&Path> = captures.iter().chain(&exact).map(Capture::path).collect();
    let outputs = Outputs::create(out, &captures, job.samples() as u64, options, &inputs)?;

    let gram = job.gram()?;
    clock.time(Stage::Write, || outputs.write_gram(&gram))?;
    let solution = clock.time(Stage::Compute, || Solution::of(gram, &target, options.damping))?;
    // Of what is written: xᵀ(s − λx) is ‖Δ‖² too, and beside a large λ the difference of near equals.
    let mut norm_sq = 0.0;
    job.weighted_sum(&solution.x, |name, first, values| {
        norm_sq += values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        outputs.write_step(name, first, values)
    })?;
    captures.iter().try_for_each(|capture| capture.checkpoint().verify_unchanged())?;

    let report = report(run.backend, (&captures, &exact), options, solution, &outputs);
    let report = StepReport { step_norm: norm_sq.sqrt(), ..report };
    clock.time(Stage::Write, || outputs.finish())?;
    let judge = || -> Result<Indicator> {
        let direction = Checkpoint::open(&report.output)?;
        indicator::judge(&exact, &captures, &direction, (run, &clock))
    };
    let indicator = if exact.is_empty() { None } else { Some(judge()) };
    let indicator = indicator.transpose().inspect_err(|_| {
        log::warn!("{}: the step is written, not judged", report.output.display());
    })?;
    Ok(StepReport { indicator, timings: clock.timings(), ..report })
}

/// The gradients, and the captures that the step is judged by, after all that is known before anything is
/// computed was checked.
fn checked<'a>(
    captures: &'a [Capture],
    options: &StepOptions,
    run: &'a Run<'a>,
) -> Result<(PerSample<'a>, Vec<Capture>)> {
    check_damping(options.damping)?;
    let job = PerSample::new(captures, run)?;
    check_labels(captures, Labels::Data, "a step is defined by the data's labels")?;
    if options.kind == StepKind::Ief {
        let without = captures.iter().filter(|capture| !capture.has_logit_grad());
        without.map(Capture::logit_grad_sq).collect::<Result<Vec<_>>>()?;
    }
    job.check_gram()?;
    job.check_weighted_sum()?;
    let exact = exact_captures(captures, options)?;
    Ok((job, exact))
}

/// What was done, but for the step's norm, the indicator and the time that it took.
fn report(
    backend: &Backend,
    (captures, exact): (&[Capture], &[Capture]),
    options: &StepOptions,
    solution: Solution,
    outputs: &Outputs,
) -> StepReport {
    let tensors: Vec<_> = captures[0].layers().iter().flat_map(CaptureLayer::parameters).collect();
    let read = captures.iter().chain(exact).map(|capture| capture.checkpoint().total_bytes());
    StepReport {
        kind: options.kind,
        damping: options.damping,
        samples: solution.x.len() as u64,
        batches: captures.len(),
        gradient_norms: solution.gradient_norms,
        step_norm: 0.0,
        slope: solution.slope,
        elements: tensors.iter().map(|(_, shape)| elements(shape).unwrap_or(u64::MAX)).sum(),
        tensors,
        bytes_read: read.sum(),
        bytes_written: outputs.bytes(),
        adapter: backend.name(),
        output: outputs.step.path().to_owned(),
        gram: outputs.gram.as_ref().map(|gram| gram.path().to_owned()),
        indicator: None,
        timings: Timings::default(),
    }
}

/// The captures that a step is judged by, held against those that it is of before anything is computed.
fn exact_captures(data: &[Capture], options: &StepOptions) -> Result<Vec<Capture>> {
    let exact = options.indicator.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    if !exact.is_empty() {
        weights_of(&exact, data)?;
    }
    Ok(exact)
}

fn check_damping(damping: f64) -> Result<()> {
    if damping.is_finite() && damping >= 0.0 {
        return Ok(());
    }
    Err(Error::argument(OP, format!("the damping is {damping}, expected a number of at least 0")))
}

fn check_labels(captures: &[Capture], wanted: Labels, why: &str) -> Result<()> {
    match captures.iter().find(|capture| capture.labels() != wanted) {
        None => Ok(()),
        Some(other) => {
            let problem =
                format!("{why}, and {} has labels \"{}\"", other.path().display(), other.labels().word());
            Err(Error::mismatch(OP, problem))
        }
    }
}
