//! What two Fishers have in common.

mod cases;

use rayon::prelude::*;

use super::{Metric, exponent_of, is_good};
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{BLOCK, Cost, Floats, Kernel, vectorised};
use crate::kernels::records::{index_of, index_word, power, shares};
use crate::kernels::{DTYPE, JOIN, Owner, RECORD, WIDE, shader};
use crate::memory::Element;
use crate::shape::DType;

/// What a distance between two Fishers is made of, one record for each share of [`Similarity::share`] values:
///
///   record = (Σ x y / 2^(X+Y),  Σ x² / 4^X,  Σ y² / 4^Y,  X,  Y,  first bad a,  first bad b,  first zero in one alone)
///
/// | metric | x, y | X, Y |
/// |---|---|---|
/// | `cosine` | F_a, F_b | ⌊log₂⌋ of each one's maximum |
/// | `normalized` | F_a/(F_a + F_b), F_b/(F_a + F_b), 0/0 = 0 | the greatest ⌊log₂ F⌋ less the pair's greater one |
/// | `kl` | Σ ½ (q − 1 − ln q) in place of Σ x y, q ≥ 1 the ratio | the greatest ⌊log₂⌋ of q's numerator less its denominator's if that is at least 30, else 0; and 0 |
/// | `jsd` | Σ ¼ ln(1 + (q − 1)²/(4q)) in place of Σ x y | 0, 0 |
///
/// - `a`, `b`   F `[p]`, f32, f16 or bf16 each
/// - `records`  f32 `[share, 8]`, see [`Similarity::records`]; [`Sums`] puts them together in f64
///
/// A value is *bad* if it is NaN, infinite or negative: it counts as 0, and the first one's index in the share is
/// recorded (−1 for none). A pair of which one alone is 0 has no finite divergence: it adds nothing, and the first
/// one's index is recorded.
///
/// Moves each value once and 32 bytes a share. No product of values is formed in their own units, so nothing
/// overflows or vanishes for F in [1e-38, 1e38], subnormals included. A share's sums are off by at most 31
/// roundings for `cosine`, 38 for `normalized`, 64 for `kl`, 59 for `jsd` where a workgroup has it, by 40
/// more where one invocation does.
/// Bitwise repeatable. Definitions: [`reference::task2vec`](crate::reference::task2vec).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Similarity {
    /// What the Fishers are compared by.
    pub metric: Metric,
    /// Storage of the first.
    pub a: DType,
    /// Storage of the second.
    pub b: DType,
    /// Who has a share.
    pub owner: Owner,
}

/// Groups of eight values that an invocation of a workgroup adds up.
const OCTETS: u32 = 16;
const WORDS: usize = 8;

impl Similarity {
    /// Values of one share.
    #[must_use]
    pub const fn share(&self) -> u64 {
        self.owner.share(OCTETS)
    }

    /// Elements of `records` for `len` values.
    #[must_use]
    pub const fn records(&self, len: u64) -> u64 {
        len.div_ceil(self.share()) * WORDS as u64
    }
}

/// The sums over a pair of Fishers, put together from their records.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Pairs of values.
    pub len: u64,
    /// Σ x y, Σ x², Σ y², or a sum of divergences and nothing else.
    pub sums: [f64; 3],
    /// The first pair whose first value is NaN, infinite or negative.
    pub bad_a: Option<u64>,
    /// The first pair whose second value is.
    pub bad_b: Option<u64>,
    /// The first pair of which one value alone is 0.
    pub one_zero: Option<u64>,
}

impl Sums {
    /// Puts the records that `kernel` left of `len` pairs of values together.
    #[must_use]
    pub fn fold(kernel: &Similarity, len: u64, records: &[f32]) -> Self {
        let mut all = Self { len, ..Self::default() };
        for (start, record) in shares::<WORDS>(len, kernel.share(), records) {
            let [xy, xx, yy, x, y, bad_a, bad_b, one_zero] = *record;
            let (x, y) = (power(x), power(y));
            all.sums[0] += f64::from(xy) * x * y;
            all.sums[1] += f64::from(xx) * x * x;
            all.sums[2] += f64::from(yy) * y * y;
            let index = |word: f32| index_of(word).map(|i| start + i);
            all.bad_a = all.bad_a.or(index(bad_a));
            all.bad_b = all.bad_b.or(index(bad_b));
            all.one_zero = all.one_zero.or(index(one_zero));
        }
        all
    }

    /// The sums over two vectors on the host, all in f64. Their values are good, and fit f32.
    #[must_use]
    pub fn of(metric: Metric, a: &[f64], b: &[f64]) -> Self {
        let mut all = Self { len: a.len() as u64, ..Self::default() };
        for (i, (&a, &b)) in (0..).zip(a.iter().zip(b)) {
            let one_zero = (a == 0.0) != (b == 0.0);
            if one_zero && all.one_zero.is_none() {
                all.one_zero = Some(i);
            }
            if !(one_zero && metric.needs_both()) {
                metric.terms(a, b).iter().zip(&mut all.sums).for_each(|(term, sum)| *sum += term);
            }
        }
        all
    }

    /// These pairs and, behind them, those of `next`.
    #[must_use]
    pub fn followed_by(&self, next: &Self) -> Self {
        let later = |one: Option<u64>, other: Option<u64>| one.or(other.map(|i| i + self.len));
        Self {
            len: self.len + next.len,
            sums: std::array::from_fn(|i| self.sums[i] + next.sums[i]),
            bad_a: later(self.bad_a, next.bad_a),
            bad_b: later(self.bad_b, next.bad_b),
            one_zero: later(self.one_zero, next.one_zero),
        }
    }

    /// The distance; nothing where there is none: the cosine of a vector of zeros.
    #[must_use]
    pub fn distance(&self, metric: Metric) -> Option<f64> {
        metric.distance(self.sums, self.len)
    }
}

crate::params! {
    /// The numbers of one [`Similarity`] step.
    pub struct SimilarityParams {
        /// Values of each.
        len: u32,
    }
}

crate::args! {
    /// The buffers of one [`Similarity`] step.
    pub struct SimilarityArgs / SimilaritySlices {
        /// F_a `[p]`.
        read a,
        /// F_b `[p]`.
        read b,
        /// `[share, 8]`.
        write records,
    }
}

impl Kernel for Similarity {
    const NAME: &'static str = "task2vec.similarity";
    type Params = SimilarityParams;
    type Args = SimilarityArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("task2vec/similarity.wgsl"), DTYPE, WIDE, RECORD, JOIN]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = self.owner.overrides(OCTETS).to_vec();
        overrides.extend([
            ("METRIC", self.metric.code().into()),
            ("A", self.a.code().into()),
            ("B", self.b.code().into()),
        ]);
        overrides
    }

    fn launch(&self, params: &SimilarityParams, args: &SimilarityArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        args.a.check(Self::NAME, "a", len, Some(self.a.into()))?;
        args.b.check(Self::NAME, "b", len, Some(self.b.into()))?;
        args.records.check(Self::NAME, "records", self.records(len), Some(Element::F32))?;
        self.owner.grid(Self::NAME, len, OCTETS, caps)
    }

    fn host(&self, _: &SimilarityParams, args: SimilaritySlices<'_>) {
        let (a, b) = (args.a, args.b);
        let size = usize::try_from(self.share()).expect("shares are small");
        let records = args.records.cast::<f32>().par_chunks_exact_mut(WORDS).enumerate();
        records.for_each_init(<(Floats, Floats)>::default, |(scratch_a, scratch_b), (share, record)| {
            let start = share * size;
            let mut tally = Tally::default();
            let end = a.len().min(start + size);
            for at in (start..end).step_by(BLOCK) {
                let len = BLOCK.min(end - at);
                vectorised(
                    #[inline(always)]
                    || {
                        let (a, b) = (scratch_a.load(a.range(at, len)), scratch_b.load(b.range(at, len)));
                        tally.add(self.metric, a, b, at - start);
                    },
                );
            }
            record.copy_from_slice(&tally.record());
        });
    }

    fn cost(&self, params: &SimilarityParams, _: &SimilarityArgs) -> Cost {
        let len = u64::from(params.len);
        let flops = match self.metric {
            Metric::Cosine => 6,
            Metric::Normalized => 9,
            Metric::Kl => 24,
            Metric::Jsd => 28,
        };
        Cost { bytes: len * (self.a.size() + self.b.size()) + 4 * self.records(len), flops: flops * len }
    }
}

/// From this power of two on, `kl` counts in its own unit.
const FAR: i32 = 30;

/// Sums kept side by side, so many that their loop stays one and becomes vectors.
const LANES: usize = 64;

/// A share on the host: f64 holds every sum, so nothing needs scaling before the end.
struct Tally {
    sums: [[f64; LANES]; 3],
    /// The record's X and Y; nothing while all is 0.
    x: Option<i32>,
    y: Option<i32>,
    bad_a: Option<usize>,
    bad_b: Option<usize>,
    one_zero: Option<usize>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { sums: [[0.0; LANES]; 3], x: None, y: None, bad_a: None, bad_b: None, one_zero: None }
    }
}

impl Tally {
    /// Adds consecutive pairs, of which the first has index `start` in the share.
    #[inline(always)]
    fn add(&mut self, metric: Metric, a: &[f32], b: &[f32], start: usize) {
        // One branch a block, so that each metric has its own loop.
        match metric {
            Metric::Cosine => self.add_terms(a, b, |a, b| Metric::Cosine.terms(a, b)),
            Metric::Normalized => self.add_terms(a, b, |a, b| Metric::Normalized.terms(a, b)),
            Metric::Kl => self.add_terms(a, b, |a, b| both(Metric::Kl, a, b)),
            Metric::Jsd => self.add_terms(a, b, |a, b| both(Metric::Jsd, a, b)),
        }
        let (x, y) = exponents(metric, a, b);
        (self.x, self.y) = (self.x.max(x), self.y.max(y));
        self.note(a, b, start);
    }

    /// Notes the first of each rare kind. Whether there is any is seen by a loop that vectorises.
    #[inline(always)]
    fn note(&mut self, a: &[f32], b: &[f32], start: usize) {
        let bad = |value: f32| !is_good(value.to_bits());
        let (mut bad_a, mut bad_b, mut one_zero) = (0, 0, 0);
        for (&a, &b) in a.iter().zip(b) {
            bad_a |= u32::from(bad(a));
            bad_b |= u32::from(bad(b));
            one_zero |= u32::from((a == 0.0) != (b == 0.0));
        }
        let first = |found: Option<usize>, any: u32, is: &dyn Fn(usize) -> bool| match found {
            None if any > 0 => (0..a.len()).find(|&i| is(i)).map(|i| start + i),
            found => found,
        };
        self.bad_a = first(self.bad_a, bad_a, &|i| bad(a[i]));
        self.bad_b = first(self.bad_b, bad_b, &|i| bad(b[i]));
        let is_one_zero = |i: usize| !bad(a[i]) && !bad(b[i]) && (a[i] == 0.0) != (b[i] == 0.0);
        self.one_zero = first(self.one_zero, one_zero, &is_one_zero);
    }

    #[inline(always)]
    fn add_terms(&mut self, a: &[f32], b: &[f32], terms: impl Fn(f64, f64) -> [f64; 3]) {
        let ((a, rest_a), (b, rest_b)) = (a.as_chunks(), b.as_chunks());
        for (a, b) in a.iter().zip(b) {
            self.add_lanes(a, b, &terms);
        }
        // A pair of zeros adds nothing.
        let mut last = [[0.0; LANES]; 2];
        last[0][..rest_a.len()].copy_from_slice(rest_a);
        last[1][..rest_b.len()].copy_from_slice(rest_b);
        self.add_lanes(&last[0], &last[1], &terms);
    }

    #[inline(always)]
    fn add_lanes(&mut self, a: &[f32; LANES], b: &[f32; LANES], terms: &impl Fn(f64, f64) -> [f64; 3]) {
        let [xy, xx, yy] = &mut self.sums;
        for i in 0..LANES {
            let terms = terms(kept(a[i]).into(), kept(b[i]).into());
            xy[i] += terms[0];
            xx[i] += terms[1];
            yy[i] += terms[2];
        }
    }

    fn record(&self) -> [f32; WORDS] {
        let [xy, xx, yy] = self.sums.map(|lanes| lanes.iter().sum::<f64>());
        let (x, y) = (self.x.unwrap_or(0), self.y.unwrap_or(0));
        let unit = |power: i32| 2.0_f64.powi(-power);
        #[expect(clippy::cast_possible_truncation, reason = "the record's sums are f32")]
        let [xy, xx, yy] =
            [xy * unit(x) * unit(y), xx * unit(x) * unit(x), yy * unit(y) * unit(y)].map(|sum| sum as f32);
        let [bad_a, bad_b, one_zero] = [self.bad_a, self.bad_b, self.one_zero].map(index_word);
        [xy, xx, yy, x as f32, y as f32, bad_a, bad_b, one_zero]
    }
}

/// A bad value counts as 0.
#[inline(always)]
fn kept(value: f32) -> f32 {
    if is_good(value.to_bits()) { value.abs() } else { 0.0 }
}

/// The terms of a pair of which both values are above 0; else none.
#[inline(always)]
fn both(metric: Metric, a: f64, b: f64) -> [f64; 3] {
    if a > 0.0 && b > 0.0 { metric.terms(a, b) } else { [0.0; 3] }
}

/// The greatest X and Y over some pairs, from the values' own exponents: the same whatever rounds how.
#[inline(always)]
fn exponents(metric: Metric, a: &[f32], b: &[f32]) -> (Option<i32>, Option<i32>) {
    match metric {
        Metric::Cosine => (greatest(a), greatest(b)),
        Metric::Normalized => {
            let (mut x, mut y) = (NOTHING, NOTHING);
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (exponent(a), exponent(b));
                let top = a.max(b);
                x = x.max(if a == NOTHING { NOTHING } else { a - top });
                y = y.max(if b == NOTHING { NOTHING } else { b - top });
            }
            (some(x), some(y))
        }
        Metric::Kl => {
            let mut far = 0;
            for (&a, &b) in a.iter().zip(b) {
                let (a, b) = (exponent(a), exponent(b));
                far = far.max(if a.min(b) == NOTHING { 0 } else { (a - b).abs() });
            }
            (Some(if far >= FAR { far } else { 0 }), Some(0))
        }
        Metric::Jsd => (Some(0), Some(0)),
    }
}

/// Stands for the exponent of a value that has none.
const NOTHING: i32 = -10_000;

fn some(exponent: i32) -> Option<i32> {
    (exponent > NOTHING).then_some(exponent)
}

#[inline(always)]
fn greatest(values: &[f32]) -> Option<i32> {
    let mut top = 0;
    for &value in values {
        top = top.max(kept(value).to_bits());
    }
    exponent_of(top)
}

/// ⌊log₂⌋ of a value as it is kept, without a branch; a subnormal's by way of an exact conversion of its integer.
#[inline(always)]
fn exponent(value: f32) -> i32 {
    let bits = kept(value).to_bits();
    let subnormal = bits < 0x0080_0000;
    let normal = if subnormal { (bits.cast_signed() as f32).to_bits() } else { bits };
    let power = (normal >> 23).cast_signed() - if subnormal { 127 + 149 } else { 127 };
    if bits == 0 { NOTHING } else { power }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its shares have 512 values.
    const KERNEL: Similarity =
        Similarity { metric: Metric::Cosine, a: DType::F32, b: DType::F32, owner: Owner::Invocation };

    #[test]
    fn records_in_any_unit_come_to_the_same_sums() {
        let mut record = [6.0, 4.0, 9.0, 0.0, 0.0, -1.0, -1.0, -1.0];
        let one = Sums::fold(&KERNEL, 10, &record);
        assert_eq!(one.sums, [6.0, 4.0, 9.0]);
        (record[3], record[4]) = (100.0, -120.0);
        let two = Sums::fold(&KERNEL, 10, &record);
        assert_eq!(two.sums, [6.0 * 2.0_f64.powi(-20), 4.0 * 2.0_f64.powi(200), 9.0 * 2.0_f64.powi(-240)]);
        let (one, two) = (one.distance(Metric::Cosine), two.distance(Metric::Cosine));
        assert_eq!(one, two, "the units are powers of two and cancel");
    }

    #[test]
    fn indices_count_on() {
        let record = [0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 5.0, -1.0];
        let none = [0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0];
        let first = Sums::fold(&KERNEL, 512, &none);
        let both = first.followed_by(&Sums::fold(&KERNEL, 10, &record));
        assert_eq!(both.bad_b, Some(512 + 5));
        assert_eq!((both.bad_a, both.one_zero, both.len), (None, None, 512 + 10));
        let shares = [none, record].concat();
        assert_eq!(Sums::fold(&KERNEL, 600, &shares).bad_b, Some(512 + 5));
        assert_eq!(Sums::fold(&KERNEL, 512, &shares).bad_b, None, "the second record is of no share");
    }

    #[test]
    fn a_vector_of_zeros_has_no_direction() {
        assert_eq!(Sums::of(Metric::Cosine, &[0.0, 0.0], &[1.0, 0.0]).distance(Metric::Cosine), None);
    }
}
