//! Labels drawn from the model.

mod cases;

use rayon::prelude::*;

use super::philox::philox;
use super::{Faults, LANES, LOGITS, PHILOX, Rows, halves, joined, largest, len};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{Cost, Kernel, groups_of, vectorised};
use crate::kernels::{DTYPE, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Labels drawn from a classifier's own distribution, one for each sample and draw:
///
/// ```text
/// drawn[r, n] ← min { c : Σ_{c' ≤ c} w[c'] > ⌊u · Σ w / 2⁶⁴⌋ } ,  w[c] = round(2³¹ · exp(z[n, c] − max_c z[n, c]))
/// u = the first 64 bits of Philox4x32-10 of (first_sample + n, first_draw + r, 0) under `seed`
/// ```
///
/// - `logits` z `[n, c]`, f32, f16 or bf16; minus infinity for a class that cannot be
/// - `labels` `[n]`, words; only where `masked`: a sample whose label is `ignored` is not drawn for. Else any buffer
/// - `drawn`  `[r, n]`, words; `ignored` where nothing can be drawn
/// - `fault`  [`FAULTS`](super::FAULTS) words: 0 for a NaN, plus infinity or no possible class, 2 for a largest logit
///   beyond ±2¹⁴
///
/// **Exactly the same on every device and on the host**: logits are rounded to multiples of 2⁻¹⁶, and from there on all
/// is integers, exp included (nine terms of 2^−f and shifts). The price is a bias that no sample shows: the probability
/// of any set of classes is off by less than 2⁻¹⁶ + c · 2⁻³², and a class below 2⁻³² of the likeliest one is
/// never drawn.
///
/// Reads the logits three times, and a 64th of them once more a draw; about 100 integer operations a logit. Definition:
/// [`reference::likelihood::draw`](crate::reference::likelihood::draw).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Storage of the logits.
    pub logits: DType,
    /// Whether labels are looked at, for samples to leave out.
    pub masked: bool,
}

crate::params! {
    /// The numbers of one [`Draw`] step.
    pub struct DrawParams {
        /// Samples n.
        samples: u32,
        /// Classes c.
        classes: u32,
        /// Draws r: labels of a sample.
        draws: u32,
        /// The number of the first draw.
        first_draw: u32,
        /// The number of the first sample in the whole data, its low word.
        first_sample_low: u32,
        /// And its high word.
        first_sample_high: u32,
        /// The seed's low word.
        seed_low: u32,
        /// The seed's high word.
        seed_high: u32,
        /// The label of samples to leave out.
        ignored: u32,
    }
}

crate::args! {
    /// The buffers of one [`Draw`] step.
    pub struct DrawArgs / DrawSlices {
        /// z `[n, c]`.
        read logits,
        /// `[n]`, words; not looked at unless masked.
        read labels,
        /// `[r, n]`, words.
        write drawn,
        /// Kept as the maximum: cleared before.
        write fault,
    }
}

impl Kernel for Draw {
    const NAME: &'static str = "likelihood.draw";
    type Params = DrawParams;
    type Args = DrawArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("likelihood/draw.wgsl"), DTYPE, LOGITS, PHILOX]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", LANES.into()),
            ("LOGITS", self.logits.code().into()),
            ("MASKED", self.masked.into()),
        ]
    }

    fn launch(&self, params: &DrawParams, args: &DrawArgs, caps: &Caps) -> Result<[u32; 3]> {
        let &DrawParams { samples, classes, draws, first_draw, .. } = params;
        let logits = len(Self::NAME, [samples, classes, 1])?;
        args.logits.check(Self::NAME, "logits", logits, Some(self.logits.into()))?;
        if self.masked {
            args.labels.check(Self::NAME, "labels", samples.into(), Some(Element::U32))?;
        }
        let drawn = len(Self::NAME, [draws, samples, 1])?;
        args.drawn.check(Self::NAME, "drawn", drawn, Some(Element::U32))?;
        args.fault.check(Self::NAME, "fault", super::FAULTS, Some(Element::U32))?;
        if classes == 0 && samples > 0 {
            return Err(Error::argument(Self::NAME, "0 classes: there is nothing to draw"));
        }
        if first_draw.checked_add(draws).is_none() {
            return Err(Error::argument(Self::NAME, "draws are numbered below 2^32"));
        }
        groups_of(Self::NAME, if draws == 0 { 0 } else { samples.into() }, caps)
    }

    fn iterations(&self, p: &DrawParams, _: &DrawArgs) -> u64 {
        let (share, lanes) = (u64::from(p.classes.div_ceil(LANES)), u64::from(LANES));
        // A draw is ten rounds of the generator, a walk over the lanes' sums and one over a lane's classes.
        let of_draw = 10 + lanes + share + 4;
        2 * share + lanes + 16 + u64::from(p.draws.div_ceil(LANES)) * of_draw
    }

    fn host(&self, params: &DrawParams, args: DrawSlices<'_>) {
        let samples = params.samples as usize;
        let rows = Rows { slice: args.logits, len: params.classes as usize };
        let faults = Faults::default();
        let labels: Option<&[u32]> = self.masked.then(|| args.labels.cast());
        let skipped = |n: usize| labels.is_some_and(|labels| labels[n] == params.ignored);
        let first_sample = joined(params.first_sample_low, params.first_sample_high);
        let each = |(scratch, weights, cumulated): &mut (Vec<f32>, Vec<u32>, Vec<u64>),
                    n: usize|
         -> Vec<u32> {
            let found = if skipped(n) { None } else { weigh(rows.get(n, scratch), weights, n, &faults) };
            cumulate(weights, cumulated);
            let counter = halves(first_sample.wrapping_add(n as u64));
            let draw = |r| found.map_or(params.ignored, |()| class_of(cumulated, random(params, counter, r)));
            (0..params.draws).map(draw).collect()
        };
        let columns: Vec<Vec<u32>> = (0..samples).into_par_iter().map_init(Default::default, each).collect();
        for (r, row) in args.drawn.cast::<u32>().chunks_exact_mut(samples.max(1)).enumerate() {
            row.iter_mut().zip(&columns).for_each(|(drawn, column)| *drawn = column[r]);
        }
        faults.store(args.fault.cast());
    }

    fn cost(&self, params: &DrawParams, _: &DrawArgs) -> Cost {
        let [samples, classes, draws] = [params.samples, params.classes, params.draws].map(u64::from);
        Cost { bytes: samples * (classes * self.logits.size() + 4 * draws), flops: 0 }
    }
}

/// The 64 bits of a sample and a draw.
fn random(params: &DrawParams, (low, high): (u32, u32), r: u32) -> u64 {
    let bits = philox([low, high, params.first_draw + r, 0], [params.seed_low, params.seed_high]);
    joined(bits[0], bits[1])
}

/// The class in whose range of the cumulated weight the random number falls.
fn class_of(cumulated: &[u64], random: u64) -> u32 {
    let total = cumulated.last().copied().unwrap_or(0);
    let place = (u128::from(random) * u128::from(total)) >> 64;
    let class = cumulated.partition_point(|&weight| u128::from(weight) <= place);
    u32::try_from(class).expect("classes are a u32")
}

/// exp(z − max z) in units of 2⁻³¹; nothing, and a fault, where that is undefined.
fn weigh(logits: &[f32], weights: &mut Vec<u32>, sample: usize, faults: &Faults) -> Option<()> {
    weights.clear();
    let (top, nan) = vectorised(
        #[inline(always)]
        || largest(logits),
    );
    if nan || top.is_infinite() {
        faults.note(0, sample);
        return None;
    }
    if top.abs() > FARTHEST {
        faults.note(2, sample);
        return None;
    }
    let top = fixed(top);
    weights.resize(logits.len(), 0);
    vectorised(
        #[inline(always)]
        || {
            for (weight, &z) in weights.iter_mut().zip(logits) {
                *weight = weight_of(z, top);
            }
        },
    );
    Some(())
}

/// The sum of the weights up to each class.
fn cumulate(weights: &[u32], cumulated: &mut Vec<u64>) {
    let mut sum = 0;
    cumulated.clear();
    cumulated.extend(weights.iter().map(|&weight| {
        sum += u64::from(weight);
        sum
    }));
}

/// The largest logit may be this far from zero, so that those which round to −2¹⁵ are out of the question.
const FARTHEST: f32 = 16_384.0;

/// In units of 2⁻¹⁶, rounded to nearest (halves away from zero); −2³¹ for all from −2¹⁵ down. No more than 2¹⁴ may be
/// rounded.
#[inline(always)]
fn fixed(z: f32) -> i32 {
    const LEAST: f32 = -2_147_483_648.0;
    // A power of two, a whole part, what is left of it: all exact.
    let units = 65_536.0 * z;
    let units = if units > LEAST { units } else { LEAST };
    let whole = units.trunc();
    let away = if (units - whole).abs() >= 0.5 { 1.0_f32.copysign(units) } else { 0.0 };
    #[expect(clippy::cast_possible_truncation, reason = "whole, and between −2³¹ and 2³⁰")]
    let units = (whole + away) as i32;
    units
}

/// 32-bit words throughout, and no branch: it vectorises. The largest logit is within ±2¹⁴, so that a class that cannot
/// be lies 2¹⁴ below it at least, where weights are 0.
#[inline(always)]
fn weight_of(z: f32, top: i32) -> u32 {
    const LOG2_E: u64 = 1_549_082_005; // in units of 2⁻³⁰
    let power = u64::from(top.wrapping_sub(fixed(z)).cast_unsigned()) * LOG2_E;
    let (halvings, fraction) = (halves(power >> 46).0, halves(power >> 14).0);
    let whole = exp2_minus(fraction);
    let halved = ((whole >> (halvings.wrapping_sub(1) & 31)) + 1) >> 1;
    let some = if halvings == 0 { whole } else { halved };
    if halvings < 32 { some } else { 0 }
}

/// 2^−f in units of 2⁻³¹, f in units of 2⁻³²: nine terms of the Taylor series.
#[inline(always)]
fn exp2_minus(f: u32) -> u32 {
    /// ln(2)^j / j! in units of 2⁻³², j = 8 down to 1.
    const TERMS: [u32; 8] =
        [5676, 65_510, 661_577, 5_726_720, 41_309_550, 238_388_332, 1_031_764_991, 2_977_044_472];
    let product = |inner: u32| u64::from(f) * u64::from(inner);
    let mut inner = 437;
    for term in TERMS {
        inner = term - halves(product(inner)).1;
    }
    (1 << 31) - halves(product(inner) >> 33).0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the documented bias rests on: over every distance in units of 2⁻¹⁶ at which a weight is not zero.
    #[test]
    fn integer_exponentials_are_right_to_their_last_bit_or_one_in_2_to_the_26() {
        for distance in 0..(23 << 16) {
            let got = f64::from(weight_of(-(distance as f32) / 65_536.0, 0));
            let want = (-f64::from(distance) / 65_536.0).exp() * 2.0_f64.powi(31);
            let bound = 0.51 + want * 2.0_f64.powi(-26);
            assert!((got - want).abs() <= bound, "{distance}: {got} {want}");
        }
    }

    #[test]
    fn logits_round_to_the_nearest_multiple() {
        let unit = 1.0_f32 / 65_536.0;
        for (z, units) in
            [(0.0, 0), (-0.0, 0), (0.4 * unit, 0), (0.5 * unit, 1), (-0.5 * unit, -1), (1.0, 65_536)]
        {
            assert_eq!(fixed(z), units, "{z}");
        }
        assert_eq!(fixed(16_384.0 - 1.0 / 1024.0), (16_384 << 16) - 64);
        assert_eq!(fixed(-1e30), i32::MIN);
        assert_eq!(fixed(f32::NEG_INFINITY), i32::MIN);
        // Just below a half, whose sum with a half rounds to one.
        let below = 0.5_f32.next_down() * unit;
        assert_eq!((fixed(below), fixed(-below)), (0, 0));
    }
}
