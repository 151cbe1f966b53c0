//! Weighted averages of models, any number of them in one pass over the data.
//!
//! Both kernels keep a **running weighted mean** of the distances to a reference: after model m,
//! mean ← mean · (D − w)/D + d · w/D with D the sum of the weights so far. Only ratios of weights occur, and the
//! weights carry their own exponent, so Fishers anywhere in f32's range, subnormals included, neither
//! overflow nor vanish, whatever factor normalises them. Equal models give distance 0 and so come back bit for bit.

mod fisher;
mod fisher_four;
mod host;
mod plain;
mod steps;
mod ubgm;

pub(crate) use fisher::HostStep;
pub use fisher::{Fisher, FisherArgs, FisherParams, FisherSlices};
pub use fisher_four::{FOUR_COUNT_WORDS, FisherFour, FisherFourArgs, FisherFourParams, FisherFourSlices};
pub(crate) use host::{Words, add_to};
pub(crate) use steps::merge_on_host;
pub use ubgm::{Ubgm, UbgmArgs, UbgmParams, UbgmSlices};

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::groups_for;
use crate::kernels::{Owner, WORKGROUP, shader};
use crate::shape::DType;

/// Words of the `counts` buffer of a merge step.
pub const COUNT_WORDS: u64 = 16;

/// Words from one step's counts to the next one's, where several lie in one buffer: 256 bytes, the strictest device's
/// alignment.
pub const COUNT_STRIDE: u64 = 64;

/// Words of the `state` buffer of `len` parameters: four each, in whole groups of eight parameters.
#[must_use]
pub const fn state_words(len: u64) -> u64 {
    4 * len.next_multiple_of(8)
}

/// A factor with its own exponent, `mantissa · 2^exponent`: f64's range in the two words a shader takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factor {
    /// In [1, 2), or 0.
    pub mantissa: f32,
    /// The power of two; of 0, one below that of every product that can occur.
    pub exponent: i32,
}

impl Factor {
    /// One.
    pub const ONE: Self = Self { mantissa: 1.0, exponent: 0 };

    /// Nothing. Sums are formed at the largest exponent: that of a model which weighs nothing must not be it.
    pub const ZERO: Self = Self { mantissa: 0.0, exponent: host::NOTHING };

    /// The factor nearest to a positive finite `value`; [`Factor::ZERO`] of every other: of zero, and of
    /// negative numbers, infinities and NaN, which are not weights; jobs refuse those by name before they get
    /// here.
    #[must_use]
    pub fn of(value: f64) -> Self {
        Self::product(value, 1.0)
    }

    /// The factor nearest to `a` · `b`, which itself may lie outside of f64's range; [`Factor::ZERO`] if one
    /// of them is not positive and finite.
    #[must_use]
    pub fn product(a: f64, b: f64) -> Self {
        if [a, b].iter().any(|value| *value <= 0.0 || !value.is_finite()) {
            return Self::ZERO;
        }
        let ((a, exponent_a), (b, exponent_b)) = (split(a), split(b));
        let (mantissa, carried) = split(a * b);
        let exponent = exponent_a + exponent_b + carried;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is wanted")]
        let rounded = mantissa as f32;
        // What lies just below 2 rounds up to it.
        if rounded < 2.0 {
            Self { mantissa: rounded, exponent }
        } else {
            Self { mantissa: 1.0, exponent: exponent + 1 }
        }
    }
}

/// The mantissa in [1, 2) and the exponent of a positive finite number, exactly.
fn split(value: f64) -> (f64, i32) {
    let (mut mantissa, mut exponent) = (value, 0);
    while mantissa >= 2.0 {
        mantissa /= 2.0;
        exponent += 1;
    }
    while mantissa < 1.0 {
        mantissa *= 2.0;
        exponent -= 1;
    }
    (mantissa, exponent)
}

/// What a finished merge counted, over parameters or over (parameter, model) pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Parameters with no weight in any model: the linear average (Fisher merging) or the base (UBGM).
    pub fallback: u32,
    /// Parameters at which every model's Fisher was raised to its floor: the floor decided, not the Fisher.
    pub floored: u32,
    /// Parameters at which one model has more than 99 % of the weight.
    pub dominated: u32,
    /// (parameter, model) pairs raised to the floor.
    pub raised: u32,
    /// Per model of the step (for UBGM: the model, then the base): Fishers that are NaN, infinite or negative.
    pub bad_fisher: [Place; 2],
    /// Likewise: weights that are NaN or infinite.
    pub bad_theta: [Place; 2],
    /// Results that the output's storage type cannot hold.
    pub unrepresentable: Place,
}

/// How many, and where the first one is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// How many.
    pub count: u32,
    /// Index of the first; meaningless if there are none.
    pub first: u32,
}

impl Counts {
    /// Reads the `counts` buffer.
    #[must_use]
    pub fn of(words: &[u32]) -> Self {
        let place = |slot: usize| Place { count: words[slot], first: !words[slot + 1] };
        Self {
            fallback: words[0],
            floored: words[1],
            dominated: words[2],
            raised: words[3],
            bad_fisher: [place(4), place(8)],
            bad_theta: [place(6), place(10)],
            unrepresentable: place(12),
        }
    }
}

/// How shaders know a model without a Fisher: it weighs 1 everywhere.
const NONE: u32 = 3;

fn code(fisher: Option<DType>) -> f64 {
    fisher.map_or(NONE, DType::code).into()
}

/// Parts of the shaders: what is known of a parameter, what is counted, what lies between steps, and the models of a
/// Fisher merge.
const TALLY: &str = shader!("lib/merge/tally.wgsl");
const COUNT: &str = shader!("lib/merge/count.wgsl");
const STEP: &str = shader!("lib/merge/step.wgsl");
const MODELS: &str = shader!("lib/merge/models.wgsl");

/// Invocations of a workgroup, and the groups of eight parameters that each handles one after the other: what it counts
/// is handed over once. Where invocations count by themselves, a workgroup is as many as run in step, and its groups
/// lie beside each other.
const fn sizes(owner: Owner) -> (u32, u32) {
    match owner {
        Owner::Workgroup => (WORKGROUP, 4),
        Owner::Invocation => (8, 32),
    }
}

fn overrides(owner: Owner) -> [(&'static str, f64); 3] {
    let (workgroup, octets) = sizes(owner);
    let shared = owner == Owner::Workgroup;
    [("WORKGROUP", workgroup.into()), ("OCTETS", octets.into()), ("SHARED", f64::from(u8::from(shared)))]
}

/// The grid for `len` parameters.
fn grid(op: &str, len: u64, owner: Owner, caps: &Caps) -> Result<[u32; 3]> {
    let (workgroup, octets) = sizes(owner);
    groups_for(op, len, u64::from(8 * workgroup * octets), caps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_span_the_range_of_f64() {
        assert_eq!(Factor::of(1.0), Factor::ONE);
        assert_eq!(Factor::of(3.0 * 2.0_f64.powi(900)), Factor { mantissa: 1.5, exponent: 901 });
        assert_eq!(Factor::of(5e-324), Factor { mantissa: 1.0, exponent: -1074 });
    }

    #[test]
    fn a_mantissa_that_rounds_up_to_two_is_one_of_the_next_power() {
        let below_two = 2.0 - 2.0_f64.powi(-30);
        assert_eq!(Factor::of(below_two), Factor { mantissa: 1.0, exponent: 1 });
        assert_eq!(Factor::of(below_two * 2.0_f64.powi(-200)), Factor { mantissa: 1.0, exponent: -199 });
        let largest = 2.0 - 2.0_f64.powi(-23);
        assert_eq!(Factor::of(largest), Factor { mantissa: 1.999_999_9, exponent: 0 });
    }

    #[test]
    fn what_is_no_weight_weighs_nothing() {
        for value in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(Factor::of(value), Factor::ZERO, "{value}");
            assert_eq!(Factor::product(2.0, value), Factor::ZERO, "{value}");
        }
    }

    #[test]
    fn a_product_beyond_the_range_of_f64_is_no_zero() {
        let huge = Factor::product(1.5 * 2.0_f64.powi(1000), 1.5 * 2.0_f64.powi(1000));
        assert_eq!(huge, Factor { mantissa: 1.125, exponent: 2001 });
        let tiny = Factor::product(5e-324, 3.0 * 2.0_f64.powi(-1000));
        assert_eq!(tiny, Factor { mantissa: 1.5, exponent: -1074 - 999 });
        assert_eq!(Factor::product(0.1, 0.3), Factor::of(0.1 * 0.3));
    }
}
