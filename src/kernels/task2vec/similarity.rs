//! What two Fishers have in common.

use rayon::prelude::*;

use super::{Metric, exponent_of, is_good};
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{
    BLOCK, Bench, Case, CaseBuffer, Checked, Cost, Fill, Floats, Kernel, Want, noise, vectorised,
};
use crate::kernels::records::{index_of, index_word, power, shares};
use crate::kernels::{BENCHED, DTYPE, JOIN, Owner, WIDE, shader};
use crate::memory::Element;
use crate::reference;
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
/// A value is *bad* if it is NaN, infinite or negative: it counts as 0, and the first one's index in the share is recorded (−1 for
/// none). A pair of which one alone is 0 has no finite divergence: it adds nothing, and the first one's index is recorded.
///
/// Moves each value once and 32 bytes a share. No product of values is formed in their own units, so nothing overflows or
/// vanishes for F in [1e-38, 1e38], subnormals included. A share's sums are off by at most 31 roundings for `cosine`, 38 for
/// `normalized`, 64 for `kl`, 59 for `jsd` where a workgroup has it, by 40 more where one invocation does. Bitwise repeatable. Definitions: [`reference::task2vec`].
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
        vec![shader!("task2vec/similarity.wgsl"), DTYPE, WIDE, JOIN]
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
        args.a.expect(Self::NAME, "a", len, Some(self.a.into()))?;
        args.b.expect(Self::NAME, "b", len, Some(self.b.into()))?;
        args.records.expect(Self::NAME, "records", self.records(len), Some(Element::F32))?;
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
        // One branch a block, so that each metric has a loop of its own.
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

impl Checked for Similarity {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for metric in Metric::ALL {
            for owner in [Owner::Workgroup, Owner::Invocation] {
                for a in DType::ALL {
                    for b in DType::ALL {
                        let kernel = Self { metric, a, b, owner };
                        let share = usize::try_from(kernel.share()).expect("shares are small");
                        for len in [0, 1, 7, 8, 9, 2049, share - 1, share, share + 1, 2 * share + 5] {
                            // Above 0.01: what is 0 in one alone has cases of its own.
                            let [x, y] = [1, 2].map(|seed| positive(seed, len));
                            cases.push(case(kernel, "positive", &x, &y));
                        }
                    }
                }
                let kernel = Self { metric, a: DType::F32, b: DType::F32, owner };
                cases.extend(shapes_of_values().map(|(name, x, y)| case(kernel, name, &x, &y)));
            }
        }
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        bench(&Caps::host(), elements)
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        BENCHED.map(|elements| bench(caps, elements)).into()
    }
}

fn bench(caps: &Caps, elements: u64) -> Bench<Similarity> {
    let owner = Owner::of(caps);
    let kernel = Similarity { metric: Metric::Normalized, a: DType::F32, b: DType::F32, owner };
    let len = u32::try_from(elements).unwrap_or(u32::MAX);
    Bench {
        name: format!("normalized {len} f32"),
        kernel,
        params: SimilarityParams { len },
        buffers: vec![
            (Element::F32, len.into(), Fill::Positive),
            (Element::F32, len.into(), Fill::Positive),
            (Element::F32, kernel.records(len.into()), Fill::Zero),
        ],
    }
}

fn positive(seed: u64, len: usize) -> Vec<f64> {
    noise(seed, len).iter().map(|v| v.abs() + 0.01).collect()
}

/// Pairs of vectors that would overflow, vanish, cancel or mislead.
fn shapes_of_values() -> impl Iterator<Item = (&'static str, Vec<f64>, Vec<f64>)> {
    const LEN: usize = 3000;
    let all = |seed| noise(seed, LEN).iter().map(|v| (138.0 * v - 11.0).exp2()).collect::<Vec<f64>>();
    let near = |v: f64| positive(1, LEN).iter().map(|x| x * (1.0 + v)).collect::<Vec<f64>>();
    let holes = |seed, at: usize| {
        let hole = |(i, v): (usize, f64)| if i % 7 == at { 0.0 } else { v };
        positive(seed, LEN).into_iter().enumerate().map(hole).collect::<Vec<f64>>()
    };
    let bad = |at: usize| {
        let values = [f64::NAN, f64::INFINITY, -1.0, f64::NEG_INFINITY];
        let value = |(i, v): (usize, f64)| if i % 401 == at { values[i % 4] } else { v };
        positive(4, LEN).into_iter().enumerate().map(value).collect::<Vec<f64>>()
    };
    let growing = |seed| {
        let value = |(i, v): (usize, f64)| v * (i as f64 / 40.0 - 40.0).exp2();
        positive(seed, LEN).into_iter().enumerate().map(value).collect::<Vec<f64>>()
    };
    let swapped = |v: &[f64]| v.iter().rev().copied().collect::<Vec<f64>>();
    [
        ("every magnitude", all(1), all(2)),
        ("every magnitude, reversed", all(1), swapped(&all(1))),
        ("one tiny, one huge", vec![1e-38; LEN], vec![1e38; LEN]),
        ("one small, one large", vec![1e-36; LEN], vec![1e37; LEN]),
        ("both huge", vec![3e38; LEN], vec![2e38; LEN]),
        ("both subnormal", vec![3e-45; LEN], vec![1e-41; LEN]),
        ("equal", positive(3, LEN), positive(3, LEN)),
        ("nearly equal", near(0.0), near(1e-3)),
        ("a factor of two apart", near(0.0), near(1.0)),
        ("far apart", near(0.0), near(1e12)),
        ("zeros in both", holes(1, 3), holes(2, 3)),
        ("zeros in one alone", holes(1, 3), holes(2, 5)),
        ("zeros only", vec![0.0; LEN], vec![-0.0; LEN]),
        ("bad in either", bad(17), bad(29)),
        ("growing", growing(1), growing(2)),
        ("one grows, one shrinks", growing(1), swapped(&growing(2))),
    ]
    .into_iter()
}

fn case(kernel: Similarity, name: &str, a: &[f64], b: &[f64]) -> Case<Similarity> {
    let (a, b) = (CaseBuffer::floats(kernel.a, a), CaseBuffer::floats(kernel.b, b));
    let (stored_a, stored_b) = (a.values(), b.values());
    let share = usize::try_from(kernel.share()).expect("shares are small");
    let shares = stored_a.chunks(share).zip(stored_b.chunks(share));
    let want: Vec<Want> = shares.flat_map(|(a, b)| want(kernel, a, b)).collect();
    let len = u32::try_from(a.len()).expect("cases are small");
    Case {
        name: format!("{kernel:?} {name} p={len}"),
        kernel,
        params: SimilarityParams { len },
        buffers: vec![a, b, CaseBuffer::sentinel(Element::F32, want.len())],
        want: vec![(2, want)],
    }
}

/// What the definition says of one share, in the record's form.
fn want(Similarity { metric, owner, .. }: Similarity, a: &[f64], b: &[f64]) -> Vec<Want> {
    let good = |v: &f64| reference::stats::is_good(*v);
    let first = |is: &dyn Fn(usize) -> bool| (0..a.len()).find(|&i| is(i)).map_or(-1.0, |i| i as f64);
    let bad = [first(&|i| !good(&a[i])), first(&|i| !good(&b[i]))];
    let one_zero = first(&|i| good(&a[i]) && good(&b[i]) && (a[i] == 0.0) != (b[i] == 0.0));
    let zeroed = |v: &[f64]| v.iter().map(|v| if good(v) { v.abs() } else { 0.0 }).collect::<Vec<f64>>();
    let (a, b) = (zeroed(a), zeroed(b));
    let exponent = |v: f64| v.log2().floor();
    let greatest = |e: &mut dyn Iterator<Item = f64>| {
        Some(e.fold(f64::MIN, f64::max)).filter(|e| *e > f64::MIN).unwrap_or(0.0)
    };
    let pairs: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
    let both: Vec<(f64, f64)> = pairs.iter().copied().filter(|(a, b)| *a > 0.0 && *b > 0.0).collect();
    let (both_a, both_b): (Vec<f64>, Vec<f64>) = both.iter().copied().unzip();
    // Roundings of a term, those of summing being [`Owner::roundings`]. A division counts 3 and a ratio's logarithm 4; where the two
    // parts of a difference exceed it, their roundings count as often as they do.
    let (sums, x, y, term) = match metric {
        Metric::Cosine => {
            let above = |v: &[f64]| greatest(&mut v.iter().filter(|v| **v > 0.0).map(|v| exponent(*v)));
            (reference::task2vec::products(&a, &b), above(&a), above(&b), 2.0)
        }
        Metric::Normalized => {
            let [sa, sb] = reference::task2vec::shares(&a, &b);
            let power = |one: f64, other: f64| exponent(one) - exponent(one.max(other));
            let x = greatest(&mut pairs.iter().filter(|p| p.0 > 0.0).map(|p| power(p.0, p.1)));
            let y = greatest(&mut pairs.iter().filter(|p| p.1 > 0.0).map(|p| power(p.1, p.0)));
            (reference::task2vec::products(&sa, &sb), x, y, 9.0)
        }
        Metric::Kl => {
            let powers = both.iter().map(|(a, b)| (exponent(*a) - exponent(*b)).abs());
            let x = greatest(&mut powers.filter(|power| *power >= FAR.into()));
            ([reference::task2vec::kl(&both_a, &both_b), 0.0, 0.0], x, 0.0, 35.0)
        }
        Metric::Jsd => {
            let sum = if both.is_empty() {
                0.0
            } else {
                reference::task2vec::jsd(&both_a, &both_b) * both.len() as f64
            };
            ([sum, 0.0, 0.0], 0.0, 0.0, 30.0)
        }
    };
    let scaled = [sums[0] * (-x - y).exp2(), sums[1] * (-2.0 * x).exp2(), sums[2] * (-2.0 * y).exp2()];
    let depth = term + f64::from(owner.roundings(OCTETS));
    let mut wants = scaled.map(|sum| Want::computed(sum, sum, depth, DType::F32)).to_vec();
    // A device may flush what is below 2^-126 of the unit, in each term once.
    wants.iter_mut().for_each(|want| want.bound += 4.0 * a.len() as f64 * f64::from(f32::MIN_POSITIVE));
    wants.extend([x, y, bad[0], bad[1], one_zero].map(Want::exact));
    wants
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
