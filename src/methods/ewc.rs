//! Elastic weight consolidation: the penalty of leaving where earlier tasks left a model, and its gradient.
//!
//! ```text
//! penalty = ½ λ Σ F (θ − θ*)²,   gradient = λ F (θ − θ*)
//! ```
//!
//! Several anchors add up, and none of them decays another: each keeps its own Fisher whole. *Online*:
//! several Fishers at one anchor, the oldest first, count as F ← F_new + γ F_old, with γ applied once at each
//! step to all that came before and never to the newest. As the penalty is linear in F, each Fisher is its
//! own term, with λ γ^(newer ones at its anchor); nothing is combined in f32 first. γ where no anchor has two
//! Fishers would change nothing, and is refused.
//!
//! A tensor without Fisher is free: it adds nothing and has no gradient, which is how new heads stay
//! trainable. Tensors that the model has not are refused.
//!
//! λ is transferable only together with the ½, γ, the Fisher's reduction (sum or mean), and its B and N: the
//! report states them all. Everything streams through once, in chunks; partial sums are folded in f64 in the
//! order of the plan.
//!
//! ```no_run
//! use squisher::methods::ewc::{Anchor, EwcOptions, ewc};
//! use squisher::{Backend, Run};
//!
//! let anchor = Anchor { path: "before.safetensors".into(), fishers: vec!["fisher.safetensors".into()] };
//! let options = EwcOptions {
//!     gradient: Some("gradient.safetensors".into()),
//!     ..EwcOptions::new("now.safetensors".into(), vec![anchor], 100.0)
//! };
//! let report = ewc(&options, &Run::new(&Backend::Host))?;
//! println!("penalty {}", report.penalty);
//! # Ok::<(), squisher::Error>(())
//! ```

mod inputs;
mod sweep;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use serde::Serialize;

use inputs::{Inputs, OpenTerm};
use sweep::PassInputs;

use crate::checkpoint::Output;
use crate::error::Result;
use crate::methods::source::NonFinite;
use crate::stream::{Plan, Run, Timings};

const OP: &str = "ewc";

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct EwcOptions {
    /// Checkpoint of the model, θ.
    pub model: PathBuf,
    /// Where earlier tasks left the model, each with its Fishers.
    pub anchors: Vec<Anchor>,
    /// The strength λ of the penalty, at least 0.
    pub lambda: f64,
    /// γ, at least 0: needed where an anchor has several Fishers, refused where none has.
    pub gamma: Option<f64>,
    /// What to do with Fishers that are NaN, infinite or negative.
    pub non_finite: NonFinite,
    /// Where to write the gradient, in f32 under the model's names.
    pub gradient: Option<PathBuf>,
    /// Replace an output that exists.
    pub overwrite: bool,
}

impl EwcOptions {
    /// The penalty of `model` for leaving `anchors`, without its gradient.
    #[must_use]
    pub fn new(model: PathBuf, anchors: Vec<Anchor>, lambda: f64) -> Self {
        let (gamma, non_finite, gradient, overwrite) = (None, NonFinite::Error, None, false);
        Self { model, anchors, lambda, gamma, non_finite, gradient, overwrite }
    }
}

/// Where an earlier task left the model, and what mattered there.
#[derive(Clone, Debug)]
pub struct Anchor {
    /// Checkpoint of the model as the task left it, θ*.
    pub path: PathBuf,
    /// Its Fishers, the oldest first; all but the newest are decayed.
    pub fishers: Vec<PathBuf>,
}

/// The penalty with all that it depends on. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EwcReport {
    /// ½ λ Σ F (θ − θ*)² over all anchors.
    pub penalty: f64,
    /// The formula that was evaluated.
    pub formula: &'static str,
    /// The strength λ of the penalty.
    pub lambda: f64,
    /// γ; nothing where no Fisher was decayed and none was given.
    pub gamma: Option<f64>,
    /// A term for each Fisher.
    pub terms: Vec<Term>,
    /// Parameters that have a Fisher.
    pub elements: u64,
    /// Tensors of the model that have none in any term.
    pub free: Vec<String>,
    /// Fishers that were NaN, infinite or negative and counted as 0.
    pub non_finite: u64,
    /// Bytes read from all inputs.
    pub bytes_read: u64,
    /// Bytes of the gradient.
    pub bytes_written: u64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Where the time of the passes went.
    pub timings: Timings,
    /// The host or the adapter that kernels ran on.
    pub adapter: String,
    /// What should be looked at.
    pub warnings: Vec<String>,
}

/// One Fisher's share of the penalty, and what its file says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Term {
    /// Checkpoint of the term's anchor θ*.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub anchor: PathBuf,
    /// The term's Fisher file, F.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub fisher: PathBuf,
    /// λ times the Fisher's power of γ.
    pub weight: f64,
    /// The term's share of the penalty.
    pub penalty: f64,
    /// The Fisher's kind, as its file says.
    pub kind: Option<String>,
    /// The Fisher's reduction, sum or mean, as its file says.
    pub reduction: Option<String>,
    /// The Fisher's scale, as its file says.
    pub scale: Option<String>,
    /// Batch size B of the Fisher.
    pub batch_size: Option<String>,
    /// Number of samples N of the Fisher.
    pub samples: Option<String>,
}

/// What [`ewc`] would do, from headers alone. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EwcPlan {
    /// The formula that would be evaluated.
    pub formula: &'static str,
    /// The strength λ of the penalty.
    pub lambda: f64,
    /// γ, where it was given.
    pub gamma: Option<f64>,
    /// A term for each Fisher.
    pub terms: Vec<PlannedTerm>,
    /// Parameters that have a Fisher.
    pub elements: u64,
    /// Tensors of the model that have none in any term.
    pub free: Vec<String>,
    /// One for each set of terms that tensors have Fishers of.
    pub passes: Vec<Plan>,
    /// What should be looked at.
    pub warnings: Vec<String>,
}

/// One Fisher's term before it is evaluated.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedTerm {
    /// Checkpoint of the term's anchor θ*.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub anchor: PathBuf,
    /// The term's Fisher file, F.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub fisher: PathBuf,
    /// λ times the Fisher's power of γ.
    pub weight: f64,
}

const FORMULA: &str = "penalty = 1/2 lambda sum F (theta - anchor)^2, gradient = lambda F (theta - anchor)";

/// The result of a `--dry-run`.
///
/// # Errors
/// What headers and budgets alone show to be wrong, as [`ewc`].
pub fn plan(options: &EwcOptions, run: &Run<'_>) -> Result<EwcPlan> {
    let inputs = Inputs::open(options)?;
    let passes = inputs.passes(options, run)?;
    let term = |term: &OpenTerm| PlannedTerm {
        anchor: term.anchor.path().to_owned(),
        fisher: term.fisher.path().to_owned(),
        weight: term.weight,
    };
    Ok(EwcPlan {
        formula: FORMULA,
        lambda: options.lambda,
        gamma: options.gamma,
        terms: inputs.terms.iter().map(term).collect(),
        elements: passes.iter().map(Plan::elements).sum(),
        warnings: inputs.mixed(),
        free: inputs.free,
        passes,
    })
}

/// Evaluates the penalty and, if asked, writes its gradient.
///
/// # Errors
/// [`Error::Argument`](crate::Error::Argument) for λ or γ below 0, decayed Fishers without γ, or γ without
/// any to decay; [`Error::Mismatch`](crate::Error::Mismatch) for files that do not fit the model, and a λ
/// whose gradient leaves f32; [`Error::Tensor`](crate::Error::Tensor) for values that are not numbers and
/// Fishers below 0; and all that files and devices do.
pub fn ewc(options: &EwcOptions, run: &Run<'_>) -> Result<EwcReport> {
    let started = Instant::now();
    let inputs = Inputs::open(options)?;
    let passes = inputs.passes(options, run)?;
    let output = options
        .gradient
        .as_ref()
        .map(|path| Output::create(path, inputs.layout(options), options.overwrite, &inputs.paths()));
    let output = output.transpose()?;
    let mut sums = vec![0.0; inputs.terms.len()];
    let zeroed = AtomicU64::new(0);
    let mut timings = Timings::default();
    for ((terms, tensors), plan) in inputs.passes.iter().zip(&passes) {
        let zeroed = options.non_finite.counted(&zeroed);
        let pass = PassInputs::of(&inputs, terms, tensors, output.as_ref(), zeroed)?;
        timings += pass.run(plan, &mut sums, run)?;
    }
    inputs.verify_unchanged()?;
    let bytes_written = output.as_ref().map_or(0, Output::total_bytes);
    output.map_or(Ok(()), Output::finish)?;
    let terms: Vec<Term> = inputs.terms.iter().zip(&sums).map(|(term, sum)| term.report(*sum)).collect();
    Ok(EwcReport {
        penalty: terms.iter().map(|term| term.penalty).sum(),
        formula: FORMULA,
        lambda: options.lambda,
        gamma: options.gamma,
        terms,
        elements: passes.iter().map(Plan::elements).sum(),
        warnings: inputs.mixed(),
        free: inputs.free,
        non_finite: zeroed.into_inner(),
        bytes_read: passes.iter().map(|plan| plan.traffic().read).sum(),
        bytes_written,
        seconds: started.elapsed().as_secs_f64(),
        timings,
        adapter: run.backend.name(),
    })
}
