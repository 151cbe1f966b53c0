//! The cases, and what the definition says of them.

use super::{NONE, OCTETS, Summary, SummaryParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::{BENCHED, Owner};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Summary {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for values in DType::ALL {
            for owner in [Owner::Workgroup, Owner::Invocation] {
                let kernel = Self { values, owner };
                let share = usize::try_from(kernel.share()).expect("shares are small");
                for len in [0, 1, 7, 8, 9, 2049, share - 1, share, share + 1, 3 * share + 5] {
                    let positive: Vec<f64> = noise(1, len).iter().map(|v| v.abs()).collect();
                    cases.push(case(kernel, "positive", &positive));
                }
                cases.push(case(kernel, "every magnitude", &magnitudes(5000)));
                cases.push(case(kernel, "growing", &growing(20_000)));
                cases.push(case(kernel, "signs and zeros", &signs(share + 100)));
                cases.push(case(kernel, "many zeros", &many_zeros(2 * share + 100)));
                cases.push(case(kernel, "largest", &vec![3.0e38; 5000]));
                cases.push(case(kernel, "smallest", &vec![2.0_f64.powi(-149); 5000]));
                cases.push(case(kernel, "zeros", &[0.0, -0.0, 0.0]));
                cases.push(case(
                    kernel,
                    "nothing good",
                    &[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e-45, -f64::NAN],
                ));
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

fn bench(caps: &Caps, elements: u64) -> Bench<Summary> {
    let kernel = Summary { values: DType::F32, owner: Owner::of(caps) };
    let len = u32::try_from(elements).unwrap_or(u32::MAX);
    let (sums, counts) = kernel.records(len.into());
    Bench {
        name: format!("{len} f32"),
        kernel,
        params: SummaryParams { len },
        buffers: vec![
            (Element::F32, len.into(), Fill::Positive),
            (Element::F32, sums, Fill::Zero),
            (Element::U32, counts, Fill::Zero),
        ],
    }
}

/// Values whose unit grows from one group to the next.
fn growing(len: usize) -> Vec<f64> {
    noise(6, len).iter().enumerate().map(|(i, v)| v.abs() * (i as f64 / 300.0 - 40.0).exp2()).collect()
}

/// Mostly zeros, as where most weights never had a gradient.
fn many_zeros(len: usize) -> Vec<f64> {
    noise(7, len).iter().enumerate().map(|(i, v)| if i / 300 % 3 > 0 { 0.0 } else { v.abs() }).collect()
}

/// Positive values of all the magnitudes that f32 has, subnormals included.
fn magnitudes(len: usize) -> Vec<f64> {
    noise(3, len).iter().map(|v| (138.0 * v - 11.0).exp2()).collect()
}

/// Values of both signs, a few of them zero, NaN or infinite.
fn signs(len: usize) -> Vec<f64> {
    let mut values = noise(4, len);
    for (i, value) in values.iter_mut().enumerate() {
        match i % 37 {
            11 => *value = 0.0,
            12 => *value = -0.0,
            30 => *value = f64::NAN,
            31 => *value = f64::INFINITY,
            _ => *value = if i < 100 || i % 5 > 0 { value.abs() } else { *value },
        }
    }
    values
}

fn case(kernel: Summary, name: &str, values: &[f64]) -> Case<Summary> {
    let dtype = kernel.values;
    let stored = CaseBuffer::floats(dtype, values);
    let size = usize::try_from(kernel.share()).expect("shares are small");
    let (mut sums, mut counts) = (Vec::new(), Vec::new());
    for (share, values) in stored.values().chunks(size).enumerate() {
        want(kernel, share * size, values, &mut sums, &mut counts);
    }
    Case {
        name: format!("{dtype} {:?} {name} p={}", kernel.owner, values.len()),
        kernel,
        params: SummaryParams { len: u32::try_from(values.len()).expect("cases are small") },
        buffers: vec![
            stored,
            CaseBuffer::sentinel(Element::F32, sums.len()),
            CaseBuffer::sentinel(Element::U32, counts.len()),
        ],
        want: vec![(1, sums), (2, counts)],
    }
}

/// What the definition says of one share, in the record's form.
///
/// A square is rounded once more than [`Owner::roundings`] says of the sum.
fn want(kernel: Summary, start: usize, values: &[f64], sums: &mut Vec<Want>, counts: &mut Vec<Want>) {
    let (max, min) = (reference::stats::max(values), reference::stats::min(values));
    #[expect(clippy::cast_possible_truncation, reason = "stored values are f32 at most")]
    let bits = |value: f64| f64::from((value.abs() as f32).to_bits());
    let depth = f64::from(kernel.owner.roundings(OCTETS) + 1);
    let unit = max.filter(|max| *max > 0.0).map_or(1.0, |max| max.log2().floor().exp2());
    for scaled in [reference::stats::sum(values) / unit, reference::stats::sum_sq(values) / unit / unit] {
        sums.push(Want::computed(scaled, scaled, depth, DType::F32));
    }
    let (bad, first) = reference::stats::bad(values).unwrap_or((0, NONE.into()));
    let first = if bad > 0 { first + start as u64 } else { first };
    let words = [
        max.map_or(0.0, bits),
        min.map_or(NONE.into(), bits),
        reference::stats::zeros(values) as f64,
        bad as f64,
        first as f64,
    ];
    counts.extend(words.map(Want::exact));
}
