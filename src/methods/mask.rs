//! Masks of what matters.
//!
//! [`mask`] keeps the parameters with the largest Fisher (Sung, Nair, Raffel, *Training Neural Networks with
//! Fixed Sparse Masks*, 2021), a share of all, as BOOL tensors under the Fisher's own names. Which of equal
//! ones are kept, and what repeats, is said in [`select`](crate::methods::select).
//! [`reset`](crate::methods::reset) puts a model together by a mask.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crate::checkpoint::{Checkpoint, Output, TensorInfo};
use crate::error::Result;
use crate::kernels::select::Score;
use crate::methods::globs::Globs;
use crate::methods::select::{
    Inputs, Keep, Ranked, Roles, Scope, SelectPlan, SelectReport, Selector, cuts, piece_elements, report,
    seen,
};
use crate::methods::source::NonFinite;
use crate::stream::Run;

/// What a mask keeps, and of which tensors.
#[derive(Clone, Debug)]
pub struct MaskOptions {
    /// How many are kept.
    pub keep: Keep,
    /// Among what the best are kept.
    pub scope: Scope,
    /// Which tensors are ranked, kept whole, or left out.
    pub globs: Globs,
    /// Replace an existing output.
    pub overwrite: bool,
    /// What to do with Fishers that are NaN, infinite or negative.
    pub non_finite: NonFinite,
    /// Elements handled at once, where not as many as the budget allows. For tests: no result depends on it.
    #[doc(hidden)]
    pub piece_elements: Option<u64>,
}

impl MaskOptions {
    /// The best among all tensors.
    #[must_use]
    pub fn new(keep: Keep) -> Self {
        let (scope, globs) = (Scope::Global, Globs::default());
        let (overwrite, non_finite) = (false, NonFinite::Error);
        Self { keep, scope, globs, overwrite, non_finite, piece_elements: None }
    }
}

const OP: &str = "mask";

/// What [`mask`] would do.
///
/// # Errors
/// What headers alone show to be wrong, as [`mask`].
pub fn plan(fisher: &Path, options: &MaskOptions, run: &Run<'_>) -> Result<SelectPlan> {
    let fisher = Checkpoint::open(fisher)?;
    let plan = plan_fisher(&fisher, &options.globs)?;
    items_of_fisher(&plan, &fisher)?;
    piece_elements(run)?;
    let kept = plan.kept(OP, options.scope, options.keep)?;
    Ok(plan.shown(Some(kept)))
}

/// Writes the mask of the parameters with the largest Fisher. Tensors that globs leave out are not in it.
///
/// # Errors
/// As [`prune`](crate::methods::prune::prune).
pub fn mask(fisher: &Path, options: &MaskOptions, out: &Path, run: &Run<'_>) -> Result<SelectReport> {
    let began = Instant::now();
    let fisher = &Checkpoint::open(fisher)?;
    let plan = plan_fisher(fisher, &options.globs)?;
    let zeroed = AtomicU64::new(0);
    let inputs = Inputs {
        model: None,
        fisher,
        tensors: items_of_fisher(&plan, fisher)?,
        zeroed: options.non_finite.counted(&zeroed),
    };
    let room = options.piece_elements.map_or_else(|| piece_elements(run), Ok)?;
    let mut selector = Selector::new(Score::Fish, inputs, room, run)?;
    let output = Output::create(out, plan.mask_layout("fish"), options.overwrite, &[fisher.path()])?;
    let cuts = cuts(OP, &mut selector, options.scope, options.keep, plan.always_elements())?;
    let threshold = cuts.first().filter(|_| options.scope == Scope::Global).and_then(|(_, cut)| cut.score());
    let slot = |tensor: &TensorInfo| output.position(&tensor.name).expect("the mask has every ranked tensor");
    let slots: Vec<usize> = plan.ranked.iter().map(|tensor| slot(tensor)).collect();
    let mut counts = vec![0; slots.len()];
    selector.apply(&cuts, None, &mut |kept| {
        counts[kept.tensor] += kept.mask.iter().map(|&keep| u64::from(keep)).sum::<u64>();
        output.write(slots[kept.tensor], kept.start, kept.mask)
    })?;
    plan.keep_always(&output)?;
    fisher.verify_unchanged()?;
    let mut report = report(&plan, &counts, &output);
    // A mask without a parameter of some layers is what FISH masks are like; a model without a layer is not.
    report.warnings.clear();
    output.finish()?;
    report.threshold = threshold;
    report.passes = selector.passes;
    report.bytes_read = selector.bytes_read;
    report.timings = selector.timings;
    report.non_finite = zeroed.into_inner();
    report.seconds = began.elapsed().as_secs_f64();
    report.adapter = run.backend.name();
    Ok(report)
}

/// A Fisher alone: every float tensor is ranked.
fn plan_fisher<'a>(fisher: &'a Checkpoint, globs: &Globs) -> Result<Roles<'a>> {
    Roles::new(OP, fisher, globs, |_| true)
}

/// How a selector sees the tensors of a Fisher alone.
fn items_of_fisher(plan: &Roles<'_>, fisher: &Checkpoint) -> Result<Vec<Ranked>> {
    let item = |tensor: &&TensorInfo| {
        let fisher = seen(fisher, &tensor.name)?;
        Ok(Ranked { len: tensor.elements(), theta: None, fisher, stride: 1, unit: 1 })
    };
    plan.ranked.iter().map(item).collect()
}
