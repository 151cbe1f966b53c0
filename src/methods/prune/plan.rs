//! Which tensors are ranked, kept whole, or left as they are; from headers alone.

use std::collections::BTreeMap;

use super::{OP, Pattern, PruneOptions, SelectPlan, Structure, filters, gates};
use crate::checkpoint::{Capture, Checkpoint, Dtype, OutputLayout, OutputTensor, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::methods::globs::{self, Globs, Role};
use crate::methods::select::{Keep, Ranked};
use crate::shape::{DType, shape_text};

/// Which tensors are ranked, kept whole, or left as they are; from headers alone.
pub(crate) struct Plan<'a> {
    /// What is ranked, in the order of names.
    pub(crate) ranked: Vec<&'a TensorInfo>,
    /// What is kept whole and counted.
    pub(crate) always: Vec<&'a TensorInfo>,
    /// What is neither.
    pub(super) copied: Vec<&'a TensorInfo>,
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

    pub(crate) fn always_elements(&self) -> u64 {
        self.always.iter().map(|tensor| tensor.elements()).sum()
    }

    pub(crate) fn ranked_elements(&self) -> u64 {
        self.ranked.iter().map(|tensor| tensor.elements()).sum()
    }

    pub(crate) fn shown(&self, kept: Option<u64>) -> SelectPlan {
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
    pub(crate) fn mask_layout(&self, score: &str) -> OutputLayout {
        let in_scope = self.ranked.iter().chain(&self.always);
        let tensors =
            in_scope.map(|tensor| OutputTensor::new(&tensor.name, Dtype::BOOL, tensor.shape.clone()));
        let metadata = [("squisher.mask", score), ("squisher.version", env!("CARGO_PKG_VERSION"))];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        OutputLayout::single(tensors.collect(), BTreeMap::from(metadata))
    }
}

/// A Fisher alone: every float tensor is ranked.
pub(crate) fn plan_fisher<'a>(op: &str, fisher: &'a Checkpoint, globs: &Globs) -> Result<Plan<'a>> {
    Plan::new(op, fisher, globs, |_| true)
}

/// How a selector sees the tensors of a Fisher alone.
pub(crate) fn items_of_fisher(plan: &Plan<'_>, fisher: &Checkpoint) -> Result<Vec<Ranked>> {
    let item = |tensor: &&TensorInfo| {
        let fisher = seen(fisher, &tensor.name)?;
        Ok(Ranked { len: tensor.elements(), theta: None, fisher, stride: 1, unit: 1 })
    };
    plan.ranked.iter().map(item).collect()
}

/// A model with its Fisher, whose names and shapes must be the model's.
pub(super) fn plan_model<'a>(
    model: &'a Checkpoint,
    fisher: &Checkpoint,
    options: &PruneOptions,
) -> Result<Plan<'a>> {
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
    let have = match missing.len() {
        1 => "1 tensor of the model has".to_owned(),
        n => format!("{n} tensors of the model have"),
    };
    // Buffers of batch norms are not parameters, and never have one.
    let buffers = missing.iter().all(|name| name.contains(".running_"));
    let globs = if buffers { "--exclude '*.running_*'" } else { "--exclude" };
    let problem = format!(
        "{have} no Fisher in {}: {}; give the Fisher of this model, or leave them out with {globs}",
        fisher.path().display(),
        listed(&missing)
    );
    Err(Error::mismatch(OP, problem))
}

/// How a selector sees the tensors of a model and its Fisher.
pub(super) fn items_of_model(
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
pub(crate) fn listed(items: &[String]) -> String {
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

/// Whether a tensor is not a weight that could be ranked.
fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// A model with captures of it: what is ranked are the weights of captured layers that have filters.
pub(super) fn plan_captured<'a>(
    model: &'a Checkpoint,
    captures: &[Capture],
    options: &PruneOptions,
) -> Result<(Plan<'a>, Keep)> {
    let Structure::Filters(keep) = options.structure else {
        let problem = "filter-gate is a score of filters; elements and patterns have none";
        return Err(Error::argument(OP, problem));
    };
    let layers = gates::layers(model, captures)?;
    let mut missing = Vec::new();
    let plan = Plan::new(OP, model, &options.globs, |tensor| {
        let found = gates::has_filters(&layers, tensor);
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
        "the captures have no layer with filters for {} of the model's tensors: {}; capture those layers, or leave them out with --exclude (a row of an embedding is not a filter)",
        missing.len(),
        listed(&missing)
    );
    Err(Error::mismatch(OP, problem))
}
