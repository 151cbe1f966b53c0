//! The cases, and what the definition says of them.

use super::{EmbeddingIndex, EmbeddingSq, EmbeddingSqParams, Listed, small};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::fisher::{Mode, cases};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for EmbeddingSq {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        let overwrite = (1.0, 0.0, 1.0);
        for gradient in DType::ALL {
            for (samples, positions, rows, dim) in
                [(0, 3, 4, 5), (1, 1, 1, 1), (3, 7, 5, 3), (5, 4, 300, 9), (2, 33, 2, 257)]
            {
                let shape = Sizes { samples, positions, rows, dim };
                let kernel = Self { mode: Mode::Squares, gradient, together: false };
                cases.push(case(kernel, shape, overwrite, Listed::All));
            }
            for (samples, positions, rows, dim) in
                [(1, 1, 1, 8), (3, 7, 5, 24), (5, 4, 300, 16), (2, 33, 2, 2072)]
            {
                let kernel = Self { mode: Mode::Squares, gradient, together: true };
                let shape = Sizes { samples, positions, rows, dim };
                cases.push(case(kernel, shape, overwrite, Listed::All));
            }
        }
        let plain = Self { mode: Mode::Squares, gradient: DType::F32, together: false };
        let shape = Sizes { samples: 4, positions: 6, rows: 70, dim: 17 };
        cases.push(case(plain, shape, (1.0, 1.0, 0.5), Listed::Touched));
        cases.push(case(plain, shape, (1.0, 0.9, 0.1), Listed::All));
        cases.push(case(plain, shape, (2.0_f32.powi(70), 0.0, 1.0), Listed::All));
        cases.push(case(plain, Sizes { positions: 0, ..shape }, overwrite, Listed::All));
        let gradients = Self { mode: Mode::Gradients, ..plain };
        cases.push(case(gradients, shape, overwrite, Listed::All));
        cases.push(case(gradients, shape, (2.0, 1.0, 0.25), Listed::Touched));
        let eights = Self { together: true, ..gradients };
        let whole = Sizes { dim: 40, ..shape };
        cases.push(case(eights, whole, (2.0, 1.0, 0.25), Listed::Touched));
        cases.push(case(Self { together: true, ..plain }, whole, (1.0, 0.9, 0.1), Listed::All));
        // As many rows as a vocabulary, few of them touched.
        cases.push(case(plain, Sizes { rows: 200_000, dim: 2, ..shape }, (1.0, 1.0, 1.0), Listed::Touched));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let positions = u32::try_from(elements / 1024).unwrap_or(1 << 20).clamp(1, 1 << 20);
        layer(&Caps::host(), positions, positions, 1024)
    }

    /// The second: a batch of 16 x 512 tokens in a vocabulary of 32,000, which is less than a binding of
    /// software Vulkan.
    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [(64, 1000, 64), (8192, 32_000, 768)]
            .map(|(positions, rows, dim)| layer(caps, positions, rows, dim))
            .into()
    }
}

/// Each position in its own row, among `rows`, of which the others stay untouched.
fn layer(caps: &Caps, positions: u32, rows: u32, dim: u32) -> Bench<EmbeddingSq> {
    let together = EmbeddingSq::together(caps, dim);
    let words = |len: u32, fill| (Element::U32, u64::from(len), fill);
    let floats = |rows: u32, fill| (DType::F32.into(), u64::from(rows) * u64::from(dim), fill);
    Bench {
        name: format!("{positions} positions in {rows} rows of {dim} f32"),
        kernel: EmbeddingSq { mode: Mode::Squares, gradient: DType::F32, together },
        params: EmbeddingSqParams { owners: positions, dim, gradient_scale: 1.0, decay: 1.0, gain: 1.0 },
        buffers: vec![
            floats(positions, Fill::Noise),
            words(positions, Fill::Below(positions)),
            words(positions + 1, Fill::Count),
            words(positions, Fill::Zero),
            words(positions + 1, Fill::Count),
            words(positions, Fill::Count),
            (DType::F32.into(), 1, Fill::Positive),
            floats(rows, Fill::Zero),
        ],
    }
}

/// Sizes of a case.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    samples: usize,
    positions: usize,
    rows: u32,
    dim: usize,
}

/// Ids that repeat within a sample and between samples, and rows that nobody names.
fn case_ids(sizes: Sizes) -> Vec<u32> {
    let named = sizes.rows.div_ceil(2).min(9);
    let id = |value: f64| ((value + 1.0) * f64::from(named) / 2.0) as u32 * (sizes.rows / named);
    noise(1, sizes.samples * sizes.positions).into_iter().map(id).collect()
}

fn case(
    kernel: EmbeddingSq,
    sizes: Sizes,
    (gradient_scale, decay, gain): (f32, f32, f32),
    listed: Listed,
) -> Case<EmbeddingSq> {
    let Sizes { samples, positions, rows, dim } = sizes;
    let ids = case_ids(sizes);
    let index = EmbeddingIndex::new(&ids, positions, (0, rows), listed).expect("cases are small");
    let unit = 1.0 / f64::from(gradient_scale);
    let values: Vec<f64> = noise(2, ids.len() * dim).iter().map(|b| b * unit).collect();
    let gradient = CaseBuffer::floats(kernel.gradient, &values);
    // Weights of either sign: they are any numbers, also iEF's and class probabilities.
    let weight = CaseBuffer::floats(DType::F32, &noise(3, samples));
    let rows = rows as usize;
    let out = if decay == 0.0 {
        CaseBuffer::sentinel(DType::F32, rows * dim)
    } else {
        CaseBuffer::floats(DType::F32, &noise(4, rows * dim))
    };
    let want = wanted(kernel.mode, sizes, (&ids, &gradient, &weight, &out), (gradient_scale, decay, gain));
    Case {
        name: format!("{kernel:?} {sizes:?} decay={decay} {listed:?}"),
        kernel,
        params: EmbeddingSqParams {
            owners: small(index.owner_row.len()),
            dim: small(dim),
            gradient_scale,
            decay,
            gain,
        },
        buffers: vec![
            gradient,
            CaseBuffer::words(&index.positions),
            CaseBuffer::words(&index.run_start),
            CaseBuffer::words(&index.run_sample),
            CaseBuffer::words(&index.owner_run),
            CaseBuffer::words(&index.owner_row),
            weight,
            out,
        ],
        want: vec![(7, want)],
    }
}

/// The definition on the stored values; its magnitudes are the definition on absolute values.
fn wanted(
    mode: Mode,
    sizes: Sizes,
    (ids, gradient, weight, out): (&[u32], &CaseBuffer, &CaseBuffer, &CaseBuffer),
    (scale, decay, gain): (f32, f32, f32),
) -> Vec<Want> {
    let shape = (sizes.rows as usize, sizes.dim);
    let (gradient, weight) = (gradient.values(), weight.values());
    let abs = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<f64>>();
    let sum = |b: &[f64], w: &[f64]| {
        let gradients = reference::embedding::gradients(ids, b, w.len(), shape, scale.into());
        cases::sums(mode, w, &gradients, sizes.rows as usize * sizes.dim)
    };
    let (sums, magnitudes) = (sum(&gradient, &weight), sum(&abs(&gradient), &abs(&weight)));
    // A gradient of t additions and a scaling, counted twice by the square; weight, sum over n, and the three of the
    // last line.
    let depth = (2 * (sizes.positions + 1) + 1 + sizes.samples + 4) as f64;
    let (decay, gain) = (f64::from(decay), f64::from(gain));
    let one = |((old, sum), magnitude): ((f64, f64), f64)| {
        let old = if decay == 0.0 { 0.0 } else { decay * old };
        Want::computed(old + gain * sum, old.abs() + gain.abs() * magnitude, depth, DType::F32)
    };
    out.values().into_iter().zip(sums).zip(magnitudes).map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Backend;
    use crate::verify;

    /// The oracle is seen to fail: each position as its own run is squared before it is added.
    #[test]
    fn repeated_ids_squared_one_by_one_are_caught() {
        let plain = EmbeddingSq { mode: Mode::Squares, gradient: DType::F32, together: false };
        let sizes = Sizes { samples: 3, positions: 7, rows: 5, dim: 3 };
        let mut planted = case(plain, sizes, (1.0, 0.0, 1.0), Listed::All);
        let ids = case_ids(sizes);
        let index = EmbeddingIndex::new(&ids, 1, (0, sizes.rows), Listed::All).expect("small");
        let sample = |at: &u32| at / small(sizes.positions);
        planted.buffers[2] = CaseBuffer::words(&index.run_start);
        planted.buffers[3] = CaseBuffer::words(&index.positions.iter().map(sample).collect::<Vec<u32>>());
        planted.buffers[4] = CaseBuffer::words(&index.owner_run);
        assert_eq!(verify::kernel(&Backend::Host, vec![planted]).failures.len(), 1);
    }
}
