//! The cases, and what the definition says of them.

use super::{Draw, DrawParams};
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::likelihood::{FAULTS, halves};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Draw {
    fn cases() -> Vec<Case<Self>> {
        let plain = Sizes { samples: 5, classes: 10, draws: 3, first_draw: 0, first_sample: 0 };
        let mut cases = Vec::new();
        for logits in DType::ALL {
            let kernel = Self { logits, masked: false };
            for (samples, classes, draws) in [
                (0, 3, 2),
                (3, 4, 0),
                (1, 1, 1),
                (7, 2, 130),
                (4, 63, 5),
                (3, 64, 2),
                (9, 65, 3),
                (2, 1000, 66),
            ] {
                cases.push(case(kernel, Sizes { samples, classes, draws, ..plain }, 3.0, true));
            }
        }
        let kernel = Self { logits: DType::F32, masked: false };
        // Beyond one dimension of workgroups; beyond 2³² samples; late draws; nearly certain and nearly uniform rows.
        cases.push(case(kernel, Sizes { samples: 66_000, classes: 2, draws: 1, ..plain }, 2.0, true));
        cases.push(case(
            kernel,
            Sizes { first_sample: (1 << 32) - 2, first_draw: u32::MAX - 3, ..plain },
            3.0,
            true,
        ));
        cases.push(case(kernel, Sizes { first_sample: u64::MAX - 2, ..plain }, 30.0, true));
        cases.push(case(kernel, Sizes { classes: 5003, ..plain }, 0.5, true));
        cases.push(case(kernel, Sizes { samples: 40, draws: 20, ..plain }, 3.0, false));
        cases.push(masked());
        cases.extend(faulty());
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        const CLASSES: u32 = 1000;
        let samples = u32::try_from(elements / u64::from(CLASSES)).unwrap_or(1 << 21).clamp(1, 1 << 21);
        Bench {
            name: format!("{samples} samples of {CLASSES} classes, f32"),
            kernel: Self { logits: DType::F32, masked: false },
            params: Sizes { samples, classes: CLASSES, draws: 1, first_draw: 0, first_sample: 0 }.params(),
            buffers: vec![
                (DType::F32.into(), u64::from(samples) * u64::from(CLASSES), Fill::Noise),
                (Element::U32, 1, Fill::Zero),
                (Element::U32, samples.into(), Fill::Zero),
                (Element::U32, FAULTS, Fill::Zero),
            ],
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    samples: u32,
    classes: u32,
    draws: u32,
    first_draw: u32,
    first_sample: u64,
}

const SEED: u64 = 0x0123_4567_89ab_cdef;
const IGNORED: u32 = 0xffff_ff9c;

impl Sizes {
    fn params(self) -> DrawParams {
        let Self { samples, classes, draws, first_draw, first_sample } = self;
        let (first_sample_low, first_sample_high) = halves(first_sample);
        let (seed_low, seed_high) = halves(SEED);
        DrawParams {
            samples,
            classes,
            draws,
            first_draw,
            first_sample_low,
            first_sample_high,
            seed_low,
            seed_high,
            ignored: IGNORED,
        }
    }
}

/// With logits off the grid of 2⁻¹⁶, or on it, where nothing but the integers' last bits is between them and exact
/// arithmetic.
fn case(kernel: Draw, sizes: Sizes, spread: f64, on_grid: bool) -> Case<Draw> {
    let len = sizes.samples as usize * sizes.classes as usize;
    let place = |z: f64| if on_grid { (1024.0 * z).round() / 1024.0 } else { z };
    let mut values: Vec<f64> = noise(21, len).iter().map(|z| place(spread * z)).collect();
    // Every 7th class of every other sample cannot be.
    for (i, z) in values.iter_mut().enumerate() {
        let (n, c) = (i / sizes.classes as usize, i % sizes.classes as usize);
        if n % 2 == 1 && c % 7 == 6 {
            *z = f64::NEG_INFINITY;
        }
    }
    let logits = CaseBuffer::floats(kernel.logits, &values);
    let want = wanted(&logits.values(), sizes, on_grid);
    Case {
        name: format!("{kernel:?} {sizes:?} spread {spread}{}", if on_grid { "" } else { ", off the grid" }),
        kernel,
        params: sizes.params(),
        buffers: vec![
            logits,
            CaseBuffer::words(&[0]),
            CaseBuffer::sentinel(Element::U32, want.len()),
            CaseBuffer::words(&[0; 3]),
        ],
        want: vec![(2, want), (3, vec![Want::exact(0.0); 3])],
    }
}

/// The labels that exact arithmetic draws. Exact only where the bias of the integers cannot reach the next class, so
/// where it could the case is no case.
fn wanted(logits: &[f64], sizes: Sizes, on_grid: bool) -> Vec<Want> {
    let bias = 2.0_f64.powi(if on_grid { -25 } else { -16 }) + f64::from(sizes.classes) * 2.0_f64.powi(-32);
    let of = |r: u32, n: u32| {
        let (low, high) = halves(sizes.first_sample.wrapping_add(n.into()));
        let (seed_low, seed_high) = halves(SEED);
        let bits = reference::likelihood::philox([low, high, sizes.first_draw + r, 0], [seed_low, seed_high]);
        let uniform = (f64::from(bits[1]) + f64::from(bits[0]) * 2.0_f64.powi(-32)) * 2.0_f64.powi(-32);
        let classes = sizes.classes as usize;
        let row = &logits[n as usize * classes..][..classes];
        let class = reference::likelihood::draw(row, uniform);
        let near = [(uniform - bias).max(0.0), (uniform + bias).min(1.0 - f64::EPSILON)];
        let certain = near.iter().all(|&u| reference::likelihood::draw(row, u) == class);
        // A distance above half a class lets any neighbour pass: only where the definition itself is undecided.
        Want { value: class as f64, bound: if certain { 0.0 } else { classes as f64 } }
    };
    let want: Vec<Want> = (0..sizes.draws)
        .flat_map(|r| (0..sizes.samples).map(move |n| (r, n)))
        .map(|(r, n)| of(r, n))
        .collect();
    let undecided = want.iter().filter(|want| want.bound > 0.0).count();
    assert!(undecided * 20 <= want.len(), "{sizes:?}: {undecided} of {} draws decide nothing", want.len());
    want
}

/// Samples of the ignored label, one of which holds garbage.
fn masked() -> Case<Draw> {
    let sizes = Sizes { samples: 5, classes: 10, draws: 3, first_draw: 0, first_sample: 0 };
    let mut case = case(Draw { logits: DType::F32, masked: true }, sizes, 3.0, true);
    let mut values = case.buffers[0].values();
    values[10..20].fill(f64::NAN);
    case.buffers[0] = CaseBuffer::floats(DType::F32, &values);
    case.buffers[1] = CaseBuffer::words(&[0, IGNORED, 2, 3, IGNORED]);
    for row in case.want[0].1.chunks_mut(5) {
        (row[1], row[4]) = (Want::exact(IGNORED.into()), Want::exact(IGNORED.into()));
    }
    case.name = "masked".into();
    case
}

/// Rows from which nothing can be drawn. The first of each kind is told; the others are drawn for as ever.
fn faulty() -> Vec<Case<Draw>> {
    let sizes = Sizes { samples: 5, classes: 10, draws: 2, first_draw: 0, first_sample: 7 };
    let of = |name: &str, bad: &[f64], word: usize| {
        let mut case = case(Draw { logits: DType::F32, masked: false }, sizes, 3.0, true);
        let mut values = case.buffers[0].values();
        for row in [2, 4] {
            values[10 * row..10 * row + bad.len()].copy_from_slice(bad);
        }
        case.buffers[0] = CaseBuffer::floats(DType::F32, &values);
        for row in case.want[0].1.chunks_mut(5) {
            (row[2], row[4]) = (Want::exact(IGNORED.into()), Want::exact(IGNORED.into()));
        }
        case.want[1].1[word] = Want::exact((!2_u32).into());
        case.name = format!("faulty: {name}");
        case
    };
    vec![
        of("NaN", &[f64::NAN], 0),
        of("negative NaN", &[-f64::NAN], 0),
        of("infinity", &[f64::INFINITY], 0),
        of("no class", &[f64::NEG_INFINITY; 10], 0),
        of("too large", &[16_385.0], 2),
        of("too small", &[-16_385.0; 10], 2),
    ]
}
