//! Gradients at a network's outputs, for each kind of Fisher: what an application backpropagates.
//!
//! One recording goes from logits to gradients; the application's own backward pass takes them on, and
//! [`record::fisher`](crate::record::fisher) squares what arrives at the layers, weighted. In words, for a classifier on a device:
//!
//! ```text
//! let loss = Softmax::new(&backend, samples, classes)?;             once
//! let out = Gradients::new(&backend, 1, samples, classes)?;
//! for class in 0..classes {
//!     loss.exact(&mut recording, &logits, None, class..class + 1, &out)?;
//!     recording.encode(&mut encoder)?;   then the backward pass of out.gradient
//!     layer.record(&mut recording, squares, Buffers { grad_output, weight: &out.weight, .. })?;
//! }                                      the first class overwrites, the others add
//! loss.check(&backend)?;                 after the submission: were all logits and labels sound?
//! ```
//!
//! Rounds may also be taken several at a time, as further samples. The whole, with a network of two layers, is `examples/fisher_of_mlp.rs`. What each kind
//! means, and why draws are the same on every device: [`kernels::likelihood`](crate::kernels::likelihood).

use std::ops::Range;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kernels::likelihood::{
    Draw, DrawArgs, DrawParams, FAULTS, Gaussian as GaussianKernel, GaussianArgs, GaussianParams, LANES,
    Labels, Softmax as SoftmaxKernel, SoftmaxArgs, SoftmaxParams, Targets,
};
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::shape::DType;

/// What a recording leaves for the backward pass. All f32; `r` rounds (draws, classes, directions) of `n` samples of `c` outputs.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// ∂ℓ/∂z `[r, n, c]`, of the *summed* loss.
    pub gradient: View,
    /// `[r, n]`: the weight of each sample's square.
    pub weight: View,
    /// `[r, n]`: s = ‖∂ℓ/∂z‖², by which the improved empirical Fisher divides.
    pub norm_sq: View,
}

impl Gradients {
    /// New buffers.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn new(backend: &Backend, rounds: u32, samples: u32, outputs: u32) -> Result<Self> {
        let rows = u64::from(rounds) * u64::from(samples);
        let elements = rows.checked_mul(outputs.into());
        let too_many = || Error::argument("gradients", format!("{rounds} x {samples} x {outputs} elements"));
        Ok(Self {
            gradient: backend.alloc(elements.ok_or_else(too_many)?, Element::F32)?,
            weight: backend.alloc(rows, Element::F32)?,
            norm_sq: backend.alloc(rows, Element::F32)?,
        })
    }
}

/// Which labels are drawn. A draw depends on the seed, the sample's number and the draw's own, and on nothing else: batches may be cut
/// anywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draws {
    /// The seed.
    pub seed: u64,
    /// The number, in the whole data, of the batch's first sample.
    pub first_sample: u64,
    /// The draws of this step, of `of`.
    pub draws: Range<u32>,
    /// k, all draws of a sample: each has weight 1/k.
    pub of: u32,
}

impl Draws {
    fn count(&self, op: &str) -> Result<u32> {
        if self.draws.end > self.of {
            let problem = format!("draws {}..{} of {}", self.draws.start, self.draws.end, self.of);
            return Err(Error::argument(op, problem));
        }
        Ok(self.draws.end.saturating_sub(self.draws.start))
    }

    fn weight(&self) -> f32 {
        1.0 / self.of.max(1) as f32
    }
}

/// The cross-entropy of a classifier: −ln softmax(z) at a sample's label. Logits `[n, c]` are f32, f16 or bf16; minus infinity is a class that
/// cannot be. Labels are words; one of [`Softmax::ignored`] leaves its sample out.
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

    /// Records the gradients of the data's labels `[n]`, each scaled to length 1: squared, they are the improved empirical Fisher.
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

    /// Records labels drawn from the model, into `drawn` `[r, n]` (words), and their gradients: the Monte Carlo Fisher. Samples that `mask` `[n]` labels as
    /// ignored are left out.
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

    /// Records the gradients of these classes as labels, weighted by their probabilities: over all classes, the exact Fisher. Samples that `mask` `[n]` labels as
    /// ignored are left out.
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
    /// [`Error::Argument`] naming the first sample (of its batch) that was not; [`Error::Device`] after a loss.
    pub fn check(&self, backend: &Backend) -> Result<()> {
        let (largest, classes) = ("the largest logit is beyond ±16384", self.classes);
        let problems = [
            "a logit is NaN or plus infinity, or no class is possible".into(),
            format!("the label is no class of {classes} and not the one to ignore, {}", self.ignored),
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

/// The squared error of a regression, ½‖z − y‖²: the negative log-likelihood of y ~ N(z, I). Outputs and targets `[n, c]` are f32, f16 or bf16.
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

    /// Records noise as gradient, as if targets had been drawn from the model: the Monte Carlo Fisher. The outputs do not matter.
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

    /// Records unit directions: over all outputs, the exact Fisher, for the loss's Hessian is I. The outputs' values do not matter.
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
    /// [`Error::Argument`] naming the first sample (of its batch) that was not; [`Error::Device`] after a loss.
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

/// The first fault, in words.
fn check(op: &str, backend: &Backend, fault: &View, problems: [String; FAULTS as usize]) -> Result<()> {
    let words = backend.download::<u32>(fault)?;
    let found = words.into_iter().zip(problems).find(|(word, _)| *word != 0);
    found.map_or(Ok(()), |(word, problem)| Err(Error::argument(op, format!("sample {}: {problem}", !word))))
}

/// Low and high word.
#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}
