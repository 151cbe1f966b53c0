//! How the squares, or the gradients, of a part of a batch are summed: the factors and what is done with what the buffer holds.
//!
//! Gradients are multiplied by a power of two that brings the largest near 1, which the factor of their sum
//! takes back; of a mean loss, they are multiplied by the batch size.

use super::job::Job;
use super::passes::OfBatch;
use super::{Kind, Reduction};
use crate::kernels::fisher::{Epilogue, Mode};
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
    /// The power of two by which its gradients are multiplied.
    scale: f64,
}

impl OfBatch<'_> {
    /// A part of so many samples, whose gradients are multiplied by `scale`.
    pub(super) fn part(self, first: bool, samples: u64, scale: f64) -> Part {
        Part { batch: self.capture.samples(), step: self.step, first, samples, scale }
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
    pub(super) fn sums(&self, part: Part, sum_scale: f64) -> Squares {
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

    /// How the summed gradients of a batch of so many samples, which were left multiplied by `scale`, are squared into the results.
    pub(super) fn square_of_sum(&self, samples: u64, scale: f64) -> Average {
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
        Average { decay, gain, gradient_scale: 1.0 }
    }

    /// What is left to do with the values of a result when it is whole.
    pub(super) fn finish(&self, values: &mut [f32]) {
        if self.options.kind == Kind::Joint {
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            values.iter_mut().for_each(|value| *value = (f64::from(*value) * f64::from(*value)) as f32);
        }
        if self.options.reduction == Reduction::Mean && !self.options.kind.averages() {
            let samples = self.samples.max(1) as f64;
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            values.iter_mut().for_each(|value| *value = (f64::from(*value) / samples) as f32);
        }
    }
}

/// The gradients of one portion of some samples, one after the other; `begins` where they are the first.
pub(super) fn each_sample(scale: f64, begins: bool) -> Squares {
    #[expect(clippy::cast_possible_truncation, reason = "powers of two up to 2^60")]
    let (factor, gradient_scale) = ((1.0 / scale) as f32, scale as f32);
    let epilogue = if begins { Epilogue::Overwrite } else { Epilogue::Add };
    Squares { mode: Mode::Each, epilogue, fold: 1, factor, gradient_scale }
}
