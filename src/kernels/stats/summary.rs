//! Sums, extremes, zeros and impossible values of a Fisher diagonal, in one pass.

mod cases;

use rayon::prelude::*;

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{BLOCK, Cost, Floats, Kernel, vectorised};
use crate::kernels::{DTYPE, JOIN, Owner, WIDE, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Summary statistics of a Fisher diagonal, one record for each share of [`Summary::share`] values:
///
///   e = ⌊log₂ max F⌋,   sums = (Σ F / 2^e, Σ (F / 2^e)²),   counts = (max F, min F, zeros, bad, first bad)
///
/// - `values`  F `[p]`, f32, f16 or bf16
/// - `sums`    f32 `[share, 2]`
/// - `counts`  words `[share, 5]`: max and min as bit patterns of f32 (0 and 0xffffffff where no value is
///   good); zeros of either sign; the number of bad values; the flat index of the first (0xffffffff where
///   there is none)
///
/// A value is *bad* if it is NaN, infinite or negative, which no Fisher diagonal can be: told from the bits, counted,
/// and left out of the rest. Sums are scaled by the share's own maximum, so that neither 3e38 squared nor a subnormal,
/// on devices that flush them, is lost. [`Stats::fold`] puts the records together in f64.
///
/// Moves each value once and 28 bytes a share; 3 operations a value. A share's sums are off by at most 46 roundings
/// where a workgroup has it,
/// 70 where one invocation does. Bitwise repeatable: the order of summation is fixed. Definition:
/// [`reference::stats`](crate::reference::stats).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Storage of the values.
    pub values: DType,
    /// Who has a share.
    pub owner: Owner,
}

/// Groups of eight values that an invocation of a workgroup sums up.
const OCTETS: u32 = 32;
const SUMS: usize = 2;
const COUNTS: usize = 5;
/// The minimum's bit pattern, or the index of the first bad value, where there is none.
const NONE: u32 = u32::MAX;

impl Summary {
    /// Values of one share.
    #[must_use]
    pub const fn share(&self) -> u64 {
        self.owner.share(OCTETS)
    }

    /// Elements of `sums` and of `counts` for `len` values.
    #[must_use]
    pub const fn records(&self, len: u64) -> (u64, u64) {
        let shares = len.div_ceil(self.share());
        (shares * SUMS as u64, shares * COUNTS as u64)
    }
}

/// Summary statistics of a Fisher diagonal.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// How many values there are, good and bad.
    pub elements: u64,
    /// How many are zero.
    pub zeros: u64,
    /// Σ F over the good ones.
    pub sum: f64,
    /// Σ F² over the good ones.
    pub sum_sq: f64,
    /// The largest good one; nothing where there is none.
    pub max: Option<f32>,
    /// The smallest good one; nothing where there is none.
    pub min: Option<f32>,
    /// How many are NaN, infinite or negative, and the flat index of the first; nothing where all are good.
    pub bad: Option<(u64, u64)>,
}

impl Stats {
    /// Puts the records that `kernel` left of `len` values together: its `sums` and its `counts`.
    #[must_use]
    pub fn fold(kernel: &Summary, len: u64, (sums, counts): (&[f32], &[u32])) -> Self {
        let shares = 0..len.div_ceil(kernel.share());
        let records = sums.as_chunks().0.iter().zip(counts.as_chunks().0);
        let whole = Self { elements: len, ..Self::default() };
        shares.zip(records).fold(whole, |all, (_, record)| all.joined(&Self::of_share(record)))
    }

    /// One record. Its values are counted by the caller.
    fn of_share((sums, counts): (&[f32; SUMS], &[u32; COUNTS])) -> Self {
        let [greatest, least, zeros, bad, first] = *counts;
        let unit = 2.0_f64.powi(exponent_of(greatest));
        let some = least != NONE;
        Self {
            elements: 0,
            zeros: zeros.into(),
            sum: f64::from(sums[0]) * unit,
            sum_sq: f64::from(sums[1]) * unit * unit,
            max: some.then(|| f32::from_bits(greatest)),
            min: some.then(|| f32::from_bits(least)),
            bad: (bad > 0).then(|| (bad.into(), first.into())),
        }
    }

    /// These values and, behind them, those of `next`: the index of its first bad value counts on.
    #[must_use]
    pub fn followed_by(&self, next: &Self) -> Self {
        let bad = next.bad.map(|(count, first)| (count, first + self.elements));
        Self { elements: self.elements + next.elements, ..self.joined(&Self { bad, ..*next }) }
    }

    fn joined(&self, other: &Self) -> Self {
        let either = |a: Option<f32>, b: Option<f32>, pick: fn(f32, f32) -> f32| match (a, b) {
            (Some(a), Some(b)) => Some(pick(a, b)),
            (one, None) | (None, one) => one,
        };
        let bad = match (self.bad, other.bad) {
            (Some((a, first)), Some((b, second))) => Some((a + b, first.min(second))),
            (one, None) | (None, one) => one,
        };
        Self {
            elements: self.elements + other.elements,
            zeros: self.zeros + other.zeros,
            sum: self.sum + other.sum,
            sum_sq: self.sum_sq + other.sum_sq,
            max: either(self.max, other.max, f32::max),
            min: either(self.min, other.min, f32::min),
            bad,
        }
    }

    /// The mean of all values; 0 where there are none. Bad ones count as 0.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.elements == 0 { 0.0 } else { self.sum / self.elements as f64 }
    }

    /// The L2 norm √Σ F².
    #[must_use]
    pub fn norm(&self) -> f64 {
        self.sum_sq.sqrt()
    }
}

/// ⌊log₂⌋ of a non-negative finite f32 from its bits, subnormals too; 0 for zero.
fn exponent_of(bits: u32) -> i32 {
    let (power, fraction) = ((bits >> 23).cast_signed(), bits & 0x7f_ffff);
    match (power, fraction) {
        (0, 0) => 0,
        (0, _) => fraction.ilog2().cast_signed() - 149,
        _ => power - 127,
    }
}

crate::params! {
    /// The numbers of one [`Summary`] step.
    pub struct SummaryParams {
        /// Values.
        len: u32,
    }
}

crate::args! {
    /// The buffers of one [`Summary`] step.
    pub struct SummaryArgs / SummarySlices {
        /// F `[p]`.
        read values,
        /// `[share, 2]`, see [`Summary::records`].
        write sums,
        /// `[share, 5]`, words.
        write counts,
    }
}

impl Kernel for Summary {
    const NAME: &'static str = "stats.summary";
    type Params = SummaryParams;
    type Args = SummaryArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("stats/summary.wgsl"), DTYPE, WIDE, JOIN]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = self.owner.overrides(OCTETS).to_vec();
        overrides.push(("VALUES", self.values.code().into()));
        overrides
    }

    fn launch(&self, params: &SummaryParams, args: &SummaryArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        let (sums, counts) = self.records(len);
        args.values.check(Self::NAME, "values", len, Some(self.values.into()))?;
        args.sums.check(Self::NAME, "sums", sums, Some(Element::F32))?;
        args.counts.check(Self::NAME, "counts", counts, Some(Element::U32))?;
        self.owner.grid(Self::NAME, len, OCTETS, caps)
    }

    fn host(&self, _: &SummaryParams, args: SummarySlices<'_>) {
        let values = args.values;
        let size = usize::try_from(self.share()).expect("shares are small");
        let (sums, counts) = (args.sums.cast::<f32>(), args.counts.cast::<u32>());
        let shares = sums.par_chunks_mut(SUMS).zip(counts.par_chunks_mut(COUNTS)).enumerate();
        shares.for_each_init(Floats::default, |scratch, (share, (sums, counts))| {
            let start = share * size;
            let mut part = Part::default();
            vectorised(
                #[inline(always)]
                || {
                    let end = values.len().min(start + size);
                    for at in (start..end).step_by(BLOCK) {
                        let len = BLOCK.min(end - at);
                        part.add(scratch.load(values.range(at, len)), at);
                    }
                },
            );
            part.store(sums, counts);
        });
    }

    fn cost(&self, params: &SummaryParams, _: &SummaryArgs) -> Cost {
        let len = u64::from(params.len);
        let (sums, counts) = self.records(len);
        Cost { bytes: len * self.values.size() + 4 * (sums + counts), flops: 3 * len }
    }
}

/// Numbers kept side by side, so that they are vectors and do not wait for each other.
const LANES: usize = 16;

/// A share on the host: f64 holds every sum, so nothing needs scaling before the end. Extremes are bit patterns.
struct Part {
    sum: [f64; LANES],
    sum_sq: [f64; LANES],
    greatest: [i32; LANES],
    least: [i32; LANES],
    zeros: [u32; LANES],
    bad: u32,
    first_bad: u32,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            sum: [0.0; LANES],
            sum_sq: [0.0; LANES],
            greatest: [0; LANES],
            least: [i32::MAX; LANES],
            zeros: [0; LANES],
            bad: 0,
            first_bad: NONE,
        }
    }
}

impl Part {
    /// Adds consecutive values, at most [`BLOCK`], of which the first has flat index `start`: in one loop if all of
    /// them are Fishers, else with care.
    #[inline(always)]
    fn add(&mut self, values: &[f32], start: usize) {
        if !self.add_good(values) {
            self.add_any(values, start);
        }
    }

    /// Adds whole vectors of positive numbers or zeros, and tells whether they were.
    #[inline(always)]
    fn add_good(&mut self, values: &[f32]) -> bool {
        let (chunks, rest) = values.as_chunks::<LANES>();
        let (mut sum, mut sum_sq) = (self.sum, self.sum_sq);
        let (mut greatest, mut least, mut zeros) = (self.greatest, self.least, self.zeros);
        // The greatest as unsigned numbers: every bad value then lies at infinity or above.
        let mut top = [0_u32; LANES];
        for chunk in chunks {
            for i in 0..LANES {
                let (value, bits) = (f64::from(chunk[i]), chunk[i].to_bits());
                sum[i] += value;
                sum_sq[i] += value * value;
                greatest[i] = greatest[i].max(bits.cast_signed());
                least[i] = least[i].min(bits.cast_signed());
                zeros[i] += u32::from(bits == 0);
                top[i] = top[i].max(bits);
            }
        }
        let good = rest.is_empty() && top.iter().all(|&bits| bits < 0x7f80_0000);
        if good {
            (self.sum, self.sum_sq) = (sum, sum_sq);
            (self.greatest, self.least, self.zeros) = (greatest, least, zeros);
        }
        good
    }

    /// Adds values whatever they are, and notes the first bad one.
    #[inline(always)]
    fn add_any(&mut self, values: &[f32], start: usize) {
        for (i, value) in values.iter().enumerate() {
            let (lane, bits) = (i % LANES, value.to_bits());
            if !is_good(bits) {
                self.bad += 1;
                self.first_bad = self.first_bad.min(u32::try_from(start + i).unwrap_or(NONE));
                continue;
            }
            let magnitude = (bits & 0x7fff_ffff).cast_signed();
            let value = f64::from(value.abs());
            self.sum[lane] += value;
            self.sum_sq[lane] += value * value;
            self.greatest[lane] = self.greatest[lane].max(magnitude);
            self.least[lane] = self.least[lane].min(magnitude);
            self.zeros[lane] += u32::from(magnitude == 0);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the record's sums are f32")]
    fn store(&self, sums: &mut [f32], counts: &mut [u32]) {
        let greatest = self.greatest.iter().fold(0, |most, &other| most.max(other)).cast_unsigned();
        let least = self.least.iter().fold(i32::MAX, |least, &other| least.min(other)).cast_unsigned();
        let unit = 2.0_f64.powi(-exponent_of(greatest));
        sums[0] = (self.sum.iter().sum::<f64>() * unit) as f32;
        sums[1] = (self.sum_sq.iter().sum::<f64>() * unit * unit) as f32;
        let least = if least == i32::MAX.cast_unsigned() { NONE } else { least };
        counts.copy_from_slice(&[greatest, least, self.zeros.iter().sum(), self.bad, self.first_bad]);
    }
}

/// Positive and finite, or a zero of either sign.
#[inline(always)]
fn is_good(bits: u32) -> bool {
    (bits < 0x7f80_0000) | (bits == 0x8000_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponent_is_the_logarithm_rounded_down() {
        for bits in [1, 2, 3, 0x7f_ffff, 0x80_0000, 0x3f7f_ffff, 0x3f80_0000, 0x7f7f_ffff] {
            let want = f64::from(f32::from_bits(bits)).log2().floor();
            assert_eq!(f64::from(exponent_of(bits)), want, "{bits:#x}");
        }
    }

    #[test]
    fn parts_that_follow_each_other_are_the_whole() {
        let one =
            Stats { elements: 3, zeros: 1, sum: 2.0, sum_sq: 4.0, max: Some(2.0), min: Some(0.0), bad: None };
        let two = Stats {
            elements: 2,
            sum: 1.0,
            sum_sq: 1.0,
            max: Some(1.0),
            min: Some(1.0),
            bad: Some((1, 0)),
            zeros: 0,
        };
        let want = Stats {
            elements: 5,
            zeros: 1,
            sum: 3.0,
            sum_sq: 5.0,
            max: Some(2.0),
            min: Some(0.0),
            bad: Some((1, 3)),
        };
        assert_eq!(one.followed_by(&two), want);
        assert_eq!(Stats::default().followed_by(&want), want);
    }
}
