//! From a network's outputs to the gradients that its Fisher is made of.
//!
//! The Fisher of a model is `E[g gᵀ]` over labels that the *model* finds likely; the empirical one takes the data's
//! label in their place. Backpropagation is linear, so what has to be made per label is only ∂ℓ/∂z, the loss's gradient
//! at the network's output. A step writes it for one or more **rounds**, `[r, n, c]`, with a weight and a squared norm
//! for each row `[r, n]`. The application sends each round back through the network, and the Fisher kernels take the
//! rounds as further samples with these weights:
//!
//! | Fisher | rounds | label of a row | weight |
//! |---|---|---|---|
//! | empirical | 1 | the data's | 1 |
//! | Monte Carlo | k draws | drawn from the model | 1/k |
//! | exact | every class (softmax), every output (Gaussian) | the class; a unit direction | p; 1 |
//! | improved empirical | 1 | the data's, the gradient scaled to length 1 | 1, 0 where the gradient is 0 |
//!
//! A sample has **one** prediction. Where it has several (the tokens of a text), rows are predictions: their draws may
//! be backpropagated together, since labels given the outputs are independent; every class of every token may not.
//!
//! **Draws are the same on every device.** Random numbers are Philox4x32-10 (Salmon et al. 2011) of a seed and a
//! counter made of the sample's number in the whole data, the draw's number and, for a Gaussian, the output's: no
//! state, so chunks and order change nothing. What is made of them is made by integers: no rounding mode, contraction
//! or `exp` of a driver comes in.
//!
//! **Faults are told, not hidden.** A row with an impossible output or label gets NaN for its gradient and weight, and
//! its index is noted in `fault`, [`FAULTS`] words cleared before: `!n` of the first, zero for none.

mod draw;
mod gaussian;
mod philox;
mod softmax;

pub use draw::{Draw, DrawArgs, DrawParams, DrawSlices};
pub use gaussian::{Gaussian, GaussianArgs, GaussianParams, GaussianSlices, Targets};
pub use softmax::{Labels, Softmax, SoftmaxArgs, SoftmaxParams, SoftmaxSlices};

use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};
use crate::kernel::{Slice, widen_into};
use crate::kernels::shader;
use crate::memory::Element;

/// Words of `fault`: for an impossible output (NaN, infinite, no class possible), for a label that is not a
/// class or a target that is not finite, and for outputs too large to draw from.
pub const FAULTS: u64 = 3;

/// Counters and random bits.
const PHILOX: &str = shader!("lib/likelihood/philox.wgsl");

/// Reading logits and ordering them.
const LOGITS: &str = shader!("lib/likelihood/logits.wgsl");

/// Invocations of a workgroup, which handles one row unless each has its own: few, since most rows are short.
pub(crate) const LANES: u32 = 64;

/// The elements of a shape, which shaders count in u32.
fn len(op: &str, shape: [u32; 3]) -> Result<u64> {
    let max = u64::from(u32::MAX);
    let asked = shape.iter().fold(1_u128, |product, &axis| product * u128::from(axis));
    u64::try_from(asked).ok().filter(|&len| len <= max).ok_or_else(|| Error::Limit {
        op: op.into(),
        limit: "the most elements of one argument".into(),
        max,
        asked: u64::try_from(asked).unwrap_or(u64::MAX),
    })
}

/// Rows as f32, whatever they are stored as.
struct Rows<'a> {
    slice: Slice<'a>,
    len: usize,
}

impl<'a> Rows<'a> {
    fn get<'s>(&'s self, row: usize, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        let slice = self.slice.range(row * self.len, self.len);
        if slice.element() == Element::F32 {
            return slice.cast();
        }
        scratch.resize(self.len, 0.0);
        widen_into(slice, scratch);
        scratch
    }
}

/// The faults that threads find, put into their words at the end.
#[derive(Default)]
struct Faults([AtomicU32; FAULTS as usize]);

impl Faults {
    fn note(&self, word: usize, sample: usize) {
        let index = u32::try_from(sample).expect("the samples of a step are a u32");
        self.0[word].fetch_max(!index, Ordering::Relaxed);
    }

    fn store(self, words: &mut [u32]) {
        for (word, found) in words.iter_mut().zip(self.0) {
            *word = (*word).max(found.into_inner());
        }
    }
}

/// The largest value (minus infinity of none), and whether any is NaN. By integers that order as the values do, of
/// which maxima vectorise.
#[inline(always)]
fn largest(values: &[f32]) -> (f32, bool) {
    let order = |bits: i32| bits ^ (bits >> 31 & i32::MAX);
    let mut top = order(f32::NEG_INFINITY.to_bits().cast_signed());
    let mut magnitude = 0;
    for value in values {
        let bits = value.to_bits();
        top = top.max(order(bits.cast_signed()));
        magnitude = magnitude.max(bits & 0x7fff_ffff);
    }
    (f32::from_bits(order(top).cast_unsigned()), magnitude > f32::INFINITY.to_bits())
}

/// Low and high word.
#[expect(clippy::cast_possible_truncation, reason = "the two halves")]
const fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

const fn joined(low: u32, high: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_is_found_among_any_number_and_nan_is_told() {
        assert_eq!(largest(&[]), (f32::NEG_INFINITY, false));
        for len in [1, 7, 16, 33, 100] {
            for at in [0, len / 2, len - 1] {
                for (low, high) in
                    [(-2.0, -1.5), (-1.0, 0.0), (-1e-40, 1e-40), (0.5, 3e38), (-f32::MAX, f32::INFINITY)]
                {
                    let mut values = vec![low; len];
                    values[at] = high;
                    assert_eq!(largest(&values), (high, false), "{len} {at}");
                    values[len - 1 - at] = -f32::NAN;
                    assert!(largest(&values).1, "{len} {at}");
                }
            }
        }
        assert_eq!(largest(&[f32::NEG_INFINITY; 3]), (f32::NEG_INFINITY, false));
    }
}
