//! The cases, and what the definition says of them.

use super::{Ubgm, UbgmParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::merge::{COUNT_WORDS, Factor, state_words};
use crate::kernels::{BENCHED, LENGTHS, Owner};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Ubgm {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for theta in DType::ALL {
            for fisher in DType::ALL {
                for merged in DType::ALL {
                    cases.push(case(theta, fisher, merged, 1003, (0.75, 0.0, 0.0)));
                }
            }
        }
        let plain = |len, numbers| case(DType::F32, DType::F32, DType::F32, len, numbers);
        cases.extend(LENGTHS.map(|len| plain(len, (1.5, 0.0, 0.0))));
        cases.push(plain(1021, (1e-40, 0.0, 0.0)));
        cases.push(plain(1021, (1.0, 0.125, 0.0)));
        cases.push(plain(1021, (2.0, 0.0, 0.25)));
        // A model that weighs nothing, its Fisher as large as any.
        cases.push(plain(1021, (0.0, 3e38, 0.0)));
        let alone = |case: Case<Self>| Case {
            name: format!("{} alone", case.name),
            kernel: Self { owner: Owner::Invocation, ..case.kernel },
            ..case
        };
        let alone: Vec<_> = cases.iter().cloned().map(alone).collect();
        cases.extend(alone);
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let Case { kernel, params, .. } = case(DType::F32, DType::F32, DType::F32, 0, (1.0, 0.0, 0.0));
        let stream = |fill| (DType::F32.into(), u64::from(len), fill);
        Bench {
            name: format!("one model, {len} f32"),
            kernel,
            params: UbgmParams { len, ..params },
            buffers: vec![
                stream(Fill::Noise),
                stream(Fill::Positive),
                stream(Fill::Noise),
                stream(Fill::Positive),
                (Element::U32, state_words(0), Fill::Zero),
                stream(Fill::Zero),
                (Element::U32, COUNT_WORDS, Fill::Zero),
            ],
        }
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        let owner = Owner::of(caps);
        BENCHED
            .map(|elements| {
                let bench = Self::bench(elements);
                Bench { kernel: Self { owner, ..bench.kernel }, ..bench }
            })
            .into()
    }
}

fn fishers(seed: u64, len: usize) -> Vec<f64> {
    let zero = noise(seed + 1, len);
    let both = noise(99, len);
    let squares = noise(seed, len).into_iter().map(|x| x * x * 100.0);
    squares
        .zip(zero.iter().zip(&both))
        .map(|(f, (&z, &b))| if z < -0.6 || b < -0.9 { 0.0 } else { f })
        .collect()
}

/// 1 over the normalisers of the model's Fisher and of the base's.
const SCALE: f64 = 0.5;
const BASE_SCALE: f64 = 4.0;

/// λ, the floor of the model's Fisher, and δ.
type Numbers = (f64, f32, f64);

pub(super) fn case(
    theta: DType,
    fisher: DType,
    merged: DType,
    len: usize,
    (lambda, floor, delta): Numbers,
) -> Case<Ubgm> {
    let owner = Owner::Workgroup;
    let kernel =
        Ubgm { theta, fisher, base: theta, base_fisher: fisher, merged, first: true, last: true, owner };
    let model = CaseBuffer::floats(theta, &noise(1, len));
    let base = CaseBuffer::floats(theta, &noise(2, len));
    let own = CaseBuffer::floats(fisher, &fishers(10, len));
    let prior = CaseBuffer::floats(fisher, &fishers(20, len));
    let values = [&model, &own, &base, &prior].map(CaseBuffer::values);
    let (want, counts) = wanted(&values, merged, (lambda, floor, delta));
    Case {
        name: format!("{kernel:?} p={len} lambda={lambda:e} floor={floor} delta={delta}"),
        kernel,
        params: params(len, (lambda, floor, delta)),
        buffers: vec![
            model,
            own,
            base,
            prior,
            CaseBuffer::words(&[0; 8]),
            CaseBuffer::sentinel(merged, len),
            CaseBuffer::words(&[0; COUNT_WORDS as usize]),
        ],
        want: vec![(5, want), (6, counts.into_iter().map(Want::exact).collect())],
    }
}

fn params(len: usize, (lambda, floor, delta): Numbers) -> UbgmParams {
    let factors = [lambda, SCALE, BASE_SCALE, delta].map(Factor::of);
    UbgmParams {
        len: u32::try_from(len).expect("cases are small"),
        lambda: factors[0].mantissa,
        lambda_exponent: factors[0].exponent,
        scale: factors[1].mantissa,
        scale_exponent: factors[1].exponent,
        floor: floor.to_bits(),
        base_scale: factors[2].mantissa,
        base_scale_exponent: factors[2].exponent,
        delta: factors[3].mantissa,
        delta_exponent: factors[3].exponent,
    }
}

/// The definition's result of a model's θ and F and the base's, and what is counted.
fn wanted(
    [t, f, t0, f0]: &[Vec<f64>; 4],
    merged: DType,
    (lambda, floor, delta): Numbers,
) -> (Vec<Want>, Vec<f64>) {
    let mut counts = vec![0.0; COUNT_WORDS as usize];
    let mut want = Vec::new();
    for p in 0..t.len() {
        let raised = f[p] < floor.into();
        let own = f[p].max(floor.into()) * SCALE;
        let prior = f0[p] * BASE_SCALE + delta;
        let value = reference::merge::ubgm(t0[p], prior, &[t[p]], &[own], &[lambda]);
        let sum = prior + lambda * own;
        // A pull is at most λ (F_0 + F_m) / (F_0 + λ F_m) ≤ max(1, λ) (1 + 1) of the distance.
        let reach = if sum == 0.0 { 0.0 } else { lambda * (prior + own) / sum * (t[p] - t0[p]).abs() };
        want.push(Want::computed(value, t0[p].abs() + reach, 12.0, merged));
        let flags = [sum == 0.0, raised, lambda * own > 0.99 * sum && sum > 0.0, raised];
        counts.iter_mut().zip(flags).for_each(|(count, flag)| *count += f64::from(u8::from(flag)));
    }
    (want, counts)
}
