//! Natural-gradient steps of the empirical and the improved empirical Fisher, and how good a step is.
//!
//! With J `[N, P]` the per-sample gradients, K = J Jᵀ `[N, N]` and a damping λ:
//!
//! ```text
//! ef    Δ = Jᵀ (K + λI)⁻¹ 1      lowers every sample's loss by the same amount:   J Δ → 1 as λ → 0
//! ief   Δ = Jᵀ (K + λI)⁻¹ s      by as much as its logits' gradient allows:      J Δ → s,   s_n = ‖∂ℓ_n/∂z_n‖²
//! ```
//!
//! Both are (JᵀJ + λI)⁻¹ Jᵀ(…) by the push-through identity: N equations instead of P. The empirical Fisher's step is the larger
//! the smaller a sample's gradient is, which is a distortion ("inversely scaled projection"); the improved one's target vanishes
//! with it. A step is to be *subtracted*: θ ← θ − η Δ.
//!
//! *Plan*: every capture is opened and held against the others before an output is created. *Run*: K by
//! [`PerSample::gram`], in f64; K + λI is factored in place by Cholesky (faer), N³/3 operations and 8·N² bytes in all; then Δ is a
//! weighted gradient, [`PerSample::weighted_sum`], layer by layer.
//!
//! K comes from f32 captures: what is below 2⁻²⁰ of a sample's ‖g‖² is rounding. Where elimination leaves a pivot no larger than that,
//! K + λI is refused as singular, with the damping that would do.
//!
//! **How good is a step?** γ(Δ) = √(Δᵀ F Δ) / |Δᵀ ∇L| with the exact Fisher F = Σ_n Σ_c p_nc ĝ_nc ĝ_ncᵀ and L = Σ_n ℓ_n: lower is better, the
//! natural gradient F⁻¹∇L has the lowest there is, and a factor of Δ changes nothing. See [`indicator`].
//!
//! Source: Wu et al., *An Improved Empirical Fisher Approximation for Natural Gradient Descent* (2024), eq. 5, 8 and 15; the indicator is its
//! section 5.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{MatMut, MatRef, Par};
use serde::Serialize;

use crate::backend::Backend;
use crate::checkpoint::{
    Capture, CaptureLayer, Checkpoint, Dtype, Labels, Output, OutputLayout, OutputTensor, same_layers,
};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::methods::per_sample::PerSample;
use crate::progress::Progress;
use crate::shape::elements;
use crate::stream::Budget;

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

/// How to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOptions {
    /// Whose step.
    pub kind: StepKind,
    /// λ, in units of ‖g_n‖².
    pub damping: f64,
    /// Where to write K, if anywhere.
    pub gram: Option<PathBuf>,
    /// Captures of the same samples under the model's labels, by which the step is judged; none: it is not.
    pub indicator: Vec<PathBuf>,
    /// What memory may be used.
    pub budget: Budget,
    /// Replace existing outputs.
    pub overwrite: bool,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// Whose step.
    pub kind: StepKind,
    /// λ.
    pub damping: f64,
    /// Samples over all files.
    pub samples: u64,
    /// Files.
    pub batches: usize,
    /// ‖g_n‖ of every sample, in the order of the files.
    pub gradient_norms: Vec<f64>,
    /// ‖Δ‖.
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
    pub output: PathBuf,
    /// K, if it was written.
    pub gram: Option<PathBuf>,
    /// How good the step is, if that was asked for.
    pub indicator: Option<Indicator>,
}

/// Computes a step from captures of the data's labels, writes it under the parameters' names to `out` and, if asked for, K as one tensor
/// `gram` `[N, N]`, f64, samples in the order of the files. With captures of the model's labels, also its [`indicator`], which is
/// computed from the step as it was written.
///
/// # Errors
/// What [`Capture::open`], [`PerSample::new`] and [`indicator`] refuse; [`Error::Argument`] for a damping that is negative or no number, for labels that are not the
/// data's, and for K + λI without an inverse; [`Error::File`] for the iEF where a capture has no `logit_grad`; [`Error::Budget`] where K does
/// not fit in memory; what [`PerSample`]'s methods refuse; [`Error::Output`] where an output cannot be written.
pub fn step(
    backend: &Backend,
    captures: &[PathBuf],
    options: &StepOptions,
    out: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<StepReport> {
    check_damping(options.damping)?;
    let captures = captures.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    let job = PerSample::new(backend, &captures, options.budget)?;
    check_labels(&captures, Labels::Data, "a step is defined by the data's labels")?;
    let exact = exact_captures(&captures, options)?;
    let target = match options.kind {
        StepKind::Ef => vec![1.0; job.samples()],
        StepKind::Ief => job.logit_grad_sq()?,
    };
    let inputs: Vec<&Path> = captures.iter().chain(&exact).map(Capture::path).collect();
    let step = Written::step(out, &captures, &job, options, &inputs)?;
    let samples = job.samples() as u64;
    let table =
        options.gram.as_ref().map(|path| Written::gram(path, samples, options, &inputs)).transpose()?;

    let mut gram = job.gram(progress, interrupt)?;
    if let Some(table) = &table {
        table.0.write(0, 0, bytemuck::cast_slice(&gram))?;
    }
    let gradient_norms: Vec<f64> = (0..job.samples()).map(|n| gram[n * (job.samples() + 1)].sqrt()).collect();
    let row_sums: Vec<f64> = gram.chunks(job.samples().max(1)).map(|row| row.iter().sum()).collect();
    let mut x = target.clone();
    solve(&mut gram, options.damping, &mut x)?;
    drop(gram);
    job.weighted_sum(&x, progress, interrupt, |name, first, values| step.write(name, first, values))?;
    captures.iter().try_for_each(|capture| capture.checkpoint().verify_unchanged())?;

    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    // ‖Jᵀx‖² = xᵀKx = xᵀ(target − λx).
    let step_norm = (inner(&x, &target) - options.damping * inner(&x, &x)).max(0.0).sqrt();
    let tensors: Vec<_> = captures[0].layers().iter().flat_map(CaptureLayer::parameters).collect();
    let read = captures.iter().chain(&exact).map(|capture| capture.checkpoint().total_bytes());
    let mut report = StepReport {
        kind: options.kind,
        damping: options.damping,
        samples,
        batches: captures.len(),
        gradient_norms,
        step_norm,
        slope: inner(&x, &row_sums),
        elements: tensors.iter().map(|(_, shape)| elements(shape).unwrap_or(u64::MAX)).sum(),
        tensors,
        bytes_read: read.sum(),
        bytes_written: step.0.total_bytes() + table.as_ref().map_or(0, |table| table.0.total_bytes()),
        adapter: backend.name(),
        output: step.0.path().to_owned(),
        gram: table.as_ref().map(|table| table.0.path().to_owned()),
        indicator: None,
    };
    if let Some(table) = table {
        table.0.finish()?;
    }
    step.0.finish()?;
    if !exact.is_empty() {
        let direction = Checkpoint::open(&report.output)?;
        let judged = indicator(backend, &exact, &captures, &direction, options.budget, progress, interrupt)?;
        report.indicator = Some(judged);
    }
    Ok(report)
}

/// The captures that a step is judged by, held against those that it is of before anything is computed.
fn exact_captures(data: &[Capture], options: &StepOptions) -> Result<Vec<Capture>> {
    let exact = options.indicator.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    if !exact.is_empty() {
        weights_of(&exact, data)?;
    }
    Ok(exact)
}

/// Checks captures and options as [`step`] would, without computing: the number of samples.
///
/// # Errors
/// As [`step`], of what headers tell.
pub fn check(captures: &[Capture], options: &StepOptions) -> Result<u64> {
    check_damping(options.damping)?;
    let job = PerSample::new(&Backend::Host, captures, options.budget)?;
    check_labels(captures, Labels::Data, "a step is defined by the data's labels")?;
    if options.kind == StepKind::Ief {
        let without = captures.iter().filter(|capture| !capture.has_logit_grad());
        without.map(Capture::logit_grad_sq).collect::<Result<Vec<_>>>()?;
    }
    job.check_gram()?;
    exact_captures(captures, options)?;
    Ok(job.samples() as u64)
}

/// An output being written.
struct Written(Output);

impl Written {
    fn step(
        out: &Path,
        captures: &[Capture],
        job: &PerSample<'_>,
        options: &StepOptions,
        inputs: &[&Path],
    ) -> Result<Self> {
        let parameters = captures[0].layers().iter().flat_map(CaptureLayer::parameters);
        let slots = parameters.map(|(name, shape)| OutputTensor::new(&name, Dtype::F32, shape)).collect();
        let metadata = metadata("step", job.samples() as u64, options);
        let layout = OutputLayout::single(slots, metadata);
        Output::create(out, layout, options.overwrite, inputs).map(Self)
    }

    fn gram(path: &Path, samples: u64, options: &StepOptions, inputs: &[&Path]) -> Result<Self> {
        let slot = OutputTensor::new("gram", Dtype::F64, vec![samples, samples]);
        let layout = OutputLayout::single(vec![slot], metadata("gram", samples, options));
        Output::create(path, layout, options.overwrite, inputs).map(Self)
    }

    fn write(&self, name: &str, first: u64, values: &[f32]) -> Result<()> {
        let slot = self.0.position(name).expect("the layout has every parameter");
        self.0.write(slot, 4 * first, bytemuck::cast_slice(values))
    }
}

fn metadata(what: &str, samples: u64, options: &StepOptions) -> BTreeMap<String, String> {
    let mut entries = vec![
        ("kind", if what == "gram" { what.to_owned() } else { format!("{}-step", options.kind) }),
        ("samples", samples.to_string()),
        ("loss", "sum".into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ];
    if what != "gram" {
        entries.push(("damping", options.damping.to_string()));
    }
    entries.into_iter().map(|(key, value)| (format!("squisher.{key}"), value)).collect()
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
            let problem = format!("{why}, and {} is of {:?} labels", other.path().display(), other.labels());
            Err(Error::argument(OP, problem))
        }
    }
}

/// A pivot of this share of its diagonal element is rounding of f32.
const ROUNDING: f64 = 1.0 / (1 << 20) as f64;

/// Solves (K + λI) x = `rhs` in place: `rhs` becomes x, `gram` the factor.
///
/// `gram` is K `[N, N]`, symmetric; N³/3 operations, no other memory than a column.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not fit; [`Error::Argument`] where K + λI has no inverse as far as f32 gradients tell, with a damping that would
/// do.
pub fn solve(gram: &mut [f64], damping: f64, rhs: &mut [f64]) -> Result<()> {
    let n = rhs.len();
    if gram.len() != n * n {
        return Err(Error::shape(OP, "gram", format!("{n} × {n} elements"), gram.len().to_string()));
    }
    if n == 0 {
        return Ok(());
    }
    let diagonal: Vec<f64> = (0..n).map(|m| gram[m * n + m]).collect();
    (0..n).for_each(|m| gram[m * n + m] += damping);
    let largest = diagonal.iter().fold(0.0, |most: f64, value| most.max(*value));
    let singular = |m: usize| {
        let least = if largest > 0.0 { largest * ROUNDING } else { f64::MIN_POSITIVE };
        let problem = format!(
            "K + {damping:e}·I has no inverse: the gradient of sample {m} is 0 or, as far as f32 tells, a sum of those before it (repeated \
             samples, or more samples than parameters); pass --damping {least:.1e} or more"
        );
        Error::argument(OP, problem)
    };
    // K is symmetric: by rows or by columns is the same.
    let mut memory =
        MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut memory);
    let factor = MatMut::from_column_major_slice_mut(gram, n, n);
    llt::factor::cholesky_in_place(
        factor,
        llt::factor::LltRegularization::default(),
        Par::Seq,
        stack,
        Default::default(),
    )
    .map_err(|llt::factor::LltError::NonPositivePivot { index }| singular(index))?;
    for (m, &diagonal) in diagonal.iter().enumerate() {
        let pivot = gram[m * n + m];
        if pivot.is_nan() || pivot * pivot <= diagonal * ROUNDING {
            return Err(singular(m));
        }
    }
    let factor = MatRef::from_column_major_slice(gram, n, n);
    llt::solve::solve_in_place(factor, MatMut::from_column_major_slice_mut(rhs, n, 1), Par::Seq, stack);
    Ok(())
}

/// How good a step is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Indicator {
    /// Δᵀ F Δ = Σ_n w_n ⟨ĝ_n, Δ⟩² over the samples of the weighted captures.
    pub curvature: f64,
    /// Δᵀ ∇L = Σ_n ⟨g_n, Δ⟩ over the data's.
    pub slope: f64,
    /// γ = √curvature / |slope|; infinite where Δ does not change the loss.
    pub gamma: f64,
}

/// γ(Δ) = √(Δᵀ F Δ) / |Δᵀ ∇L| of the step that the checkpoint `direction` holds under the parameters' names.
///
/// `exact` are captures of all classes with their probabilities as weights (or of labels drawn from the model, which estimates F); `data` are
/// captures of the data's labels, for ∇L. F and ∇L are sums over samples, not means: both are to be of the same samples, so that the weights
/// add up to as many as there are.
/// Two passes of 2·P·i·o operations a linear layer; no N × N matrix.
///
/// # Errors
/// As [`PerSample::inner_products`]; [`Error::Argument`] for captures of other labels; [`Error::Mismatch`] where `exact` and `data` are not of one
/// network, or not of as many samples.
pub fn indicator(
    backend: &Backend,
    exact: &[Capture],
    data: &[Capture],
    direction: &Checkpoint,
    budget: Budget,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Indicator> {
    let weights = weights_of(exact, data)?;
    let products =
        |captures| PerSample::new(backend, captures, budget)?.inner_products(direction, progress, interrupt);
    let curvature: f64 =
        products(exact)?.iter().zip(&weights).map(|(product, w)| w * product * product).sum();
    let slope: f64 = products(data)?.iter().sum();
    let gamma = if slope == 0.0 { f64::INFINITY } else { curvature.sqrt() / slope.abs() };
    Ok(Indicator { curvature, slope, gamma })
}

/// The weights of `exact`'s samples, after what headers tell of both was checked.
fn weights_of(exact: &[Capture], data: &[Capture]) -> Result<Vec<f64>> {
    if let Some(capture) = exact.iter().find(|capture| capture.labels() == Labels::Data) {
        let problem = format!(
            "the Fisher is defined by the model's labels, and {} is of the data's; capture all classes",
            capture.path().display()
        );
        return Err(Error::argument(OP, problem));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved_and_damped() {
        let (mut gram, mut x) = (vec![4.0, 2.0, 2.0, 3.0], vec![2.0, 5.0]);
        solve(&mut gram, 0.0, &mut x).expect("positive definite");
        assert!((x[0] + 0.5).abs() < 1e-15 && (x[1] - 2.0).abs() < 1e-15, "{x:?}");
        let (mut gram, mut x) = (vec![1.0, 1.0, 1.0, 1.0], vec![1.0, 1.0]);
        solve(&mut gram, 2.0, &mut x).expect("damped");
        assert!(x.iter().all(|x| (x - 0.25).abs() < 1e-15), "{x:?}");
        solve(&mut [], 0.0, &mut []).expect("nothing to solve");
    }

    #[test]
    fn a_singular_system_is_refused_with_the_damping_that_does() {
        let near = 1.0 - 1e-9;
        for gram in [vec![1.0, 1.0, 1.0, 1.0], vec![1.0, near, near, 1.0], vec![1.0, 0.0, 0.0, 0.0]] {
            let refusal = solve(&mut gram.clone(), 0.0, &mut [1.0, 1.0]).expect_err("singular").to_string();
            assert!(refusal.contains("sample 1") && refusal.contains("--damping 9.5e-7"), "{refusal}");
            solve(&mut gram.clone(), 1e-6, &mut [1.0, 1.0]).expect("the damping named does");
        }
        assert!(solve(&mut [1.0], 0.0, &mut [1.0, 2.0]).is_err());
    }
}
