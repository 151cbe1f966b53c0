//! Records the gradients at a classifier's outputs.

use std::ops::Range;

use super::{Draws, Gradients, check, halves};
use crate::backend::Backend;
use crate::error::Result;
use crate::kernels::likelihood::{
    Draw, DrawArgs, DrawParams, FAULTS, LANES, Labels, Softmax as SoftmaxKernel, SoftmaxArgs, SoftmaxParams,
};
use crate::memory::{Element, View};
use crate::record::Recording;

/// The cross-entropy of a classifier: −ln softmax(z) at a sample's label. Logits `[n, c]` are f32, f16 or
/// bf16; minus infinity is a class that cannot be. Labels are words; one of [`Softmax::ignored`] leaves its
/// sample out.
#[derive(Clone, Debug)]
pub struct Softmax {
    samples: u32,
    classes: u32,
    /// The label of samples to leave out, for any kind of Fisher; [`IGNORED`] unless changed.
    pub ignored: u32,
    fault: View,
}

/// −100 as a word: PyTorch's `ignore_index`.
pub const IGNORED: u32 = 0xffff_ff9c;

impl Softmax {
    /// For batches of this size on this backend.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn new(backend: &Backend, samples: u32, classes: u32) -> Result<Self> {
        Ok(Self { samples, classes, ignored: IGNORED, fault: backend.alloc(FAULTS, Element::U32)? })
    }

    /// Records the gradients of the data's labels `[n]`: the empirical Fisher, or a training step.
    ///
    /// # Errors
    /// What [`kernels::likelihood::Softmax`](SoftmaxKernel) and [`Recording::dispatch`] refuse.
    pub fn empirical(
        &self,
        recording: &mut Recording,
        logits: &View,
        labels: &View,
        out: &Gradients,
    ) -> Result<()> {
        let kernel = Self::kernel(logits, Labels::Given)?;
        self.gradients(recording, kernel, self.params(0..1, 1.0), (logits, labels), out)
    }

    /// Records the gradients of the data's labels `[n]`, each scaled to length 1: squared, they are the
    /// improved empirical Fisher.
    ///
    /// # Errors
    /// As [`Softmax::empirical`].
    pub fn improved(
        &self,
        recording: &mut Recording,
        logits: &View,
        labels: &View,
        out: &Gradients,
    ) -> Result<()> {
        let kernel = SoftmaxKernel { unit: true, ..Self::kernel(logits, Labels::Given)? };
        self.gradients(recording, kernel, self.params(0..1, 1.0), (logits, labels), out)
    }

    /// Records labels drawn from the model, into `drawn` `[r, n]` (words), and their gradients: the Monte
    /// Carlo Fisher. Samples that `mask` `[n]` labels as ignored are left out.
    ///
    /// # Errors
    /// As [`Softmax::empirical`].
    pub fn monte_carlo(
        &self,
        recording: &mut Recording,
        logits: &View,
        mask: Option<&View>,
        draws: &Draws,
        drawn: &View,
        out: &Gradients,
    ) -> Result<()> {
        self.draw(recording, logits, mask, draws, drawn)?;
        let rounds = 0..draws.count("likelihood.draw")?;
        let kernel = Self::kernel(logits, Labels::Given)?;
        self.gradients(recording, kernel, self.params(rounds, draws.weight()), (logits, drawn), out)
    }

    /// Records labels drawn from the model alone, into `drawn` `[r, n]`, words.
    ///
    /// # Errors
    /// What [`Draw`] and [`Recording::dispatch`] refuse.
    pub fn draw(
        &self,
        recording: &mut Recording,
        logits: &View,
        mask: Option<&View>,
        draws: &Draws,
        drawn: &View,
    ) -> Result<()> {
        let kernel = Draw { logits: logits.float("likelihood.draw", "logits")?, masked: mask.is_some() };
        let ((seed_low, seed_high), (first_sample_low, first_sample_high)) =
            (halves(draws.seed), halves(draws.first_sample));
        let params = DrawParams {
            samples: self.samples,
            classes: self.classes,
            draws: draws.count("likelihood.draw")?,
            first_draw: draws.draws.start,
            first_sample_low,
            first_sample_high,
            seed_low,
            seed_high,
            ignored: self.ignored,
        };
        let args = DrawArgs {
            logits: logits.clone(),
            labels: mask.unwrap_or(logits).clone(),
            drawn: drawn.clone(),
            fault: self.fault.clone(),
        };
        recording.dispatch(&kernel, params, args)?;
        Ok(())
    }

    /// Records the gradients of these classes as labels, weighted by their probabilities: over all classes,
    /// the exact Fisher. Samples that `mask` `[n]` labels as ignored are left out.
    ///
    /// # Errors
    /// As [`Softmax::empirical`].
    pub fn exact(
        &self,
        recording: &mut Recording,
        logits: &View,
        mask: Option<&View>,
        classes: Range<u32>,
        out: &Gradients,
    ) -> Result<()> {
        let kernel = Self::kernel(logits, Labels::Each { masked: mask.is_some() })?;
        self.gradients(recording, kernel, self.params(classes, 1.0), (logits, mask.unwrap_or(logits)), out)
    }

    /// Reads back, after everything recorded with this value ran, whether all logits and labels were sound.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) naming the first sample (of its batch) that was not;
    /// [`Error::Device`](crate::Error::Device) after a loss.
    pub fn check(&self, backend: &Backend) -> Result<()> {
        let (largest, classes) = ("the largest logit is beyond ±16384", self.classes);
        let problems = [
            "a logit is NaN or plus infinity, or no class is possible".into(),
            format!("the label is not a class of {classes} and not the one to ignore, {}", self.ignored),
            format!("{largest}: labels cannot be drawn"),
        ];
        check("likelihood.softmax", backend, &self.fault, problems)
    }

    fn kernel(logits: &View, labels: Labels) -> Result<SoftmaxKernel> {
        let logits = logits.float("likelihood.softmax", "logits")?;
        Ok(SoftmaxKernel { logits, labels, unit: false, lanes: LANES })
    }

    fn params(&self, rounds: Range<u32>, weight: f32) -> SoftmaxParams {
        SoftmaxParams {
            samples: self.samples,
            classes: self.classes,
            rounds: rounds.end.saturating_sub(rounds.start),
            first_class: rounds.start,
            ignored: self.ignored,
            weight,
        }
    }

    fn gradients(
        &self,
        recording: &mut Recording,
        kernel: SoftmaxKernel,
        params: SoftmaxParams,
        (logits, labels): (&View, &View),
        out: &Gradients,
    ) -> Result<()> {
        let args = SoftmaxArgs {
            logits: logits.clone(),
            labels: labels.clone(),
            gradient: out.gradient.clone(),
            weight: out.weight.clone(),
            norm_sq: out.norm_sq.clone(),
            fault: self.fault.clone(),
        };
        let kernel = kernel.for_device(recording.caps(), &params);
        recording.dispatch(&kernel, params, args)?;
        Ok(())
    }
}
