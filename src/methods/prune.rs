//! Pruning: zero where the loss would suffer least.
//!
//! The score of a parameter is ½ θ² F, what the loss grows by when θ becomes zero, to second order with the Hessian taken as
//! the diagonal Fisher F (Theis, Korshunova, Tejani, Huszár, *Faster gaze prediction with dense networks and Fisher
//! pruning*, 2018, eq. 7; the factor does not matter here, so F may be a sum, a mean, or an accumulator).
//!
//! | what is kept | among | by |
//! |---|---|---|
//! | elements, k of all | all tensors (`Scope::Global`) or each (`Scope::Tensor`) | ½ θ² F |
//! | elements, N of every M | M consecutive along the input axis ([`Pattern`]) | ½ θ² F |
//! | filters, k of all | all tensors or each | `filter-sum`: Σ ½ θ² F over the filter ([`prune`]) |
//! | filters, k of all | all tensors or each | `filter-gate`: ½ Σ_n (Σ_{w ∈ filter} θ_w g_nw)² ([`prune_gates`]) |
//!
//! The output has the model's tensors, types and files. What is kept is kept bit for bit, the rest is zero. Integer and
//! boolean tensors, and tensors that globs leave out, are copied. See [`select`](crate::methods::select) for which items of equal
//! score are kept, and what repeats.
//!
//! `filter-sum` is not the score Theis et al. give for feature maps, `filter-gate`, which has the cross terms and
//! needs per-sample gradients: those of captures. Both are summed on the host in f64, element after element, so that a sum is the same on every
//! backend and however a filter is cut. A filter is a slice of the leading axis of a tensor with two axes or more.

mod filters;
mod gate;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use serde::Serialize;

pub use gate::gates;

use crate::backend::Backend;
use crate::checkpoint::{Capture, Checkpoint, Dtype, Output, OutputLayout, OutputTensor, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::interrupt::Interrupt;
use crate::kernels::select::{MAX_GROUP, Score};
use crate::methods::globs::{self, Globs, Role};
use crate::methods::select::{Cut, Inputs, Keep, Kept, PIECE_ELEMENTS, Ranked, Scope, Selector};
use crate::methods::source::NonFinite;
use crate::progress::Progress;
use crate::shape::{DType, shape_text};
use crate::stream::{Sink, Timings};

const OP: &str = "prune";

/// Bytes copied at once.
const COPY_BYTES: u64 = 4 << 20;

/// N:M, the N best of every M consecutive elements along the input axis: axis 1, the last of a linear layer's weight.
///
/// Tensors with fewer than two axes have no input axis and are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// N.
    pub keep: u32,
    /// M.
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
    /// Whole filters, by `filter-sum` in [`prune`], by `filter-gate` in [`prune_gates`]; the share or number is of filters.
    Filters(Keep),
}

/// How to prune.
#[derive(Clone, Debug)]
pub struct PruneOptions {
    /// What is removed, and how much is kept.
    pub structure: Structure,
    /// Among what the best are kept; a pattern has its own scope.
    pub scope: Scope,
    /// Which tensors.
    pub globs: Globs,
    /// Where to write the mask too.
    pub mask_out: Option<PathBuf>,
    /// Replace existing outputs.
    pub overwrite: bool,
    /// What to do with Fishers that are NaN, infinite or negative.
    pub non_finite: NonFinite,
    /// Elements handled at once; no result depends on it.
    pub piece_elements: u64,
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
            piece_elements: PIECE_ELEMENTS,
        }
    }
}

/// What was kept of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Selected {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements.
    pub elements: u64,
    /// Those kept.
    pub kept: u64,
    /// The share of those not kept; 0 of nothing.
    pub sparsity: f64,
}

impl Selected {
    pub(super) fn new(tensor: &TensorInfo, kept: u64) -> Self {
        let (name, shape, elements) = (tensor.name.clone(), tensor.shape.clone(), tensor.elements());
        Self { name, shape, elements, kept, sparsity: sparsity(elements, kept) }
    }
}

pub(super) fn sparsity(elements: u64, kept: u64) -> f64 {
    if elements == 0 { 0.0 } else { (elements - kept) as f64 / elements as f64 }
}

/// What a selection gave.
#[derive(Clone, Debug, Serialize)]
pub struct SelectReport {
    /// The tensors in the selection's scope, by name.
    pub tensors: Vec<Selected>,
    /// Their elements.
    pub elements: u64,
    /// Those kept.
    pub kept: u64,
    /// The share of those not kept.
    pub sparsity: f64,
    /// The score of the last one kept, where there is one threshold for all.
    pub threshold: Option<f32>,
    /// Tensors copied as they are: integers, booleans, and what globs leave out.
    pub copied: Vec<String>,
    /// What the user should look at.
    pub warnings: Vec<String>,
    /// The most passes over the data that finding a threshold took.
    pub passes: u32,
    /// Fishers that were NaN, infinite or negative and counted as 0.
    pub non_finite: u64,
    /// Bytes of tensors read.
    pub bytes_read: u64,
    /// Bytes of files written.
    pub bytes_written: u64,
    /// Wall time.
    pub seconds: f64,
    /// Where the time of the passes went.
    pub timings: Timings,
    /// Where kernels ran.
    pub adapter: String,
    /// The output.
    pub output: PathBuf,
    /// The mask, where one was asked for.
    pub mask: Option<PathBuf>,
}

/// What a selection would do, from headers alone.
#[derive(Clone, Debug, Serialize)]
pub struct SelectPlan {
    /// The tensors that would be selected from.
    pub ranked: Vec<String>,
    /// Those that would be kept whole and counted.
    pub always: Vec<String>,
    /// Those that would be copied as they are.
    pub copied: Vec<String>,
    /// Elements in the selection's scope.
    pub elements: u64,
    /// How many would be kept; nothing for filters, whose sizes differ.
    pub kept: Option<u64>,
}

/// Which tensors are ranked, kept whole, or left as they are; from headers alone.
pub(super) struct Plan<'a> {
    /// What is ranked, in the order of names.
    pub(super) ranked: Vec<&'a TensorInfo>,
    /// What is kept whole and counted.
    pub(super) always: Vec<&'a TensorInfo>,
    /// What is neither.
    copied: Vec<&'a TensorInfo>,
}

impl<'a> Plan<'a> {
    /// Assigns each tensor of `named` (the model, or a Fisher alone) its role; `is_ranked` says which of those left over are ranked.
    fn new(
        op: &str,
        named: &'a Checkpoint,
        globs: &Globs,
        mut is_ranked: impl FnMut(&'a TensorInfo) -> bool,
    ) -> Result<Self> {
        let (floats, mut copied): (Vec<_>, Vec<_>) =
            named.tensors().iter().partition(|tensor| !is_integer(tensor.dtype));
        let names: Vec<&str> = floats.iter().map(|tensor| tensor.name.as_str()).collect();
        let roles = globs::roles(op, globs, &names)?;
        let (mut ranked, mut always) = (Vec::new(), Vec::new());
        for (tensor, role) in floats.into_iter().zip(roles) {
            match role {
                Role::Always => always.push(tensor),
                Role::Ranked if is_ranked(tensor) => ranked.push(tensor),
                Role::Excluded | Role::Ranked => copied.push(tensor),
            }
        }
        copied.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { ranked, always, copied })
    }

    pub(super) fn always_elements(&self) -> u64 {
        self.always.iter().map(|tensor| tensor.elements()).sum()
    }

    pub(super) fn ranked_elements(&self) -> u64 {
        self.ranked.iter().map(|tensor| tensor.elements()).sum()
    }

    /// How many elements a scope keeps.
    pub(super) fn kept(&self, op: &str, scope: Scope, keep: Keep) -> Result<u64> {
        let always = self.always_elements();
        match scope {
            Scope::Global => {
                let k = keep.of(op, self.ranked_elements() + always)?;
                within_budget(op, k, always)?;
                Ok(k)
            }
            Scope::Tensor => {
                let each = self.ranked.iter().map(|tensor| keep.of(op, tensor.elements()));
                Ok(each.sum::<Result<u64>>()? + always)
            }
        }
    }

    pub(super) fn shown(&self, kept: Option<u64>) -> SelectPlan {
        let names = |tensors: &[&TensorInfo]| tensors.iter().map(|tensor| tensor.name.clone()).collect();
        SelectPlan {
            ranked: names(&self.ranked),
            always: names(&self.always),
            copied: names(&self.copied),
            elements: self.ranked_elements() + self.always_elements(),
            kept,
        }
    }

    /// The tensors of a mask: everything in the selection's scope.
    pub(super) fn mask_layout(&self, score: &str) -> OutputLayout {
        let in_scope = self.ranked.iter().chain(&self.always);
        let tensors =
            in_scope.map(|tensor| OutputTensor::new(&tensor.name, Dtype::BOOL, tensor.shape.clone()));
        let metadata = [("squisher.mask", score), ("squisher.version", env!("CARGO_PKG_VERSION"))];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        OutputLayout::single(tensors.collect(), BTreeMap::from(metadata))
    }
}

/// A Fisher alone: every float tensor is ranked.
pub(super) fn plan_fisher<'a>(op: &str, fisher: &'a Checkpoint, globs: &Globs) -> Result<Plan<'a>> {
    Plan::new(op, fisher, globs, |_| true)
}

/// How a selector sees the tensors of a Fisher alone.
pub(super) fn items_of_fisher(plan: &Plan<'_>, fisher: &Checkpoint) -> Result<Vec<Ranked>> {
    let item = |tensor: &&TensorInfo| {
        let fisher = seen(fisher, &tensor.name)?;
        Ok(Ranked { len: tensor.elements(), theta: None, fisher, stride: 1, unit: 1 })
    };
    plan.ranked.iter().map(item).collect()
}

/// A model with its Fisher, whose names and shapes must be the model's.
fn plan_model<'a>(model: &'a Checkpoint, fisher: &Checkpoint, options: &PruneOptions) -> Result<Plan<'a>> {
    refuse_strangers(model, fisher)?;
    let mut missing = Vec::new();
    let plan = Plan::new(OP, model, &options.globs, |tensor| {
        if tensor.shape.len() < 2 && !matches!(options.structure, Structure::Elements(_)) {
            return false;
        }
        let found = fisher.get(&tensor.name).is_some();
        if !found {
            missing.push(printable(&tensor.name));
        }
        found
    })?;
    if missing.is_empty() {
        return Ok(plan);
    }
    let problem = format!(
        "{} of the model's tensors have no Fisher in {}: {}; give the Fisher of this model, or leave them out with --exclude",
        missing.len(),
        fisher.path().display(),
        listed(&missing)
    );
    Err(Error::mismatch(OP, problem))
}

/// How a selector sees the tensors of a model and its Fisher.
fn items_of_model(
    plan: &Plan<'_>,
    model: &Checkpoint,
    fisher: &Checkpoint,
    structure: &Structure,
) -> Result<Vec<Ranked>> {
    let item = |tensor: &&TensorInfo| {
        let (stride, unit) = match structure {
            Structure::Elements(_) | Structure::Filters(_) => (1, 1),
            Structure::Pattern(pattern) => groups(*pattern, tensor)?,
        };
        let (theta, fisher) = (Some(seen(model, &tensor.name)?), seen(fisher, &tensor.name)?);
        Ok(Ranked { len: tensor.elements(), theta, fisher, stride, unit })
    };
    plan.ranked.iter().map(item).collect()
}

/// Refuses a Fisher with tensors that the model lacks or has in another shape.
fn refuse_strangers(model: &Checkpoint, fisher: &Checkpoint) -> Result<()> {
    let mut strangers = Vec::new();
    for tensor in fisher.tensors() {
        match model.get(&tensor.name) {
            None => strangers.push(format!("{} is not in the model", printable(&tensor.name))),
            Some(own) if own.shape != tensor.shape => strangers.push(format!(
                "{} has shape {}, in the model {}",
                printable(&tensor.name),
                shape_text(&tensor.shape),
                shape_text(&own.shape)
            )),
            Some(_) => {}
        }
    }
    if strangers.is_empty() {
        return Ok(());
    }
    let problem = format!(
        "{} is not the Fisher of {}: {}; give the Fisher of this model",
        fisher.path().display(),
        model.path().display(),
        listed(&strangers)
    );
    Err(Error::mismatch(OP, problem))
}

/// The first few, and how many more.
pub(super) fn listed(items: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if items.len() > SHOWN {
        text.push_str(&format!("; and {} more", items.len() - SHOWN));
    }
    text
}

/// The stride of a pattern's groups in a tensor, and the elements that they must not be cut within.
fn groups(pattern: Pattern, tensor: &TensorInfo) -> Result<(u64, u64)> {
    if tensor.elements() == 0 {
        return Ok((1, 1));
    }
    let axis = tensor.shape[1];
    if !axis.is_multiple_of(pattern.size.into()) {
        let problem = format!(
            "tensor {} of shape {} has {axis} inputs, which pattern {pattern} does not divide; \
             leave it out with --exclude, or choose another pattern",
            printable(&tensor.name),
            shape_text(&tensor.shape)
        );
        return Err(Error::mismatch(OP, problem));
    }
    let stride: u64 = tensor.shape[2..].iter().product();
    Ok((stride, stride * u64::from(pattern.size)))
}

/// The place of a tensor, and how kernels see it: f64 is narrowed on the way.
fn seen(checkpoint: &Checkpoint, name: &str) -> Result<(usize, DType)> {
    let place = checkpoint.position(name).expect("a plan has tensors that were found");
    let tensor = &checkpoint.tensors()[place];
    let dtype = tensor.float().or((tensor.dtype == Dtype::F64).then_some(DType::F32));
    let dtype = dtype.ok_or_else(|| {
        let problem = format!(
            "is stored as {:?}, expected F32, F16, BF16 or F64; convert it, or leave it out with --exclude",
            tensor.dtype
        );
        Error::tensor(checkpoint.file_of(tensor), &tensor.name, problem)
    })?;
    Ok((place, dtype))
}

pub(super) fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// The cuts of a scope: for each range of the ranked tensors, where the kept ones end.
pub(super) fn cuts(
    op: &str,
    selector: &mut Selector<'_>,
    scope: Scope,
    keep: Keep,
    always: u64,
) -> Result<Vec<(Range<usize>, Cut)>> {
    let lens: Vec<u64> = selector.tensors.iter().map(|tensor| tensor.len).collect();
    let mut parts = Vec::new();
    match scope {
        Scope::Global => {
            let k = within_budget(op, keep.of(op, lens.iter().sum::<u64>() + always)?, always)?;
            parts.push((0..lens.len(), k));
        }
        Scope::Tensor => {
            for (tensor, &len) in lens.iter().enumerate() {
                parts.push((tensor..tensor + 1, keep.of(op, len)?));
            }
        }
    }
    parts.into_iter().map(|(range, k)| Ok((range.clone(), selector.cut(range, k)?))).collect()
}

/// What is left of the budget after what is always kept.
pub(super) fn within_budget(op: &str, k: u64, always: u64) -> Result<u64> {
    k.checked_sub(always).ok_or_else(|| {
        let problem = format!(
            "{k} are to be kept, those that are always kept have {always}; keep more, or always fewer"
        );
        Error::argument(op, problem)
    })
}

/// What [`prune`] would do.
///
/// # Errors
/// What headers alone show to be wrong, as [`prune`].
pub fn plan(model: &Checkpoint, fisher: &Checkpoint, options: &PruneOptions) -> Result<SelectPlan> {
    let plan = plan_model(model, fisher, options)?;
    items_of_model(&plan, model, fisher, &options.structure)?;
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
    backend: &Backend,
    model: &Checkpoint,
    fisher: &Checkpoint,
    options: &PruneOptions,
    out: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<SelectReport> {
    let began = Instant::now();
    let plan = plan_model(model, fisher, options)?;
    let zeroed = AtomicU64::new(0);
    let inputs = Inputs {
        model: Some(model),
        fisher,
        tensors: items_of_model(&plan, model, fisher, &options.structure)?,
        zeroed: options.non_finite.counted(&zeroed),
    };
    let room = options.piece_elements;
    let mut selector = Selector::new(backend, Score::Prune, inputs, room, progress, interrupt)?;
    let writer = Writer::create(model, &[fisher.path()], &plan, "prune", options, out)?;
    let mut kept = vec![0; plan.ranked.len()];
    let mut take = |span: Kept<'_>| {
        kept[span.tensor] += span.mask.iter().map(|&keep| u64::from(keep)).sum::<u64>();
        writer.span(&span)
    };
    let threshold = match &options.structure {
        Structure::Elements(keep) => {
            let cuts = cuts(OP, &mut selector, options.scope, *keep, plan.always_elements())?;
            selector.apply(&cuts, Some(&writer), &mut take)?;
            cuts.first().filter(|_| options.scope == Scope::Global).and_then(|(_, cut)| cut.score())
        }
        Structure::Pattern(pattern) => {
            selector.apply_pattern((pattern.keep, pattern.size), &writer, &mut take)?;
            None
        }
        Structure::Filters(keep) => {
            let sums = filters::sums(&mut selector, &plan)?;
            filters::keep_best(&plan, &sums, (options.scope, *keep), &writer, &mut kept, interrupt)?
        }
    };
    writer.whole(&plan, interrupt)?;
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
        adapter: backend.name(),
        ..report
    })
}

/// A model with captures of it: what is ranked are the weights of captured layers that have filters.
fn plan_captured<'a>(
    model: &'a Checkpoint,
    captures: &[Capture],
    options: &PruneOptions,
) -> Result<(Plan<'a>, Keep)> {
    let Structure::Filters(keep) = options.structure else {
        return Err(Error::argument(
            OP,
            "filter-gate is a score of filters; elements and patterns have none",
        ));
    };
    let layers = gate::layers(model, captures)?;
    let mut missing = Vec::new();
    let plan = Plan::new(OP, model, &options.globs, |tensor| {
        let found = gate::has_filters(&layers, tensor);
        if !found && tensor.shape.len() > 1 {
            missing.push(printable(&tensor.name));
        }
        found
    })?;
    if missing.is_empty() {
        filters::parts(&plan, options.scope, keep)?;
        return Ok((plan, keep));
    }
    let problem = format!(
        "the captures have no layer with filters for {} of the model's tensors: {}; capture those layers, or leave them out with --exclude          (a row of an embedding is no filter)",
        missing.len(),
        listed(&missing)
    );
    Err(Error::mismatch(OP, problem))
}

/// What [`prune_gates`] would do.
///
/// # Errors
/// What headers alone show to be wrong, as [`prune_gates`].
pub fn plan_gates(model: &Checkpoint, captures: &[Capture], options: &PruneOptions) -> Result<SelectPlan> {
    plan_captured(model, captures, options).map(|(plan, _)| plan.shown(None))
}

/// Prunes whole filters of `model` by `filter-gate` from `captures` of it, and writes the result, and the mask where asked for.
///
/// # Errors
/// [`Error::Argument`] for a budget that cannot be met or a structure other than filters; [`Error::Mismatch`] where the captures
/// are not the model's, lack a layer, or a glob matches nothing; [`Error::Tensor`] for values that are no numbers; [`Error::Output`]
/// for outputs that cannot be written; what reading and the backend refuse.
pub fn prune_gates(
    backend: &Backend,
    model: &Checkpoint,
    captures: &[Capture],
    options: &PruneOptions,
    out: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<SelectReport> {
    let began = Instant::now();
    let (plan, keep) = plan_captured(model, captures, options)?;
    let paths: Vec<&Path> = captures.iter().map(Capture::path).collect();
    let writer = Writer::create(model, &paths, &plan, "filter-gate", options, out)?;
    let scores = gate::scores(backend, model, captures, &plan.ranked, progress, interrupt)?;
    let mut kept = vec![0; plan.ranked.len()];
    let threshold = filters::keep_best(&plan, &scores, (options.scope, keep), &writer, &mut kept, interrupt)?;
    writer.whole(&plan, interrupt)?;
    model.verify_unchanged()?;
    captures.iter().try_for_each(|capture| capture.checkpoint().verify_unchanged())?;
    let report = writer.finish(&plan, &kept)?;
    let of_captures: u64 = captures.iter().map(|capture| capture.checkpoint().total_bytes()).sum();
    Ok(SelectReport {
        threshold,
        passes: 1,
        bytes_read: report.bytes_read + of_captures + plan.ranked.iter().map(|t| 2 * t.bytes).sum::<u64>(),
        seconds: began.elapsed().as_secs_f64(),
        adapter: backend.name(),
        ..report
    })
}

/// The outputs being written.
pub(super) struct Writer<'a> {
    model: &'a Checkpoint,
    slots: Vec<Slot<'a>>,
    output: Output,
    mask: Option<Output>,
}

/// Where a ranked tensor comes from and goes.
struct Slot<'a> {
    tensor: &'a TensorInfo,
    /// Its place in the model's output, and in the mask's.
    at: usize,
    in_mask: Option<usize>,
    /// Its bytes an element.
    size: u64,
}

impl Slot<'_> {
    /// Whether kernels see what is stored: F64 is narrowed for them, and its bytes are kept here.
    fn is_streamed(&self) -> bool {
        self.tensor.float().is_some()
    }
}

/// What kernels made of a tensor goes straight to the output.
impl Sink for Writer<'_> {
    fn write(&self, tensor: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let slot = &self.slots[tensor];
        if slot.is_streamed() { self.output.write(slot.at, start * slot.size, bytes) } else { Ok(()) }
    }
}

impl<'a> Writer<'a> {
    fn create(
        model: &'a Checkpoint,
        others: &[&Path],
        plan: &Plan<'a>,
        score: &str,
        options: &PruneOptions,
        out: &Path,
    ) -> Result<Self> {
        let inputs = [&[model.path()], others].concat();
        let layout = OutputLayout::like(model, |tensor| Some(tensor.dtype), BTreeMap::new());
        let output = Output::create(out, layout.with_side_files_of(model)?, options.overwrite, &inputs)?;
        let mask = options.mask_out.as_ref().map(|path| {
            if path == out {
                return Err(Error::output(
                    path,
                    "is the output of the model too; give the mask another name",
                ));
            }
            Output::create(path, plan.mask_layout(score), options.overwrite, &inputs)
        });
        let mask = mask.transpose()?;
        let slot = |tensor: &&'a TensorInfo| Slot {
            tensor,
            at: output.position(&tensor.name).expect("the output has the model's tensors"),
            in_mask: mask.as_ref().and_then(|mask| mask.position(&tensor.name)),
            size: tensor.bytes.checked_div(tensor.elements()).unwrap_or(0),
        };
        Ok(Self { slots: plan.ranked.iter().map(slot).collect(), model, output, mask })
    }

    /// Writes a span's mask, and its elements where they are not streamed.
    fn span(&self, kept: &Kept<'_>) -> Result<()> {
        if self.slots[kept.tensor].is_streamed() { self.mask(kept) } else { self.copy_kept(kept) }
    }

    fn mask(&self, kept: &Kept<'_>) -> Result<()> {
        match (&self.mask, self.slots[kept.tensor].in_mask) {
            (Some(mask), Some(slot)) => mask.write(slot, kept.start, kept.mask),
            _ => Ok(()),
        }
    }

    /// Copies a span from the model with zeros in the place of what is not kept, and writes its mask.
    pub(super) fn copy_kept(&self, kept: &Kept<'_>) -> Result<()> {
        let Slot { tensor, at, size, .. } = self.slots[kept.tensor];
        let mut bytes = vec![0; kept.mask.len() * usize_of(size)];
        self.model.read(tensor, kept.start * size, &mut bytes)?;
        for (element, &keep) in bytes.chunks_exact_mut(usize_of(size)).zip(kept.mask) {
            if keep == 0 {
                element.fill(0);
            }
        }
        self.output.write(at, kept.start * size, &bytes)?;
        self.mask(kept)
    }

    /// Copies what is not ranked; in the mask, what is always kept is true.
    fn whole(&self, plan: &Plan<'_>, interrupt: &Interrupt) -> Result<()> {
        for &tensor in plan.always.iter().chain(&plan.copied) {
            copy(self.model, tensor, &self.output, interrupt)?;
        }
        if let Some(mask) = &self.mask {
            plan.always.iter().try_for_each(|tensor| fill_true(mask, tensor))?;
        }
        Ok(())
    }

    fn finish(self, plan: &Plan<'_>, kept: &[u64]) -> Result<SelectReport> {
        let mut report = report(plan, kept, &self.output);
        report.bytes_read = plan.always.iter().chain(&plan.copied).map(|tensor| tensor.bytes).sum();
        if let Some(mask) = self.mask {
            report.bytes_written += mask.total_bytes();
            report.mask = Some(mask.path().to_owned());
            mask.finish()?;
        }
        self.output.finish()?;
        Ok(report)
    }
}

/// What was kept, with what is known from the plan and the output.
pub(super) fn report(plan: &Plan<'_>, kept: &[u64], output: &Output) -> SelectReport {
    let ranked = plan.ranked.iter().zip(kept).map(|(tensor, &kept)| Selected::new(tensor, kept));
    let always = plan.always.iter().map(|tensor| Selected::new(tensor, tensor.elements()));
    let mut tensors: Vec<Selected> = ranked.chain(always).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let elements = plan.ranked_elements() + plan.always_elements();
    let kept = tensors.iter().map(|tensor| tensor.kept).sum();
    let gone = tensors.iter().filter(|tensor| tensor.elements > 0 && tensor.kept == 0);
    let warnings = gone.map(|tensor| format!("nothing of tensor {} is kept", printable(&tensor.name)));
    SelectReport {
        elements,
        kept,
        sparsity: sparsity(elements, kept),
        warnings: warnings.collect(),
        tensors,
        threshold: None,
        copied: plan.copied.iter().map(|tensor| tensor.name.clone()).collect(),
        passes: 0,
        non_finite: 0,
        bytes_read: 0,
        bytes_written: output.total_bytes(),
        seconds: 0.0,
        timings: Timings::default(),
        adapter: String::new(),
        output: output.path().to_owned(),
        mask: None,
    }
}

/// Copies a tensor into an output that has it.
pub(super) fn copy(from: &Checkpoint, tensor: &TensorInfo, to: &Output, interrupt: &Interrupt) -> Result<()> {
    let slot = to.position(&tensor.name).expect("the output has the tensors that are copied to it");
    let mut start = 0;
    while start < tensor.bytes {
        interrupt.check()?;
        let mut bytes = vec![0; usize::try_from(COPY_BYTES.min(tensor.bytes - start)).expect("a few MiB")];
        from.read(tensor, start, &mut bytes)?;
        to.write(slot, start, &bytes)?;
        start += bytes.len() as u64;
    }
    Ok(())
}

/// Writes true for every element of a tensor.
pub(super) fn fill_true(mask: &Output, tensor: &TensorInfo) -> Result<()> {
    let slot = mask.position(&tensor.name).expect("the mask has what is always kept");
    let ones = vec![1; usize::try_from(COPY_BYTES.min(tensor.elements())).expect("a few MiB")];
    for start in (0..tensor.elements()).step_by(usize::try_from(COPY_BYTES).expect("a few MiB")) {
        let len = usize::try_from(COPY_BYTES.min(tensor.elements() - start)).expect("a few MiB");
        mask.write(slot, start, &ones[..len])?;
    }
    Ok(())
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("filters and pieces fit in memory")
}
