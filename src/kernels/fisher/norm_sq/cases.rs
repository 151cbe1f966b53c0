//! The cases, and what the definition says of them.

use super::{NormLayout, NormSq, NormSqParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::fisher::{Mode, cases};
use crate::reference;
use crate::shape::DType;

const LAYOUTS: [NormLayout; 9] = [
    NormLayout::Last { positions: 1, channels: 1 },
    NormLayout::Last { positions: 13, channels: 31 },
    NormLayout::Last { positions: 9, channels: 257 },
    NormLayout::Last { positions: 0, channels: 3 },
    NormLayout::Group { channels: 12, positions: 35, groups: 3 },
    NormLayout::Group { channels: 6, positions: 300, groups: 6 },
    NormLayout::Group { channels: 70, positions: 1, groups: 1 },
    NormLayout::Batch { channels: 5, positions: 33 },
    NormLayout::Batch { channels: 300, positions: 1 },
];

/// `gradient_scale`, `decay` and `gain` of a step that overwrites.
const OVERWRITE: (f32, f32, f32) = (1.0, 0.0, 1.0);

impl Checked for NormSq {
    fn cases() -> Vec<Case<Self>> {
        let mut cases: Vec<_> = LAYOUTS.into_iter().flat_map(cases_of_layout).collect();
        cases.extend(cases_of_octets());
        cases.extend([Mode::Gradients, Mode::Each].into_iter().flat_map(cases_unsquared));
        for input in DType::ALL {
            for gradient in DType::ALL {
                for layout in [LAYOUTS[1], LAYOUTS[4]] {
                    let kernel = Self::new(&layout, Mode::Squares, input, gradient);
                    cases.push(case(kernel, layout, (3, 1), (2.0, 1.0, 0.25)));
                }
            }
        }
        let plain = |layout| Self::new(layout, Mode::Squares, DType::F32, DType::F32);
        cases.push(case(plain(&LAYOUTS[1]), LAYOUTS[1], (4, 1), (2.0_f32.powi(70), 0.0, 1.0)));
        cases.push(case(plain(&LAYOUTS[4]), LAYOUTS[4], (4, 1), (1.0, 0.9, 0.1)));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let samples = elements / u64::from(POSITIONS * CHANNELS);
        layer(&Caps::host(), u32::try_from(samples).unwrap_or(1 << 14).clamp(1, 1 << 14))
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [1, 8, 32, 128, 512].map(|samples| layer(caps, samples)).into()
    }
}

/// Every number of samples, in the form of GPUs and in that of software devices if it is another.
fn cases_of_layout(layout: NormLayout) -> Vec<Case<NormSq>> {
    let kernel = NormSq::new(&layout, Mode::Squares, DType::F32, DType::F32);
    let software = Some(kernel.for_device(&Caps::host(), &layout, 1)).filter(|software| *software != kernel);
    let mut cases = Vec::new();
    for samples in [(0, 1), (1, 1), (5, 1), (5, 2), (4, 4)] {
        cases.push(case(kernel, layout, samples, OVERWRITE));
        cases.extend(software.map(|software| case(software, layout, samples, OVERWRITE)));
    }
    cases
}

/// Gradients that are summed or stored, not squared.
fn cases_unsquared(mode: Mode) -> Vec<Case<NormSq>> {
    let mut cases = Vec::new();
    for layout in LAYOUTS {
        let kernel = NormSq::new(&layout, mode, DType::F32, DType::BF16);
        cases.extend([(0, 1), (5, 1), (5, 2)].map(|samples| case(kernel, layout, samples, OVERWRITE)));
    }
    let kernel = NormSq::new(&LAYOUTS[4], mode, DType::F16, DType::F32);
    cases.push(case(kernel, LAYOUTS[4], (3, 1), (2.0, 0.5, 0.25)));
    cases
}

/// Around a workgroup's 64, 128, 256 and 512 channels.
fn cases_of_octets() -> Vec<Case<NormSq>> {
    let mut cases = Vec::new();
    for octets in [1, 2, 4, 8] {
        for channels in [8, 56, 64, 72, 128, 200, 256, 264, 512, 520] {
            let layout = NormLayout::Last { positions: 5, channels };
            let kernel = NormSq { octets, ..NormSq::new(&layout, Mode::Squares, DType::F32, DType::F32) };
            for samples in [(1, 1), (5, 2)] {
                cases.push(case(kernel, layout, samples, (1.0, 0.0, 1.0)));
            }
            for mode in [Mode::Gradients, Mode::Each] {
                cases.push(case(NormSq { mode, ..kernel }, layout, (3, 1), (2.0, 0.5, 0.25)));
            }
        }
        let layout = NormLayout::Last { positions: 3, channels: 24 };
        for (input, gradient) in [(DType::F16, DType::BF16), (DType::BF16, DType::F16)] {
            let kernel = NormSq { octets, ..NormSq::new(&layout, Mode::Squares, input, gradient) };
            cases.push(case(kernel, layout, (4, 3), (2.0, 1.0, 0.25)));
        }
        let layout = NormLayout::Last { positions: 0, channels: 24 };
        let kernel = NormSq { octets, ..NormSq::new(&layout, Mode::Squares, DType::F32, DType::F32) };
        cases.push(case(kernel, layout, (2, 1), (1.0, 0.0, 1.0)));
    }
    cases
}

/// Of a bench's samples.
const POSITIONS: u32 = 128;
const CHANNELS: u32 = 1024;

fn layer(caps: &Caps, samples: u32) -> Bench<NormSq> {
    let layout = NormLayout::Last { positions: POSITIONS, channels: CHANNELS };
    let len = u64::from(samples) * u64::from(POSITIONS * CHANNELS);
    let kernel = NormSq::new(&layout, Mode::Squares, DType::F32, DType::F32);
    Bench {
        name: format!("{samples} samples x {POSITIONS} positions x {CHANNELS} channels, f32"),
        kernel: kernel.for_device(caps, &layout, 1),
        params: layout.params(samples, 1),
        buffers: vec![
            (DType::F32.into(), len, Fill::Noise),
            (DType::F32.into(), len, Fill::Noise),
            (DType::F32.into(), 2 * layout.stats(samples.into()), Fill::Positive),
            (DType::F32.into(), samples.into(), Fill::Positive),
            (DType::F32.into(), CHANNELS.into(), Fill::Zero),
        ],
    }
}

fn case(
    kernel: NormSq,
    layout: NormLayout,
    (samples, fold): (u32, u32),
    (gradient_scale, decay, gain): (f32, f32, f32),
) -> Case<NormSq> {
    let params = NormSqParams { gradient_scale, decay, gain, ..layout.params(samples, fold) };
    let (positions, channels) = (params.positions as usize, params.channels as usize);
    let len = samples as usize * positions * channels;
    let pairs = usize::try_from(layout.stats(samples.into())).expect("cases are small");
    let unit = 1.0 / f64::from(gradient_scale);
    let input = CaseBuffer::floats(kernel.input, &noise(1, len));
    let values: Vec<f64> = noise(2, len).iter().map(|b| b * unit).collect();
    let gradient = CaseBuffer::floats(kernel.gradient, &values);
    let stats = CaseBuffer::floats(DType::F32, &noise(3, 2 * pairs));
    let weight = CaseBuffer::floats(DType::F32, &noise(4, params.squares as usize));
    let len = channels * kernel.mode.results(params.squares.into()) as usize;
    let out = if decay == 0.0 {
        CaseBuffer::sentinel(DType::F32, len)
    } else {
        CaseBuffer::floats(DType::F32, &noise(5, len))
    };
    let want = wanted(kernel.mode, layout, &params, [&input, &gradient, &stats, &weight, &out]);
    Case {
        name: format!("{kernel:?} {layout:?} n={samples} fold={fold} decay={decay}"),
        kernel,
        params,
        buffers: vec![input, gradient, stats, weight, out],
        want: vec![(4, want)],
    }
}

/// Where an element lies, from the shapes of [`NormLayout`] alone.
fn element(layout: NormLayout, n: usize, t: usize, c: usize) -> reference::norm::Element {
    let (positions, channels) = layout.sizes();
    let (positions, channels) = (positions as usize, channels as usize);
    let (index, stat) = match layout {
        NormLayout::Last { .. } => ((n * positions + t) * channels + c, n * positions + t),
        NormLayout::Group { groups, .. } => {
            let groups = groups as usize;
            ((n * channels + c) * positions + t, n * groups + c * groups / channels)
        }
        NormLayout::Batch { .. } => ((n * channels + c) * positions + t, c),
    };
    reference::norm::Element { index, stat }
}

/// The definition on the stored values; its magnitudes are the definition on absolute values, with μ = 0 and the
/// distances in the place of x, since a distance is rounded by itself.
fn wanted(mode: Mode, layout: NormLayout, params: &NormSqParams, buffers: [&CaseBuffer; 5]) -> Vec<Want> {
    let [x, b, stats, weight, out] = buffers.map(CaseBuffer::values);
    let [samples, fold, positions, channels] =
        [params.samples, params.fold, params.positions, params.channels].map(|size| size as usize);
    let sizes = (samples, fold, positions, channels);
    let find = |n, t, c| element(layout, n, t, c);
    let gradients = |parts| reference::norm::gradients(parts, sizes, find, params.gradient_scale.into());
    let sums = cases::sums(mode, &weight, &gradients((&x, &b, &stats)), channels);
    let mut distances = vec![0.0; x.len()];
    for n in 0..samples {
        for t in 0..positions {
            for c in 0..channels {
                let at = find(n, t, c);
                distances[at.index] = (x[at.index] - stats[2 * at.stat]).abs();
            }
        }
    }
    let scales: Vec<f64> = stats.chunks_exact(2).flat_map(|pair| [0.0, pair[1].abs()]).collect();
    let abs = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<f64>>();
    let magnitudes = gradients((&distances, &abs(&b), &scales));
    let magnitudes = cases::sums(mode, &abs(&weight), &magnitudes, channels);
    // A gradient: distance, scale, product, its additions, gradient scale, counted twice by the square; then square,
    // weight, their additions and the last line's three.
    let depth = (2 * (fold * positions + 4) + 2 + weight.len() + 3) as f64;
    let (decay, gain) = (f64::from(params.decay), f64::from(params.gain));
    let one = |((old, sum), magnitude): ((f64, f64), f64)| {
        let old = if decay == 0.0 { 0.0 } else { decay * old };
        Want::computed(old + gain * sum, old.abs() + gain * magnitude, depth, DType::F32)
    };
    out.into_iter().zip(sums).zip(magnitudes).map(one).collect()
}
