//! How far a merge is, so that one that ended early can go on.
//!
//! A chunk is done when its values are written and its counts taken, and chunks are done in the plan's order.
//! So the pass, the number of its chunks that are done, and the counts so far say everything, as long as what
//! they depend on is the same: that is the job's text, which the output keeps beside them. No value depends
//! on another chunk, so the bytes are those of a merge that was never interrupted.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::inputs::{Inputs, MergePlan};
use super::{MergeReport, card};
use crate::backend::Backend;
use crate::checkpoint::Output;
use crate::error::{Error, Result};
use crate::stream::{Chunk, Plan};

/// What was done at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Done {
    /// The pass.
    pass: usize,
    /// Chunks of that pass.
    chunks: usize,
    /// The report's counts.
    fallback: u64,
    floored: u64,
    raised: u64,
    dominated: u64,
    non_finite: u64,
}

/// Follows a merge and marks how far it is.
pub(super) struct Marks {
    /// Bytes of the result between two marks; nothing if none are wanted.
    every: Option<u64>,
    /// Bytes since the last mark.
    since: u64,
    /// The pass that runs.
    pass: usize,
    /// Its chunks that are done.
    chunks: usize,
    /// What an earlier run had done.
    before: Option<Done>,
}

/// The output of a merge, new or as an earlier run left it, and the marks that go with it.
pub(super) fn output(
    inputs: &Inputs<'_>,
    plan: &MergePlan,
    backend: &Backend,
    path: &Path,
) -> Result<(Output, Marks)> {
    let (layout, overwrite, every) = (inputs.layout()?, inputs.options.overwrite, inputs.options.resume);
    let marks = |before| Marks { every, since: 0, pass: 0, chunks: 0, before };
    if every.is_none() {
        return Ok((Output::create(path, layout, overwrite, &inputs.paths())?, marks(None)));
    }
    let job = job(inputs, plan, backend);
    let (output, progress) = Output::create_or_resume(path, layout, overwrite, &inputs.paths(), &job)?;
    let Some(progress) = progress else { return Ok((output, marks(None))) };
    let before = serde_json::from_str(&progress).map_err(|error| {
        Error::output(path, format!("what is to be resumed has a damaged journal: {error}"))
    })?;
    Ok((output, marks(Some(before))))
}

/// Everything that the result's bytes and the meaning of [`Done`] depend on, in lines.
fn job(inputs: &Inputs<'_>, plan: &MergePlan, backend: &Backend) -> String {
    let device = match backend {
        // Neither its threads nor its processor change a bit.
        Backend::Host => "host".to_owned(),
        Backend::Gpu(_) => backend.name(),
    };
    let options = inputs.options;
    let mut lines = vec![format!("squisher {} on {device}", env!("CARGO_PKG_VERSION"))];
    lines.extend(card::recipe(options).lines().map(str::to_owned));
    lines.extend(options.shard_bytes.map(|bytes| format!("shards of {bytes} bytes")));
    lines.extend(inputs.stamps());
    // With the layout given, equal numbers of chunks mean equal chunks.
    lines.extend(plan.passes().iter().map(|pass| {
        let (chunks, elements) = (pass.plan.chunks().len(), pass.plan.elements());
        format!("memory limits that make {chunks} chunks of {elements} parameters")
    }));
    lines.join("\n")
}

/// What becomes of the output of a merge that ended early: kept to go on with, unless going on would end alike.
pub(super) fn ended(error: Error, output: Output) -> Error {
    let passes = matches!(
        error,
        Error::Interrupted { .. } | Error::Device { .. } | Error::Io { .. } | Error::Output { .. }
    );
    if !passes && let Err(left) = output.discard() {
        log::warn!("{left}");
    }
    if let Some(path) = output.kept() {
        log::warn!("{}: what is done is kept; --resume goes on from it", path.display());
    }
    error
}

impl Marks {
    /// Puts what an earlier run counted into the report.
    pub(super) fn restore(&self, report: &mut MergeReport) {
        let Some(done) = self.before else { return };
        report.fallback = done.fallback;
        report.floored = done.floored;
        report.raised = done.raised;
        report.dominated = done.dominated;
        report.non_finite = done.non_finite;
    }

    /// The chunks of this pass's `plan` that an earlier run has done, and the plan of the others.
    pub(super) fn split<'a>(&mut self, plan: &'a Plan) -> (&'a [Chunk], Plan) {
        self.chunks = match self.before {
            Some(done) if done.pass > self.pass => plan.chunks().len(),
            Some(done) if done.pass == self.pass => done.chunks.min(plan.chunks().len()),
            _ => 0,
        };
        (&plan.chunks()[..self.chunks], plan.after(self.chunks))
    }

    /// Hears that another chunk is done, of `bytes` bytes of the result; `report` has its counts.
    pub(super) fn written(&mut self, bytes: u64, report: &MergeReport, output: &Output) -> Result<()> {
        self.chunks += 1;
        self.since += bytes;
        if self.every.is_none_or(|every| self.since < every) {
            return Ok(());
        }
        self.since = 0;
        let done = Done {
            pass: self.pass,
            chunks: self.chunks,
            fallback: report.fallback,
            floored: report.floored,
            raised: report.raised,
            dominated: report.dominated,
            non_finite: report.non_finite,
        };
        output.mark(&serde_json::to_string(&done).expect("numbers are JSON"))
    }

    /// Hears that the pass is done.
    pub(super) fn end_pass(&mut self) {
        self.pass += 1;
    }
}
