//! How the squares, or the gradients, of a part of a batch are summed: the factors and what is done with what
//! the buffer holds.
//!
//! A result is `factor · Σ g²`, where the factor has the batch size (of a mean loss) and the weight of an average.
//! f32 holds g² only for g between 1e-19 and 1e19, so gradients are multiplied before they are squared, by a power of
//! two s, and sums by `factor / s²` after:
//!
//! ```text
//! s² ≈ factor          what is summed is the result: it leaves f32 only where that does
//! s² > factor          by as much as leaves sums below 2^100, where a bound of the gradients says that there is
//!                      room, so that small squares are not rounded as subnormal numbers
//! ```
//!
//! Gradients whose sum is squared are held times √factor, to the nearest power of two, for the same reason.

use super::job::Job;
use super::passes::OfBatch;
use super::{Kind, Reduction};
use crate::kernels::fisher::{Epilogue, Mode};
use crate::methods::captured::Batch;
use crate::record::fisher::Squares;

/// A part of a batch, and where it stands.
#[derive(Clone, Copy)]
pub(super) struct Part {
    /// Samples of the whole batch.
    batch: u64,
    /// Which batch.
    step: usize,
    /// Whether the part is the batch's first.
    first: bool,
    /// The part's own samples.
    samples: u64,
    /// What its gradients do not exceed.
    bound: Bound,
}

/// What gradients do not exceed.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    /// At the layer's output.
    largest: f64,
    /// Of a parameter.
    gradient: f64,
}

impl Bound {
    /// Nothing is known.
    pub(super) const NONE: Self = Self { largest: 0.0, gradient: f64::INFINITY };

    /// Of a batch.
    pub(super) fn of(data: &Batch) -> Self {
        Self { largest: data.largest(), gradient: data.gradient_bound() }
    }

    /// The power of two by which gradients are multiplied where `factor` times the sum of so many squares is wanted.
    fn scale(self, factor: f64, samples: u64) -> f64 {
        if factor == 0.0 {
            return 1.0;
        }
        let root = factor.log2() / 2.0;
        let room = 50.0 - self.gradient.log2() - root - (samples.max(1) as f64).log2() / 2.0;
        // The gradients at the output are multiplied first, and stay within f32.
        (root + room.clamp(0.0, 50.0)).min(126.0 - self.largest.log2()).round().exp2()
    }
}

impl OfBatch<'_> {
    /// A part of so many samples.
    pub(super) fn part(self, first: bool, samples: u64, bound: Bound) -> Part {
        Part { batch: self.capture.samples(), step: self.step, first, samples, bound }
    }
}

/// What [`Ema`](crate::kernels::optimizer::Ema) is given: v ← decay · v + gain · (`gradient_scale` · g)².
#[derive(Clone, Copy)]
pub(super) struct Average {
    pub(super) decay: f32,
    pub(super) gain: f32,
    pub(super) gradient_scale: f32,
}

impl Job<'_> {
    /// How squares of a part of a batch are summed.
    pub(super) fn squares(&self, part: Part) -> Squares {
        let Part { batch, step, first, samples, bound } = part;
        let (kind, beta) = (self.options.kind, self.options.beta);
        let factor = self.factor_of_squares(batch);
        let scale = bound.scale(factor, samples);
        let decay = rounded(beta);
        let (epilogue, factor) = match kind {
            // The buffer begins with zeros; what was there before decays once a batch. 1 − β is that of the β
            // that was asked for, not of its f32, which the step takes.
            Kind::Ema if first => (Epilogue::Ema { decay }, factor / (1.0 - f64::from(decay))),
            Kind::Ema => (Epilogue::Add, factor),
            _ if first && self.begins(step) => (Epilogue::Overwrite, factor),
            _ => (Epilogue::Add, factor),
        };
        let factor = rounded(factor / (scale * scale));
        Squares { mode: Mode::Squares, epilogue, fold: 1, factor, gradient_scale: rounded(scale) }
    }

    /// The factor of a sample's squares in the result.
    fn factor_of_squares(&self, batch: u64) -> f64 {
        let (kind, samples) = (self.options.kind, batch.max(1) as f64);
        // The iEF's s_n has the same factor as g_n².
        let of_loss = if self.mean_loss() && kind != Kind::Ief { samples * samples } else { 1.0 };
        let of_mean =
            if kind == Kind::Ema && self.options.reduction == Reduction::Mean { samples } else { 1.0 };
        let of_average = if kind == Kind::Ema { 1.0 - self.options.beta } else { 1.0 };
        of_average * of_loss / of_mean
    }

    /// How gradients are summed that are squared when their sum is whole. A joint sum goes on over all batches.
    pub(super) fn sums(&self, part: Part) -> Squares {
        let Part { batch, step, first, samples, .. } = part;
        let (factor, begins) = match (self.options.kind, self.mean_loss()) {
            (Kind::Joint, true) => (batch as f64, first && self.begins(step)),
            (Kind::Joint, false) => (1.0, first && self.begins(step)),
            _ => (self.scale_of_sum(batch), first),
        };
        let epilogue = if begins { Epilogue::Overwrite } else { Epilogue::Add };
        let fold = u32::try_from(samples.max(1)).unwrap_or(u32::MAX);
        Squares { mode: Mode::Gradients, epilogue, fold, factor: rounded(factor), gradient_scale: 1.0 }
    }

    /// What the summed gradients of a batch are held times.
    fn scale_of_sum(&self, batch: u64) -> f64 {
        Bound::NONE.scale(self.factor_of_sum(batch), 1)
    }

    /// The factor of the square of a batch's summed gradients in the result.
    fn factor_of_sum(&self, batch: u64) -> f64 {
        let samples = batch.max(1) as f64;
        match (self.options.kind, self.mean_loss()) {
            (Kind::Accumulator, true) => 1.0 - self.options.beta,
            (Kind::Accumulator, false) => (1.0 - self.options.beta) / (samples * samples),
            (_, true) => samples * samples,
            (_, false) => 1.0,
        }
    }

    /// How the summed gradients of a batch are squared into the results.
    pub(super) fn square_of_sum(&self, batch: OfBatch<'_>) -> Average {
        let decay = match self.options.kind {
            Kind::Accumulator => self.options.beta,
            _ if self.begins(batch.step) => 0.0,
            _ => 1.0,
        };
        let batch = batch.capture.samples();
        let scale = self.scale_of_sum(batch);
        let gain = rounded(self.factor_of_sum(batch) / (scale * scale));
        Average { decay: rounded(decay), gain, gradient_scale: 1.0 }
    }

    /// What is left to do with the values of a result when it is whole.
    pub(super) fn finish(&self, values: &mut [f32]) {
        if self.options.kind == Kind::Joint {
            values.iter_mut().for_each(|value| *value = rounded(f64::from(*value) * f64::from(*value)));
        }
        if self.options.reduction == Reduction::Mean && !self.options.kind.averages() {
            let samples = self.samples.max(1) as f64;
            values.iter_mut().for_each(|value| *value = rounded(f64::from(*value) / samples));
        }
    }
}

/// The gradients of one portion of some samples, one after the other; `begins` where they are the first.
pub(super) fn each_sample(begins: bool) -> Squares {
    let epilogue = if begins { Epilogue::Overwrite } else { Epilogue::Add };
    Squares { mode: Mode::Each, epilogue, ..Squares::default() }
}

/// The nearest f32.
#[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
fn rounded(value: f64) -> f32 {
    value as f32
}
