//! The Fisher diagonal of a network from captures of its forward and backward passes.
//!
//! *Plan*: every header is opened and held against the others before the output is created. *Run*: layer by layer over all
//! files, and within a file some samples at a time, the next of which are read while some are computed; so that memory holds a few samples and one
//! layer's result, however many files there are and however large. Kinds that square sums over samples sum the gradients themselves first: over a batch, or, for
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
//! A layer used several times has one parameter: the gradients of its uses are added before they are squared. Where one step cannot do
//! that (a parameter of several layers, uses at several sizes, a sample larger than a binding or longer than a loop), the gradients of some
//! samples are formed, of one where the parameter is large, and then squared:
//!
//! ```text
//! f ← decay · f + gain · weight_n · (Σ_part g_n,part)²
//! ```
//!
//! which takes one more buffer, of the parameter's size or a few MiB, and writing and reading it for every sample. A result that one binding cannot hold is kept
//! in several buffers of consecutive rows; one beyond the memory budget is computed some rows at a time, and the captures are read as often.

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
use crate::gpu::Caps;
use crate::interrupt::Interrupt;
use crate::kernels::fisher::{Epilogue, Mode};
use crate::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use crate::memory::View;
use crate::methods::captured::{
    Ahead, Batch, Held, InFile, Parameter, Portion, Role, Share, Unit, has_several_sizes, hold, in_pieces,
    passes, ranges, small, units,
};
use crate::progress::Progress;
use crate::record::Recording;
use crate::record::fisher::{Bias, Squares};
use crate::shape::{DType, elements};
use crate::stream::{Budget, Clock, Stage, Timings};

const OP: &str = "fisher";

/// Bytes of gradients of several samples that are in memory at a time.
const SLAB_BYTES: u64 = 1 << 20;

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
    /// What memory may be used. A result that does not fit is computed some rows at a time, each time from the captures.
    pub budget: Budget,
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
            budget: Budget::default(),
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
    /// How often the layer was read that was read most often: more than once only where its result is beyond the budget.
    pub passes: usize,
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
/// be written; [`Error::Budget`] where not one row of a result fits the budget; [`Error::Interrupted`] between two batches of a layer.
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
    let units = units(captures[0].layers())?;
    let plans = units.iter().map(|unit| job.plan(unit)).collect::<Result<Vec<_>>>()?;
    let output = Output::create(out, layout, options.overwrite, &inputs)?;
    let bytes_read = captures.iter().map(|capture| capture.checkpoint().total_bytes()).sum();
    progress.begin(bytes_read);
    std::thread::scope(|scope| {
        let job = &job;
        let passes = || plans.iter().flat_map(|plan| plan.passes(&clock, interrupt));
        let reads = passes().flat_map(|pass| job.batches(pass)).flat_map(|batch| job.portions(batch));
        let data = Ahead::new(scope, reads.map(|read| job.load(read)));
        passes().try_for_each(|pass| job.pass(pass, &data, &output, if pass.first { progress } else { &() }))
    })?;
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
        passes: plans.iter().map(|plan| plan.rows.len()).max().unwrap_or(0),
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

    /// One unit of layers, in as many passes as the budget asks for.
    fn plan<'u>(&self, unit: &'u Unit) -> Result<Plan<'u>> {
        let (_, caps) = Share::of(&self.options.budget, &self.backend.caps(), 1);
        let needs_sums =
            |capture| self.options.kind.folds_samples() || self.adds_by_sample(unit, capture, &caps);
        let with_sums = self.captures.iter().any(needs_sums);
        let (share, caps) =
            Share::of(&self.options.budget, &self.backend.caps(), if with_sums { 2 } else { 1 });
        Ok(Plan { unit, rows: passes(unit, &caps, share)?, caps })
    }

    /// Some rows of a unit's parameters: computed batch by batch from what is read, then checked and written.
    fn pass(
        &self,
        pass: Pass<'_>,
        data: &Ahead<Batch>,
        output: &Output,
        progress: &dyn Progress,
    ) -> Result<()> {
        let Pass { unit, clock, .. } = pass;
        let buffers = || {
            let of = |(one, rows): (&Parameter, &Vec<_>)| hold(self.backend, one, rows);
            unit.parameters.iter().zip(pass.rows).map(of).collect::<Result<Vec<_>>>()
        };
        let results = buffers()?;
        let sums = if self.options.kind.folds_samples() { buffers()? } else { Vec::new() };
        for batch in self.batches(pass) {
            let capture = batch.capture;
            if self.options.kind.folds_samples() {
                let scale = self.add_sums(batch, data, &sums)?;
                clock.time(Stage::Compute, || self.square(capture.samples(), scale, &sums, &results))?;
            } else if self.options.kind.joins_samples() {
                self.add_sums(batch, data, &results)?;
            } else if self.adds_by_sample(unit, capture, pass.caps) {
                self.add_by_sample(batch, data, &results)?;
            } else {
                self.add_squares(batch, data, &results)?;
            }
            progress.advance(batch.bytes());
        }
        for (parameter, held) in unit.parameters.iter().zip(&results) {
            clock.time(Stage::Write, || self.write(parameter, held, output))?;
        }
        Ok(())
    }

    /// Whether the gradient of a sample is not to be had in one step, which squares it: where layers share a parameter, where uses are of
    /// several sizes, and where a sample is too large.
    fn adds_by_sample(&self, unit: &Unit, capture: &Capture, caps: &Caps) -> bool {
        let divided = |&layer: &usize| {
            let layer = &capture.layers()[layer];
            has_several_sizes(layer) || !InFile { capture, layer }.takes_whole_samples(caps)
        };
        !self.options.kind.joins_samples() && (unit.is_tied() || unit.layers.iter().any(divided))
    }

    fn write(&self, parameter: &Parameter, held: &[Held], output: &Output) -> Result<()> {
        let name = &parameter.name;
        let slot = output.position(name).expect("the layout has every tensor of every layer");
        for Held { rows, view } in held {
            let start = u64::from(rows.start) * parameter.rows.len;
            in_pieces(self.backend, view, |first, values| {
                self.finish(name, start + first, values)?;
                output.write(slot, 4 * (start + first), bytemuck::cast_slice(values))
            })?;
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

    /// A unit's data, file by file.
    fn batches<'b>(&'b self, pass: Pass<'b>) -> impl Iterator<Item = OfBatch<'b>> {
        self.captures.iter().enumerate().map(move |(step, capture)| OfBatch { pass, capture, step })
    }

    /// What is read of a batch, in the order in which it is computed.
    fn portions<'b>(&'b self, batch: OfBatch<'b>) -> impl Iterator<Item = Read<'b>> {
        let by_sample = self.adds_by_sample(batch.pass.unit, batch.capture, batch.pass.caps);
        let at_once = if by_sample { batch.samples_at_once() } else { u64::MAX };
        batch.groups(at_once).flat_map(move |samples| batch.portions(samples))
    }

    /// Adds the squares of a batch's samples, each of which is one step's alone.
    fn add_squares(&self, batch: OfBatch<'_>, data: &Ahead<Batch>, results: &[Vec<Held>]) -> Result<()> {
        for Read { layer, portion, .. } in self.portions(batch) {
            let data = data.next()?;
            let samples = portion.samples();
            let part = batch.part(samples.start == 0, samples.end - samples.start, data.gradient_scale());
            let squares = self.squares(part);
            let weights = of_samples(&self.batches[batch.step].weight, &samples);
            let steps = batch.of_layer(layer).map(|(at, role)| (role, squares, &results[at][..]));
            self.record(batch.pass.clock, &data, &weights, steps)?;
        }
        Ok(())
    }

    /// Adds the gradients of all samples of a batch. Gives the power of two by which the sums are left multiplied.
    fn add_sums(&self, batch: OfBatch<'_>, data: &Ahead<Batch>, sums: &[Vec<Held>]) -> Result<f64> {
        let mut sum_scale = None;
        let mut begun = vec![false; sums.len()];
        for Read { layer, portion, .. } in self.portions(batch) {
            let data = data.next()?;
            let samples = portion.samples().end - portion.samples().start;
            let scale = data.gradient_scale();
            let sum_scale = *sum_scale.get_or_insert(scale);
            let step = |(at, role): (usize, Role)| {
                let first = !std::mem::replace(&mut begun[at], true);
                (role, self.sums(batch.part(first, samples, scale), sum_scale), &sums[at][..])
            };
            let own = batch.of_layer(layer).filter(|(_, role)| portion.adds_to(*role));
            // The portion is one square, if it has samples.
            let weights = vec![1.0; usize::from(samples > 0)];
            self.record(batch.pass.clock, &data, &weights, own.map(step).collect::<Vec<_>>())?;
        }
        Ok(sum_scale.unwrap_or(1.0))
    }

    /// Adds the squares of a batch's samples whose gradients are formed in several steps: some samples at a time, whose gradients lie one after
    /// the other.
    fn add_by_sample(&self, batch: OfBatch<'_>, data: &Ahead<Batch>, results: &[Vec<Held>]) -> Result<()> {
        let at_once = batch.samples_at_once();
        let most = at_once.min(batch.capture.samples());
        let slabs = each(results, |held| self.backend.alloc(most * held.view.len(), DType::F32))?;
        for samples in batch.groups(at_once) {
            let count = samples.end - samples.start;
            let gradients = each(&slabs, |slab| slab.view.first(slab.view.len() / most.max(1) * count))?;
            let scale = self.gradients(batch, data, samples.clone(), &gradients)?;
            let squares = self.squares(batch.part(samples.start == 0, count, scale));
            let weights = of_samples(&self.batches[batch.step].weight, &samples);
            batch.pass.clock.time(Stage::Compute, || {
                self.square_each(&gradients, squares, small(count)?, &weights, results)
            })?;
        }
        Ok(())
    }

    /// The gradients of some samples, one after the other in each buffer; gives the power of two that brings their largest factor near 1.
    fn gradients(
        &self,
        batch: OfBatch<'_>,
        data: &Ahead<Batch>,
        samples: Range<u64>,
        gradients: &[Vec<Held>],
    ) -> Result<f64> {
        let ones = vec![1.0; usize_of(samples.end - samples.start)];
        let mut least = f64::INFINITY;
        let mut begun = vec![false; gradients.len()];
        for Read { layer, portion, .. } in batch.portions(samples) {
            let data = data.next()?;
            let scale = data.gradient_scale();
            least = scale.min(least);
            let step = |(at, role): (usize, Role)| {
                let begins = !std::mem::replace(&mut begun[at], true);
                let epilogue = if begins { Epilogue::Overwrite } else { Epilogue::Add };
                #[expect(clippy::cast_possible_truncation, reason = "powers of two up to 2^60")]
                let (factor, gradient_scale) = ((1.0 / scale) as f32, scale as f32);
                let squares = Squares { mode: Mode::Each, epilogue, fold: 1, factor, gradient_scale };
                (role, squares, &gradients[at][..])
            };
            let own = batch.of_layer(layer).filter(|(_, role)| portion.adds_to(*role));
            self.record(batch.pass.clock, &data, &ones, own.map(step).collect::<Vec<_>>())?;
        }
        Ok(least)
    }

    /// Squares gradients of some samples that lie one after the other into the results: elements as the outputs of a layer with one position.
    fn square_each(
        &self,
        gradients: &[Vec<Held>],
        squares: Squares,
        samples: u32,
        weights: &[f32],
        results: &[Vec<Held>],
    ) -> Result<()> {
        let gain = squares.epilogue.gain(squares.factor);
        // A sample of weight 0 is left out, whatever it holds.
        if let [weight] = *weights
            && weight != 0.0
        {
            let (decay, gradient_scale) = (squares.epilogue.decay(), squares.gradient_scale);
            return self.square_sums(gradients, results, (decay, gain * weight, gradient_scale));
        }
        let weight = self.backend.buffer(weights, DType::F32)?;
        let mut recording = Recording::new(self.backend);
        for (gradient, result) in gradients.iter().flatten().zip(results.iter().flatten()) {
            let outputs = small(result.view.len())?;
            let elements = Bias { samples, positions: 1, outputs, channels_first: false };
            elements.record(&mut recording, squares, &gradient.view, &weight, &result.view)?;
        }
        self.backend.run(&recording)
    }

    /// Reads a portion of a batch.
    fn load(&self, Read { batch, portion, .. }: Read<'_>) -> Result<Batch> {
        batch.pass.interrupt.check()?;
        let scale = &self.batches[batch.step].scale;
        let samples = portion.samples();
        let scale = match &scale[..] {
            [] => &[],
            all => &all[usize_of(samples.start)..usize_of(samples.end)],
        };
        batch
            .pass
            .clock
            .time(Stage::Read, || Batch::load_portion(self.backend, batch.capture, &portion, scale))
    }

    /// Records and runs the steps of a layer's parameters.
    fn record<'s>(
        &self,
        clock: &Clock,
        data: &Batch,
        weights: &[f32],
        steps: impl IntoIterator<Item = (Role, Squares, &'s [Held])>,
    ) -> Result<()> {
        clock.time(Stage::Compute, || {
            let weight = self.backend.buffer(weights, DType::F32)?;
            let mut recording = Recording::new(self.backend);
            for (role, squares, held) in steps {
                data.record(self.backend, &mut recording, role, squares, &weight, held)?;
            }
            self.backend.run(&recording)
        })
    }

    /// How squares of a part of a batch are summed.
    fn squares(&self, part: Part) -> Squares {
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
        Squares { mode: Mode::Squares, epilogue, fold: 1, factor, gradient_scale }
    }

    /// How gradients are summed that are squared when their sum is whole. A joint sum goes on over all batches, and is not left scaled.
    fn sums(&self, part: Part, sum_scale: f64) -> Squares {
        let Part { batch, step, first, samples, scale } = part;
        let (factor, goes_on) = match (self.options.kind, self.mean_loss()) {
            (Kind::Joint, true) => (batch as f64, step > 0 || !first),
            (Kind::Joint, false) => (1.0, step > 0 || !first),
            _ => (sum_scale, !first),
        };
        let epilogue = if goes_on { Epilogue::Add } else { Epilogue::Overwrite };
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let (factor, gradient_scale) = ((factor / scale) as f32, scale as f32);
        let fold = u32::try_from(samples.max(1)).unwrap_or(u32::MAX);
        Squares { mode: Mode::Gradients, epilogue, fold, factor, gradient_scale }
    }

    fn mean_loss(&self) -> bool {
        self.captures[0].loss_reduction() == LossReduction::Mean
    }

    /// Squares a batch's summed gradients, which were left multiplied by `scale`, into the results.
    fn square(&self, samples: u64, scale: f64, sums: &[Vec<Held>], results: &[Vec<Held>]) -> Result<()> {
        let samples = samples.max(1) as f64;
        let (decay, factor) = match (self.options.kind, self.mean_loss()) {
            (Kind::Accumulator, true) => (self.options.beta, 1.0),
            (Kind::Accumulator, false) => (self.options.beta, 1.0 / (samples * samples)),
            (_, true) => (1.0, samples * samples),
            (_, false) => (1.0, 1.0),
        };
        let gain = if decay < 1.0 { (1.0 - decay) * factor } else { factor };
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let (decay, gain) = (decay as f32, (gain / (scale * scale)) as f32);
        self.square_sums(sums, results, (decay, gain, 1.0))
    }

    /// v ← decay · v + gain · (`gradient_scale` · g)².
    fn square_sums(
        &self,
        sums: &[Vec<Held>],
        results: &[Vec<Held>],
        (decay, gain, gradient_scale): (f32, f32, f32),
    ) -> Result<()> {
        let mut recording = Recording::new(self.backend);
        for (sum, result) in sums.iter().flatten().zip(results.iter().flatten()) {
            let kernel = Ema { gradient: DType::F32, accumulator: DType::F32 };
            let params = EmaParams { len: small(sum.view.len())?, decay, gain, gradient_scale };
            let args = EmaArgs { gradient: sum.view.clone(), exp_avg_sq: result.view.clone() };
            recording.dispatch(&kernel, params, args)?;
        }
        self.backend.run(&recording)
    }
}

/// A buffer for each of those that hold parameters.
fn each(of: &[Vec<Held>], make: impl Fn(&Held) -> Result<View>) -> Result<Vec<Vec<Held>>> {
    let one = |held: &Held| Ok(Held { rows: held.rows.clone(), view: make(held)? });
    of.iter().map(|held| held.iter().map(one).collect()).collect()
}

/// How a unit of layers is computed.
struct Plan<'a> {
    unit: &'a Unit,
    /// Of each pass, of each parameter, one range a buffer.
    rows: Vec<Vec<Vec<Range<u32>>>>,
    caps: Caps,
}

impl Plan<'_> {
    fn passes<'a>(&'a self, clock: &'a Clock, interrupt: &'a Interrupt) -> impl Iterator<Item = Pass<'a>> {
        let Self { unit, ref caps, .. } = *self;
        let pass = move |(at, rows): (usize, &'a Vec<_>)| Pass {
            unit,
            rows,
            caps,
            first: at == 0,
            clock,
            interrupt,
        };
        self.rows.iter().enumerate().map(pass)
    }
}

/// Some rows of a unit's parameters, and how they are computed.
#[derive(Clone, Copy)]
struct Pass<'a> {
    unit: &'a Unit,
    /// Of each parameter, one range a buffer.
    rows: &'a [Vec<Range<u32>>],
    /// What the device allows, within the budget.
    caps: &'a Caps,
    /// Whether it is the first of its unit.
    first: bool,
    clock: &'a Clock,
    interrupt: &'a Interrupt,
}

/// One unit's data of one file.
#[derive(Clone, Copy)]
struct OfBatch<'a> {
    pass: Pass<'a>,
    capture: &'a Capture,
    /// Which batch.
    step: usize,
}

/// A portion of a batch, which is read at once, and the layer of which it is.
struct Read<'a> {
    batch: OfBatch<'a>,
    layer: usize,
    portion: Portion,
}

impl<'a> OfBatch<'a> {
    /// Some samples: layer by layer, as many at a time as fit.
    fn portions(self, samples: Range<u64>) -> impl Iterator<Item = Read<'a>> {
        self.layers().flat_map(move |layer| {
            let portions = self.file(layer).portions(self.pass.caps, samples.clone());
            portions.into_iter().map(move |portion| Read { batch: self, layer, portion })
        })
    }

    /// Ranges of samples; an empty one for none, whose old values decay, too.
    fn groups(self, at_once: u64) -> impl Iterator<Item = Range<u64>> {
        let samples = self.capture.samples();
        ranges(samples.max(1), at_once).map(move |range| range.start..range.end.min(samples))
    }

    /// Samples whose gradients lie in memory at a time: as many as one step takes of every layer, and as keep the buffers small.
    fn samples_at_once(self) -> u64 {
        let bytes = |(rows, parameter): (&Vec<Range<u32>>, &Parameter)| {
            4 * parameter.rows.len * rows.iter().map(|range| range.len() as u64).sum::<u64>()
        };
        let all: u64 = self.pass.rows.iter().zip(&self.pass.unit.parameters).map(bytes).sum();
        let most = SLAB_BYTES.min(self.pass.caps.max_binding_bytes) / all.max(1);
        let of_layers = self.layers().map(|layer| self.file(layer).samples_at_once(self.pass.caps));
        of_layers.min().unwrap_or(1).min(most).max(1)
    }

    fn file(self, layer: usize) -> InFile<'a> {
        InFile { capture: self.capture, layer: &self.capture.layers()[layer] }
    }

    /// The parameters of a layer of which the pass has rows.
    fn of_layer(self, layer: usize) -> impl Iterator<Item = (usize, Role)> {
        self.pass.unit.of_layer(layer).filter(move |(at, _)| !self.pass.rows[*at].is_empty())
    }

    /// The layers that add to rows of the pass.
    fn layers(self) -> impl Iterator<Item = usize> {
        self.pass.unit.layers.iter().copied().filter(move |&layer| self.of_layer(layer).next().is_some())
    }

    fn bytes(self) -> u64 {
        self.pass.unit.layers.iter().map(|&layer| self.capture.layers()[layer].bytes()).sum()
    }

    fn part(self, first: bool, samples: u64, scale: f64) -> Part {
        Part { batch: self.capture.samples(), step: self.step, first, samples, scale }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
fn of_samples(all: &[f64], samples: &Range<u64>) -> Vec<f32> {
    all[usize_of(samples.start)..usize_of(samples.end)].iter().map(|&weight| weight as f32).collect()
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
