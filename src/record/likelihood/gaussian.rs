//! Records the gradients at a regression's outputs.

use std::ops::Range;

use super::{Draws, Gradients, check, halves};
use crate::backend::Backend;
use crate::error::Result;
use crate::kernels::likelihood::{FAULTS, Gaussian as GaussianKernel, GaussianArgs, GaussianParams, Targets};
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::shape::DType;

/// The squared error of a regression, ½‖z − y‖²: the negative log-likelihood of y ~ N(z, I). Outputs and
/// targets `[n, c]` are f32, f16 or bf16.
#[derive(Clone, Debug)]
pub struct Gaussian {
    samples: u32,
    outputs: u32,
    fault: View,
    /// What is bound where neither outputs nor targets matter.
    nothing: View,
}

impl Gaussian {
    /// For batches of this size on this backend.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn new(backend: &Backend, samples: u32, outputs: u32) -> Result<Self> {
        let (fault, nothing) = (backend.alloc(FAULTS, Element::U32)?, backend.alloc(0, Element::F32)?);
        Ok(Self { samples, outputs, fault, nothing })
    }

    /// Records z − y for the data's targets: the empirical Fisher, or a training step.
    ///
    /// # Errors
    /// What [`kernels::likelihood::Gaussian`](GaussianKernel) and [`Recording::dispatch`] refuse.
    pub fn empirical(
        &self,
        recording: &mut Recording,
        output: &View,
        target: &View,
        out: &Gradients,
    ) -> Result<()> {
        self.given(recording, output, target, false, out)
    }

    /// Records z − y, scaled to length 1: squared, the improved empirical Fisher.
    ///
    /// # Errors
    /// As [`Gaussian::empirical`].
    pub fn improved(
        &self,
        recording: &mut Recording,
        output: &View,
        target: &View,
        out: &Gradients,
    ) -> Result<()> {
        self.given(recording, output, target, true, out)
    }

    fn given(
        &self,
        recording: &mut Recording,
        output: &View,
        target: &View,
        unit: bool,
        out: &Gradients,
    ) -> Result<()> {
        let op = "likelihood.gaussian";
        let kernel = GaussianKernel {
            output: output.float(op, "output")?,
            goal: target.float(op, "goal")?,
            targets: Targets::Given,
            unit,
        };
        self.gradients(recording, kernel, self.params(0..1, 1.0), (output, target), out)
    }

    /// Records noise as gradient, as if targets had been drawn from the model: the Monte Carlo Fisher. The
    /// outputs do not matter.
    ///
    /// # Errors
    /// As [`Gaussian::empirical`].
    pub fn monte_carlo(&self, recording: &mut Recording, draws: &Draws, out: &Gradients) -> Result<()> {
        draws.count("likelihood.gaussian")?;
        let ((seed_low, seed_high), (first_sample_low, first_sample_high)) =
            (halves(draws.seed), halves(draws.first_sample));
        let params = GaussianParams {
            first_sample_low,
            first_sample_high,
            seed_low,
            seed_high,
            ..self.params(draws.draws.clone(), draws.weight())
        };
        self.gradients(
            recording,
            Self::without_data(Targets::Drawn),
            params,
            (&self.nothing, &self.nothing),
            out,
        )
    }

    /// Records unit directions: over all outputs, the exact Fisher, for the loss's Hessian is I. The outputs'
    /// values do not matter.
    ///
    /// # Errors
    /// As [`Gaussian::empirical`].
    pub fn exact(&self, recording: &mut Recording, outputs: Range<u32>, out: &Gradients) -> Result<()> {
        let params = self.params(outputs, 1.0);
        self.gradients(
            recording,
            Self::without_data(Targets::Each),
            params,
            (&self.nothing, &self.nothing),
            out,
        )
    }

    /// Reads back, after everything recorded with this value ran, whether all outputs and targets were sound.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) naming the first sample (of its batch) that was not;
    /// [`Error::Device`](crate::Error::Device) after a loss.
    pub fn check(&self, backend: &Backend) -> Result<()> {
        let problems = [
            "an output is NaN, infinite or beyond 2^126 from its target".into(),
            "a target is NaN or infinite".into(),
            String::new(),
        ];
        check("likelihood.gaussian", backend, &self.fault, problems)
    }

    fn without_data(targets: Targets) -> GaussianKernel {
        GaussianKernel { output: DType::F32, goal: DType::F32, targets, unit: false }
    }

    fn params(&self, rounds: Range<u32>, weight: f32) -> GaussianParams {
        GaussianParams {
            samples: self.samples,
            outputs: self.outputs,
            rounds: rounds.end.saturating_sub(rounds.start),
            first_round: rounds.start,
            first_sample_low: 0,
            first_sample_high: 0,
            seed_low: 0,
            seed_high: 0,
            weight,
        }
    }

    fn gradients(
        &self,
        recording: &mut Recording,
        kernel: GaussianKernel,
        params: GaussianParams,
        (output, goal): (&View, &View),
        out: &Gradients,
    ) -> Result<()> {
        let args = GaussianArgs {
            output: output.clone(),
            goal: goal.clone(),
            gradient: out.gradient.clone(),
            weight: out.weight.clone(),
            norm_sq: out.norm_sq.clone(),
            fault: self.fault.clone(),
        };
        recording.dispatch(&kernel, params, args)?;
        Ok(())
    }
}
