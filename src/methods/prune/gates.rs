//! `filter-gate`: what a gate on a filter is worth.
//!
//! With a gate of 1 in front of each filter, sample n's loss changes with gate o by Σ_{w ∈ o} θ_w g_nw: the
//! filter's weights times their gradient. Half the gates' Fisher is Theis et al.'s score of a feature map
//! (2018, eq. 12 with the filter's own weights):
//!
//! ```text
//! score[o] = ½ Σ_n weight[n] (Σ_{w ∈ o} θ_w g_nw)²
//! ```
//!
//! The gradients of some filters at a time come from the kernels that square them for a Fisher, in
//! [`Mode::Each`]; the inner products are taken in f64 on the host, so that scores of either backend differ by the
//! kernels' rounding alone. Memory holds one layer's data of one file, and a few MiB of gradients.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;

use super::plan::plan_captured;
use super::writer::Writer;
use super::{OP, PruneOptions, filters};
use crate::backend::Backend;
use crate::checkpoint::{
    Capture, CaptureLayer, Checkpoint, Labels, LayerKind, LossReduction, TensorInfo, same_network,
};
use crate::error::{Error, Result, printable};
use crate::kernels::fisher::{Epilogue, Mode};
use crate::methods::captured::{Batch, InFile, Portion, Sides, cut, ranges};
use crate::methods::select::{SelectPlan, SelectReport, listed};
use crate::methods::source::CheckpointSource;
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::{DType, shape_text, usize_of};
use crate::stream::Run;

/// Gradients held at a time, where one group's are not more: 16 MiB.
const TILE: u64 = 4 << 20;

/// The `filter-gate` score of every filter of every layer with filters that `captures` describe, by the name
/// of its weight.
///
/// # Errors
/// [`Error::Mismatch`] where the captures are not of `model`; [`Error::Tensor`] for values that are not
/// numbers; what reading and the backend refuse.
pub fn scores(model: &Path, captures: &[PathBuf], run: &Run<'_>) -> Result<BTreeMap<String, Vec<f64>>> {
    let (model, captures) = (&Checkpoint::open(model)?, &open(captures)?);
    let layers = layers(model, captures)?;
    let with_filters = model.tensors().iter().filter(|tensor| has_filters(&layers, tensor));
    let tensors: Vec<&TensorInfo> = with_filters.collect();
    let scores = scores_of(model, captures, &tensors, run)?;
    Ok(tensors.iter().map(|tensor| tensor.name.clone()).zip(scores).collect())
}

/// What [`prune`] would do.
///
/// # Errors
/// What headers alone show to be wrong, as [`prune`].
pub fn plan(model: &Path, captures: &[PathBuf], options: &PruneOptions) -> Result<SelectPlan> {
    let (model, captures) = (Checkpoint::open(model)?, open(captures)?);
    plan_captured(&model, &captures, options).map(|(plan, _)| plan.shown(None))
}

/// Prunes whole filters of `model` by `filter-gate` from `captures` of it, and writes the result, and the
/// mask where asked for.
///
/// # Errors
/// [`Error::Argument`] for a budget that cannot be met or a structure other than filters; [`Error::Mismatch`]
/// where the captures are not the model's, lack a layer, or a glob matches nothing; [`Error::Tensor`] for
/// values that are not numbers; [`Error::Output`] for outputs that cannot be written; what reading and the
/// backend refuse.
pub fn prune(
    model: &Path,
    captures: &[PathBuf],
    options: &PruneOptions,
    out: &Path,
    run: &Run<'_>,
) -> Result<SelectReport> {
    let began = Instant::now();
    let (model, captures) = (&Checkpoint::open(model)?, &open(captures)?);
    let (plan, keep) = plan_captured(model, captures, options)?;
    let paths: Vec<&Path> = captures.iter().map(Capture::path).collect();
    let writer = Writer::create(model, &paths, &plan, "filter-gate", options, out)?;
    let scores = scores_of(model, captures, &plan.ranked, run)?;
    let (mut kept, best) = (vec![0; plan.ranked.len()], (options.scope, keep));
    let threshold = filters::keep_best(&plan, &scores, best, &writer, &mut kept, &run.interrupt)?;
    writer.whole(&plan, &run.interrupt)?;
    model.verify_unchanged()?;
    captures.iter().try_for_each(|capture| capture.checkpoint().verify_unchanged())?;
    let report = writer.finish(&plan, &kept)?;
    let of_captures: u64 = captures.iter().map(|capture| capture.checkpoint().total_bytes()).sum();
    Ok(SelectReport {
        threshold,
        passes: 1,
        bytes_read: report.bytes_read + of_captures + plan.ranked.iter().map(|t| 2 * t.bytes).sum::<u64>(),
        seconds: began.elapsed().as_secs_f64(),
        adapter: run.backend.name(),
        ..report
    })
}

fn open(captures: &[PathBuf]) -> Result<Vec<Capture>> {
    captures.iter().map(Capture::open).collect()
}

/// The layers by the names of their weights, each with its place in every capture.
pub(super) type Layers<'a> = BTreeMap<String, (usize, &'a CaptureLayer)>;

/// What the captures describe, held against the model.
pub(super) fn layers<'a>(model: &Checkpoint, captures: &'a [Capture]) -> Result<Layers<'a>> {
    let first = captures.first().ok_or_else(|| Error::argument(OP, "filter-gate needs captures"))?;
    same_network(captures)?;
    refuse_tied(first)?;
    let mut strangers = Vec::new();
    let mut layers = BTreeMap::new();
    for (place, layer) in first.layers().iter().enumerate() {
        let name = format!("{}.weight", layer.tied.weight.as_ref().unwrap_or(&layer.name));
        match model.get(&name) {
            None => strangers.push(format!("{} is not in the model", printable(&name))),
            Some(own) if own.shape != layer.weight => strangers.push(format!(
                "{} has shape {} by the captures, {} in the model",
                printable(&name),
                shape_text(&layer.weight),
                shape_text(&own.shape)
            )),
            Some(_) if layer.tied.weight.is_some() => {}
            Some(_) => drop(layers.insert(name, (place, layer))),
        }
    }
    if strangers.is_empty() {
        return Ok(layers);
    }
    let problem = format!(
        "{} is not a capture of {}: {}; capture this model",
        first.path().display(),
        model.path().display(),
        listed(&strangers)
    );
    Err(Error::mismatch(OP, problem))
}

/// The gradient of a filter that two layers share is not in either one's data.
fn refuse_tied(capture: &Capture) -> Result<()> {
    for layer in capture.layers() {
        let owner = layer.tied.weight.as_ref();
        let owner = capture.layers().iter().find(|other| Some(&other.name) == owner);
        if let Some(owner) = owner.filter(|owner| !matches!(owner.kind, LayerKind::Embedding { .. })) {
            let problem = format!(
                "{}: {} and {} share a weight, whose gates are not supported; use filter-sum, or capture without one of them",
                capture.path().display(),
                printable(&owner.name),
                printable(&layer.name)
            );
            return Err(Error::mismatch(OP, problem));
        }
    }
    Ok(())
}

/// Whether a tensor is the weight of a captured layer with filters: a row of an embedding is none.
pub(super) fn has_filters(layers: &Layers<'_>, tensor: &TensorInfo) -> bool {
    let layer = layers.get(&tensor.name).filter(|_| tensor.shape.len() > 1);
    layer.is_some_and(|(_, layer)| !matches!(layer.kind, LayerKind::Embedding { .. }))
}

/// The scores of the filters of some tensors, all of which have filters.
fn scores_of(
    model: &Checkpoint,
    captures: &[Capture],
    tensors: &[&TensorInfo],
    run: &Run<'_>,
) -> Result<Vec<Vec<f64>>> {
    let layers = layers(model, captures)?;
    let bytes = |tensor: &&TensorInfo| {
        captures.iter().map(|c| c.layers()[layers[&tensor.name].0].bytes()).sum::<u64>()
    };
    run.progress.begin(tensors.iter().map(bytes).sum());
    let mut scores = Vec::new();
    for tensor in tensors {
        let (place, _) = layers[&tensor.name];
        let theta = theta(model, tensor)?;
        let mut sums = vec![0.0; usize_of(tensor.shape[0])];
        for capture in captures {
            run.interrupt.check()?;
            let layer = &capture.layers()[place];
            let file = InFile { capture, layer };
            // As many samples at a time as one binding can take.
            for samples in ranges(capture.samples(), file.samples_within_bindings(&run.backend.caps())) {
                add(run.backend, file, samples, &theta, &mut sums)?;
            }
            run.progress.advance(layer.bytes());
        }
        scores.push(sums.into_iter().map(|sum| 0.5 * sum).collect());
    }
    Ok(scores)
}

fn theta(model: &Checkpoint, tensor: &TensorInfo) -> Result<Vec<f32>> {
    let place = model.position(&tensor.name).expect("it is one of the model's");
    let source = CheckpointSource::new(model, vec![place]);
    let values = source.floats(0, 0, tensor.elements())?;
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(values),
        Some(index) => Err(source.bad_value(0, index as u64, "a finite number")),
    }
}

/// Adds some samples' Σ_n weight[n] (Σ_w θ_w g_nw)² of every filter, some filters at a time.
fn add(
    backend: &Backend,
    file: InFile<'_>,
    range: Range<u64>,
    theta: &[f32],
    sums: &mut [f64],
) -> Result<()> {
    let portion = Portion::whole(file.layer.clone(), range.clone());
    let batch = Batch::load_portion(backend, file.capture, &portion, &[])?;
    let rows = batch.rows()?;
    let weights = &weights(file.capture)?[usize_of(range.start)..usize_of(range.end)];
    let tile = TILE.min(backend.caps().max_binding_bytes / 4);
    let fitting = tile / (batch.samples() * rows.len).max(1);
    let width = usize_of(rows.len);
    for filters in cut(rows, fitting.max(rows.unit.into())) {
        let gradients = gradients(backend, &batch, filters.clone())?;
        let filters = filters.start as usize..filters.end as usize;
        let theta = &theta[filters.start * width..filters.end * width];
        add_squares(&mut sums[filters], theta, &gradients, weights);
    }
    Ok(())
}

/// The gradients of some filters, `[n, filters, width]`.
fn gradients(backend: &Backend, batch: &Batch, filters: Range<u32>) -> Result<Vec<f32>> {
    let samples = batch.samples();
    let ones = backend.buffer(&vec![1.0_f32; usize_of(samples)], DType::F32)?;
    let out = backend.alloc(samples * filters.len() as u64 * batch.rows()?.len, DType::F32)?;
    let squares = Squares { mode: Mode::Each, epilogue: Epilogue::Overwrite, ..Squares::default() };
    let mut recording = Recording::new(backend);
    batch.record_rows(backend, &mut recording, filters, squares, Sides { weight: &ones, out: &out })?;
    backend.run(&recording)?;
    backend.download(&out)
}

/// Adds Σ_n weight[n] (Σ_w θ_w g_nw)² of the filters whose weights and gradients are given.
fn add_squares(sums: &mut [f64], theta: &[f32], gradients: &[f32], weights: &[f64]) {
    let filters = sums.len();
    let width = theta.len().checked_div(filters).unwrap_or(0);
    sums.par_iter_mut().enumerate().for_each(|(row, sum)| {
        let theta = &theta[row * width..(row + 1) * width];
        for (n, weight) in weights.iter().enumerate() {
            let gradient = &gradients[(n * filters + row) * width..][..width];
            let terms = theta.iter().zip(gradient).map(|(&t, &g)| f64::from(t) * f64::from(g));
            *sum += weight * terms.sum::<f64>().powi(2);
        }
    });
}

/// What each sample's square counts: 1 of the data's labels, its weight of the model's; of a mean loss, times
/// the batch's size squared.
fn weights(capture: &Capture) -> Result<Vec<f64>> {
    let samples = capture.samples() as f64;
    let factor = if capture.loss_reduction() == LossReduction::Mean { samples * samples } else { 1.0 };
    let weights = match capture.labels() {
        Labels::Data => vec![1.0; usize_of(capture.samples())],
        Labels::Sampled | Labels::All => capture.sample_weight()?,
    };
    Ok(weights.into_iter().map(|weight| factor * weight).collect())
}
