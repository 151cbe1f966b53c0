//! Merging: any number of models into one, weighted by their Fishers.
//!
//! | method | result | where the denominator is 0 |
//! |---|---|---|
//! | `linear` | Σ λ_m θ_m / Σ λ_m | refused |
//! | `fisher` | Σ λ_m F_m θ_m / Σ λ_m F_m | the `linear` value, counted |
//! | `ubgm` | θ_0 + Σ λ_m (F_0 + F_m)(θ_m − θ_0) / (F_0 + Σ λ_m F_m) | θ_0, counted |
//!
//! All models stream through once, chunk by chunk, whatever their sizes ([`stream`](crate::stream)). What headers show
//! to be wrong (names, shapes, missing Fishers, Fishers on different scales) is refused before the first output
//! byte; what only the data show (NaN, negative Fishers) ends the merge with the old output untouched.
//!
//! Merging is blind to a factor common to all Fishers, and to no other: two accumulators whose batch sizes, step
//! counts or learning-rate histories differ want `normalize`. A floor is relative to each Fisher's own mean,
//! because accumulators of 1e-12 under an absolute floor of 1e-6 would silently give the plain average.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use squisher::methods::merge::{MergeOptions, Method, Model, Normalize, merge};
//! use squisher::{Backend, Run};
//!
//! let model = |name: &str, weight| Model {
//!     path: format!("{name}.safetensors").into(),
//!     fisher: Some(format!("{name}.fisher.safetensors").into()),
//!     weight,
//! };
//! let models = vec![model("a", 1.0), model("b", 2.0)];
//! let options = MergeOptions { normalize: Normalize::Mean, ..MergeOptions::new(Method::Fisher, models) };
//! let report = merge(&options, Path::new("merged.safetensors"), &Run::new(&Backend::Host))?;
//! println!("{} parameters, {} of them with no Fisher above 0", report.elements, report.fallback);
//! # Ok::<(), squisher::Error>(())
//! ```

mod card;
mod config;
mod copies;
mod inputs;
mod remedies;
mod resume;
mod scales;
mod sweep;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use inputs::Inputs;
pub use inputs::MergePlan;

pub use super::source::NonFinite;

use crate::error::Result;
use crate::shape::DType;
use crate::stream::{Run, Timings};

/// What is merged, and how.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    /// The formula of the merge.
    pub method: Method,
    /// The models, in order; the first gives the output its layout and its types.
    pub models: Vec<Model>,
    /// θ_0 and F_0 of `ubgm`.
    pub base: Option<Base>,
    /// What each Fisher is divided by first.
    pub normalize: Normalize,
    /// Raise each model's Fisher to at least this share of its own mean.
    pub floor: f64,
    /// What to do with a tensor that has no Fisher in one model.
    pub missing: Missing,
    /// What to do with Fishers that are NaN, infinite or negative.
    pub non_finite: NonFinite,
    /// Accept Fishers whose files say they are of different kinds, reductions or scales.
    pub allow_mixed: bool,
    /// Storage of the merged float tensors; the first model's if not given.
    pub dtype: Option<DType>,
    /// Split the output into files of at most this many bytes; like the first model if not given.
    pub shard_bytes: Option<u64>,
    /// Replace an output that exists.
    pub overwrite: bool,
    /// Keep what is done if the merge ends early, and go on from what an earlier run of the same merge has kept: at
    /// least every so many bytes of the result, what is done is synced and marked.
    pub resume: Option<u64>,
}

impl MergeOptions {
    /// A merge of `models` by `method`, which refuses whatever could be a mistake: nothing is normalised,
    /// floored or replaced.
    #[must_use]
    pub fn new(method: Method, models: Vec<Model>) -> Self {
        Self {
            method,
            models,
            base: None,
            normalize: Normalize::None,
            floor: 0.0,
            missing: Missing::Error,
            non_finite: NonFinite::Error,
            allow_mixed: false,
            dtype: None,
            shard_bytes: None,
            overwrite: false,
            resume: None,
        }
    }
}

/// A model to merge.
#[derive(Clone, Debug)]
pub struct Model {
    /// The model's checkpoint.
    pub path: PathBuf,
    /// The model's Fisher file; needed unless the method is linear.
    pub fisher: Option<PathBuf>,
    /// λ, at least 0; only ratios matter.
    pub weight: f64,
}

/// What `ubgm` starts from.
#[derive(Clone, Debug)]
pub struct Base {
    /// Checkpoint of θ_0, which the models were fine-tuned from.
    pub path: PathBuf,
    /// Fisher file of θ_0, F_0.
    pub fisher: PathBuf,
    /// δ, added to F_0.
    pub delta: f64,
}

/// A formula for merging; see the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The plain average.
    Linear,
    /// Fisher-weighted (Matena & Raffel 2022).
    Fisher,
    /// Uncertainty-based gradient matching (Daheim et al. 2024).
    Ubgm,
}

/// What each Fisher, the base's included, is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// Nothing: Fishers are taken as they are.
    None,
    /// Its mean over all parameters.
    Mean,
    /// Its L2 norm over all parameters.
    Norm,
}

/// What to do with a tensor that has no Fisher in one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Refuse, naming the tensors.
    Error,
    /// Average it linearly.
    Average,
}

/// What a merge did. Keys are stable.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct MergeReport {
    /// Parameters merged (float tensors).
    pub elements: u64,
    /// Parameters with no weight in any model.
    pub fallback: u64,
    /// Parameters at which every model's Fisher was raised to its floor.
    pub floored: u64,
    /// (parameter, model) pairs raised to the floor.
    pub raised: u64,
    /// Parameters at which one model has more than 99 % of the weight.
    pub dominated: u64,
    /// Parameters averaged linearly because a model has no Fisher for their tensor.
    pub averaged: u64,
    /// Fishers that were NaN, infinite or negative and counted as 0.
    pub non_finite: u64,
    /// Elements of tensors that are not floating-point and were copied.
    pub copied: u64,
    /// Bytes read from all inputs.
    pub bytes_read: u64,
    /// Bytes of the output.
    pub bytes_written: u64,
    /// Seconds from start to synced output.
    pub seconds: f64,
    /// The most device memory the plan uses.
    pub peak_device_bytes: u64,
    /// The most host memory the plan uses for staging.
    pub peak_host_bytes: u64,
    /// The host or the adapter that kernels ran on.
    pub adapter: String,
    /// Where the time went.
    pub timings: Timings,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// Merges `options.models` into `out`.
///
/// Costs one read of every input (two of the Fishers if they are normalised or floored) and one write of the output.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) if inputs do not fit together, [`Error::Tensor`](crate::Error::Tensor)
/// for a value that can't be merged, [`Error::Budget`](crate::Error::Budget), and everything files and devices do.
pub fn merge(options: &MergeOptions, out: &Path, run: &Run<'_>) -> Result<MergeReport> {
    let started = Instant::now();
    let inputs = Inputs::open(options)?;
    let plan = inputs.plan(run)?;
    let (output, mut marks) = resume::output(&inputs, &plan, run.backend, out)?;
    let mut report = MergeReport {
        elements: plan.elements(),
        peak_device_bytes: plan.peak_device_bytes(),
        peak_host_bytes: plan.peak_host_bytes(),
        adapter: run.backend.name(),
        warnings: inputs.warnings.clone(),
        ..MergeReport::default()
    };
    let mut fill = || {
        // First what may still be refused: integers that differ end no merge of hours.
        inputs.copy_others(&output, &run.interrupt, &mut report)?;
        let scales = inputs.scales(&run.interrupt, &mut report)?;
        marks.restore(&mut report);
        for pass in plan.passes() {
            let reports = (&mut report, &mut marks);
            sweep::run(&inputs, pass, &scales, &output, run, reports)?;
        }
        inputs.verify_unchanged()
    };
    if let Err(error) = fill() {
        return Err(resume::ended(error, output));
    }
    report.bytes_written = output.total_bytes();
    output.finish()?;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// What a merge would do, from headers alone.
///
/// # Errors
/// As [`merge`], as far as headers show it.
pub fn plan(options: &MergeOptions, run: &Run<'_>) -> Result<MergePlan> {
    Inputs::open(options)?.plan(run)
}
