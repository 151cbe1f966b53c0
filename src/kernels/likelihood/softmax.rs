//! Gradients of the cross-entropy at a classifier's logits.

use rayon::prelude::*;

use super::{FAULTS, Faults, LANES, LOGITS, Rows, largest, len};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{
    Bench, Case, CaseBuffer, Checked, Cost, FLUSHED, Fill, Kernel, Want, groups_for, noise, vectorised,
};
use crate::kernels::{BENCHED, DTYPE, RUN, shader};
use crate::memory::Element;
use crate::reference;
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
/// - `labels`   words, `[r, n]` where given; with every class `[n]` if masked, else any buffer. A label of `ignored` leaves its sample
///   out: gradient, weight and norm 0, whatever its logits hold
/// - `gradient` `[r, n, c]` f32, of the *summed* loss
/// - `weight`   `[r, n]` f32
/// - `norm_sq`  `[r, n]` f32: s of the improved empirical Fisher (Wu et al. 2024)
/// - `fault`    [`FAULTS`] words: 0 for a NaN, plus infinity or no possible class, 1 for a label that is no class; the row is NaN
///
/// At the label, p − 1 is taken from the *other* classes, −Σ_{c≠y} p_c, and all of them in units of the largest: where p_y rounds to one, a
/// difference would leave 0 of gradient, norm and quotient. With `unit`, the gradient is divided by its norm, which is what the improved
/// empirical Fisher squares (backpropagation is linear), at any magnitude, whereas `norm_sq` and quotients by it end
/// at 1e-38; a sample whose gradient is 0 (one possible class) then has weight 0.
///
/// Reads the logits three times a row, writes the gradient once; two exponentials an element. Sums have a fixed order: bitwise
/// repeatable. Definition: [`reference::likelihood::cross_entropy`].
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
    /// The same, suited to a device and a step: one invocation has a row where a barrier costs more than it saves, but for few rows and
    /// those so long that they meet [`Caps::max_iterations`].
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

    /// Iterations of an invocation: three passes over its share of a row, which may begin and end within an octet; and two trees.
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
        /// n.
        samples: u32,
        /// c.
        classes: u32,
        /// r.
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
        /// Words.
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
        args.logits.expect(Self::NAME, "logits", logits, Some(self.logits.into()))?;
        match self.labels {
            Labels::Given => args.labels.expect(Self::NAME, "labels", rows, Some(Element::U32))?,
            Labels::Each { masked: true } => {
                args.labels.expect(Self::NAME, "labels", samples.into(), Some(Element::U32))?;
            }
            Labels::Each { masked: false } => {}
        }
        args.gradient.expect(Self::NAME, "gradient", elements, Some(Element::F32))?;
        args.weight.expect(Self::NAME, "weight", rows, Some(Element::F32))?;
        args.norm_sq.expect(Self::NAME, "norm_sq", rows, Some(Element::F32))?;
        args.fault.expect(Self::NAME, "fault", FAULTS, Some(Element::U32))?;
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
    /// Leaves e in `gradient`, 0 at the label, and sums up; the word of the fault where logits or label are none.
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

/// exp(x) for x ≤ 0 (of the label alone perhaps above, and then of no use), without a branch so that it vectorises; what is below the
/// normal numbers is 0.
///
/// 2^n · exp(r) with x = n ln 2 + r, |r| ≤ ln(2)/2, by eight terms of the Taylor series, whose rest is below 2⁻²⁷. ln 2 is taken in two parts, of which the
/// first has so few bits that n times it is exact.
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

impl Checked for Softmax {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        let each = Labels::Each { masked: false };
        for lanes in [LANES, 1] {
            for logits in DType::ALL {
                for (labels, unit) in [(Labels::Given, false), (Labels::Given, true), (each, false)] {
                    let kernel = Self { logits, labels, unit, lanes };
                    for (samples, classes) in [(0, 3), (1, 1), (3, 2), (2, 63), (5, 64), (4, 65), (2, 1000)] {
                        let rounds = if labels == Labels::Given { 2 } else { classes.min(3) };
                        cases.push(case(kernel, (rounds, samples, classes), 3.0));
                    }
                }
            }
            let plain = Self { logits: DType::F32, labels: Labels::Given, unit: false, lanes };
            cases.push(case(plain, (1, 66_000, 2), 2.0));
            cases.push(case(plain, (0, 4, 3), 2.0));
            cases.push(case(plain, (3, 2, 5003), 6.0));
            cases.push(case(Self { labels: Labels::Each { masked: true }, ..plain }, (7, 5, 7), 3.0));
            for kernel in [plain, Self { unit: true, ..plain }, Self { labels: each, ..plain }] {
                cases.extend([20.0, 60.0, 95.0, 250.0].map(|lead| certain(kernel, lead)));
                cases.extend(faulty(kernel));
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

fn bench(caps: &Caps, elements: u64) -> Bench<Softmax> {
    const CLASSES: u32 = 1000;
    let samples = u32::try_from(elements / u64::from(CLASSES)).unwrap_or(1 << 21).clamp(1, 1 << 21);
    let rows = u64::from(samples);
    let elements = rows * u64::from(CLASSES);
    let kernel = Softmax { logits: DType::F32, labels: Labels::Given, unit: false, lanes: LANES };
    let params = params((1, samples, CLASSES));
    Bench {
        name: format!("{samples} samples of {CLASSES} classes, f32"),
        kernel: kernel.for_device(caps, &params),
        params,
        buffers: vec![
            (DType::F32.into(), elements, Fill::Noise),
            (Element::U32, rows, Fill::Below(CLASSES)),
            (DType::F32.into(), elements, Fill::Zero),
            (DType::F32.into(), rows, Fill::Zero),
            (DType::F32.into(), rows, Fill::Zero),
            (Element::U32, FAULTS, Fill::Zero),
        ],
    }
}

const IGNORED: u32 = 0xffff_ff9c;
const WEIGHT: f32 = 0.25;

fn params((rounds, samples, classes): (u32, u32, u32)) -> SoftmaxParams {
    SoftmaxParams { samples, classes, rounds, first_class: 0, ignored: IGNORED, weight: WEIGHT }
}

/// Noise of this spread; every fifth class of every third sample cannot be (but the first always can).
fn case(kernel: Softmax, (rounds, samples, classes): (u32, u32, u32), spread: f64) -> Case<Softmax> {
    let len = samples as usize * classes as usize;
    let mut values: Vec<f64> = noise(31, len).iter().map(|z| spread * z).collect();
    for (i, z) in values.iter_mut().enumerate() {
        let (n, c) = (i / classes as usize, i % classes as usize);
        if n % 3 == 2 && c % 5 == 4 {
            *z = f64::NEG_INFINITY;
        }
    }
    let rows = rounds * samples;
    let label = |row: u32| if row % 4 == 3 { IGNORED } else { row.wrapping_mul(2_654_435_761) % classes };
    let labels: Vec<u32> = match kernel.labels {
        Labels::Given => (0..rows).map(label).collect(),
        Labels::Each { .. } => (0..samples).map(label).collect(),
    };
    let name = format!("{kernel:?} r={rounds} n={samples} c={classes}");
    finish(kernel, name, (rounds, samples, classes), &values, &labels)
}

/// Rows in which one class leads by so much that its probability rounds to one, as label or not.
fn certain(kernel: Softmax, lead: f64) -> Case<Softmax> {
    let row: Vec<f64> =
        noise(32, 9).iter().enumerate().map(|(c, z)| if c == 4 { z + lead } else { *z }).collect();
    let values: Vec<f64> = [&row[..], &row, &row].concat();
    let rounds = if kernel.labels == Labels::Given { 1 } else { 9 };
    let mut case = finish(kernel, String::new(), (rounds, 3, 9), &values, &[4, 0, 4]);
    case.name = format!("{kernel:?} one class leads by {lead}");
    case
}

/// Rows that have no gradient; the first of each kind is told.
fn faulty(kernel: Softmax) -> Vec<Case<Softmax>> {
    let of = |name: &str, bad: &[f64], label: u32, word: usize| {
        let mut values = noise(33, 5 * 6);
        for row in [1, 3] {
            values[6 * row..6 * row + bad.len()].copy_from_slice(bad);
        }
        let labels = if word == 1 { [0, label, 2, label, 4] } else { [0, 1, 2, 3, 4] };
        let mut case = finish(kernel, String::new(), (1, 5, 6), &noise(33, 5 * 6), &[0, 1, 2, 3, 4]);
        case.buffers[0] = CaseBuffer::floats(kernel.logits, &values);
        case.buffers[1] = CaseBuffer::words(&labels);
        let wrong = |i: usize, width: usize| [1, 3].contains(&(i / width));
        for (buffer, width) in [(0, 6), (1, 1), (2, 1)] {
            for (i, want) in case.want[buffer].1.iter_mut().enumerate() {
                *want = if wrong(i, width) { Want::exact(f64::NAN) } else { *want };
            }
        }
        case.want[3].1[word] = Want::exact((!1_u32).into());
        case.name = format!("{kernel:?} faulty: {name}");
        case
    };
    let mut cases = vec![
        of("NaN", &[f64::NAN], 0, 0),
        of("infinity", &[0.0, f64::INFINITY], 0, 0),
        of("no class", &[f64::NEG_INFINITY; 6], 0, 0),
    ];
    if kernel.labels == Labels::Given {
        cases.push(of("label 6 of 6", &[], 6, 1));
    }
    cases
}

fn finish(
    kernel: Softmax,
    name: String,
    (rounds, samples, classes): (u32, u32, u32),
    values: &[f64],
    labels: &[u32],
) -> Case<Softmax> {
    let logits = CaseBuffer::floats(kernel.logits, values);
    let stored = logits.values();
    let masked = kernel.labels != Labels::Each { masked: false };
    let [mut gradient, mut weight, mut norm_sq] = [Vec::new(), Vec::new(), Vec::new()];
    for row in 0..rounds * samples {
        let (round, sample) = (row / samples, row % samples);
        let given = kernel.labels == Labels::Given;
        let told = labels[if given { row } else { sample } as usize];
        let label = if given { told } else { round };
        if masked && told == IGNORED {
            gradient.extend(vec![Want::exact(0.0); classes as usize]);
            weight.push(Want::exact(0.0));
            norm_sq.push(Want::exact(0.0));
            continue;
        }
        let z = &stored[(sample * classes) as usize..][..classes as usize];
        let wants = wanted(kernel, z, label as usize);
        gradient.extend(wants.gradient);
        weight.push(wants.weight);
        norm_sq.push(wants.norm_sq);
    }
    let sentinel = |len: usize| CaseBuffer::sentinel(DType::F32, len);
    let rows = (rounds * samples) as usize;
    Case {
        name,
        kernel,
        params: params((rounds, samples, classes)),
        buffers: vec![
            logits,
            CaseBuffer::words(labels),
            sentinel(gradient.len()),
            sentinel(rows),
            sentinel(rows),
            CaseBuffer::words(&[0; FAULTS as usize]),
        ],
        want: vec![(2, gradient), (3, weight), (4, norm_sq), (5, vec![Want::exact(0.0); FAULTS as usize])],
    }
}

/// What a row should give.
struct Wants {
    gradient: Vec<Want>,
    weight: Want,
    norm_sq: Want,
}

/// Bounds. WGSL promises exp(x) to 3 + 2|x| units in the last place, a quotient to 2.5, a root to 4.5 (as the inverse of an inverse root); the
/// argument z − top is one rounding of itself. Relative errors add up along each product; sums add their depth: an octet's two fours, a
/// lane's octets one after the other, the four, and the steps of a tree. Each factor and product may be flushed where it is below the normal numbers.
fn wanted(kernel: Softmax, z: &[f64], label: usize) -> Wants {
    let u2 = 2.0 * DType::F32.unit_roundoff();
    let (quotient, root) = (2.5 * u2, 4.5 * u2);
    let others = |c: &usize| *c != label;
    let all = || (0..z.len()).filter(others);
    let largest =
        |values: &mut dyn Iterator<Item = usize>| values.map(|c| z[c]).fold(f64::NEG_INFINITY, f64::max);
    let (top, others_top) = (largest(&mut (0..z.len())), largest(&mut all()));
    let exp_error = |z: f64, top: f64| if z.is_finite() { u2 * (3.0 + 3.0 * (z - top).abs()) } else { 0.0 };
    let p = reference::likelihood::softmax(z);
    let exact = reference::likelihood::cross_entropy(z, label);
    let exact_norm_sq: f64 = exact.iter().map(|g| g * g).sum();
    let weight = f64::from(WEIGHT);
    if others_top == f64::NEG_INFINITY {
        let counted = if kernel.unit { 0.0 } else { weight };
        return Wants {
            gradient: vec![Want::exact(0.0); z.len()],
            weight: Want::exact(counted),
            norm_sq: Want::exact(0.0),
        };
    }

    let e = |c: usize| (z[c] - others_top).exp();
    let octets = (z.len() / 8 + 2).div_ceil(kernel.lanes as usize);
    let depth = u2 * (octets as f64 + 3.0 + f64::from(kernel.lanes.ilog2()));
    let lost = z.len() as f64 * FLUSHED;
    let sum: f64 = all().map(e).sum();
    let sum_error = (all().map(|c| e(c) * exp_error(z[c], others_top)).sum::<f64>() + lost) / sum + depth;
    let squares: f64 = all().map(|c| e(c) * e(c)).sum();
    let squares_error =
        all().map(|c| e(c) * e(c) * (2.0 * exp_error(z[c], others_top) + u2)).sum::<f64>() + 3.0 * lost;
    let square = squares + sum * sum;
    let norm_error =
        (squares_error + squares * depth + sum * sum * (2.0 * sum_error + u2)) / square / 2.0 + u2 + root;
    // The denominator's error is at most the larger of its terms' (and one addition).
    let [at_others, at_label] = [others_top, z[label]].map(|z| exp_error(z, top));
    let denominator = (at_others + sum_error + u2).max(at_label) + u2;
    let share_error = at_others + denominator + quotient;
    let share = (others_top - top).exp() / z.iter().map(|z| (z - top).exp()).sum::<f64>();

    let scale_error = if kernel.unit { norm_error + quotient } else { share_error };
    let of = |c: usize| {
        let value = if kernel.unit { unit_gradient(z, label, others_top)[c] } else { exact[c] };
        let factor = if c == label { sum_error } else { exp_error(z[c], others_top) };
        let relative = factor + scale_error + u2;
        assert!(relative < 0.01, "products of errors are neglected");
        Want { value, bound: 1.02 * relative * value.abs() + FLUSHED * (2.0 + sum) }
    };
    let own_error = at_label + denominator + quotient + u2;
    let weight = match kernel.labels {
        Labels::Given => Want::exact(weight),
        Labels::Each { .. } => {
            Want { value: weight * p[label], bound: 1.02 * own_error * p[label] + 2.0 * FLUSHED }
        }
    };
    let length_error = share_error + norm_error + u2;
    let norm_sq = Want {
        value: exact_norm_sq,
        bound: 1.02 * (2.0 * length_error + u2) * exact_norm_sq + FLUSHED * (1.0 + 2.0 * share * square),
    };
    Wants { gradient: (0..z.len()).map(of).collect(), weight, norm_sq }
}

/// The gradient's direction by its definition, in units in which it cannot vanish.
fn unit_gradient(z: &[f64], label: usize, others_top: f64) -> Vec<f64> {
    let mut direction: Vec<f64> = z.iter().map(|z| (z - others_top).exp()).collect();
    direction[label] = 0.0;
    direction[label] = -direction.iter().sum::<f64>();
    let norm = direction.iter().map(|g| g * g).sum::<f64>().sqrt();
    direction.iter().map(|g| g / norm).collect()
}
