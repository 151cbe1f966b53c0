//! Pruning: zero where the loss would suffer least.
//!
//! The score of a parameter is ½ θ² F, what the loss grows by when θ becomes zero, to second order with the
//! Hessian taken as the diagonal Fisher F (Theis, Korshunova, Tejani, Huszár, *Faster gaze prediction with
//! dense networks and Fisher pruning*, 2018, eq. 7; the factor does not matter here, so F may be a sum, a
//! mean, or an accumulator).
//!
//! | what is kept | among | by |
//! |---|---|---|
//! | elements, k of all | all tensors (`Scope::Global`) or each (`Scope::Tensor`) | ½ θ² F |
//! | elements, N of every M | M consecutive along the input axis ([`Pattern`]) | ½ θ² F |
//! | filters, k of all | all tensors or each | `filter-sum`: Σ ½ θ² F over the filter ([`prune`]) |
//! | filters, k of all | all tensors or each | `filter-gate`: ½ Σ_n (Σ_{w ∈ filter} θ_w g_nw)² ([`gates`]) |
//!
//! The output has the model's tensors, types and files. What is kept is kept bit for bit, the rest is zero. Integer and
//! boolean tensors, and tensors that globs leave out, are copied. See [`select`](crate::methods::select) for
//! which items of equal score are kept, and what repeats.
//!
//! `filter-sum` is not Theis et al.'s score for feature maps. That is `filter-gate`: it has the cross terms
//! and needs per-sample gradients, which captures hold. Both are summed on the host in f64, element after
//! element, so that a sum is the same on every backend and however a filter is cut. A filter is a slice of
//! the leading axis of a tensor with two axes or more.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use squisher::methods::prune::{PruneOptions, Structure, prune};
//! use squisher::methods::select::Keep;
//! use squisher::{Backend, Run};
//!
//! let options = PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)));
//! let (model, fisher) = (Path::new("model.safetensors"), Path::new("fisher.safetensors"));
//! let report = prune(model, fisher, &options, Path::new("pruned.safetensors"), &Run::new(&Backend::Host))?;
//! println!("{} of {} kept", report.kept, report.elements);
//! # Ok::<(), squisher::Error>(())
//! ```

mod filters;
pub mod gates;
mod plan;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, printable};
use crate::interrupt::Interrupt;
use crate::kernels::select::{MAX_GROUP, Score};
use crate::methods::globs::Globs;
use crate::methods::select::{
    Inputs, Keep, Kept, Roles, Scope, SelectPlan, SelectReport, Selector, cuts, piece_elements,
};
use crate::methods::source::NonFinite;
use crate::stream::Run;

use plan::{items_of_model, plan_model};
use writer::Writer;

const OP: &str = "prune";

/// N:M, the N best of every M consecutive elements along the input axis: axis 1, the last of a linear layer's weight.
///
/// Tensors with fewer than two axes have no input axis and are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Elements kept in each group (N).
    pub keep: u32,
    /// Elements of a group (M).
    pub size: u32,
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || {
            let problem = format!(
                "pattern {} is not N:M with N from 1 to M and M at most {MAX_GROUP}, as 2:4",
                printable(text)
            );
            Error::argument(OP, problem)
        };
        let (keep, size) = text.split_once(':').ok_or_else(refuse)?;
        let (keep, size) = (keep.parse().map_err(|_| refuse())?, size.parse().map_err(|_| refuse())?);
        if keep == 0 || keep > size || size > MAX_GROUP {
            return Err(refuse());
        }
        Ok(Self { keep, size })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.keep, self.size)
    }
}

/// What is removed, and of what.
#[derive(Clone, Debug, PartialEq)]
pub enum Structure {
    /// Single elements.
    Elements(Keep),
    /// Single elements, by a pattern.
    Pattern(Pattern),
    /// Whole filters, by `filter-sum` in [`prune`], by `filter-gate` in [`gates`]; the share or number is of filters.
    Filters(Keep),
}

/// What a pruning keeps, and of which tensors.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// What is removed, and how much is kept.
    pub structure: Structure,
    /// Among what the best are kept; a pattern has its own scope.
    pub scope: Scope,
    /// Which tensors are ranked, kept whole, or copied.
    pub globs: Globs,
    /// Where to write the mask too.
    pub mask_out: Option<PathBuf>,
    /// Replace existing outputs.
    pub overwrite: bool,
    /// What to do with Fishers that are NaN, infinite or negative.
    pub non_finite: NonFinite,
    /// Elements handled at once, where not as many as the budget allows. For tests: no result depends on it.
    #[doc(hidden)]
    pub piece_elements: Option<u64>,
}

impl PruneOptions {
    /// Elements among all tensors.
    #[must_use]
    pub fn new(structure: Structure) -> Self {
        Self {
            structure,
            scope: Scope::Global,
            globs: Globs::default(),
            mask_out: None,
            overwrite: false,
            non_finite: NonFinite::Error,
            piece_elements: None,
        }
    }
}

/// What [`prune`] would do.
///
/// # Errors
/// What headers alone show to be wrong, as [`prune`].
pub fn plan(model: &Path, fisher: &Path, options: &PruneOptions, run: &Run<'_>) -> Result<SelectPlan> {
    let (model, fisher) = (Checkpoint::open(model)?, Checkpoint::open(fisher)?);
    let plan = plan_model(&model, &fisher, options)?;
    items_of_model(&plan, &model, &fisher, &options.structure)?;
    piece_elements(run)?;
    let kept = match &options.structure {
        Structure::Elements(keep) => Some(plan.kept(OP, options.scope, *keep)?),
        Structure::Pattern(Pattern { keep, size }) => {
            let groups = plan.ranked_elements() / u64::from(*size);
            Some(groups * u64::from(*keep) + plan.always_elements())
        }
        Structure::Filters(keep) => {
            filters::parts(&plan, options.scope, *keep)?;
            None
        }
    };
    Ok(plan.shown(kept))
}

/// Prunes `model` with `fisher` and writes the result, and the mask where asked for.
///
/// Reads headers, then both inputs once or twice to decide and once to write. Nothing appears under the outputs' names
/// before everything is written.
///
/// # Errors
/// [`Error::Argument`] for a budget that cannot be met; [`Error::Mismatch`] where the Fisher is not the model's, a glob
/// matches nothing, or the pattern does not divide an axis; [`Error::Tensor`] naming the first element without a score;
/// [`Error::Output`] for outputs that cannot be written; what reading and the backend refuse.
pub fn prune(
    model: &Path,
    fisher: &Path,
    options: &PruneOptions,
    out: &Path,
    run: &Run<'_>,
) -> Result<SelectReport> {
    let began = Instant::now();
    let (model, fisher) = (&Checkpoint::open(model)?, &Checkpoint::open(fisher)?);
    let plan = plan_model(model, fisher, options)?;
    let zeroed = AtomicU64::new(0);
    let inputs = Inputs {
        model: Some(model),
        fisher,
        tensors: items_of_model(&plan, model, fisher, &options.structure)?,
        zeroed: options.non_finite.counted(&zeroed),
    };
    let room = options.piece_elements.map_or_else(|| piece_elements(run), Ok)?;
    let mut selector = Selector::new(Score::Prune, inputs, room, run)?;
    let writer = Writer::create(model, &[fisher.path()], &plan, "prune", options, out)?;
    let mut kept = vec![0; plan.ranked.len()];
    let threshold = write_best(&mut selector, &plan, options, &writer, &mut kept, &run.interrupt)?;
    writer.whole(&plan, &run.interrupt)?;
    model.verify_unchanged()?;
    fisher.verify_unchanged()?;
    let (passes, bytes_read, timings) = (selector.passes, selector.bytes_read, selector.timings);
    let report = writer.finish(&plan, &kept)?;
    Ok(SelectReport {
        threshold,
        passes,
        bytes_read: report.bytes_read + bytes_read,
        timings,
        non_finite: zeroed.into_inner(),
        seconds: began.elapsed().as_secs_f64(),
        adapter: run.backend.name(),
        ..report
    })
}

/// Writes the best of the ranked tensors and counts them in `kept`; gives the last kept one's score, if there
/// is one order for all.
fn write_best(
    selector: &mut Selector<'_>,
    plan: &Roles<'_>,
    options: &PruneOptions,
    writer: &Writer<'_>,
    kept: &mut [u64],
    interrupt: &Interrupt,
) -> Result<Option<f32>> {
    let mut take = |span: Kept<'_>| {
        kept[span.tensor] += span.mask.iter().map(|&keep| u64::from(keep)).sum::<u64>();
        writer.span(&span)
    };
    match &options.structure {
        Structure::Elements(keep) => {
            let cuts = cuts(OP, selector, options.scope, *keep, plan.always_elements())?;
            selector.apply(&cuts, Some(writer), &mut take)?;
            Ok(cuts.first().filter(|_| options.scope == Scope::Global).and_then(|(_, cut)| cut.score()))
        }
        Structure::Pattern(pattern) => {
            selector.apply_pattern((pattern.keep, pattern.size), writer, &mut take)?;
            Ok(None)
        }
        Structure::Filters(keep) => {
            let sums = filters::sums(selector, plan)?;
            filters::keep_best(plan, &sums, (options.scope, *keep), writer, kept, interrupt)
        }
    }
}
