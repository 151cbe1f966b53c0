//! The cases, and what the definition says of them.

use super::{LinearSqShared, LinearSqSharedParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::fisher::Mode;
use crate::kernels::fisher::cases::{self, Numbers};
use crate::kernels::fisher::form::{Form, Loads};
use crate::reference;
use crate::shape::DType;

/// Samples, fold, positions, inputs, outputs.
type Shape = (usize, usize, usize, usize, usize);

/// Around the edges of tiles (8, 64, 128), of the depth in workgroup memory (8), of the host's register tiles (6 rows),
/// of its tiles
/// (258 × 512) and its blocks (128 positions), of one and none.
const SHAPES: [Shape; 18] = [
    (0, 1, 3, 5, 4),
    (2, 1, 0, 5, 4),
    (1, 1, 1, 1, 1),
    (1, 1, 9, 7, 1),
    (3, 1, 1, 1, 9),
    (3, 1, 4, 5, 3),
    (3, 1, 8, 3, 2),
    (3, 1, 24, 5, 3),
    (2, 1, 7, 63, 8),
    (2, 1, 8, 64, 7),
    (2, 1, 9, 65, 63),
    (2, 1, 3, 127, 65),
    (1, 1, 2, 257, 129),
    (2, 1, 2, 513, 259),
    (3, 1, 129, 17, 6),
    (40, 1, 3, 9, 5),
    (7, 3, 5, 11, 13),
    (5, 5, 2, 6, 10),
];

/// Around the edges of matrices (8, 16) and tiles of them (32, 64), along each of the three axes.
const MATRIX_SHAPES: [Shape; 13] = [
    (0, 1, 3, 5, 4),
    (2, 1, 0, 5, 4),
    (1, 1, 1, 1, 1),
    (3, 1, 4, 5, 3),
    (2, 1, 7, 31, 8),
    (2, 1, 8, 32, 17),
    (2, 1, 9, 33, 31),
    (2, 1, 15, 63, 33),
    (2, 1, 16, 64, 65),
    (2, 1, 17, 65, 63),
    (2, 1, 130, 127, 9),
    (40, 1, 3, 9, 5),
    (7, 3, 5, 11, 13),
];

impl Checked for LinearSqShared {
    fn cases() -> Vec<Case<Self>> {
        let mut out: Vec<_> = cases::FORMS.into_iter().flat_map(|form| in_form(form, &SHAPES)).collect();
        out.extend(cases::MATRIX_FORMS.into_iter().flat_map(|form| in_form(form, &MATRIX_SHAPES)));
        out.extend(cases::FORMS.into_iter().chain(cases::MATRIX_FORMS).flat_map(not_finite));
        out.extend(cases::MATRIX_FORMS.into_iter().flat_map(far_apart));
        out.extend([Loads::Own, Loads::Shared].into_iter().flat_map(in_octets));
        // More positions than one product of the host takes, and more than one row of workgroups.
        let kernel = plain(Form::Direct);
        out.push(case(kernel, (2, 1, 1030, 5, 3), Numbers::OVERWRITE, None));
        out.push(case(kernel, (1, 1, 1, 2048, 2050), Numbers::OVERWRITE, None));
        out
    }

    fn bench(elements: u64) -> Bench<Self> {
        let width = usize::try_from(elements.isqrt()).unwrap_or(usize::MAX).clamp(16, 1024);
        layer(&Caps::host(), (32, 1, 128, width, width))
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [(8, 1, 16, 128, 128), (32, 1, 128, 512, 512), (16, 1, 64, 1024, 1024)]
            .map(|shape| layer(caps, shape))
            .into()
    }
}

/// Every size, number, range, storage type and mode.
fn in_form(form: Form, shapes: &[Shape]) -> Vec<Case<LinearSqShared>> {
    let kernel = plain(form);
    let mut out: Vec<_> = shapes.iter().map(|&shape| case(kernel, shape, Numbers::OVERWRITE, None)).collect();
    for numbers in [Numbers::ADD, Numbers::EMA, Numbers::SCALED] {
        out.push(case(kernel, (3, 1, 5, 13, 11), numbers, None));
    }
    for mode in [Mode::Squares, Mode::Gradients] {
        let kernel = LinearSqShared { mode, ..kernel };
        let range = case(kernel, (9, 2, 5, 13, 21), Numbers::ADD, Some([1, 3, 8, 9]));
        let mut held = cases::held(range.clone(), 7 * 13..19 * 13);
        held.params.out_first = 7;
        out.extend([range, held]);
    }
    for input in DType::ALL {
        for grad_output in DType::ALL {
            let kernel = LinearSqShared { input, grad_output, ..kernel };
            out.push(case(kernel, (2, 1, 3, 67, 9), Numbers::ADD, None));
        }
    }
    out.extend([Mode::Gradients, Mode::Each].into_iter().flat_map(|mode| unsquared(kernel, mode)));
    out.extend(exact(kernel));
    out
}

/// Gradients that are summed or stored, not squared.
fn unsquared(kernel: LinearSqShared, mode: Mode) -> Vec<Case<LinearSqShared>> {
    let kernel = LinearSqShared { mode, ..kernel };
    let [a, b, c, d, e, f] = [16, 0, 1, 5, 10, 14].map(|index: usize| SHAPES[index]);
    let shapes = [(150, 1, 1, 7, 9), a, b, c, d, e, f, (2, 1, 9, 129, 257)];
    let mut out: Vec<_> = shapes.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)).into();
    out.push(case(kernel, (3, 1, 5, 13, 11), Numbers::SCALED, None));
    out.push(case(kernel, (9, 2, 5, 13, 21), Numbers::ADD, Some([1, 3, 8, 9])));
    let kernel = LinearSqShared { input: DType::BF16, grad_output: DType::F16, ..kernel };
    out.push(case(kernel, (2, 1, 3, 67, 9), Numbers::EMA, None));
    out
}

/// Widths and first outputs in multiples of eight.
fn in_octets(loads: Loads) -> Vec<Case<LinearSqShared>> {
    let kernel = plain(Form::Octets(loads));
    let shapes = [(3, 1, 5, 8, 8), (2, 1, 9, 64, 16), (3, 1, 2, 72, 24), (7, 3, 5, 136, 40), (0, 1, 3, 8, 8)];
    let mut out: Vec<_> = shapes.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)).into();
    for mode in [Mode::Squares, Mode::Gradients, Mode::Each] {
        let kernel = LinearSqShared { mode, ..kernel };
        out.push(case(kernel, (9, 2, 5, 24, 32), Numbers::ADD, Some([1, 3, 8, 16])));
    }
    for input in DType::ALL {
        for grad_output in DType::ALL {
            let kernel = LinearSqShared { input, grad_output, ..kernel };
            out.push(case(kernel, (2, 1, 3, 72, 24), Numbers::SCALED, None));
        }
    }
    out
}

fn layer(caps: &Caps, (samples, fold, positions, inputs, outputs): Shape) -> Bench<LinearSqShared> {
    let form = cases::form(caps, outputs, inputs).for_matrix_units(caps);
    let floats = |len: usize, fill| (DType::F32.into(), len as u64, fill);
    Bench {
        name: format!("n={samples} t={positions} {outputs}x{inputs} f32"),
        kernel: LinearSqShared { overwrite: true, ..plain(form) },
        params: whole((samples, fold, positions, inputs, outputs), Numbers::OVERWRITE),
        buffers: vec![
            floats(samples * positions * inputs, Fill::Noise),
            floats(samples * positions * outputs, Fill::Noise),
            floats(samples, Fill::Positive),
            floats(outputs * inputs, Fill::Zero),
        ],
    }
}

fn plain(form: Form) -> LinearSqShared {
    let mode = Mode::Squares;
    LinearSqShared { form, mode, input: DType::F32, grad_output: DType::F32, overwrite: false }
}

fn whole((samples, fold, positions, inputs, outputs): Shape, numbers: Numbers) -> LinearSqSharedParams {
    let [samples, fold, positions, inputs, outputs] =
        [samples, fold, positions, inputs, outputs].map(|x| u32::try_from(x).expect("cases are small"));
    LinearSqSharedParams {
        samples,
        fold,
        first: 0,
        count: samples.div_ceil(fold),
        positions,
        inputs,
        outputs,
        first_output: 0,
        output_count: outputs,
        out_first: 0,
        decay: numbers.decay,
        gain: numbers.gain,
        gradient_scale: numbers.gradient_scale,
    }
}

/// `range`: the first square, their number, the first output, their number.
fn case(
    kernel: LinearSqShared,
    shape: Shape,
    numbers: Numbers,
    range: Option<[u32; 4]>,
) -> Case<LinearSqShared> {
    let (samples, _, positions, inputs, outputs) = shape;
    let a = noise(1, samples * positions * inputs);
    let b = numbers.grad_output(samples * positions * outputs);
    case_of(kernel, shape, numbers, range, (a, b))
}

/// The same of these inputs and gradients.
fn case_of(
    kernel: LinearSqShared,
    shape: Shape,
    numbers: Numbers,
    range: Option<[u32; 4]>,
    (a, b): (Vec<f64>, Vec<f64>),
) -> Case<LinearSqShared> {
    let (samples, fold, positions, inputs, outputs) = shape;
    let kernel = LinearSqShared { overwrite: numbers.overwrite, ..kernel };
    let mut params = whole(shape, numbers);
    if let Some([first, count, first_output, output_count]) = range {
        params = LinearSqSharedParams { first, count, first_output, output_count, ..params };
    }
    let input = CaseBuffer::floats(kernel.input, &a);
    let grad_output = CaseBuffer::floats(kernel.grad_output, &b);
    let weight = CaseBuffer::floats(DType::F32, &cases::weights(samples.div_ceil(fold), kernel.mode));
    let out = match kernel.mode {
        Mode::Each => numbers.out(samples.div_ceil(fold) * params.output_count as usize * inputs),
        _ => numbers.out(outputs * inputs),
    };
    let (a, b, old) = (input.values(), grad_output.values(), out.values());
    let gradients = |a: &[f64], b: &[f64]| {
        let mut all = cases::gradients(samples, fold, |n| {
            let a = &a[n * positions * inputs..][..positions * inputs];
            let b = &b[n * positions * outputs..][..positions * outputs];
            reference::fisher::linear(a, b, positions, inputs, outputs)
        });
        all.drain(..params.first as usize);
        all.truncate(params.count as usize);
        all
    };
    let weights = &weight.values()[params.first as usize..][..params.count as usize];
    let magnitudes = gradients(&cases::abs(&a), &cases::abs(&b));
    let first = params.first_output as usize * inputs;
    let elements = first..first + params.output_count as usize * inputs;
    let covered = cases::Covered { first: params.first as usize, elements };
    let tops = gradients(&cases::tops(&a, |index| index % inputs), &cases::tops(&b, |index| index % outputs));
    let formed = cases::Formed {
        gradients: &gradients(&a, &b),
        added: &cases::added(kernel.form, &magnitudes, &tops, fold * positions),
        magnitudes: &magnitudes,
        terms: fold * positions,
    };
    let want = cases::wanted(kernel.mode, numbers, &covered, formed, weights, &old);
    Case {
        name: format!("{kernel:?} n,fold,t,i,o={shape:?} range={range:?} scale={:e}", numbers.gradient_scale),
        kernel,
        params,
        buffers: vec![input, grad_output, weight, out],
        want: vec![(3, want)],
    }
}

/// What is not finite reaches every element that it meets, and no other: in one square of two, in a row and a column.
fn not_finite(form: Form) -> Vec<Case<LinearSqShared>> {
    let shape = |positions| (2, 1, positions, 35, 34);
    let one = |positions: usize, value: f64, mode: Mode| {
        let (mut a, mut b) = (noise(1, 2 * positions * 35), noise(2, 2 * positions * 34));
        a[positions * 35 - 2] = value;
        b[positions * 34 + 3] = value;
        let kernel = LinearSqShared { mode, ..plain(form) };
        let case = case_of(kernel, shape(positions), Numbers::OVERWRITE, None, (a, b));
        Case { name: format!("{} {value}", case.name), ..case }
    };
    // At one position an infinite factor gives an infinite product, at more it may give a NaN.
    vec![
        one(3, f64::NAN, Mode::Squares),
        one(9, f64::NAN, Mode::Gradients),
        one(1, f64::INFINITY, Mode::Squares),
    ]
}

/// Rows and columns, and positions of each, whose magnitudes are far from each other and from 1.
fn far_apart(form: Form) -> Vec<Case<LinearSqShared>> {
    let shape @ (samples, _, positions, inputs, outputs) = (2, 1, 19, 37, 35);
    let scaled = |seed: u64, width: usize, exponent: &dyn Fn(usize, usize) -> usize, by: i32| -> Vec<f64> {
        let power = |index: usize| {
            let power = exponent(index / width % positions, index % width);
            2.0_f64.powi(i32::try_from(power).expect("cases are small") - by)
        };
        let values = noise(seed, samples * positions * width);
        values.iter().enumerate().map(|(index, value)| value * power(index)).collect()
    };
    // Products are small powers of two, factors are not.
    let rows =
        (scaled(1, inputs, &|_, column| column, -75), scaled(2, outputs, &|_, row| outputs - row, 110));
    // Each position is half the one before.
    let before = |position: usize, _| positions - position;
    let positions = (scaled(1, inputs, &before, 19), scaled(2, outputs, &before, 19));
    let case = |what: &str, mode: Mode, values: &(Vec<f64>, Vec<f64>)| {
        let kernel = LinearSqShared { mode, ..plain(form) };
        let case = case_of(kernel, shape, Numbers::OVERWRITE, None, values.clone());
        Case { name: format!("{} far apart: {what}", case.name), ..case }
    };
    [Mode::Squares, Mode::Gradients]
        .into_iter()
        .flat_map(|mode| [case("rows", mode, &rows), case("positions", mode, &positions)])
        .collect()
}

/// Small integers, where nothing is rounded: opposite positions cancel before the square, one sample is its square.
fn exact(kernel: LinearSqShared) -> Vec<Case<LinearSqShared>> {
    let guard = |shape: Shape, input: &[f64], grad_output: &[f64], want: &[f64]| {
        let (samples, fold, ..) = shape;
        Case {
            name: format!("{kernel:?} exact a={input:?} b={grad_output:?} fold={fold}"),
            kernel: LinearSqShared { overwrite: true, ..kernel },
            params: whole(shape, Numbers::OVERWRITE),
            buffers: vec![
                CaseBuffer::floats(kernel.input, input),
                CaseBuffer::floats(kernel.grad_output, grad_output),
                CaseBuffer::floats(DType::F32, &vec![1.0; samples.div_ceil(fold)]),
                CaseBuffer::sentinel(DType::F32, want.len()),
            ],
            want: vec![(3, want.iter().map(|&v| Want::exact(v)).collect())],
        }
    };
    vec![
        guard((1, 1, 2, 1, 1), &[1.0, 1.0], &[1.0, -1.0], &[0.0]),
        guard((2, 1, 1, 1, 1), &[1.0, 1.0], &[1.0, -1.0], &[2.0]),
        guard((2, 2, 1, 1, 1), &[1.0, 1.0], &[1.0, -1.0], &[0.0]),
        guard((1, 1, 2, 2, 2), &[1.0, 2.0, 3.0, -4.0], &[5.0, -1.0, 2.0, 3.0], &[121.0, 4.0, 64.0, 196.0]),
    ]
}
