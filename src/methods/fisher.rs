//! The Fisher diagonal of a network from captures of its forward and backward passes.
//!
//! *Plan*: every header is opened and held against the others before the output is created. *Run*: layer by
//! layer over all files, and within a file some samples at a time, the next of which are read while some are
//! computed; so that memory holds a few samples and one layer's result, however many files there are and
//! however large. Kinds that square sums over samples sum the gradients themselves first: over a batch, or,
//! for `joint`, over all files.
//!
//! | kind | result | labels |
//! |---|---|---|
//! | `empirical` | Σ_n w_n g_n² | the data's; of captures with model labels this is `mc` or `exact`, and is reported under that name |
//! | `minibatch-joint` | Σ_batches (Σ_{n ∈ batch} g_n)² | the data's |
//! | `joint` | (Σ_n g_n)² | the data's (Li et al. 2025, eq. 10–12); noise at an optimum |
//! | `ief` | Σ_n w_n g_n² / s_n, s_n = ‖∂ℓ_n/∂z_n‖² | the data's (Wu et al. 2024) |
//! | `ema` | f ← β f + (1−β) Σ_n w_n g_n², batch by batch | the data's |
//! | `accumulator` | v ← β v + (1−β) (1/B Σ_n g_n)², batch by batch, from 0, no bias correction | the data's |
//!
//! A layer used several times has one parameter: the gradients of its uses are added before they are squared.
//! Where one step cannot do that (a parameter of several layers, uses at several sizes, a sample larger than
//! a binding or longer than a loop), the gradients of some samples are formed, of one where the parameter is
//! large, and then squared:
//!
//! ```text
//! f ← decay · f + gain · weight_n · (Σ_part g_n,part)²
//! ```
//!
//! which takes one more buffer, of the parameter's size or a few MiB, and writing and reading it for every
//! sample. A result that one binding cannot hold is kept in several buffers of consecutive rows; one beyond
//! the memory budget is computed some rows at a time, and the captures are read as often.
//!
//! ```no_run
//! use std::path::{Path, PathBuf};
//!
//! use squisher::methods::fisher::{FisherOptions, Kind, fisher};
//! use squisher::{Backend, Run};
//!
//! let captures: [PathBuf; 2] = ["capture-0.safetensors".into(), "capture-1.safetensors".into()];
//! let options = FisherOptions { kind: Kind::Ief, ..FisherOptions::default() };
//! let report = fisher(&captures, &options, Path::new("fisher.safetensors"), &Run::new(&Backend::Host))?;
//! println!("{} parameters from {} samples", report.elements, report.samples);
//! # Ok::<(), squisher::Error>(())
//! ```

mod job;
mod kind;
mod numbers;
mod passes;
mod run;

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::{Capture, Labels};
use crate::error::{Error, Result};
use crate::methods::captured::{Ahead, units};
use crate::stream::{Clock, Run, Stage, Timings};

use job::Job;
pub use kind::{Kind, Reduction};

const OP: &str = "fisher";

/// Which Fisher is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FisherOptions {
    /// What is squared and summed.
    pub kind: Kind,
    /// β of the moving averages.
    pub beta: f64,
    /// Multiply each sample's square by its `sample_weight`. Captures of model labels are always weighted.
    pub weighted: bool,
    /// What the sum is divided by.
    pub reduction: Reduction,
    /// Replace an existing output.
    pub overwrite: bool,
}

impl Default for FisherOptions {
    fn default() -> Self {
        Self {
            kind: Kind::Empirical,
            beta: 0.999,
            weighted: false,
            reduction: Reduction::Sum,
            overwrite: false,
        }
    }
}

impl FisherOptions {
    /// Refuses options without a meaning.
    fn check(&self, labels: Labels) -> Result<()> {
        let refuse = |problem: String| Err(Error::argument(OP, problem));
        if !(0.0..1.0).contains(&self.beta) {
            return refuse(format!("beta is {}, expected at least 0 and below 1", self.beta));
        }
        if self.kind.joins_samples() && self.weighted {
            return refuse(format!(
                "{} squares sums over samples, which --weighted has no meaning for",
                self.kind
            ));
        }
        if self.kind == Kind::Accumulator && self.reduction == Reduction::Mean {
            return refuse("accumulator averages batch means by its own rule; leave --reduction out".into());
        }
        if self.kind != Kind::Empirical && labels != Labels::Data {
            return refuse(format!(
                "{} is defined by the data's labels, the captures are of the model's",
                self.kind
            ));
        }
        Ok(())
    }
}

/// What [`fisher()`] would do. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FisherPlan {
    /// The kind, with labels taken into account: also `mc` and `exact`.
    pub kind: String,
    /// Samples over all files; of model labels, the sum of their weights.
    pub samples: u64,
    /// Files.
    pub batches: usize,
    /// The tensors that would be written, with their shapes.
    pub tensors: Vec<(String, Vec<u64>)>,
    /// Elements that would be written.
    pub elements: u64,
    /// How often the layer would be read that is read most often: more than once only where its result is
    /// beyond the budget.
    pub passes: usize,
    /// Bytes of all captures.
    pub bytes_to_read: u64,
}

/// What was computed, and what it cost.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FisherReport {
    /// The kind, with labels taken into account: also `mc` and `exact`.
    pub kind: String,
    /// What the sum was divided by.
    pub reduction: Reduction,
    /// Samples over all files; of model labels, the sum of their weights.
    pub samples: u64,
    /// Number of capture files.
    pub batches: usize,
    /// Samples whose logit gradient is 0, which add nothing to the iEF.
    pub zero_loss_samples: u64,
    /// The tensors written, with their shapes.
    pub tensors: Vec<(String, Vec<u64>)>,
    /// Elements written.
    pub elements: u64,
    /// Bytes of all captures.
    pub bytes_read: u64,
    /// The most times any one layer's captures were read: more than once only where its result is beyond the budget.
    pub passes: usize,
    /// Bytes of the output.
    pub bytes_written: u64,
    /// The host or the adapter that kernels ran on.
    pub adapter: String,
    /// The path of the output.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub output: PathBuf,
    /// Where the time went; reading includes the way to the device, writing the way back and the sync.
    pub timings: Timings,
}

/// What [`fisher()`] would do, from headers, samples' weights and the budget.
///
/// # Errors
/// As [`fisher()`], of what these show.
pub fn plan(captures: &[PathBuf], options: &FisherOptions, run: &Run<'_>) -> Result<FisherPlan> {
    let captures = captures.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    let job = Job::new(run, &captures, *options)?;
    let units = units(captures[0].layers())?;
    Ok(job.planned(&job.plans(&units)?))
}

/// Computes the Fisher diagonal of every layer that `captures` describe and writes the Fisher file `out`. A
/// result beyond the budget is computed some rows at a time, each time from the captures.
///
/// # Errors
/// What [`Capture::open`] and [`same_network`](crate::checkpoint::same_network) refuse; [`Error::Argument`]
/// for options without a meaning; [`Error::Tensor`] for values that are not finite or ids out of range;
/// [`Error::Limit`] and [`Error::Device`] from the backend; [`Error::Output`] where the output cannot be
/// written; [`Error::Budget`] where not one row of a result fits the budget; [`Error::Interrupted`] between
/// two batches of a layer.
pub fn fisher(
    captures: &[PathBuf],
    options: &FisherOptions,
    out: &Path,
    run: &Run<'_>,
) -> Result<FisherReport> {
    let clock = Clock::start();
    let captures = captures.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    let job = Job::new(run, &captures, *options)?.with_losses()?;
    let units = units(captures[0].layers())?;
    let plans = job.plans(&units)?;
    let output = job.create(out)?;
    run.progress.begin(job.bytes());
    std::thread::scope(|scope| {
        let job = &job;
        let passes = || plans.iter().flat_map(|plan| plan.passes(&clock, &run.interrupt));
        let reads = passes().flat_map(|pass| job.batches(pass)).flat_map(|batch| job.portions(batch));
        let data = Ahead::new(scope, reads.map(|read| job.load(read)));
        passes()
            .try_for_each(|pass| job.pass(pass, &data, &output, if pass.first { run.progress } else { &() }))
    })?;
    captures.iter().try_for_each(|capture| capture.checkpoint().verify_unchanged())?;
    let report = job.report(&plans, &output);
    clock.time(Stage::Write, || output.finish())?;
    Ok(FisherReport { timings: clock.timings(), ..report })
}
