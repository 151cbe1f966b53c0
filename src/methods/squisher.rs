//! The Squisher: a Fisher diagonal for free, from the squared-gradient accumulator that training left behind.
//!
//! ```text
//! F̂ = s · v        s by --scale: raw 1, unbiased 1/(1−β^t), mean B/(1−β^t), sum N·B/(1−β^t), paper N
//! ```
//!
//! Li, Dangel, Tam, Raffel, *Fishers for Free?* (ICML 2025). v averages squares of *batch-mean* gradients; at the end of training
//! the mean gradient is near 0, `E[ḡ²] ≈ E[g²]/B`, and B·v̂ estimates the mean empirical Fisher. t is each parameter's own step.
//!
//! *Plan* ([`plan`]) settles names, accumulators and factors from headers alone; *run* ([`extract`]) reads, checks, scales and writes tensor by
//! tensor, so that one parameter's accumulator (and its momentum, for the check) is all that is in memory.
//!
//! What looks suspicious but may be right is a [`Warning`]; what cannot be right is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::checkpoint::{
    Accumulator, Dtype, ModelParams, NameHints, NameMap, NameSource, OptimizerState, Output, OutputLayout,
    OutputTensor, ParamGroup, Scale, StateEntry, momentum_bound, resolve,
};
use crate::error::{Error, Result, printable};
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::shape::{DType, shape_text};
use crate::stream::{Clock, Stage, Timings};

/// How to extract.
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
    /// A names file.
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
    /// Its shape.
    pub shape: Vec<u64>,
    /// Elements.
    pub elements: u64,
    /// What is read.
    pub accumulator: Accumulator,
    /// As stored.
    pub dtype: &'static str,
    /// Steps taken, where the state says.
    pub step: Option<f64>,
    /// What v is multiplied by.
    pub factor: f64,
}

/// What will be done, settled from headers.
#[derive(Clone, Debug)]
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

/// What was done.
#[derive(Clone, Debug, Serialize)]
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
    /// The output.
    pub output: PathBuf,
    /// Where the time went; computing includes the check against the momentum, which is read for it.
    pub timings: Timings,
}

/// What looks suspicious and may be right. Displayed as a sentence; serialized as that sentence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// The file imports what no optimizer state needs.
    ForeignImports(Vec<String>),
    /// Accumulators in bf16 or f16: with β near 1 an average of so few bits stops moving.
    HalfAccumulator {
        /// How many.
        tensors: usize,
        /// As stored.
        dtype: &'static str,
    },
    /// Weight decay that is, or may be, part of the squared gradients.
    CoupledWeightDecay {
        /// The largest.
        weight_decay: f64,
        /// Whether the state says so, or merely does not say otherwise.
        certain: bool,
    },
    /// Fewer steps than the average reaches back.
    FewSteps {
        /// The fewest.
        step: f64,
        /// The decay.
        decay: f64,
    },
    /// The optimizer's own rule has no bias correction, so `unbiased` is v itself.
    NoBiasCorrection(Accumulator),
    /// AMSGrad's maximum is no average.
    MaximumIsNoAverage,
    /// Adafactor's factors approximate v by one outer product a matrix.
    Factored {
        /// How many parameters.
        tensors: usize,
    },
    /// Codes of 8 bits: small values have errors of tens of percent, the smallest are 0.
    EightBit {
        /// How many parameters.
        tensors: usize,
    },
    /// An accumulator that is 0 everywhere.
    AllZero {
        /// The parameter.
        name: String,
    },
    /// |m| > c·√v beyond rounding, which Adam's recursions do not allow: buffers of different parameters, or damaged ones.
    MomentumTooLarge {
        /// The parameter.
        name: String,
        /// How many elements.
        count: u64,
        /// The first.
        index: usize,
        /// |m| there.
        momentum: f32,
        /// v there.
        accumulator: f32,
        /// c.
        bound: f64,
    },
    /// Parameters that the groups list and that have no state.
    WithoutState {
        /// How many.
        params: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignImports(names) => {
                let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
                write!(f, "the file imports {}, which no optimizer state needs; nothing of it was executed or used", names.join(", "))
            }
            Self::HalfAccumulator { tensors, dtype } => write!(
                f,
                "{tensors} accumulators are {dtype}: a moving average of so few bits stalls, its values are rough at best"
            ),
            Self::CoupledWeightDecay { weight_decay, certain: true } => {
                write!(f, "weight decay {weight_decay} is coupled: the squares are those of gradient plus decay")
            }
            Self::CoupledWeightDecay { weight_decay, certain: false } => write!(
                f,
                "weight decay {weight_decay}, and the state does not say whether it is decoupled: \
                 harmless with AdamW, with Adam the squares are those of gradient plus decay"
            ),
            Self::FewSteps { step, decay } => write!(
                f,
                "{step} steps, while the average with decay {decay} reaches back {:.0}: it still holds its start",
                1.0 / (1.0 - decay)
            ),
            Self::NoBiasCorrection(Accumulator::SquareAvgRmsprop) => {
                f.write_str("RMSprop has no bias correction: unbiased is the stored average itself")
            }
            Self::NoBiasCorrection(Accumulator::SquareAvgAdadelta) => {
                f.write_str("Adadelta has no bias correction: unbiased is the stored average itself")
            }
            Self::NoBiasCorrection(_) => {
                f.write_str("Adafactor's decay grows with the step and needs no bias correction: unbiased is the stored average itself")
            }
            Self::MaximumIsNoAverage => {
                f.write_str("max_exp_avg_sq is the largest average of the run, not one at any time")
            }
            Self::Factored { tensors } => {
                write!(f, "{tensors} accumulators are rebuilt from row and column means (Adafactor): an approximation of rank one")
            }
            Self::EightBit { tensors } => write!(
                f,
                "{tensors} accumulators have 8-bit codes: small values are rough, and the smallest are 0"
            ),
            Self::AllZero { name } => {
                write!(f, "the accumulator of {} is 0 everywhere (a state from before the first step?)", printable(name))
            }
            Self::MomentumTooLarge { name, count, index, momentum, accumulator, bound } => write!(
                f,
                "{}: {count} elements have |m| > {bound:.2}·√v, which the optimizer cannot have made; first at flat index {index}: \
                 |m| = {momentum:e}, v = {accumulator:e} (are its buffers another parameter's?)",
                printable(name)
            ),
            Self::WithoutState { params } => {
                write!(f, "{params} parameters of the optimizer have no state (never given a gradient); they are absent from the output")
            }
        }
    }
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
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
            elements: crate::shape::elements(&named.shape).unwrap_or(u64::MAX),
            shape: named.shape.clone(),
            accumulator,
            dtype: entry.tensors.get(accumulator.key()).map_or("", crate::checkpoint::StateTensor::dtype),
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
/// As [`plan`]; [`Error::Tensor`] for a value that no accumulator can have or that leaves f32 when scaled; [`Error::Output`] where the
/// output cannot be written; [`Error::Interrupted`] between two tensors.
pub fn extract(
    state: &OptimizerState,
    model: &ModelParams,
    options: &ExtractOptions,
    out: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
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
    progress.begin(plan.tensors.iter().map(|t| 4 * t.elements).sum());
    for (tensor, named) in plan.tensors.iter().zip(&plan.names.named) {
        interrupt.check()?;
        let entry = &state.entries()[named.entry];
        let values = clock.time(Stage::Read, || state.read_accumulator(entry, tensor.accumulator))?;
        let warnings = &mut plan.warnings;
        let values =
            clock.time(Stage::Compute, || scaled(values, state, entry, tensor, options, warnings))?;
        // Every tensor of the plan is in the layout that the output was made from.
        let slot = output.position(&tensor.name).expect("the layout has every planned tensor");
        clock.time(Stage::Write, || output.write(slot, 0, &little_endian(&values)))?;
        progress.advance(4 * tensor.elements);
    }
    let (bytes_written, path) = (output.total_bytes(), output.path().to_owned());
    clock.time(Stage::Write, || output.finish())?;
    Ok(report(plan, options, bytes_written, path, clock.timings()))
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
    warnings: &mut Vec<Warning>,
) -> Result<Vec<f32>> {
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
    if tensor.factor == 1.0 {
        return Ok(values);
    }
    for (index, value) in values.iter_mut().enumerate() {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding to nearest is meant; the range is checked below"
        )]
        let scaled = (f64::from(*value) * tensor.factor) as f32;
        if !scaled.is_finite() {
            let problem = format!(
                "{value:e} at flat index {index} leaves f32 when multiplied by {:e} (--scale {})",
                tensor.factor, options.scale
            );
            return Err(Error::tensor(state.path(), &tensor.name, problem));
        }
        *value = scaled;
    }
    Ok(values)
}

/// |m| ≤ c·√v, with room for rounding: each moving average collects an error of at most u/(1−β) of itself, and no value is exact below the
/// smallest normal number of its type.
fn compare_momentum(
    state: &OptimizerState,
    entry: &StateEntry,
    tensor: &Extracted,
    values: &[f32],
) -> Result<Option<Warning>> {
    let (Some((beta1, beta2)), Some(momentum)) = (state.group(entry).betas, entry.tensors.get("exp_avg"))
    else {
        return Ok(None);
    };
    let Some(bound) = momentum_bound(beta1, beta2) else { return Ok(None) };
    if tensor.accumulator != Accumulator::ExpAvgSq || momentum.shape != tensor.shape {
        return Ok(None);
    }
    let (u, smallest) = rounding(&[momentum.dtype(), tensor.dtype]);
    let room = 1.0 + 2.0 * u * (1.0 / (1.0 - beta1) + 1.0 / (1.0 - beta2));
    let momenta = state.read_floats(entry, "exp_avg")?;
    let allowed = |v: f32| bound * (f64::from(v) + smallest).sqrt() * room;
    let mut over =
        momenta.iter().zip(values).enumerate().filter(|(_, (m, v))| f64::from(m.abs()) > allowed(**v));
    let Some((index, (&m, &v))) = over.next() else { return Ok(None) };
    Ok(Some(Warning::MomentumTooLarge {
        name: tensor.name.clone(),
        count: 1 + over.count() as u64,
        index,
        momentum: m.abs(),
        accumulator: v,
        bound,
    }))
}

/// The coarsest unit roundoff and largest smallest normal number of some storage types.
fn rounding(dtypes: &[&str]) -> (f64, f64) {
    let one = |dtype: &&str| match *dtype {
        "f16" => (DType::F16.unit_roundoff(), 6.103_515_625e-5),
        "bf16" => (DType::BF16.unit_roundoff(), f64::from(f32::MIN_POSITIVE)),
        _ => (DType::F32.unit_roundoff(), f64::from(f32::MIN_POSITIVE)),
    };
    dtypes.iter().map(one).fold((0.0, 0.0), |(u, s): (f64, f64), (v, t)| (u.max(v), s.max(t)))
}

fn warnings_of_headers(
    state: &OptimizerState,
    tensors: &[Extracted],
    options: &ExtractOptions,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !state.foreign_imports().is_empty() {
        warnings.push(Warning::ForeignImports(state.foreign_imports().to_vec()));
    }
    let without = state.param_count() - state.entries().len();
    if without > 0 {
        warnings.push(Warning::WithoutState { params: without });
    }
    for dtype in ["bf16", "f16"] {
        match tensors.iter().filter(|t| t.dtype == dtype).count() {
            0 => {}
            tensors => warnings.push(Warning::HalfAccumulator { tensors, dtype }),
        }
    }
    warnings.extend(coupled_weight_decay(state, tensors));
    warnings.extend(few_steps(state, tensors));
    warnings.extend(notes_on_rules(tensors, options.scale));
    warnings
}

fn notes_on_rules(tensors: &[Extracted], scale: Scale) -> Vec<Warning> {
    use Accumulator as A;
    let count = |kinds: &[A]| tensors.iter().filter(|t| kinds.contains(&t.accumulator)).count();
    let mut notes = Vec::new();
    let corrected = matches!(scale, Scale::Unbiased | Scale::Mean | Scale::Sum);
    for kinds in [
        &[A::SquareAvgRmsprop][..],
        &[A::SquareAvgAdadelta],
        &[A::FactorsTorch, A::FactorsTransformers, A::WholeTorch, A::WholeTransformers],
    ] {
        if corrected && count(kinds) > 0 {
            notes.push(Warning::NoBiasCorrection(kinds[0]));
        }
    }
    if count(&[A::MaxExpAvgSq]) > 0 {
        notes.push(Warning::MaximumIsNoAverage);
    }
    match count(&[A::FactorsTorch, A::FactorsTransformers]) {
        0 => {}
        tensors => notes.push(Warning::Factored { tensors }),
    }
    match count(&[A::EightBit]) {
        0 => {}
        tensors => notes.push(Warning::EightBit { tensors }),
    }
    notes
}

fn coupled_weight_decay(state: &OptimizerState, tensors: &[Extracted]) -> Option<Warning> {
    // Adafactor, in both forms, keeps its weight decay out of the gradient.
    let adafactor = |t: &Extracted| {
        use Accumulator as A;
        matches!(
            t.accumulator,
            A::FactorsTorch | A::FactorsTransformers | A::WholeTorch | A::WholeTransformers
        )
    };
    if tensors.iter().all(adafactor) {
        return None;
    }
    // RMSprop, Adadelta and Adagrad always add theirs to the gradient.
    let always = tensors.iter().all(|t| {
        use Accumulator as A;
        matches!(t.accumulator, A::SquareAvgRmsprop | A::SquareAvgAdadelta | A::Sum)
    });
    let coupled = |g: &&ParamGroup| g.weight_decay != 0.0 && g.decoupled_weight_decay != Some(true);
    let groups: Vec<&ParamGroup> = state.groups().iter().filter(coupled).collect();
    let weight_decay = groups.iter().map(|g| g.weight_decay).reduce(f64::max)?;
    let certain = always || groups.iter().any(|g| g.decoupled_weight_decay == Some(false));
    Some(Warning::CoupledWeightDecay { weight_decay, certain })
}

/// The parameter whose average is furthest from having forgotten its start.
fn few_steps(state: &OptimizerState, tensors: &[Extracted]) -> Option<Warning> {
    let mut worst: Option<(f64, f64)> = None;
    for (entry, tensor) in state.entries().iter().zip(tensors) {
        let (Some(step), Some(decay)) = (entry.step, tensor.accumulator.decay(state.group(entry))) else {
            continue;
        };
        let share = step * (1.0 - decay);
        if share < 1.0 && worst.is_none_or(|(s, d)| share < s * (1.0 - d)) {
            worst = Some((step, decay));
        }
    }
    worst.map(|(step, decay)| Warning::FewSteps { step, decay })
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

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
