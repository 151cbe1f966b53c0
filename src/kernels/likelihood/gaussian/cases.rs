//! The cases, and what the definition says of them.

use super::{Gaussian, GaussianParams, Targets};
use crate::kernel::{Bench, Case, CaseBuffer, Checked, FLUSHED, Fill, Want, noise};
use crate::kernels::likelihood::{FAULTS, LANES, halves, joined};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Gaussian {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        let shapes = [(0, 3), (1, 1), (3, 2), (2, 63), (5, 64), (4, 65), (2, 1001)];
        for output in DType::ALL {
            for goal in DType::ALL {
                let kernel = Self { output, goal, targets: Targets::Given, unit: output == goal };
                cases.extend(shapes.map(|(samples, outputs)| given(kernel, (samples, outputs), 1.0)));
            }
        }
        let plain = Self { output: DType::F32, goal: DType::F32, targets: Targets::Given, unit: false };
        for unit in [false, true] {
            let kernel = Self { unit, ..plain };
            cases.extend([1e-30, 1e18].map(|scale| given(kernel, (3, 70), scale)));
            cases.push(given(kernel, (66_000, 1), 1.0));
            cases.extend(faulty(kernel));
        }
        for (samples, outputs) in shapes {
            cases.push(drawn(Self { targets: Targets::Drawn, ..plain }, (3, samples, outputs), 7));
            cases.push(each(Self { targets: Targets::Each, ..plain }, (outputs.min(4), samples, outputs)));
        }
        let drawing = Self { targets: Targets::Drawn, ..plain };
        cases.push(drawn(drawing, (2, 5, 9), u64::from(u32::MAX) - 1));
        cases.push(drawn(Self { unit: true, ..drawing }, (2, 5, 9), u64::MAX - 1));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        const OUTPUTS: u32 = 1000;
        let samples = u32::try_from(elements / u64::from(OUTPUTS)).unwrap_or(1 << 21).clamp(1, 1 << 21);
        let rows = u64::from(samples);
        let elements = rows * u64::from(OUTPUTS);
        let targets = Targets::Drawn;
        Bench {
            name: format!("{samples} samples of {OUTPUTS} outputs, drawn"),
            kernel: Self { output: DType::F32, goal: DType::F32, targets, unit: false },
            params: params((1, samples, OUTPUTS), 0),
            buffers: vec![
                (DType::F32.into(), 1, Fill::Zero),
                (DType::F32.into(), 1, Fill::Zero),
                (DType::F32.into(), elements, Fill::Zero),
                (DType::F32.into(), rows, Fill::Zero),
                (DType::F32.into(), rows, Fill::Zero),
                (Element::U32, FAULTS, Fill::Zero),
            ],
        }
    }
}

const SEED: u64 = 0xfeed_0123_4567_89ab;
const WEIGHT: f32 = 0.5;

fn params((rounds, samples, outputs): (u32, u32, u32), first_sample: u64) -> GaussianParams {
    let (first_sample_low, first_sample_high) = halves(first_sample);
    let (seed_low, seed_high) = halves(SEED);
    GaussianParams {
        samples,
        outputs,
        rounds,
        first_round: 0,
        first_sample_low,
        first_sample_high,
        seed_low,
        seed_high,
        weight: WEIGHT,
    }
}

/// Residuals of about this size. The second sample's is zero.
fn given(kernel: Gaussian, (samples, outputs): (u32, u32), scale: f64) -> Case<Gaussian> {
    let len = samples as usize * outputs as usize;
    let near = |seed: u64| -> Vec<f64> { noise(seed, len).iter().map(|v| scale * v).collect() };
    let (mut z, mut y) = (near(41), near(42));
    let second = outputs as usize..2 * outputs as usize;
    if samples > 1 {
        z[second.clone()].fill(0.5);
        y[second].fill(0.5);
    }
    let (z, y) = (CaseBuffer::floats(kernel.output, &z), CaseBuffer::floats(kernel.goal, &y));
    let residuals: Vec<f64> = z.values().iter().zip(y.values()).map(|(z, y)| z - y).collect();
    let name = format!("{kernel:?} n={samples} c={outputs} of {scale:e}");
    finish(
        kernel,
        name,
        params((1, samples, outputs), 0),
        (z, y),
        &residuals,
        2.0 * DType::F32.unit_roundoff(),
    )
}

fn drawn(kernel: Gaussian, (rounds, samples, outputs): (u32, u32, u32), first_sample: u64) -> Case<Gaussian> {
    let mut noises = Vec::new();
    for round in 0..rounds {
        for sample in 0..samples {
            let (low, high) = halves(first_sample.wrapping_add(sample.into()));
            for c in 0..outputs {
                let (seed_low, seed_high) = halves(SEED);
                let bits = reference::likelihood::philox([low, high, round, c / 2], [seed_low, seed_high]);
                let pair = (c % 2) as usize * 2;
                noises.push(reference::likelihood::noise(joined(bits[pair], bits[pair + 1])));
            }
        }
    }
    let name = format!("{kernel:?} r={rounds} n={samples} c={outputs} from sample {first_sample}");
    let unused = || CaseBuffer::words(&[0]);
    finish(kernel, name, params((rounds, samples, outputs), first_sample), (unused(), unused()), &noises, 0.0)
}

fn each(kernel: Gaussian, (rounds, samples, outputs): (u32, u32, u32)) -> Case<Gaussian> {
    let of = |round: u32| (0..samples * outputs).map(move |i| f64::from(u8::from(i % outputs == round)));
    let directions: Vec<f64> = (0..rounds).flat_map(of).collect();
    let name = format!("{kernel:?} r={rounds} n={samples} c={outputs}");
    let unused = || CaseBuffer::words(&[0]);
    finish(kernel, name, params((rounds, samples, outputs), 0), (unused(), unused()), &directions, 0.0)
}

/// Outputs and targets that are not finite. The first of each kind is reported; the output's where both are wrong.
fn faulty(kernel: Gaussian) -> Vec<Case<Gaussian>> {
    let of = |name: &str, z: f64, y: f64, word: usize| {
        let mut case = given(kernel, (5, 4), 1.0);
        for (buffer, value) in [(0, z), (1, y)] {
            let mut values = case.buffers[buffer].values();
            (values[9], values[13]) = (value, value);
            case.buffers[buffer] = CaseBuffer::floats(DType::F32, &values);
        }
        for (buffer, width) in [(0, 4), (1, 1), (2, 1)] {
            for (i, want) in case.want[buffer].1.iter_mut().enumerate() {
                *want = if [2, 3].contains(&(i / width)) { Want::exact(f64::NAN) } else { *want };
            }
        }
        case.want[3].1[word] = Want::exact((!2_u32).into());
        case.name = format!("{kernel:?} faulty: {name}");
        case
    };
    let infinity = f64::INFINITY;
    vec![
        of("NaN", f64::NAN, 0.0, 0),
        of("both infinite", infinity, infinity, 0),
        of("infinite target", 0.0, -infinity, 1),
        of("too far", 3e38, -3e38, 0),
    ]
}

/// The step over rows of residuals that are off by a relative `error`.
fn finish(
    kernel: Gaussian,
    name: String,
    params: GaussianParams,
    (z, y): (CaseBuffer, CaseBuffer),
    residuals: &[f64],
    error: f64,
) -> Case<Gaussian> {
    let [mut gradient, mut weight, mut norm_sq] = [Vec::new(), Vec::new(), Vec::new()];
    for row in residuals.chunks(params.outputs as usize) {
        let (gradients, square) = wanted(row, kernel.unit, error);
        let none = row.iter().all(|g| *g == 0.0);
        weight.push(Want::exact(if kernel.unit && none { 0.0 } else { WEIGHT.into() }));
        gradient.extend(gradients);
        norm_sq.push(square);
    }
    let sentinel = |len: usize| CaseBuffer::sentinel(DType::F32, len);
    Case {
        name,
        kernel,
        params,
        buffers: vec![
            z,
            y,
            sentinel(gradient.len()),
            sentinel(weight.len()),
            sentinel(norm_sq.len()),
            CaseBuffer::words(&[0; FAULTS as usize]),
        ],
        want: vec![(2, gradient), (3, weight), (4, norm_sq), (5, vec![Want::exact(0.0); FAULTS as usize])],
    }
}

/// Bounds: a quotient is good to 2.5 units in the last place, a root to 4.5, a sum to its depth. A residual is off by
/// `error`, a norm by half of what its square is, whatever the magnitudes: the largest element is the unit.
fn wanted(residuals: &[f64], unit: bool, error: f64) -> (Vec<Want>, Want) {
    let u2 = 2.0 * DType::F32.unit_roundoff();
    let (quotient, root) = (2.5 * u2, 4.5 * u2);
    let depth = u2 * (residuals.len() as f64 / f64::from(LANES) + 7.0);
    let square: f64 = residuals.iter().map(|g| g * g).sum();
    let norm = square.sqrt();
    // A part is off by its own error and the unit's; parts below the normal numbers are lost against the largest.
    let norm_error =
        (2.0 * (2.0 * error + quotient) + u2 + depth) / 2.0 + root + residuals.len() as f64 * FLUSHED;
    let of = |&g: &f64| {
        if !unit {
            return Want {
                value: g,
                bound: 1.01 * error * g.abs() + if error > 0.0 { FLUSHED } else { 0.0 },
            };
        }
        let value = if norm == 0.0 { 0.0 } else { g / norm };
        let relative = error + norm_error + 2.0 * quotient + error;
        Want { value, bound: 1.01 * relative * value.abs() + if norm == 0.0 { 0.0 } else { 2.0 * FLUSHED } }
    };
    let length_error = norm_error + error + u2;
    let bound = 1.01 * (2.0 * length_error + u2) * square + if square == 0.0 { 0.0 } else { FLUSHED };
    (residuals.iter().map(of).collect(), Want { value: square, bound })
}
