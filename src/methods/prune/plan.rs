//! What of a model is ranked by its Fisher or by captures of it; from headers alone.

use super::{OP, Pattern, PruneOptions, Structure, filters, gates};
use crate::checkpoint::{Capture, Checkpoint, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::methods::select::{Keep, Ranked, Roles, listed, seen};
use crate::methods::transposed;
use crate::shape::shape_text;

/// A model with its Fisher, whose names and shapes must be the model's.
pub(super) fn plan_model<'a>(
    model: &'a Checkpoint,
    fisher: &Checkpoint,
    options: &PruneOptions,
) -> Result<Roles<'a>> {
    refuse_strangers(model, fisher)?;
    let transposed = transposed::of_fisher(fisher)?;
    let mut missing = Vec::new();
    let plan = Roles::new(OP, model, &options.globs, |tensor| {
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
        let filters = matches!(options.structure, Structure::Filters(_));
        return match plan.ranked.iter().find(|tensor| filters && transposed.contains(&tensor.name)) {
            None => Ok(plan),
            Some(tensor) => Err(refuse_transposed(tensor)),
        };
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

fn refuse_transposed(tensor: &TensorInfo) -> Error {
    let problem = format!(
        "{} is the weight of a transposed convolution, whose filters lie along the second axis and cannot be \
         pruned; leave it out with --exclude",
        printable(&tensor.name)
    );
    Error::mismatch(OP, problem)
}

/// How a selector sees the tensors of a model and its Fisher.
pub(super) fn items_of_model(
    plan: &Roles<'_>,
    model: &Checkpoint,
    fisher: &Checkpoint,
    structure: &Structure,
) -> Result<Vec<Ranked>> {
    let transposed = transposed::of_fisher(fisher)?;
    let item = |tensor: &&TensorInfo| {
        let (stride, unit) = match structure {
            Structure::Elements(_) | Structure::Filters(_) => (1, 1),
            Structure::Pattern(pattern) => {
                groups(*pattern, tensor, if transposed.contains(&tensor.name) { 0 } else { 1 })?
            }
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

/// The stride of a pattern's groups along an axis of a tensor, and the elements that they must not be cut within.
fn groups(pattern: Pattern, tensor: &TensorInfo, of_inputs: usize) -> Result<(u64, u64)> {
    if tensor.elements() == 0 {
        return Ok((1, 1));
    }
    let axis = tensor.shape[of_inputs];
    if !axis.is_multiple_of(pattern.size.into()) {
        let problem = format!(
            "tensor {} of shape {} has {axis} inputs, which pattern {pattern} does not divide; \
             leave it out with --exclude, or choose another pattern",
            printable(&tensor.name),
            shape_text(&tensor.shape)
        );
        return Err(Error::mismatch(OP, problem));
    }
    let stride: u64 = tensor.shape[of_inputs + 1..].iter().product();
    Ok((stride, stride * u64::from(pattern.size)))
}

/// A model with captures of it: what is ranked are the weights of captured layers that have filters.
pub(super) fn plan_captured<'a>(
    model: &'a Checkpoint,
    captures: &[Capture],
    options: &PruneOptions,
) -> Result<(Roles<'a>, Keep)> {
    let Structure::Filters(keep) = options.structure else {
        let problem = "filter-gate is a score of filters; elements and patterns have none";
        return Err(Error::argument(OP, problem));
    };
    let layers = gates::layers(model, captures)?;
    let mut missing = Vec::new();
    let plan = Roles::new(OP, model, &options.globs, |tensor| {
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
