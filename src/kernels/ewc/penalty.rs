//! The value of the penalty.

mod cases;

use rayon::prelude::*;

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{BLOCK, Cost, Floats, Kernel, vectorised};
use crate::kernels::records::{index_of, index_word, power, shares};
use crate::kernels::{DTYPE, JOIN, Owner, RECORD, WIDE, shader};
use crate::memory::Element;
use crate::shape::DType;

/// What the penalty ½ λ Σ F (θ − θ*)² is made of, one record for each share of [`Penalty::share`] parameters:
///
///   record = (Σ F (θ − θ*)² / 2^E,  E,  first bad θ,  first bad θ*,  first bad F)
///
/// with E the greatest ⌊log₂ F⌋ + 2 ⌊log₂ |θ − θ*|⌋ of the share (0 where all terms are 0).
///
/// - `theta`, `anchor`, `fisher`  θ, θ*, F `[p]`, f32, f16 or bf16 each
/// - `records`                    f32 `[share, 5]`, see [`Penalty::records`]; [`PenaltySum`] puts them together in f64
///
/// A parameter is *bad* if θ or θ* is NaN or infinite or F is NaN, infinite or negative: it adds nothing, and the first
/// one's index in the share is recorded (−1 for none).
///
/// Moves each element once and 20 bytes a share; 4 operations an element. No term is formed in its own units,
/// so nothing overflows or vanishes whatever F is. A share's sum is off by at most 33 roundings where a
/// workgroup has it, 73 where one invocation does. Bitwise repeatable: the order of summation is fixed.
/// Source: Kirkpatrick et al. (2017), equation 3; definition:
/// [`reference::ewc::penalty`](crate::reference::ewc::penalty).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Penalty {
    /// Storage of θ.
    pub theta: DType,
    /// Storage of θ*.
    pub anchor: DType,
    /// Storage of F.
    pub fisher: DType,
    /// Who has a share.
    pub owner: Owner,
}

/// Groups of eight elements that an invocation of a workgroup adds up.
const OCTETS: u32 = 16;
const WORDS: usize = 5;

impl Penalty {
    /// Parameters of one share.
    #[must_use]
    pub const fn share(&self) -> u64 {
        self.owner.share(OCTETS)
    }

    /// Elements of `records` for `len` parameters.
    #[must_use]
    pub const fn records(&self, len: u64) -> u64 {
        len.div_ceil(self.share()) * WORDS as u64
    }
}

/// The sum over some parameters, put together from their records.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PenaltySum {
    /// Σ F (θ − θ*)², without ½ and λ.
    pub sum: f64,
    /// The first parameter whose θ is NaN or infinite.
    pub bad_theta: Option<u64>,
    /// The first whose θ* is.
    pub bad_anchor: Option<u64>,
    /// The first whose F is NaN, infinite or negative.
    pub bad_fisher: Option<u64>,
}

impl PenaltySum {
    /// Puts the records that `kernel` left of `len` parameters together.
    #[must_use]
    pub fn fold(kernel: &Penalty, len: u64, records: &[f32]) -> Self {
        let mut all = Self::default();
        for (start, record) in shares::<WORDS>(len, kernel.share(), records) {
            let [sum, exponent, theta, anchor, fisher] = *record;
            let index = |word: f32| index_of(word).map(|i| start + i);
            all.sum += f64::from(sum) * power(exponent);
            all.bad_theta = all.bad_theta.or(index(theta));
            all.bad_anchor = all.bad_anchor.or(index(anchor));
            all.bad_fisher = all.bad_fisher.or(index(fisher));
        }
        all
    }
}

crate::params! {
    /// The numbers of one [`Penalty`] step.
    pub struct PenaltyParams {
        /// Parameters.
        len: u32,
    }
}

crate::args! {
    /// The buffers of one [`Penalty`] step.
    pub struct PenaltyArgs / PenaltySlices {
        /// θ `[p]`.
        read theta,
        /// θ* `[p]`.
        read anchor,
        /// F `[p]`.
        read fisher,
        /// `[share, 5]`.
        write records,
    }
}

impl Kernel for Penalty {
    const NAME: &'static str = "ewc.penalty";
    type Params = PenaltyParams;
    type Args = PenaltyArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("ewc/penalty.wgsl"), DTYPE, WIDE, RECORD, JOIN]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = self.owner.overrides(OCTETS).to_vec();
        overrides.extend([
            ("THETA", self.theta.code().into()),
            ("ANCHOR", self.anchor.code().into()),
            ("FISHER", self.fisher.code().into()),
        ]);
        overrides
    }

    fn launch(&self, params: &PenaltyParams, args: &PenaltyArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        args.theta.check(Self::NAME, "theta", len, Some(self.theta.into()))?;
        args.anchor.check(Self::NAME, "anchor", len, Some(self.anchor.into()))?;
        args.fisher.check(Self::NAME, "fisher", len, Some(self.fisher.into()))?;
        args.records.check(Self::NAME, "records", self.records(len), Some(Element::F32))?;
        self.owner.grid(Self::NAME, len, OCTETS, caps)
    }

    fn host(&self, _: &PenaltyParams, args: PenaltySlices<'_>) {
        let (theta, anchor, fisher) = (args.theta, args.anchor, args.fisher);
        let size = usize::try_from(self.share()).expect("shares are small");
        let records = args.records.cast::<f32>().par_chunks_exact_mut(WORDS).enumerate();
        records.for_each_init(<[Floats; 3]>::default, |[t, a, f], (share, record)| {
            let start = share * size;
            let mut tally = Tally::default();
            vectorised(
                #[inline(always)]
                || {
                    let end = theta.len().min(start + size);
                    for at in (start..end).step_by(BLOCK) {
                        let len = BLOCK.min(end - at);
                        let (t, a) = (t.load(theta.range(at, len)), a.load(anchor.range(at, len)));
                        tally.add(t, a, f.load(fisher.range(at, len)), at - start);
                    }
                },
            );
            record.copy_from_slice(&tally.record());
        });
    }

    fn cost(&self, params: &PenaltyParams, _: &PenaltyArgs) -> Cost {
        let len = u64::from(params.len);
        let bytes = len * (self.theta.size() + self.anchor.size() + self.fisher.size());
        Cost { bytes: bytes + 4 * self.records(len), flops: 4 * len }
    }
}

/// Sums kept side by side, so that they are vectors and do not wait for each other.
const LANES: usize = 16;

/// The exponent of a term of 0: below that of every other.
const NOTHING: i32 = -100_000;

/// A share on the host: f64 holds every term, so nothing needs scaling before the end.
struct Tally {
    sum: [f64; LANES],
    exponent: [i32; LANES],
    bad: [Option<usize>; 3],
}

impl Default for Tally {
    fn default() -> Self {
        Self { sum: [0.0; LANES], exponent: [3 * NOTHING; LANES], bad: [None; 3] }
    }
}

/// Whether a term counts.
#[inline(always)]
fn is_fine(t: f32, a: f32, f: f32) -> bool {
    t.is_finite() & a.is_finite() & f.is_finite() & (f >= 0.0)
}

impl Tally {
    /// Adds consecutive parameters, at most [`BLOCK`], of which the first has index `start` in the share: in one loop
    /// if all of them are common numbers, else with care.
    #[inline(always)]
    fn add(&mut self, theta: &[f32], anchor: &[f32], fisher: &[f32], start: usize) {
        if !self.add_common(theta, anchor, fisher) {
            self.add_any(theta, anchor, fisher, start);
        }
    }

    /// Adds whole vectors of finite numbers, normal or zero, and tells whether they were.
    #[inline(always)]
    fn add_common(&mut self, theta: &[f32], anchor: &[f32], fisher: &[f32]) -> bool {
        let (theta, rest) = theta.as_chunks::<LANES>();
        let (anchor, fisher) = (anchor.as_chunks::<LANES>().0, fisher.as_chunks::<LANES>().0);
        let (mut sum, mut exponent, mut rare) = (self.sum, self.exponent, [0_u32; LANES]);
        for ((theta, anchor), fisher) in theta.iter().zip(anchor).zip(fisher) {
            for i in 0..LANES {
                let (t, a, f) = (theta[i], anchor[i], fisher[i]);
                let delta = f64::from(t) - f64::from(a);
                sum[i] += f64::from(f) * delta * delta;
                let (d, f) = ((0.5 * t - 0.5 * a).to_bits() & 0x7fff_ffff, f.to_bits());
                let of_term = (f >> 23).cast_signed() + 2 * (d >> 23).cast_signed();
                let of_term = if (f == 0) | (d == 0) { NOTHING } else { of_term - 3 * 127 + 2 };
                exponent[i] = exponent[i].max(of_term);
                // A zero wraps around.
                let subnormal = (f.wrapping_sub(1) < 0x7f_ffff) | (d.wrapping_sub(1) < 0x7f_ffff);
                rare[i] |= u32::from(subnormal | (f > 0x7f7f_ffff) | !t.is_finite() | !a.is_finite());
            }
        }
        let common = rest.is_empty() && rare.iter().all(|&rare| rare == 0);
        if common {
            (self.sum, self.exponent) = (sum, exponent);
        }
        common
    }

    /// Adds parameters whatever they are, and notes the first bad ones.
    #[inline(always)]
    fn add_any(&mut self, theta: &[f32], anchor: &[f32], fisher: &[f32], start: usize) {
        for (i, ((&t, &a), &f)) in theta.iter().zip(anchor).zip(fisher).enumerate() {
            if is_fine(t, a, f) {
                let delta = f64::from(t) - f64::from(a);
                self.sum[i % LANES] += f64::from(f) * delta * delta;
                self.exponent[i % LANES] = self.exponent[i % LANES].max(exponent_of(f, t, a));
                continue;
            }
            let bad = [!t.is_finite(), !a.is_finite(), !(f.is_finite() && f >= 0.0)];
            for (first, bad) in self.bad.iter_mut().zip(bad) {
                if bad {
                    *first = first.or(Some(start + i));
                }
            }
        }
    }

    fn record(&self) -> [f32; WORDS] {
        let exponent = self.exponent.iter().fold(3 * NOTHING, |most, &exponent| most.max(exponent));
        let exponent = if exponent < NOTHING / 2 { 0 } else { exponent };
        #[expect(clippy::cast_possible_truncation, reason = "the record's sum is f32")]
        let sum = (self.sum.iter().sum::<f64>() * 2.0_f64.powi(-exponent)) as f32;
        let [theta, anchor, fisher] = self.bad.map(index_word);
        [sum, exponent as f32, theta, anchor, fisher]
    }
}

/// ⌊log₂ F⌋ + 2 ⌊log₂ |θ − θ*|⌋ with the difference rounded to f32, from the bits; far below every other for
/// a term of 0.
#[inline(always)]
fn exponent_of(fisher: f32, theta: f32, anchor: f32) -> i32 {
    log2(fisher) + 2 * log2(0.5 * theta - 0.5 * anchor) + 2
}

/// ⌊log₂ |v|⌋, a subnormal's by way of an exact conversion of its integer.
#[expect(clippy::cast_precision_loss, reason = "23-bit integers fit")]
#[inline(always)]
fn log2(v: f32) -> i32 {
    let bits = v.to_bits() & 0x7fff_ffff;
    let subnormal = bits < 0x80_0000;
    let normal = if subnormal { (bits.cast_signed() as f32).to_bits() } else { bits };
    let bias = if subnormal { 127 + 149 } else { 127 };
    if bits == 0 { NOTHING } else { (normal >> 23).cast_signed() - bias }
}
