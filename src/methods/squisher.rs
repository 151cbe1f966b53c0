//! The Squisher: a Fisher diagonal for free, from the squared-gradient accumulator that training left behind.
//!
//! ```text
//! F̂ = s · v        s by --scale: raw 1, unbiased 1/(1−β^t), mean B/(1−β^t), sum N·B/(1−β^t), paper N
//! ```
//!
//! Li, Dangel, Tam, Raffel, *Fishers for Free?* (ICML 2025). v averages squares of *batch-mean* gradients; at
//! the end of training the mean gradient is near 0, `E[ḡ²] ≈ E[g²]/B`, and B·v̂ estimates the mean empirical
//! Fisher. t is each parameter's own step.
//!
//! *Plan* ([`plan`]) settles names, accumulators and factors from headers alone; *run* ([`extract`]) reads,
//! checks, scales and writes tensor by tensor, so that one parameter's accumulator (and its momentum, for the
//! check) and the next one's, which is read meanwhile, are all that is in memory.
//!
//! What looks suspicious but may be right is a [`Warning`]; what cannot be right is an error.

mod suspicions;
mod warning;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::{
    Accumulator, Dtype, ModelParams, NameHints, NameMap, NameSource, OptimizerState, Output, OutputLayout,
    OutputTensor, Scale, StateEntry, StateTensor, resolve,
};
use crate::error::{Error, Result};
use crate::shape::{elements, shape_text};
use crate::stream::{Clock, Run, Stage, Timings};

use suspicions::{compare_momentum, warnings_of_headers};
pub use warning::Warning;

/// What is extracted, and at which scale.
#[derive(Clone, Debug)]
pub struct ExtractOptions {
    /// What the accumulator is multiplied by.
    pub scale: Scale,
    /// B, the samples of one optimizer step over all devices and accumulated micro-batches.
    pub batch_size: Option<u64>,
    /// N, the samples of the training set.
    pub samples: Option<u64>,
    /// Take AMSGrad's maximum in place of the moving average.
    pub max_exp_avg_sq: bool,
    /// The file that names the optimizer's parameters, if one was given.
    pub names_file: Option<PathBuf>,
    /// What the loss was, for the output's metadata; `mean` is what ḡ supposes.
    pub loss: String,
    /// Read the momentum too and compare it with the accumulator.
    pub check_momentum: bool,
    /// Replace an existing output.
    pub overwrite: bool,
}

impl Default for ExtractOptions {
    fn default() -> Self {
        Self {
            scale: Scale::Raw,
            batch_size: None,
            samples: None,
            max_exp_avg_sq: false,
            names_file: None,
            loss: "mean".into(),
            check_momentum: true,
            overwrite: false,
        }
    }
}

/// One parameter of a plan or report.
#[derive(Clone, Debug, Serialize)]
pub struct Extracted {
    /// The model's name of it.
    pub name: String,
    /// The optimizer's name of it.
    pub id: String,
    /// The tensor's shape.
    pub shape: Vec<u64>,
    /// Elements of the tensor.
    pub elements: u64,
    /// Which of the optimizer's tensors is read.
    pub accumulator: Accumulator,
    /// The accumulator's type as stored.
    pub dtype: &'static str,
    /// Steps taken, where the state says.
    pub step: Option<f64>,
    /// What v is multiplied by.
    pub factor: f64,
}

/// What will be done, settled from headers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExtractPlan {
    /// The parameters, in the order of the optimizer.
    pub tensors: Vec<Extracted>,
    /// The names and their evidence.
    pub names: NameMap,
    /// What the headers alone give rise to.
    pub warnings: Vec<Warning>,
    /// What the output's metadata will be.
    pub metadata: BTreeMap<String, String>,
}

/// What was extracted.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ExtractReport {
    /// The parameters, in the order of the optimizer.
    pub tensors: Vec<Extracted>,
    /// The evidence for their names.
    pub evidence: NameSource,
    /// Names as given and as the model has them, where they differ.
    pub renamed: Vec<(String, String)>,
    /// Tensors of the model that the optimizer has no state for; they are absent from the output, not zero.
    pub absent: Vec<String>,
    /// What looks suspicious.
    pub warnings: Vec<Warning>,
    /// The scale's name.
    pub scale: Scale,
    /// The smallest and largest factor.
    pub scale_factor: (f64, f64),
    /// Elements written.
    pub elements: u64,
    /// Bytes of the output.
    pub bytes_written: u64,
    /// The path of the output.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub output: PathBuf,
    /// Where the time went; computing includes the check against the momentum, which is read for it.
    pub timings: Timings,
}

/// Settle what [`extract`] will do; reads headers only.
///
/// # Errors
/// As [`resolve`], [`OptimizerState::accumulator`] and [`Scale::factor`].
pub fn plan(state: &OptimizerState, model: &ModelParams, options: &ExtractOptions) -> Result<ExtractPlan> {
    let hints = NameHints {
        names_file: options.names_file.as_deref(),
        definition_order: model.definition_order.as_deref(),
    };
    let names = resolve(state, &model.params, hints, options.max_exp_avg_sq)?;
    let mut tensors = Vec::new();
    for named in &names.named {
        let entry = &state.entries()[named.entry];
        let accumulator = state.accumulator(entry, options.max_exp_avg_sq)?;
        let factor = options.scale.factor(accumulator, state, entry, options.batch_size, options.samples)?;
        tensors.push(Extracted {
            name: named.name.clone(),
            id: entry.id.to_string(),
            elements: elements(&named.shape).unwrap_or(u64::MAX),
            shape: named.shape.clone(),
            accumulator,
            dtype: entry.tensors.get(accumulator.key()).map_or("", StateTensor::dtype),
            step: entry.step,
            factor,
        });
    }
    let warnings = warnings_of_headers(state, &tensors, options);
    let metadata = metadata(state, &tensors, options);
    Ok(ExtractPlan { tensors, names, warnings, metadata })
}

/// Read every accumulator, check it, scale it, and write the Fisher file `out`.
///
/// # Errors
/// As [`plan`]; [`Error::Tensor`] for a value that no accumulator can have or that leaves f32 when scaled;
/// [`Error::Output`] where the output cannot be written; [`Error::Interrupted`] between two tensors.
pub fn extract(
    state: &OptimizerState,
    model: &ModelParams,
    options: &ExtractOptions,
    out: &Path,
    run: &Run<'_>,
) -> Result<ExtractReport> {
    let clock = Clock::start();
    let mut plan = plan(state, model, options)?;
    let slots =
        plan.tensors.iter().map(|t| OutputTensor::new(t.name.clone(), Dtype::F32, t.shape.clone())).collect();
    let inputs: Vec<&Path> = std::iter::once(state.path())
        .chain(model.files.iter().map(PathBuf::as_path))
        .chain(options.names_file.as_deref())
        .collect();
    let output =
        Output::create(out, OutputLayout::single(slots, plan.metadata.clone()), options.overwrite, &inputs)?;
    let found = Extraction { state, options, plan: &plan, output: &output, clock: &clock }.run(run)?;
    plan.warnings.extend(found);
    let (bytes_written, path) = (output.total_bytes(), output.path().to_owned());
    clock.time(Stage::Write, || output.finish())?;
    Ok(report(plan, options, bytes_written, path, clock.timings()))
}

/// One pass over the planned accumulators: each is read while the one before it is scaled and written.
struct Extraction<'a> {
    state: &'a OptimizerState,
    options: &'a ExtractOptions,
    plan: &'a ExtractPlan,
    output: &'a Output,
    clock: &'a Clock,
}

impl Extraction<'_> {
    /// What looks suspicious in the values.
    fn run(&self, run: &Run<'_>) -> Result<Vec<Warning>> {
        run.progress.begin(self.plan.tensors.iter().map(|t| 4 * t.elements).sum());
        let mut found = Vec::new();
        let (mut at, mut values) = (0, self.read(0));
        while let Some(these) = values {
            run.interrupt.check()?;
            let these = these?;
            let (warnings, next) = rayon::join(|| self.write(at, these), || self.read(at + 1));
            found.extend(warnings?);
            run.progress.advance(4 * self.plan.tensors[at].elements);
            (at, values) = (at + 1, next);
        }
        Ok(found)
    }

    /// The accumulator at `at` as it is stored; nothing behind the last.
    fn read(&self, at: usize) -> Option<Result<Vec<f32>>> {
        let (tensor, named) = self.plan.tensors.get(at).zip(self.plan.names.named.get(at))?;
        let entry = &self.state.entries()[named.entry];
        Some(self.clock.time(Stage::Read, || self.state.read_accumulator(entry, tensor.accumulator)))
    }

    /// Scales and writes the accumulator at `at`.
    fn write(&self, at: usize, values: Vec<f32>) -> Result<Vec<Warning>> {
        let (tensor, named) = (&self.plan.tensors[at], &self.plan.names.named[at]);
        let entry = &self.state.entries()[named.entry];
        let scale = || scaled(values, self.state, entry, tensor, self.options);
        let (values, warnings) = self.clock.time(Stage::Compute, scale)?;
        // Every tensor of the plan is in the layout that the output was made from.
        let slot = self.output.position(&tensor.name).expect("the layout has every planned tensor");
        let bytes = little_endian(&values);
        self.clock.time(Stage::Write, || self.output.write(slot, 0, &bytes)).map(|()| warnings)
    }
}

fn report(
    plan: ExtractPlan,
    options: &ExtractOptions,
    bytes_written: u64,
    output: PathBuf,
    timings: Timings,
) -> ExtractReport {
    let factors = plan.tensors.iter().map(|t| t.factor);
    let range = factors.fold((f64::INFINITY, 0.0_f64), |(low, high), f| (low.min(f), high.max(f)));
    ExtractReport {
        elements: plan.tensors.iter().map(|t| t.elements).sum(),
        tensors: plan.tensors,
        evidence: plan.names.source,
        renamed: plan.names.renamed,
        absent: plan.names.absent,
        warnings: plan.warnings,
        scale: options.scale,
        scale_factor: range,
        bytes_written,
        output,
        timings,
    }
}

/// One accumulator, checked against its momentum and multiplied by its factor.
fn scaled(
    mut values: Vec<f32>,
    state: &OptimizerState,
    entry: &StateEntry,
    tensor: &Extracted,
    options: &ExtractOptions,
) -> Result<(Vec<f32>, Vec<Warning>)> {
    let mut warnings = Vec::new();
    if values.len() as u64 != tensor.elements {
        let problem = format!(
            "has {} values, its shape {} needs {}",
            values.len(),
            shape_text(&tensor.shape),
            tensor.elements
        );
        return Err(Error::tensor(state.path(), &tensor.name, problem));
    }
    if !values.is_empty() && values.iter().all(|&v| v == 0.0) {
        warnings.push(Warning::AllZero { name: tensor.name.clone() });
    }
    if options.check_momentum {
        warnings.extend(compare_momentum(state, entry, tensor, &values)?);
    }
    multiply(&mut values, tensor.factor).map_err(|(index, value)| {
        let problem = format!(
            "{value:e} at flat index {index} leaves f32 when multiplied by {:e} (--scale {})",
            tensor.factor, options.scale
        );
        Error::tensor(state.path(), &tensor.name, problem)
    })?;
    Ok((values, warnings))
}

/// Multiplies values in place, up to the first that would leave f32, which is given with its index.
fn multiply(values: &mut [f32], factor: f64) -> Result<(), (usize, f32)> {
    if factor == 1.0 {
        return Ok(());
    }
    for (index, value) in values.iter_mut().enumerate() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to nearest is meant; the range is checked below"
        )]
        let product = (f64::from(*value) * factor) as f32;
        if !product.is_finite() {
            return Err((index, *value));
        }
        *value = product;
    }
    Ok(())
}

/// The output's `__metadata__`. A value that differs between parameters is given as its range, `5..7`.
fn metadata(
    state: &OptimizerState,
    tensors: &[Extracted],
    options: &ExtractOptions,
) -> BTreeMap<String, String> {
    let sum = matches!(options.scale, Scale::Sum | Scale::Paper)
        || (options.scale == Scale::Raw && tensors.iter().any(|t| t.accumulator == Accumulator::Sum));
    let decays = state.entries().iter().zip(tensors).filter_map(|(e, t)| t.accumulator.decay(state.group(e)));
    let source = state.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let entries = [
        ("kind", Some("accumulator".to_owned())),
        ("reduction", Some(if sum { "sum" } else { "mean" }.to_owned())),
        ("samples", options.samples.map(|n| n.to_string())),
        ("batch_size", options.batch_size.map(|b| b.to_string())),
        ("decay", range(decays)),
        ("step", range(tensors.iter().filter_map(|t| t.step))),
        ("scale", Some(options.scale.to_string())),
        ("loss", Some(options.loss.clone())),
        ("source", Some(source)),
        ("version", Some(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    entries.into_iter().filter_map(|(key, value)| Some((format!("squisher.{key}"), value?))).collect()
}

fn range(values: impl Iterator<Item = f64>) -> Option<String> {
    let ends = values.fold(None, |ends: Option<(f64, f64)>, v| {
        Some(ends.map_or((v, v), |(low, high)| (low.min(v), high.max(v))))
    });
    ends.map(|(low, high)| if low == high { low.to_string() } else { format!("{low}..{high}") })
}

/// The values' own memory where that is as files have it.
fn little_endian(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        return Cow::Borrowed(bytemuck::cast_slice(values));
    }
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
