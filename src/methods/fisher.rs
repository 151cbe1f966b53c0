//! The Fisher diagonal of a network from captures of its forward and backward passes.
//!
//! *Plan*: every header is opened and held against the others before the output is created. *Run*: layer by layer over all
//! files, and within a file some samples at a time, so that memory holds a few samples of one layer and that layer's result, however many
//! files there are and however large. Kinds that square sums over samples sum the gradients themselves first: over a batch, or, for
//! `joint`, over all files.
//!
//! | kind | result | labels |
//! |---|---|---|
//! | `empirical` | Σ_n w_n g_n² | the data's; of captures with model labels this is `mc` or `exact`, and is named so |
//! | `minibatch-joint` | Σ_batches (Σ_{n ∈ batch} g_n)² | the data's |
//! | `joint` | (Σ_n g_n)² | the data's (Li et al. 2025, eq. 10–12); noise at an optimum |
//! | `ief` | Σ_n w_n g_n² / s_n, s_n = ‖∂ℓ_n/∂z_n‖² | the data's (Wu et al. 2024) |
//! | `ema` | f ← β f + (1−β) Σ_n w_n g_n², batch by batch | the data's |
//! | `accumulator` | v ← β v + (1−β) (1/B Σ_n g_n)², batch by batch, from 0, no bias correction | the data's |
//!
//! A layer used several times has one parameter: the gradients of its uses are added before they are squared.

mod several_sizes;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use crate::backend::Backend;
use crate::checkpoint::{
    Capture, CaptureLayer, Dtype, Labels, LossReduction, Output, OutputLayout, OutputTensor, same_network,
};
use crate::error::{Error, Result, printable};
use crate::interrupt::Interrupt;
use crate::kernels::fisher::{Epilogue, Mode};
use crate::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use crate::memory::View;
use crate::methods::captured::{Batch, InFile, Sides, by_size, in_pieces, small};
use crate::progress::Progress;
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::{DType, elements};
use crate::stream::{Clock, Stage, Timings};

const OP: &str = "fisher";

/// What is squared, and how squares are summed. See the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Σ_n w_n g_n².
    Empirical,
    /// Σ_batches (Σ_n g_n)².
    MinibatchJoint,
    /// (Σ_n g_n)².
    Joint,
    /// Σ_n w_n g_n² / ‖∂ℓ_n/∂z_n‖².
    Ief,
    /// A moving average of Σ_n w_n g_n² of each batch.
    Ema,
    /// A moving average of squared batch means, as optimizers keep it.
    Accumulator,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Empirical, Self::MinibatchJoint, Self::Joint, Self::Ief, Self::Ema, Self::Accumulator];

    /// Whether sums over samples are squared.
    fn joins_samples(self) -> bool {
        self.folds_samples() || self == Self::Joint
    }

    /// Whether a whole batch is one square.
    fn folds_samples(self) -> bool {
        matches!(self, Self::MinibatchJoint | Self::Accumulator)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Empirical => "empirical",
            Self::MinibatchJoint => "minibatch-joint",
            Self::Joint => "joint",
            Self::Ief => "ief",
            Self::Ema => "ema",
            Self::Accumulator => "accumulator",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| Error::argument("kind", format!("\"{text}\" is not one of {}", names.join(", "))))
    }
}

/// What the sum over samples is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Nothing.
    #[default]
    Sum,
    /// The number of samples.
    Mean,
}

/// How to compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FisherOptions {
    /// What is squared and summed.
    pub kind: Kind,
    /// β of the moving averages.
    pub beta: f64,
    /// Multiply each sample's square by its `sample_weight`. Captures of model labels are always weighted.
    pub weighted: bool,
    /// What the sum is divided by.
    pub reduction: Reduction,
    /// Replace an existing output.
    pub overwrite: bool,
}

impl Default for FisherOptions {
    fn default() -> Self {
        Self {
            kind: Kind::Empirical,
            beta: 0.999,
            weighted: false,
            reduction: Reduction::Sum,
            overwrite: false,
        }
    }
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct FisherReport {
    /// The kind, with labels taken into account: also `mc` and `exact`.
    pub kind: String,
    /// What the sum was divided by.
    pub reduction: Reduction,
    /// Samples over all files; of model labels, the sum of their weights.
    pub samples: u64,
    /// Files.
    pub batches: usize,
    /// Samples whose logit gradient is 0, which add nothing to the iEF.
    pub zero_loss_samples: u64,
    /// The tensors written, with their shapes.
    pub tensors: Vec<(String, Vec<u64>)>,
    /// Elements written.
    pub elements: u64,
    /// Bytes of all captures.
    pub bytes_read: u64,
    /// Bytes of the output.
    pub bytes_written: u64,
    /// Where it ran.
    pub adapter: String,
    /// The output.
    pub output: PathBuf,
    /// Where the time went; reading includes the way to the device, writing the way back and the sync.
    pub timings: Timings,
}

/// Computes the Fisher diagonal of every layer that `captures` describe and writes the Fisher file `out`.
///
/// # Errors
/// What [`Capture::open`] and [`same_network`] refuse; [`Error::Argument`] for options without a meaning; [`Error::Tensor`] for values that
/// are not finite or ids out of range; [`Error::Limit`] and [`Error::Device`] from the backend; [`Error::Output`] where the output cannot
/// be written; [`Error::Interrupted`] between two batches of a layer.
pub fn fisher(
    backend: &Backend,
    captures: &[PathBuf],
    options: &FisherOptions,
    out: &Path,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<FisherReport> {
    let clock = Clock::start();
    let captures = captures.iter().map(Capture::open).collect::<Result<Vec<_>>>()?;
    let job = Job::new(backend, &captures, *options)?;
    let tensors = job.tensors();
    let slots = tensors.iter().map(|(name, shape)| OutputTensor::new(name, Dtype::F32, shape.clone()));
    let layout = OutputLayout::single(slots.collect(), job.metadata());
    let inputs: Vec<&Path> = captures.iter().map(Capture::path).collect();
    let output = Output::create(out, layout, options.overwrite, &inputs)?;
    let bytes_read = captures.iter().map(|capture| capture.checkpoint().total_bytes()).sum();
    progress.begin(bytes_read);
    for at in 0..captures[0].layers().len() {
        job.layer(at, &output, &clock, progress, interrupt)?;
    }
    captures.iter().try_for_each(|capture| capture.checkpoint().verify_unchanged())?;
    let mut report = FisherReport {
        kind: job.kind_name(),
        reduction: options.reduction,
        samples: job.samples,
        batches: captures.len(),
        zero_loss_samples: job.zero_loss_samples(),
        elements: tensors.iter().map(|(_, shape)| elements(shape).unwrap_or(u64::MAX)).sum(),
        tensors,
        bytes_read,
        bytes_written: output.total_bytes(),
        adapter: backend.name(),
        output: output.path().to_owned(),
        timings: Timings::default(),
    };
    clock.time(Stage::Write, || output.finish())?;
    report.timings = clock.timings();
    Ok(report)
}

/// What is settled before the first layer.
struct Job<'a> {
    backend: &'a Backend,
    captures: &'a [Capture],
    options: FisherOptions,
    samples: u64,
    /// Each file's weights, one a sample, and its samples' power-of-two scales where the iEF needs them.
    batches: Vec<Samples>,
}

/// One file's samples.
struct Samples {
    weight: Vec<f64>,
    /// 2^k near 1/√s_n for the iEF, so that neither g nor 1/s leaves f32; empty otherwise.
    scale: Vec<f64>,
    zero_loss: u64,
}

impl<'a> Job<'a> {
    fn new(backend: &'a Backend, captures: &'a [Capture], options: FisherOptions) -> Result<Self> {
        let Some(first) = captures.first() else {
            return Err(Error::argument(OP, "no capture was given"));
        };
        same_network(captures)?;
        check_options(&options, first.labels())?;
        let weighted = options.weighted || first.labels() != Labels::Data;
        let mut samples = 0.0;
        let mut batches = Vec::new();
        for capture in captures {
            let n = usize::try_from(capture.samples()).unwrap_or(usize::MAX);
            let mut weight = if weighted { capture.sample_weight()? } else { vec![1.0; n] };
            samples += match first.labels() {
                Labels::Data => n as f64,
                _ => weight.iter().sum(),
            };
            let (mut scale, mut zero_loss) = (Vec::new(), 0);
            if options.kind == Kind::Ief {
                let sums = capture.logit_grad_sq()?;
                zero_loss = sums.iter().filter(|&&s| s == 0.0).count() as u64;
                scale = sums
                    .iter()
                    .map(|&s| if s > 0.0 { (-(s.log2() / 2.0).round()).exp2() } else { 1.0 })
                    .collect();
                for ((weight, s), scale) in weight.iter_mut().zip(&sums).zip(&scale) {
                    *weight = if *s > 0.0 { *weight / (s * scale * scale) } else { 0.0 };
                }
            }
            batches.push(Samples { weight, scale, zero_loss });
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count, or a sum of weights near one"
        )]
        let samples = samples.round() as u64;
        Ok(Self { backend, captures, options, samples, batches })
    }

    /// `mc` and `exact` are the empirical sum over model labels.
    fn kind_name(&self) -> String {
        match (self.options.kind, self.captures[0].labels()) {
            (Kind::Empirical, Labels::Sampled) => "mc".into(),
            (Kind::Empirical, Labels::All) => "exact".into(),
            (kind, _) => kind.to_string(),
        }
    }

    fn zero_loss_samples(&self) -> u64 {
        self.batches.iter().map(|batch| batch.zero_loss).sum()
    }

    /// Every tensor of the result.
    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        self.captures[0].layers().iter().flat_map(CaptureLayer::parameters).collect()
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let sizes = self.captures.iter().map(Capture::samples);
        let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
        let average = matches!(self.options.kind, Kind::Ema | Kind::Accumulator);
        let mean = self.options.reduction == Reduction::Mean || self.options.kind == Kind::Accumulator;
        let loss = match self.captures[0].loss_reduction() {
            LossReduction::Sum => "sum",
            LossReduction::Mean => "mean",
        };
        let source = self.captures[0].path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let entries = [
            ("kind", Some(self.kind_name())),
            ("reduction", Some(if mean { "mean" } else { "sum" }.into())),
            ("samples", Some(self.samples.to_string())),
            ("batch_size", Some(if least == most { least.to_string() } else { format!("{least}..{most}") })),
            ("decay", average.then(|| self.options.beta.to_string())),
            ("step", average.then(|| self.captures.len().to_string())),
            ("scale", Some("raw".into())),
            ("loss", Some(loss.into())),
            ("weighted", self.options.weighted.then(|| "true".into())),
            ("source", Some(source)),
            ("version", Some(env!("CARGO_PKG_VERSION").into())),
        ];
        entries.into_iter().filter_map(|(key, value)| Some((format!("squisher.{key}"), value?))).collect()
    }

    /// One layer: read and computed batch by batch, then checked and written.
    fn layer(
        &self,
        at: usize,
        output: &Output,
        clock: &Clock,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let parameters = self.captures[0].layers()[at].parameters();
        let alloc = |(_, shape): &(String, Vec<u64>)| {
            self.backend.alloc(elements(shape).unwrap_or(u64::MAX), DType::F32)
        };
        let buffers = || parameters.iter().map(alloc).collect::<Result<Vec<View>>>();
        let views = buffers()?;
        let sums = if self.options.kind.folds_samples() { buffers()? } else { Vec::new() };
        for (step, capture) in self.captures.iter().enumerate() {
            let file = InFile { capture, layer: &capture.layers()[at] };
            let targets = if sums.is_empty() { &views } else { &sums };
            let mut scale = None;
            for samples in file.parts(self.backend) {
                interrupt.check()?;
                scale = Some(self.add(clock, file, step, samples, scale, targets)?);
            }
            if !sums.is_empty() {
                let scale = scale.unwrap_or(1.0);
                clock.time(Stage::Compute, || self.square(capture.samples(), scale, &sums, &views))?;
            }
            progress.advance(file.layer.bytes());
        }
        for ((name, _), view) in parameters.iter().zip(&views) {
            let slot = output.position(name).expect("the layout has every tensor of every layer");
            let write = |first, values: &mut [f32]| {
                self.finish(name, first, values)?;
                output.write(slot, 4 * first, bytemuck::cast_slice(values))
            };
            clock.time(Stage::Write, || in_pieces(self.backend, view, write))?;
        }
        Ok(())
    }

    /// What is left to do with the results of one tensor, of which `values` are those from `first` on.
    fn finish(&self, name: &str, first: u64, values: &mut [f32]) -> Result<()> {
        if self.options.kind == Kind::Joint {
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            values.iter_mut().for_each(|value| *value = (f64::from(*value) * f64::from(*value)) as f32);
        }
        let once = !matches!(self.options.kind, Kind::Ema | Kind::Accumulator);
        if self.options.reduction == Reduction::Mean && once {
            let samples = self.samples.max(1) as f64;
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            values.iter_mut().for_each(|value| *value = (f64::from(*value) / samples) as f32);
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(()),
            Some(index) => {
                let index = first + index as u64;
                let problem = format!(
                    "the sum of squares of {} leaves f32 at flat index {index}; scale the loss down when capturing",
                    printable(name)
                );
                Err(Error::argument(OP, problem))
            }
        }
    }

    /// Reads some samples of a batch, and records and runs their step for weight and bias. Gives the power of two by which the batch's sums
    /// of gradients are scaled: `sum_scale`, or, for its first part, what suits that.
    fn add(
        &self,
        clock: &Clock,
        file: InFile<'_>,
        step: usize,
        samples: Range<u64>,
        sum_scale: Option<f64>,
        targets: &[View],
    ) -> Result<f64> {
        let of_part = |all: &[f64]| match all {
            [] => Vec::new(),
            all => all[usize_of(samples.start)..usize_of(samples.end)].to_vec(),
        };
        let layers = by_size(file.layer);
        let scales = of_part(&self.batches[step].scale);
        let load = |layer| Batch::load_part(self.backend, InFile { layer, ..file }, samples.clone(), &scales);
        let sizes = clock.time(Stage::Read, || layers.iter().map(load).collect::<Result<Vec<_>>>())?;
        // The largest gradient of any size decides.
        let scale = sizes.iter().map(Batch::gradient_scale).fold(f64::INFINITY, f64::min);
        let sum_scale = sum_scale.unwrap_or(scale);
        let part = Part {
            batch: file.capture.samples(),
            step,
            first: samples.start == 0,
            samples: samples.end - samples.start,
            scale,
        };
        let squares = self.squares(part, sum_scale)?;
        let weights = match squares.mode {
            // The part is one square, if it has samples.
            Mode::Gradients => vec![1.0; usize::from(part.samples > 0)],
            _ => of_part(&self.batches[step].weight),
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let weights: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
        clock.time(Stage::Compute, || {
            Parameter::ALL.into_iter().zip(targets).try_for_each(|(parameter, out)| match &sizes[..] {
                [_, _, ..] if squares.mode == Mode::Squares => {
                    self.add_squares(&sizes, squares, parameter, &weights, out)
                }
                _ => self.record(&sizes, squares, parameter, &weights, out),
            })
        })?;
        Ok(sum_scale)
    }

    /// Records and runs the step of one parameter for each of some batches, which go on from each other.
    fn record(
        &self,
        batches: &[Batch<'_>],
        squares: Squares,
        parameter: Parameter,
        weights: &[f32],
        out: &View,
    ) -> Result<()> {
        let weight = self.backend.buffer(weights, DType::F32)?;
        let mut recording = Recording::new(self.backend);
        for (i, batch) in batches.iter().enumerate() {
            let epilogue = if i == 0 { squares.epilogue } else { Epilogue::Add };
            let (squares, sides) = (Squares { epilogue, ..squares }, Sides { weight: &weight, out });
            match parameter {
                Parameter::Weight => batch.record_weight(self.backend, &mut recording, squares, sides)?,
                Parameter::Bias => batch.record_bias(&mut recording, squares, sides)?,
            }
        }
        self.backend.run(&recording)
    }

    /// How the gradients of a part of a batch are summed; `sum_scale` is what sums of gradients are left multiplied by.
    fn squares(&self, part: Part, sum_scale: f64) -> Result<Squares> {
        if self.options.kind.joins_samples() {
            return self.sums(part, sum_scale);
        }
        let Part { batch, step, first, scale, .. } = part;
        let (kind, samples) = (self.options.kind, batch.max(1) as f64);
        // The iEF's s_n has the same factor as g_n².
        let mut factor = if self.mean_loss() && kind != Kind::Ief { samples * samples } else { 1.0 };
        if kind == Kind::Ema && self.options.reduction == Reduction::Mean {
            factor /= samples;
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let (beta, gradient_scale) = (self.options.beta as f32, scale as f32);
        let epilogue = match kind {
            // The buffer begins with zeros; what was there before decays once a batch.
            Kind::Ema if first => Epilogue::Ema { decay: beta },
            Kind::Ema => {
                factor *= 1.0 - f64::from(beta);
                Epilogue::Add
            }
            _ if step == 0 && first => Epilogue::Overwrite,
            _ => Epilogue::Add,
        };
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let factor = (factor / (scale * scale)) as f32;
        Ok(Squares { mode: Mode::Squares, epilogue, fold: 1, factor, gradient_scale })
    }

    /// How gradients are summed that are squared when their sum is whole. A joint sum goes on over all batches, and is not left scaled.
    fn sums(&self, part: Part, sum_scale: f64) -> Result<Squares> {
        let Part { batch, step, first, samples, scale } = part;
        let (factor, goes_on) = match (self.options.kind, self.mean_loss()) {
            (Kind::Joint, true) => (batch as f64, step > 0 || !first),
            (Kind::Joint, false) => (1.0, step > 0 || !first),
            _ => (sum_scale, !first),
        };
        let epilogue = if goes_on { Epilogue::Add } else { Epilogue::Overwrite };
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let (factor, gradient_scale) = ((factor / scale) as f32, scale as f32);
        Ok(Squares { mode: Mode::Gradients, epilogue, fold: small(samples.max(1))?, factor, gradient_scale })
    }

    fn mean_loss(&self) -> bool {
        self.captures[0].loss_reduction() == LossReduction::Mean
    }

    /// Squares a batch's summed gradients, which were left multiplied by `scale`, into the results.
    fn square(&self, samples: u64, scale: f64, sums: &[View], results: &[View]) -> Result<()> {
        let samples = samples.max(1) as f64;
        let (decay, factor) = match (self.options.kind, self.mean_loss()) {
            (Kind::Accumulator, true) => (self.options.beta, 1.0),
            (Kind::Accumulator, false) => (self.options.beta, 1.0 / (samples * samples)),
            (_, true) => (1.0, samples * samples),
            (_, false) => (1.0, 1.0),
        };
        let gain = if decay < 1.0 { (1.0 - decay) * factor } else { factor };
        let mut recording = Recording::new(self.backend);
        for (gradient, exp_avg_sq) in sums.iter().zip(results) {
            let kernel = Ema { gradient: DType::F32, accumulator: DType::F32 };
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            let params = EmaParams {
                len: small(gradient.len())?,
                decay: decay as f32,
                gain: (gain / (scale * scale)) as f32,
                gradient_scale: 1.0,
            };
            let args = EmaArgs { gradient: gradient.clone(), exp_avg_sq: exp_avg_sq.clone() };
            recording.dispatch(&kernel, params, args)?;
        }
        self.backend.run(&recording)
    }
}

/// A part of a batch, and where it stands.
#[derive(Clone, Copy)]
struct Part {
    /// Samples of the whole batch.
    batch: u64,
    /// Which batch.
    step: usize,
    /// Whether the part is the batch's first.
    first: bool,
    /// The part's own samples.
    samples: u64,
    /// The power of two by which its gradients are multiplied.
    scale: f64,
}

/// Weight or bias, in the order of a layer's parameters.
#[derive(Clone, Copy)]
enum Parameter {
    Weight,
    Bias,
}

impl Parameter {
    const ALL: [Self; 2] = [Self::Weight, Self::Bias];
}

fn usize_of(samples: u64) -> usize {
    usize::try_from(samples).unwrap_or(usize::MAX)
}

fn check_options(options: &FisherOptions, labels: Labels) -> Result<()> {
    let refuse = |problem: String| Err(Error::argument(OP, problem));
    if !(0.0..1.0).contains(&options.beta) {
        return refuse(format!("beta is {}, expected at least 0 and below 1", options.beta));
    }
    if options.kind.joins_samples() && options.weighted {
        return refuse(format!(
            "{} squares sums over samples, which --weighted has no meaning for",
            options.kind
        ));
    }
    if options.kind == Kind::Accumulator && options.reduction == Reduction::Mean {
        return refuse("accumulator averages batch means by its own rule; leave --reduction out".into());
    }
    if options.kind != Kind::Empirical && labels != Labels::Data {
        return refuse(format!(
            "{} is defined by the data's labels, the captures are of the model's",
            options.kind
        ));
    }
    Ok(())
}
