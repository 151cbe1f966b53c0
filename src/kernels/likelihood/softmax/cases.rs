//! The cases, and what the definition says of them.

use super::{Labels, Softmax, SoftmaxParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, FLUSHED, Fill, Want, noise};
use crate::kernels::BENCHED;
use crate::kernels::likelihood::{FAULTS, LANES};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

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

/// What the definition says of a row, and how far off its parts may be; see [`Errors`].
fn wanted(kernel: Softmax, z: &[f64], label: usize) -> Wants {
    let weight = f64::from(WEIGHT);
    let others = z.iter().enumerate().filter(|(c, _)| *c != label).map(|(_, &z)| z);
    let others_top = others.fold(f64::NEG_INFINITY, f64::max);
    if others_top == f64::NEG_INFINITY {
        let counted = if kernel.unit { 0.0 } else { weight };
        return Wants {
            gradient: vec![Want::exact(0.0); z.len()],
            weight: Want::exact(counted),
            norm_sq: Want::exact(0.0),
        };
    }
    let p = reference::likelihood::softmax(z);
    let exact = reference::likelihood::cross_entropy(z, label);
    let exact_norm_sq: f64 = exact.iter().map(|g| g * g).sum();
    let errors = Errors::of(kernel, z, label, others_top);
    let of = |c: usize| {
        let value = if kernel.unit { unit_gradient(z, label, others_top)[c] } else { exact[c] };
        let factor = if c == label { errors.sum } else { exp_error(z[c], others_top) };
        let relative = factor + errors.scale + U2;
        assert!(relative < 0.01, "products of errors are neglected");
        Want { value, bound: 1.02 * relative * value.abs() + FLUSHED * (2.0 + errors.others) }
    };
    let weight = match kernel.labels {
        Labels::Given => Want::exact(weight),
        Labels::Each { .. } => {
            Want { value: weight * p[label], bound: 1.02 * errors.own * p[label] + 2.0 * FLUSHED }
        }
    };
    let bound = 1.02 * (2.0 * errors.length + U2) * exact_norm_sq + FLUSHED * (1.0 + errors.lost);
    let norm_sq = Want { value: exact_norm_sq, bound };
    Wants { gradient: (0..z.len()).map(of).collect(), weight, norm_sq }
}

/// A rounding, of which WGSL promises one unit in the last place; then what it promises of a quotient, and of a root
/// (as the inverse of an inverse root).
const U2: f64 = 2.0 * DType::F32.unit_roundoff();
const QUOTIENT: f64 = 2.5 * U2;
const ROOT: f64 = 4.5 * U2;

/// WGSL promises exp(x) to 3 + 2|x| units in the last place; the argument z − top is one rounding of itself.
fn exp_error(z: f64, top: f64) -> f64 {
    if z.is_finite() { U2 * (3.0 + 3.0 * (z - top).abs()) } else { 0.0 }
}

/// How far the parts of a row may be off, relative to themselves.
///
/// Relative errors add up along each product; sums add their depth: an octet's two fours, a lane's octets one after the
/// other, the four, and the steps of a tree. Each factor and product may be flushed where it is below the
/// normal numbers.
struct Errors {
    /// Of Σ e over the other classes, which is `others` itself.
    sum: f64,
    others: f64,
    /// Of what the classes' e are multiplied by.
    scale: f64,
    /// Of the label's probability.
    own: f64,
    /// Of the gradient's norm.
    length: f64,
    /// What flushing may take of the norm's square, in units of the least normal number.
    lost: f64,
}

impl Errors {
    fn of(kernel: Softmax, z: &[f64], label: usize, others_top: f64) -> Self {
        let all = || (0..z.len()).filter(|c| *c != label);
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e = |c: usize| (z[c] - others_top).exp();
        let octets = (z.len() / 8 + 2).div_ceil(kernel.lanes as usize);
        let depth = U2 * (octets as f64 + 3.0 + f64::from(kernel.lanes.ilog2()));
        let lost = z.len() as f64 * FLUSHED;
        let sum: f64 = all().map(e).sum();
        let sum_error = (all().map(|c| e(c) * exp_error(z[c], others_top)).sum::<f64>() + lost) / sum + depth;
        let squares: f64 = all().map(|c| e(c) * e(c)).sum();
        let squares_error =
            all().map(|c| e(c) * e(c) * (2.0 * exp_error(z[c], others_top) + U2)).sum::<f64>() + 3.0 * lost;
        let square = squares + sum * sum;
        let norm_error =
            (squares_error + squares * depth + sum * sum * (2.0 * sum_error + U2)) / square / 2.0 + U2 + ROOT;
        // The denominator's error is at most the larger of its terms' (and one addition).
        let [at_others, at_label] = [others_top, z[label]].map(|z| exp_error(z, top));
        let denominator = (at_others + sum_error + U2).max(at_label) + U2;
        let share_error = at_others + denominator + QUOTIENT;
        let share = (others_top - top).exp() / z.iter().map(|z| (z - top).exp()).sum::<f64>();
        Self {
            sum: sum_error,
            others: sum,
            scale: if kernel.unit { norm_error + QUOTIENT } else { share_error },
            own: at_label + denominator + QUOTIENT + U2,
            length: share_error + norm_error + U2,
            lost: 2.0 * share * square,
        }
    }
}

/// The gradient's direction by its definition, in units in which it cannot vanish.
fn unit_gradient(z: &[f64], label: usize, others_top: f64) -> Vec<f64> {
    let mut direction: Vec<f64> = z.iter().map(|z| (z - others_top).exp()).collect();
    direction[label] = 0.0;
    direction[label] = -direction.iter().sum::<f64>();
    let norm = direction.iter().map(|g| g * g).sum::<f64>().sqrt();
    direction.iter().map(|g| g / norm).collect()
}
