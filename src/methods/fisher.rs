//! The Fisher diagonal of a network from captures of its forward and backward passes.
//!
//! *Plan*: every header is opened and held against the others before the output is created. *Run*: layer by layer over all
//! files, so that memory holds one layer's data of one batch and that layer's result, however many files there are (`joint`
//! alone squares a sum over all files, and holds one layer's data of all of them).
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

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Serialize;

use crate::backend::Backend;
use crate::checkpoint::{
    Capture, CaptureLayer, Dtype, Labels, LayerKind, LossReduction, Output, OutputLayout, OutputTensor,
    TensorInfo, Window, positions, same_network,
};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::kernels::fisher::{
    EmbeddingIndex, EmbeddingSq, EmbeddingSqArgs, EmbeddingSqParams, Epilogue, Listed, NormLayout, NormSq,
    NormSqArgs, NormSqParams, NormStats, NormStatsArgs, NormStatsParams,
};
use crate::memory::{Element, View};
use crate::progress::Progress;
use crate::record::Recording;
use crate::record::fisher::{Bias, Buffers, Conv, Linear, Squares};
use crate::shape::{DType, elements};

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

    /// Whether a whole batch is one square.
    fn joins_samples(self) -> bool {
        matches!(self, Self::MinibatchJoint | Self::Joint | Self::Accumulator)
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
        for (name, values) in job.layer(at, progress, interrupt)? {
            let slot = output.position(&name).expect("the layout has every tensor of every layer");
            output.write(slot, 0, bytemuck::cast_slice(&values))?;
        }
    }
    captures.iter().try_for_each(|capture| capture.checkpoint().verify_unchanged())?;
    let report = FisherReport {
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
    };
    output.finish()?;
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
        if options.kind == Kind::Joint
            && first.loss_reduction() == LossReduction::Mean
            && let Some(other) = captures.iter().find(|capture| capture.samples() != first.samples())
        {
            let problem = format!(
                "joint over batches of a mean loss of different sizes ({} samples in {}, {} in {}): their gradients have \
                     different scales; capture with loss_reduction \"sum\"",
                first.samples(),
                first.path().display(),
                other.samples(),
                other.path().display()
            );
            return Err(Error::mismatch(OP, problem));
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
        let mut tensors = Vec::new();
        for layer in self.captures[0].layers() {
            tensors.push((format!("{}.weight", layer.name), layer.weight.clone()));
            if layer.bias {
                tensors.push((format!("{}.bias", layer.name), layer.bias_shape.clone()));
            }
        }
        tensors
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

    /// The results of one layer, read, computed batch by batch, and checked.
    fn layer(
        &self,
        at: usize,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Vec<(String, Vec<f32>)>> {
        let first = &self.captures[0].layers()[at];
        let len = |shape: &[u64]| elements(shape).unwrap_or(u64::MAX);
        let weight = self.backend.alloc(len(&first.weight), DType::F32)?;
        let bias =
            if first.bias { Some(self.backend.alloc(len(&first.bias_shape), DType::F32)?) } else { None };
        let mut joined: Option<Data> = None;
        for (step, capture) in self.captures.iter().enumerate() {
            interrupt.check()?;
            let layer = &capture.layers()[at];
            let data = self.read(capture, layer, &self.batches[step])?;
            progress.advance(layer.bytes());
            if self.options.kind == Kind::Joint {
                match &mut joined {
                    None => joined = Some(data),
                    Some(all) => all.append(data),
                }
            } else {
                self.add(capture, layer, step, &data, &weight, bias.as_ref())?;
            }
        }
        if let Some(all) = joined {
            self.add(&self.captures[0], first, 0, &all, &weight, bias.as_ref())?;
        }
        let mut results = vec![(format!("{}.weight", first.name), self.finish(&weight)?)];
        if let Some(bias) = &bias {
            results.push((format!("{}.bias", first.name), self.finish(bias)?));
        }
        Ok(results)
    }

    fn finish(&self, view: &View) -> Result<Vec<f32>> {
        let mut values: Vec<f32> = self.backend.download(view)?;
        let once = !matches!(self.options.kind, Kind::Ema | Kind::Accumulator);
        if self.options.reduction == Reduction::Mean && once {
            let samples = self.samples.max(1) as f64;
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            values.iter_mut().for_each(|value| *value = (f64::from(*value) / samples) as f32);
        }
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let problem = format!(
                    "the sum of squares leaves f32 at flat index {index}; scale the loss down when capturing"
                );
                Err(Error::argument(OP, problem))
            }
        }
    }
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

/// One layer's data of one batch, the uses of a sample one after the other.
struct Data {
    input: Stored,
    gradient: Vec<u8>,
    gradient_dtype: DType,
    /// Samples of the batch.
    samples: u64,
    /// Uses that count as samples of their own (convolutions and norms over channels).
    parts: u64,
    /// Positions of a sample, or of a part.
    positions: u64,
}

enum Stored {
    Floats(Vec<u8>, DType),
    Ids(Vec<u32>),
}

impl Data {
    fn append(&mut self, other: Self) {
        match (&mut self.input, other.input) {
            (Stored::Floats(all, _), Stored::Floats(more, _)) => all.extend(more),
            (Stored::Ids(all), Stored::Ids(more)) => all.extend(more),
            _ => unreachable!("one layer has one kind"),
        }
        self.gradient.extend(other.gradient);
        self.samples += other.samples;
    }
}

impl Job<'_> {
    fn read(&self, capture: &Capture, layer: &CaptureLayer, samples: &Samples) -> Result<Data> {
        let by_channels = matches!(
            layer.kind,
            LayerKind::Conv(_)
                | LayerKind::ConvTranspose(_)
                | LayerKind::GroupNorm { .. }
                | LayerKind::BatchNorm { .. }
        );
        if by_channels && layer.uses.iter().any(|one| one.input.shape != layer.uses[0].input.shape) {
            let problem = "is used at several sizes, which is not supported for this kind of layer; capture each size in a file of its \
                           own network, or leave the layer out";
            return Err(Error::tensor(capture.path(), &layer.uses[0].input.name, problem));
        }
        let n = capture.samples();
        let input = match layer.kind {
            LayerKind::Embedding { rows } => {
                let parts =
                    layer.uses.iter().map(|one| capture.ids(&one.input, rows)).collect::<Result<Vec<_>>>()?;
                Stored::Ids(interleave(&parts, n))
            }
            _ => {
                let parts =
                    layer.uses.iter().map(|one| capture.read(&one.input)).collect::<Result<Vec<_>>>()?;
                Stored::Floats(interleave(&parts, n), dtype(&layer.uses[0].input))
            }
        };
        let parts =
            layer.uses.iter().map(|one| capture.read(&one.grad_output)).collect::<Result<Vec<_>>>()?;
        let mut gradient = interleave(&parts, n);
        let mut gradient_dtype = dtype(&layer.uses[0].grad_output);
        if !samples.scale.is_empty() {
            gradient = scale_samples(&gradient, gradient_dtype, &samples.scale);
            gradient_dtype = DType::F32;
        }
        let features = match &layer.kind {
            LayerKind::Linear => 1,
            LayerKind::LayerNorm { axes, .. } | LayerKind::RmsNorm { axes, .. } => *axes,
            _ => 0,
        };
        let of_use = |tensor: &TensorInfo| match features {
            0 if by_channels => elements(&tensor.shape[2..]).unwrap_or(u64::MAX),
            _ => positions(&tensor.shape, features),
        };
        let counts = layer.uses.iter().map(|one| of_use(&one.input));
        let (parts, positions) = match by_channels {
            true => (layer.uses.len() as u64, of_use(&layer.uses[0].input)),
            false => (1, counts.sum()),
        };
        Ok(Data { input, gradient, gradient_dtype, samples: n, parts, positions })
    }

    /// Records and runs one batch's step for weight and bias.
    fn add(
        &self,
        capture: &Capture,
        layer: &CaptureLayer,
        step: usize,
        data: &Data,
        weight_out: &View,
        bias_out: Option<&View>,
    ) -> Result<()> {
        let squares = self.squares(data, capture.samples(), step)?;
        let weights = self.weights(step);
        let weight = self.backend.buffer(&weights, DType::F32)?;
        let gradient = self.backend.buffer(&data.gradient, data.gradient_dtype)?;
        let mut recording = Recording::new(self.backend);
        let buffers = Step { squares, weight: &weight, gradient: &gradient, out: weight_out };
        self.record_weight(&mut recording, capture, layer, data, buffers)?;
        if let Some(out) = bias_out {
            let last_axis = matches!(
                layer.kind,
                LayerKind::Linear | LayerKind::LayerNorm { .. } | LayerKind::RmsNorm { .. }
            );
            let outputs = small(out.len())?;
            let samples = small(data.samples * data.parts)?;
            let all = u64::from(samples) * u64::from(outputs);
            let positions = small(gradient.len().checked_div(all).unwrap_or(0))?;
            let bias = Bias { samples, positions, outputs, channels_first: !last_axis };
            bias.record(&mut recording, squares, &gradient, &weight, out)?;
        }
        self.backend.run(&recording)
    }

    /// One weight a square, f32.
    fn weights(&self, step: usize) -> Vec<f32> {
        if self.options.kind.joins_samples() {
            return vec![1.0];
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        self.batches[step].weight.iter().map(|&weight| weight as f32).collect()
    }

    fn squares(&self, data: &Data, batch: u64, step: usize) -> Result<Squares> {
        let kind = self.options.kind;
        let samples = batch as f64;
        let mean_loss = self.captures[0].loss_reduction() == LossReduction::Mean;
        let mut factor = match (kind, mean_loss) {
            // s_n has the same factor as g_n².
            (Kind::Ief, _) | (Kind::Accumulator, true) => 1.0,
            (Kind::Accumulator, false) => 1.0 / (samples * samples),
            (_, true) => samples * samples,
            (_, false) => 1.0,
        };
        if kind == Kind::Ema && self.options.reduction == Reduction::Mean {
            factor /= samples;
        }
        let scale = gradient_scale(&data.gradient, data.gradient_dtype);
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let (factor, gradient_scale, decay) =
            ((factor / (scale * scale)) as f32, scale as f32, self.options.beta as f32);
        let epilogue = match kind {
            // The buffer begins with zeros.
            Kind::Ema | Kind::Accumulator => Epilogue::Ema { decay },
            Kind::Joint => Epilogue::Overwrite,
            _ if step == 0 => Epilogue::Overwrite,
            _ => Epilogue::Add,
        };
        let samples = if kind.joins_samples() { data.samples.max(1) } else { 1 };
        Ok(Squares { epilogue, fold: small(samples * data.parts)?, factor, gradient_scale })
    }

    fn record_weight(
        &self,
        recording: &mut Recording,
        capture: &Capture,
        layer: &CaptureLayer,
        data: &Data,
        step: Step<'_>,
    ) -> Result<()> {
        if let Stored::Ids(ids) = &data.input {
            return self.record_embedding(recording, layer, data, ids, step);
        }
        let Stored::Floats(bytes, dtype) = &data.input else { unreachable!("ids were handled above") };
        let input = self.backend.buffer(bytes, *dtype)?;
        let (samples, positions) = (small(data.samples * data.parts)?, small(data.positions)?);
        let buffers =
            Buffers { input: &input, grad_output: step.gradient, weight: step.weight, out: step.out };
        match &layer.kind {
            LayerKind::Linear => {
                let (outputs, inputs) = (small(layer.weight[0])?, small(layer.weight[1])?);
                Linear { samples, positions, inputs, outputs }.record(recording, step.squares, buffers)
            }
            LayerKind::Conv(window) => {
                conv(layer, window, samples, false)?.record(recording, step.squares, buffers)
            }
            LayerKind::ConvTranspose(window) => {
                conv(layer, window, samples, true)?.record(recording, step.squares, buffers)
            }
            kind => self.record_norm(recording, capture, (layer, kind), (samples, positions), &input, step),
        }
    }

    fn record_embedding(
        &self,
        recording: &mut Recording,
        layer: &CaptureLayer,
        data: &Data,
        ids: &[u32],
        step: Step<'_>,
    ) -> Result<()> {
        let (rows, dim) = (small(layer.weight[0])?, small(layer.weight[1])?);
        let Squares { epilogue, fold, factor, gradient_scale } = step.squares;
        let listed = if epilogue == Epilogue::Add { Listed::Touched } else { Listed::All };
        let positions = usize::try_from(data.positions * u64::from(fold)).unwrap_or(usize::MAX);
        let index = EmbeddingIndex::new(ids, positions, (0, rows), listed)?;
        let words = |words: &[u32]| self.backend.buffer(words, Element::U32);
        let params = EmbeddingSqParams {
            owners: small(index.owner_row.len() as u64)?,
            dim,
            gradient_scale,
            decay: epilogue.decay(),
            gain: epilogue.gain(factor),
        };
        let args = EmbeddingSqArgs {
            grad_output: step.gradient.clone(),
            positions: words(&index.positions)?,
            run_start: words(&index.run_start)?,
            run_sample: words(&index.run_sample)?,
            owner_run: words(&index.owner_run)?,
            owner_row: words(&index.owner_row)?,
            weight: step.weight.clone(),
            out: step.out.clone(),
        };
        let kernel = EmbeddingSq { gradient: data.gradient_dtype };
        recording.dispatch(&kernel, params, args).map(|_| ())
    }

    fn record_norm(
        &self,
        recording: &mut Recording,
        capture: &Capture,
        (layer, kind): (&CaptureLayer, &LayerKind),
        (samples, positions): (u32, u32),
        input: &View,
        step: Step<'_>,
    ) -> Result<()> {
        let channels = small(elements(&layer.weight).unwrap_or(u64::MAX))?;
        let (layout, eps) = match *kind {
            LayerKind::GroupNorm { eps, groups } => {
                (NormLayout::Group { channels, positions, groups: small(groups)? }, eps)
            }
            LayerKind::BatchNorm { eps } => (NormLayout::Batch { channels, positions }, eps),
            LayerKind::LayerNorm { eps, .. } | LayerKind::RmsNorm { eps, .. } => {
                (NormLayout::Last { positions, channels }, eps)
            }
            _ => unreachable!("products and embeddings are recorded elsewhere"),
        };
        let dtype = input.float(OP, "input")?;
        let stats = match &layer.running {
            Some(running) => self.running_stats(capture, running, eps)?,
            None => {
                let runs = layout.stats(samples.into());
                let stats = self.backend.alloc(2 * runs, DType::F32)?;
                let len = small(input.len().checked_div(runs).unwrap_or(0))?;
                #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
                let params = NormStatsParams { runs: small(runs)?, len, eps: eps as f32 };
                let centered = !matches!(kind, LayerKind::RmsNorm { .. });
                let args = NormStatsArgs { input: input.clone(), stats: stats.clone() };
                recording.dispatch(&NormStats { input: dtype, centered }, params, args)?;
                stats
            }
        };
        let Squares { epilogue, fold, factor, gradient_scale } = step.squares;
        let params = NormSqParams {
            gradient_scale,
            decay: epilogue.decay(),
            gain: epilogue.gain(factor),
            ..layout.params(samples, fold)
        };
        let args = NormSqArgs {
            input: input.clone(),
            grad_output: step.gradient.clone(),
            stats,
            weight: step.weight.clone(),
            out: step.out.clone(),
        };
        let kernel = NormSq::new(&layout, dtype, step.gradient.float(OP, "grad_output")?);
        recording.dispatch(&kernel, params, args).map(|_| ())
    }

    /// Batch norm's fixed (mean, 1/√(variance + eps)).
    fn running_stats(&self, capture: &Capture, running: &(TensorInfo, TensorInfo), eps: f64) -> Result<View> {
        let (mean, variance) = (capture.floats(&running.0)?, capture.floats(&running.1)?);
        if let Some(index) = variance.iter().position(|&variance| variance < 0.0) {
            let problem = format!("{:e} at index {index}; a variance is at least 0", variance[index]);
            return Err(Error::tensor(capture.path(), &running.1.name, problem));
        }
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let pair =
            |(&mean, &variance): (&f32, &f32)| [mean, (f64::from(variance) + eps).sqrt().recip() as f32];
        let stats: Vec<f32> = mean.iter().zip(&variance).flat_map(pair).collect();
        self.backend.buffer(&stats, DType::F32)
    }
}

/// What a batch's step works with, beside the layer's input.
#[derive(Clone, Copy)]
struct Step<'a> {
    squares: Squares,
    weight: &'a View,
    gradient: &'a View,
    out: &'a View,
}

fn conv(layer: &CaptureLayer, window: &Window, samples: u32, transposed: bool) -> Result<Conv> {
    let three = |sizes: &[u64], fill: u32| -> Result<[u32; 3]> {
        let mut out = [fill; 3];
        for (out, &size) in out[3 - sizes.len()..].iter_mut().zip(sizes) {
            *out = small(size)?;
        }
        Ok(out)
    };
    let (input, output) = (&layer.uses[0].input.shape, &layer.uses[0].grad_output.shape);
    Ok(Conv {
        samples,
        inputs: small(input[1])?,
        outputs: small(output[1])?,
        groups: small(window.groups)?,
        input: three(&input[2..], 1)?,
        output: three(&output[2..], 1)?,
        kernel: three(&window.kernel, 1)?,
        stride: three(&window.stride, 1)?,
        padding: three(&window.padding, 0)?,
        dilation: three(&window.dilation, 1)?,
        transposed,
    })
}

/// Shaders count in u32.
fn small(size: u64) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::Limit {
        op: OP.into(),
        limit: "elements of one step".into(),
        max: u32::MAX.into(),
        asked: size,
    })
}

fn dtype(tensor: &TensorInfo) -> DType {
    tensor.float().expect("a capture's layers were checked to be floats when it was opened")
}

/// The uses of each sample, one after the other.
fn interleave<T: Copy>(parts: &[Vec<T>], samples: u64) -> Vec<T> {
    if let [only] = parts {
        return only.clone();
    }
    let samples = usize::try_from(samples).unwrap_or(usize::MAX);
    let mut out = Vec::with_capacity(parts.iter().map(Vec::len).sum());
    for sample in 0..samples {
        for part in parts {
            let len = part.len() / samples;
            out.extend_from_slice(&part[sample * len..(sample + 1) * len]);
        }
    }
    out
}

/// Every sample times its power of two, as f32.
fn scale_samples(gradient: &[u8], dtype: DType, scale: &[f64]) -> Vec<u8> {
    let mut values = vec![0.0_f32; gradient.len() / Element::from(dtype).bytes()];
    crate::checkpoint::widen_bytes(gradient, dtype, &mut values);
    let len = values.len() / scale.len().max(1);
    for (sample, scale) in values.chunks_mut(len.max(1)).zip(scale) {
        #[expect(clippy::cast_possible_truncation, reason = "a power of two: exact but beyond f32's range")]
        sample.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
    bytemuck::cast_slice(&values).to_vec()
}

/// The power of two that brings the largest magnitude near 1, so that squares neither vanish nor overflow; at most
/// 2^±60, whose square f32 can undo.
fn gradient_scale(gradient: &[u8], dtype: DType) -> f64 {
    let mut values = vec![0.0_f32; gradient.len() / Element::from(dtype).bytes()];
    crate::checkpoint::widen_bytes(gradient, dtype, &mut values);
    let largest = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    if largest == 0.0 { 1.0 } else { (-f64::from(largest).log2().round()).clamp(-60.0, 60.0).exp2() }
}
