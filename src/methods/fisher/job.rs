//! What is settled before the first layer: options, samples and their weights; and what is said of the result.

use std::collections::BTreeMap;
use std::path::Path;

use super::passes::Plan;
use super::{FisherOptions, FisherPlan, FisherReport, Kind, OP, Reduction};
use crate::checkpoint::{
    Capture, CaptureLayer, Dtype, Labels, LossReduction, Output, OutputLayout, OutputTensor, same_network,
};
use crate::error::{Error, Result};
use crate::methods::captured::Unit;
use crate::methods::transposed;
use crate::shape::{elements, usize_of};
use crate::stream::{Run, Timings};

/// Batches of a group: f32 sums of many files, one after the other, would lose a digit for each tenfold.
const GROUP: usize = 64;

/// What is settled before the first layer.
pub(super) struct Job<'a> {
    pub(super) run: &'a Run<'a>,
    pub(super) captures: &'a [Capture],
    pub(super) options: FisherOptions,
    /// Samples over all files; of model labels, the sum of their weights.
    pub(super) samples: u64,
    /// Each file's samples.
    pub(super) batches: Vec<Samples>,
}

/// One file's samples.
pub(super) struct Samples {
    /// One a sample.
    pub(super) weight: Vec<f64>,
    /// 2^k near 1/√s_n for the iEF, so that neither g nor 1/s leaves f32; empty otherwise.
    pub(super) scale: Vec<f64>,
    zero_loss: u64,
}

impl Samples {
    fn of(capture: &Capture, weighted: bool) -> Result<Self> {
        let ones = || vec![1.0; usize_of(capture.samples())];
        let weight = if weighted { capture.sample_weight()? } else { ones() };
        Ok(Self { weight, scale: Vec::new(), zero_loss: 0 })
    }

    /// The same, each square divided by its s_n, or left out where that is 0.
    fn divided_by(mut self, s: &[f64]) -> Self {
        let scale = |&s: &f64| if s > 0.0 { (-(s.log2() / 2.0).round()).exp2() } else { 1.0 };
        self.scale = s.iter().map(scale).collect();
        self.zero_loss = s.iter().filter(|&&s| s == 0.0).count() as u64;
        for ((weight, s), scale) in self.weight.iter_mut().zip(s).zip(&self.scale) {
            *weight = if *s > 0.0 { *weight / (s * scale * scale) } else { 0.0 };
        }
        self
    }
}

impl<'a> Job<'a> {
    pub(super) fn new(run: &'a Run<'a>, captures: &'a [Capture], options: FisherOptions) -> Result<Self> {
        let Some(first) = captures.first() else {
            return Err(Error::argument(OP, "no capture was given"));
        };
        same_network(captures)?;
        options.check(first.labels())?;
        let weighted = options.weighted || first.labels() != Labels::Data;
        let mut samples = 0.0;
        let mut batches = Vec::new();
        for capture in captures {
            let batch = Samples::of(capture, weighted)?;
            samples += match first.labels() {
                Labels::Data => capture.samples() as f64,
                Labels::Sampled | Labels::All => batch.weight.iter().sum(),
            };
            batches.push(batch);
            if options.kind == Kind::Ief && !capture.has_logit_grad() {
                capture.logit_grad_sq()?;
            }
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count, or a sum of weights near one"
        )]
        let samples = samples.round() as u64;
        Ok(Self { run, captures, options, samples, batches })
    }

    /// The job with what the data of all samples tell before the first layer: each one's s_n for the iEF.
    pub(super) fn with_losses(mut self) -> Result<Self> {
        if self.options.kind == Kind::Ief {
            let divide =
                |(batch, capture): (Samples, &Capture)| Ok(batch.divided_by(&capture.logit_grad_sq()?));
            self.batches = self.batches.into_iter().zip(self.captures).map(divide).collect::<Result<_>>()?;
        }
        Ok(self)
    }

    /// Every unit of layers, in as many passes as the budget asks for.
    pub(super) fn plans<'u>(&self, units: &'u [Unit]) -> Result<Vec<Plan<'u>>> {
        units.iter().map(|unit| self.plan(unit)).collect()
    }

    /// What would be done.
    pub(super) fn planned(&self, plans: &[Plan<'_>]) -> FisherPlan {
        let tensors = self.tensors();
        FisherPlan {
            kind: self.kind_name(),
            samples: self.samples,
            batches: self.captures.len(),
            elements: count(&tensors),
            tensors,
            passes: most_passes(plans),
            bytes_to_read: self.bytes(),
        }
    }

    /// Whether captured gradients were divided by the batch size.
    pub(super) fn mean_loss(&self) -> bool {
        self.captures[0].loss_reduction() == LossReduction::Mean
    }

    /// Whether batches are summed in groups, and the groups' sums then. A moving average weighs what came
    /// before less and less, and needs none.
    pub(super) fn is_grouped(&self) -> bool {
        self.captures.len() > GROUP && !self.options.kind.averages()
    }

    /// Whether a batch is the first of a group, or of all where there are none.
    pub(super) fn begins(&self, step: usize) -> bool {
        step == 0 || self.is_grouped() && step.is_multiple_of(GROUP)
    }

    /// Bytes of all captures.
    pub(super) fn bytes(&self) -> u64 {
        self.captures.iter().map(|capture| capture.checkpoint().total_bytes()).sum()
    }

    /// The output, with every tensor of the result.
    pub(super) fn create(&self, out: &Path) -> Result<Output> {
        let slot = |(name, shape): (String, _)| OutputTensor::new(&name, Dtype::F32, shape);
        let slots = self.tensors().into_iter().map(slot).collect();
        let inputs: Vec<&Path> = self.captures.iter().map(Capture::path).collect();
        Output::create(out, OutputLayout::single(slots, self.metadata()), self.options.overwrite, &inputs)
    }

    /// What was done, but for the time that it took.
    pub(super) fn report(&self, plans: &[Plan<'_>], output: &Output) -> FisherReport {
        let tensors = self.tensors();
        FisherReport {
            kind: self.kind_name(),
            reduction: self.options.reduction,
            samples: self.samples,
            batches: self.captures.len(),
            zero_loss_samples: self.batches.iter().map(|batch| batch.zero_loss).sum(),
            elements: count(&tensors),
            tensors,
            bytes_read: self.bytes(),
            passes: most_passes(plans),
            bytes_written: output.total_bytes(),
            adapter: self.run.backend.name(),
            output: output.path().to_owned(),
            timings: Timings::default(),
        }
    }

    /// `mc` and `exact` are the empirical sum over model labels.
    fn kind_name(&self) -> String {
        match (self.options.kind, self.captures[0].labels()) {
            (Kind::Empirical, Labels::Sampled) => "mc".into(),
            (Kind::Empirical, Labels::All) => "exact".into(),
            (kind, _) => kind.to_string(),
        }
    }

    /// Every tensor of the result.
    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        self.captures[0].layers().iter().flat_map(CaptureLayer::parameters).collect()
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        let sizes = self.captures.iter().map(Capture::samples);
        let (least, most) = (sizes.clone().min().unwrap_or(0), sizes.max().unwrap_or(0));
        let average = self.options.kind.averages();
        let mean = self.options.reduction == Reduction::Mean || self.options.kind == Kind::Accumulator;
        let loss = if self.mean_loss() { "mean" } else { "sum" };
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
            ("transposed", transposed::of_capture(&self.captures[0])),
            ("source", Some(source)),
            ("version", Some(env!("CARGO_PKG_VERSION").into())),
        ];
        entries.into_iter().filter_map(|(key, value)| Some((format!("squisher.{key}"), value?))).collect()
    }
}

/// Elements of tensors of these shapes.
fn count(tensors: &[(String, Vec<u64>)]) -> u64 {
    tensors.iter().map(|(_, shape)| elements(shape).unwrap_or(u64::MAX)).sum()
}

/// Passes of the unit that has most.
fn most_passes(plans: &[Plan<'_>]) -> usize {
    plans.iter().map(|plan| plan.rows.len()).max().unwrap_or(0)
}
