//! The cases, and what the definition says of them.

use super::{SumSq, SumSqParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill};
use crate::kernels::fisher::Mode;
use crate::kernels::fisher::cases::{self, Numbers};
use crate::reference;
use crate::shape::DType;

/// Samples, fold, positions, outputs.
type Shape = (usize, usize, usize, usize);

/// Around the edges of a workgroup's outputs (32, 256) and lanes (8, 64), of one and none.
const SHAPES: [Shape; 14] = [
    (0, 1, 3, 4),
    (2, 1, 0, 4),
    (1, 1, 1, 1),
    (3, 1, 1, 33),
    (3, 1, 7, 31),
    (2, 1, 8, 32),
    (3, 1, 9, 255),
    (2, 1, 63, 256),
    (2, 1, 65, 257),
    (40, 1, 3, 5),
    (7, 3, 5, 11),
    (5, 5, 2, 6),
    (2, 1, 2050, 3),
    (1, 1, 1, 2_200_003),
];

impl Checked for SumSq {
    fn cases() -> Vec<Case<Self>> {
        let mut out = Vec::new();
        for lanes in [1, 8, 64] {
            for channels_first in [false, true] {
                let kernel = plain(lanes, channels_first);
                let small = &SHAPES[..SHAPES.len() - 1];
                out.extend(small.iter().map(|&shape| case(kernel, shape, Numbers::OVERWRITE, None)));
                for numbers in [Numbers::ADD, Numbers::EMA, Numbers::SCALED] {
                    out.push(case(kernel, (4, 1, 5, 37), numbers, None));
                }
                out.push(case(kernel, (9, 2, 5, 37), Numbers::ADD, Some((1, 3))));
                for mode in [Mode::Gradients, Mode::Each] {
                    let kernel = Self { mode, ..kernel };
                    for shape in [SHAPES[0], SHAPES[1], SHAPES[6], SHAPES[8], SHAPES[10]] {
                        out.push(case(kernel, shape, Numbers::OVERWRITE, None));
                    }
                    out.push(case(kernel, (9, 2, 5, 37), Numbers::ADD, Some((1, 3))));
                    out.push(case(kernel, (4, 1, 5, 37), Numbers::SCALED, None));
                }
                for grad_output in [DType::F16, DType::BF16] {
                    out.push(case(Self { grad_output, ..kernel }, (3, 1, 19, 37), Numbers::ADD, None));
                }
            }
        }
        for octets in [1, 2, 4, 8] {
            let kernel = Self { octets, ..plain(1, false) };
            for outputs in [8, 56, 64, 72, 128, 200, 256, 264, 512, 520] {
                out.push(case(kernel, (3, 1, 5, outputs), Numbers::OVERWRITE, None));
                out.push(case(kernel, (9, 2, 3, outputs), Numbers::ADD, Some((1, 3))));
                for mode in [Mode::Gradients, Mode::Each] {
                    out.push(case(Self { mode, ..kernel }, (9, 2, 3, outputs), Numbers::EMA, Some((1, 3))));
                }
            }
            for grad_output in [DType::F16, DType::BF16] {
                out.push(case(Self { grad_output, ..kernel }, (3, 1, 19, 40), Numbers::SCALED, None));
            }
            for shape in [(0, 1, 3, 8), (2, 1, 0, 8)] {
                out.push(case(kernel, shape, Numbers::OVERWRITE, None));
            }
        }
        // More than one row of workgroups.
        let kernel = plain(8, false);
        out.push(case(kernel, SHAPES[SHAPES.len() - 1], Numbers::OVERWRITE, None));
        out
    }

    fn bench(elements: u64) -> Bench<Self> {
        let samples = elements / u64::from(LAYER_POSITIONS * LAYER_OUTPUTS);
        layer(&Caps::host(), u32::try_from(samples).unwrap_or(u32::MAX).max(1))
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [1, 16, 64, 256, 1024].map(|samples| layer(caps, samples)).into()
    }
}

/// Of a bench's samples.
const LAYER_POSITIONS: u32 = 64;
const LAYER_OUTPUTS: u32 = 1024;

fn layer(caps: &Caps, samples: u32) -> Bench<SumSq> {
    let lanes = SumSq::lanes(caps, false, LAYER_POSITIONS.into());
    let octets = SumSq::octets(caps, false, LAYER_OUTPUTS, LAYER_POSITIONS.into());
    let shape = (samples as usize, 1, LAYER_POSITIONS as usize, LAYER_OUTPUTS as usize);
    Bench {
        name: format!("n={samples} t={LAYER_POSITIONS} o={LAYER_OUTPUTS} f32"),
        kernel: SumSq { overwrite: true, octets, ..plain(lanes, false) },
        params: whole(shape, Numbers::OVERWRITE),
        buffers: vec![
            (DType::F32.into(), u64::from(samples) * u64::from(LAYER_POSITIONS * LAYER_OUTPUTS), Fill::Noise),
            (DType::F32.into(), samples.into(), Fill::Positive),
            (DType::F32.into(), LAYER_OUTPUTS.into(), Fill::Zero),
        ],
    }
}

fn plain(lanes: u32, channels_first: bool) -> SumSq {
    SumSq { mode: Mode::Squares, lanes, grad_output: DType::F32, channels_first, overwrite: false, octets: 0 }
}

fn whole((samples, fold, positions, outputs): Shape, numbers: Numbers) -> SumSqParams {
    let [samples, fold, positions, outputs] =
        [samples, fold, positions, outputs].map(|x| u32::try_from(x).expect("cases are small"));
    SumSqParams {
        samples,
        fold,
        first: 0,
        count: samples.div_ceil(fold),
        positions,
        outputs,
        decay: numbers.decay,
        gain: numbers.gain,
        gradient_scale: numbers.gradient_scale,
    }
}

/// `range`: the first square, their number.
fn case(kernel: SumSq, shape: Shape, numbers: Numbers, range: Option<(u32, u32)>) -> Case<SumSq> {
    let (samples, fold, positions, outputs) = shape;
    let kernel = SumSq { overwrite: numbers.overwrite, ..kernel };
    let mut params = whole(shape, numbers);
    if let Some((first, count)) = range {
        params = SumSqParams { first, count, ..params };
    }
    let of_sample = positions * outputs;
    let grad_output = CaseBuffer::floats(kernel.grad_output, &numbers.grad_output(samples * of_sample));
    let weight = CaseBuffer::floats(DType::F32, &cases::weights(samples.div_ceil(fold), kernel.mode));
    let out = match kernel.mode {
        Mode::Each => numbers.out(samples.div_ceil(fold) * outputs),
        _ => numbers.out(outputs),
    };
    let (b, old) = (grad_output.values(), out.values());
    let squares = params.first as usize..(params.first + params.count) as usize;
    let gradients = |b: &[f64]| {
        let all = cases::gradients(samples, fold, |n| {
            reference::fisher::bias(
                &b[n * of_sample..][..of_sample],
                positions,
                outputs,
                kernel.channels_first,
            )
        });
        all[squares.clone()].to_vec()
    };
    let weights = &weight.values()[squares.clone()];
    let magnitudes = gradients(&cases::abs(&b));
    let covered = cases::Covered { first: params.first as usize, elements: 0..outputs };
    let formed = cases::Formed {
        gradients: &gradients(&b),
        magnitudes: &magnitudes,
        added: &[],
        terms: fold * positions,
    };
    let want = cases::wanted(kernel.mode, numbers, &covered, formed, weights, &old);
    Case {
        name: format!("{kernel:?} n,fold,t,o={shape:?} range={range:?} scale={:e}", numbers.gradient_scale),
        kernel,
        params,
        buffers: vec![grad_output, weight, out],
        want: vec![(2, want)],
    }
}
