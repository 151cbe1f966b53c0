//! Gradients of the cross-entropy at a classifier's logits.

mod cases;

use rayon::prelude::*;

use super::{FAULTS, Faults, LANES, LOGITS, Rows, largest, len};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{Cost, Kernel, groups_for, vectorised};
use crate::kernels::{DTYPE, RUN, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Gradient of the cross-entropy −ln p_y at the logits, for one or more labels y of each sample:
///
/// ```text
/// gradient[r, n, c] ← (p[n, c] − [c = y[r, n]]) / unit ,  p[n] = softmax(z[n])
/// norm_sq[r, n]     ← Σ_c (p[n, c] − [c = y])²
/// weight[r, n]      ← weight, or weight · p[n, y] where every class is a label
/// ```
///
/// - `logits`   z `[n, c]`, f32, f16 or bf16; minus infinity for a class that cannot be
/// - `labels`   words, `[r, n]` where given; with every class `[n]` if masked, else any buffer. A label of `ignored`
///   leaves its sample
///   out: gradient, weight and norm 0, whatever its logits hold
/// - `gradient` `[r, n, c]` f32, of the *summed* loss
/// - `weight`   `[r, n]` f32
/// - `norm_sq`  `[r, n]` f32: s of the improved empirical Fisher (Wu et al. 2024)
/// - `fault`    [`FAULTS`] words: 0 for a NaN, plus infinity or no possible class, 1 for a label that is not
///   a class; the row is NaN
///
/// At the label, p − 1 is taken from the *other* classes, −Σ_{c≠y} p_c, and all of them in units of the largest: where
/// p_y rounds to one, a difference would leave 0 of gradient, norm and quotient. With `unit`, the gradient is divided
/// by its norm, which is what the improved empirical Fisher squares (backpropagation is linear), at any magnitude,
/// whereas `norm_sq` and quotients by it end at 1e-38; a sample whose gradient is 0 (one possible class) then
/// has weight 0.
///
/// Reads the logits three times a row, writes the gradient once; two exponentials an element. Sums have a fixed order:
/// bitwise repeatable. Definition:
/// [`reference::likelihood::cross_entropy`](crate::reference::likelihood::cross_entropy).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Softmax {
    /// Storage of the logits.
    pub logits: DType,
    /// Where labels come from.
    pub labels: Labels,
    /// Whether gradients are divided by their norm.
    pub unit: bool,
    /// Invocations of a row: 64, or 1.
    pub lanes: u32,
}

impl Softmax {
    /// The same, suited to a device and a step: one invocation has a row where a barrier costs more than it saves, but
    /// for few rows and those so long that they meet [`Caps::max_iterations`].
    #[must_use]
    pub fn for_device(self, caps: &Caps, params: &SoftmaxParams) -> Self {
        let rows = u64::from(params.rounds) * u64::from(params.samples);
        let alone = Self { lanes: 1, ..self };
        if caps.is_software_device() && rows >= 16 && alone.loops(params) < caps.max_iterations {
            alone
        } else {
            self
        }
    }

    /// Iterations of an invocation: three passes over its share of a row, which may begin and end within an octet; and
    /// two trees.
    fn loops(&self, params: &SoftmaxParams) -> u64 {
        let classes = u64::from(params.classes);
        match self.lanes {
            1 => 3 * (classes / 8 + 3),
            lanes => 3 * (classes.div_ceil(lanes.into()) + 2) + 2 * u64::from(lanes.max(1).ilog2() + 1),
        }
    }
}

/// Which labels a step goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labels {
    /// Those of a buffer, one a row.
    Given,
    /// Every class in turn, one a round, weighted by its probability. Masked: a buffer tells the samples to leave out.
    Each {
        /// Whether it does.
        masked: bool,
    },
}

crate::params! {
    /// The numbers of one [`Softmax`] step.
    pub struct SoftmaxParams {
        /// Samples n.
        samples: u32,
        /// Classes c.
        classes: u32,
        /// Rounds r: labels of a sample.
        rounds: u32,
        /// With every class, that of the first round.
        first_class: u32,
        /// The label of samples to leave out.
        ignored: u32,
        /// The weight of a row, or its factor.
        weight: f32,
    }
}

crate::args! {
    /// The buffers of one [`Softmax`] step.
    pub struct SoftmaxArgs / SoftmaxSlices {
        /// z `[n, c]`.
        read logits,
        /// `[r, n]`, words; with every class `[n]`, not looked at unless masked.
        read labels,
        /// `[r, n, c]`.
        write gradient,
        /// `[r, n]`.
        write weight,
        /// `[r, n]`.
        write norm_sq,
        /// Kept as the maximum: cleared before.
        write fault,
    }
}

impl Kernel for Softmax {
    const NAME: &'static str = "likelihood.softmax";
    type Params = SoftmaxParams;
    type Args = SoftmaxArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("likelihood/softmax.wgsl"), DTYPE, LOGITS, RUN]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let (each, masked) = match self.labels {
            Labels::Given => (false, true),
            Labels::Each { masked } => (true, masked),
        };
        vec![
            ("WORKGROUP", LANES.into()),
            ("LANES", self.lanes.into()),
            ("LOGITS", self.logits.code().into()),
            ("EACH", each.into()),
            ("MASKED", masked.into()),
            ("UNIT", self.unit.into()),
        ]
    }

    fn launch(&self, params: &SoftmaxParams, args: &SoftmaxArgs, caps: &Caps) -> Result<[u32; 3]> {
        let &SoftmaxParams { samples, classes, rounds, first_class, .. } = params;
        let logits = len(Self::NAME, [samples, classes, 1])?;
        let rows = len(Self::NAME, [rounds, samples, 1])?;
        let elements = len(Self::NAME, [rounds, samples, classes])?;
        if classes == 0 && rows > 0 {
            return Err(Error::argument(Self::NAME, "0 classes: there is no label"));
        }
        let end = u64::from(first_class) + u64::from(rounds);
        if self.labels != Labels::Given && end > classes.into() {
            return Err(Error::argument(
                Self::NAME,
                format!("rounds for classes {first_class}..{end} of {classes}"),
            ));
        }
        args.logits.check(Self::NAME, "logits", logits, Some(self.logits.into()))?;
        match self.labels {
            Labels::Given => args.labels.check(Self::NAME, "labels", rows, Some(Element::U32))?,
            Labels::Each { masked: true } => {
                args.labels.check(Self::NAME, "labels", samples.into(), Some(Element::U32))?;
            }
            Labels::Each { masked: false } => {}
        }
        args.gradient.check(Self::NAME, "gradient", elements, Some(Element::F32))?;
        args.weight.check(Self::NAME, "weight", rows, Some(Element::F32))?;
        args.norm_sq.check(Self::NAME, "norm_sq", rows, Some(Element::F32))?;
        args.fault.check(Self::NAME, "fault", FAULTS, Some(Element::U32))?;
        if ![1, LANES].contains(&self.lanes) {
            return Err(Error::argument(Self::NAME, format!("{} lanes, expected 1 or {LANES}", self.lanes)));
        }
        groups_for(Self::NAME, rows, (LANES / self.lanes).into(), caps)
    }

    fn iterations(&self, params: &SoftmaxParams, _: &SoftmaxArgs) -> u64 {
        self.loops(params)
    }

    fn host(&self, params: &SoftmaxParams, args: SoftmaxSlices<'_>) {
        let (samples, classes) = (params.samples as usize, params.classes as usize);
        let rows = Rows { slice: args.logits, len: classes };
        let labels: &[u32] =
            if self.labels == (Labels::Each { masked: false }) { &[] } else { args.labels.cast() };
        let faults = Faults::default();
        let gradients = args.gradient.cast::<f32>().par_chunks_exact_mut(classes.max(1));
        let (weights, norms): (&mut [f32], &mut [f32]) = (args.weight.cast(), args.norm_sq.cast());
        let out = gradients.zip(weights).zip(norms).enumerate();
        out.for_each_init(Vec::new, |scratch, (row, ((gradient, weight), norm_sq))| {
            let (round, sample) = (row / samples, row % samples);
            let label = match self.labels {
                Labels::Given => labels[row],
                Labels::Each { .. } => params.first_class + u32::try_from(round).expect("rounds are a u32"),
            };
            let told = if self.labels == Labels::Given { Some(&label) } else { labels.get(sample) };
            if told == Some(&params.ignored) {
                gradient.fill(0.0);
                (*weight, *norm_sq) = (0.0, 0.0);
                return;
            }
            let logits = rows.get(sample, scratch);
            let found = vectorised(
                #[inline(always)]
                || {
                    let found = Row::new(logits, label as usize, gradient)?;
                    found.finish(self.unit, gradient);
                    Ok(found)
                },
            );
            let found = found.map_err(|word: usize| faults.note(word, sample));
            let Ok(found) = found else {
                gradient.fill(f32::NAN);
                (*weight, *norm_sq) = (f32::NAN, f32::NAN);
                return;
            };
            let counted = if self.labels == Labels::Given { 1.0 } else { found.own };
            *weight = if self.unit && found.alone() { 0.0 } else { counted * params.weight };
            let length = found.share * found.norm();
            *norm_sq = length * length;
        });
        faults.store(args.fault.cast());
    }

    fn cost(&self, params: &SoftmaxParams, _: &SoftmaxArgs) -> Cost {
        let [samples, classes, rounds] = [params.samples, params.classes, params.rounds].map(u64::from);
        let elements = rounds * samples * classes;
        Cost {
            bytes: samples * classes * self.logits.size() + 4 * elements + 12 * rounds * samples,
            flops: 8 * elements,
        }
    }
}

/// One sample and one label of it.
struct Row {
    label: usize,
    /// The largest logit of the other classes; minus infinity where there are none.
    top: f32,
    /// Σ e and Σ e² over the other classes, e = exp(z − top).
    others: f32,
    squares: f32,
    /// What e is multiplied by for a probability.
    share: f32,
    /// The label's probability.
    own: f32,
}

impl Row {
    /// Leaves e in `gradient`, 0 at the label, and sums up; the word of the fault where logits or label are wrong.
    #[inline(always)]
    fn new(logits: &[f32], label: usize, gradient: &mut [f32]) -> Result<Self, usize> {
        let (top, nan) = largest(logits);
        if nan || top.is_infinite() {
            return Err(0);
        }
        let Some((before, rest)) = logits.split_at_checked(label) else { return Err(1) };
        let Some((&at_label, behind)) = rest.split_first() else { return Err(1) };
        let is_top = at_label >= top;
        let others_top = if is_top { largest(before).0.max(largest(behind).0) } else { top };
        if others_top == f32::NEG_INFINITY {
            gradient.fill(0.0);
            return Ok(Self { label, top: others_top, others: 0.0, squares: 0.0, share: 0.0, own: 1.0 });
        }
        for (e, &z) in gradient.iter_mut().zip(logits) {
            *e = exp_of_negative(z - others_top);
        }
        gradient[label] = 0.0;
        let (others, squares) = sums(gradient);
        let (at_label, at_others) = (exp_of_negative(at_label - top), exp_of_negative(others_top - top));
        let all = at_others * others + at_label;
        Ok(Self { label, top: others_top, others, squares, share: at_others / all, own: at_label / all })
    }

    /// Whether no other class is possible.
    fn alone(&self) -> bool {
        self.top == f32::NEG_INFINITY
    }

    fn norm(&self) -> f32 {
        (self.squares + self.others * self.others).sqrt()
    }

    /// From e to the gradient.
    #[inline(always)]
    fn finish(&self, unit: bool, gradient: &mut [f32]) {
        if self.alone() {
            return;
        }
        let scale = if unit { 1.0 / self.norm() } else { self.share };
        for e in &mut *gradient {
            *e *= scale;
        }
        gradient[self.label] = -(self.others * scale);
    }
}

/// Σ e and Σ e², in f64, eight at a time.
#[inline(always)]
fn sums(values: &[f32]) -> (f32, f32) {
    let mut lanes = ([0.0; 8], [0.0; 8]);
    let (blocks, rest) = values.as_chunks::<8>();
    for block in blocks {
        add(&mut lanes, block);
    }
    // Zeros change no sum.
    let mut last = [0.0; 8];
    last[..rest.len()].copy_from_slice(rest);
    add(&mut lanes, &last);
    #[expect(clippy::cast_possible_truncation, reason = "summed in f64, used in f32")]
    let sum = |lanes: [f64; 8]| lanes.iter().sum::<f64>() as f32;
    (sum(lanes.0), sum(lanes.1))
}

#[inline(always)]
fn add((plain, squares): &mut ([f64; 8], [f64; 8]), block: &[f32; 8]) {
    for i in 0..8 {
        let e = f64::from(block[i]);
        plain[i] += e;
        squares[i] += e * e;
    }
}

/// exp(x) for x ≤ 0 (of the label alone perhaps above, and then of no use), without a branch so that it vectorises;
/// what is below the normal numbers is 0.
///
/// 2^n · exp(r) with x = n ln 2 + r, |r| ≤ ln(2)/2, by eight terms of the Taylor series, whose rest is below
/// 2⁻²⁷. ln 2 is taken in two parts, of which the first has so few bits that n times it is exact.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    const LN2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
    /// Added to a number below 2²², it leaves the number rounded to an integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -104.0 { x } else { -104.0 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2[0]) - n * LN2[1];
    let mut series = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + term;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).cast_signed() + 127;
    let power = f32::from_bits(exponent.clamp(0, 254).cast_unsigned() << 23);
    series * power
}
