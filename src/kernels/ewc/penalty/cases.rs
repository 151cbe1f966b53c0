//! The cases, and what the definition says of them.

use super::{OCTETS, Penalty, PenaltyParams, WORDS};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::{BENCHED, Owner};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Penalty {
    fn cases() -> Vec<Case<Self>> {
        let plain =
            Self { theta: DType::F32, anchor: DType::F32, fisher: DType::F32, owner: Owner::Workgroup };
        let mut cases = Vec::new();
        for plain in [plain, Self { owner: Owner::Invocation, ..plain }] {
            let share = usize::try_from(plain.share()).expect("shares are small");
            for dtype in DType::ALL {
                for kernel in [
                    Self { theta: dtype, anchor: dtype, ..plain },
                    Self { anchor: dtype, ..plain },
                    Self { fisher: dtype, ..plain },
                ] {
                    for len in [0, 1, 7, 8, 9, 2049, share - 1, share, share + 1, 2 * share + 5] {
                        cases.push(case(kernel, "near", len, |_, inputs| inputs));
                    }
                }
            }
            cases.extend(rare(plain));
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

/// Shares with terms of 0, far from 1, of every magnitude, and with bad parameters.
fn rare(plain: Penalty) -> Vec<Case<Penalty>> {
    let share = usize::try_from(plain.share()).expect("shares are small");
    let opposed = |i: usize, [_, _, f]: [f64; 3]| match i % 3 {
        0 => [1e-18, 0.0, 1e18 * (f + 0.5)],
        1 => [1e9 * (f + 0.5), 0.0, 1e-25],
        _ => [0.0, 0.0, f],
    };
    let zeros = |i: usize, [t, a, f]: [f64; 3]| match i / 100 % 3 {
        0 => [t, a, 0.0],
        1 => [a, a, f],
        _ => [t, a, f],
    };
    let bad = |i: usize, [t, a, f]: [f64; 3]| match i % 1001 {
        17 => [f64::NAN, a, f],
        20 => [t, f64::NEG_INFINITY, f],
        23 => [t, a, f64::NAN],
        26 => [t, a, -1.0],
        29 => [t, a, f64::INFINITY],
        _ => [t, a, f],
    };
    vec![
        case(plain, "no distance", 3000, |_, [_, a, f]| [a, a, f]),
        case(plain, "no Fisher", 3000, |_, [t, a, _]| [t, a, -0.0]),
        case(plain, "tiny Fisher", 3000, |_, [t, a, _]| [t, a, 1e-38]),
        case(plain, "subnormal Fisher", 3000, |_, [t, a, _]| [t, a, 3e-45]),
        case(plain, "huge Fisher", 3000, |_, [t, a, _]| [1e3 * t, a, 3e38]),
        case(plain, "huge distance", 3000, |_, [_, _, f]| [3e38, -3e38, f]),
        case(plain, "tiny distance", 3000, |_, [t, _, f]| [1e-30 * t, 0.0, f]),
        // The largest Fisher where the distance is smallest: no term is near the product of both maxima.
        case(plain, "opposed", 3000, opposed),
        case(plain, "growing", 3000, |i, [t, a, f]| [t, a, f * (i as f64 / 40.0 - 40.0).exp2()]),
        case(plain, "many zeros", 3000, zeros),
        case(plain, "bad", 2 * share + 2000, bad),
    ]
}

fn bench(caps: &Caps, elements: u64) -> Bench<Penalty> {
    let owner = Owner::of(caps);
    let kernel = Penalty { theta: DType::F32, anchor: DType::F32, fisher: DType::F32, owner };
    let len = u32::try_from(elements).unwrap_or(u32::MAX);
    Bench {
        name: format!("{len} f32"),
        kernel,
        params: PenaltyParams { len },
        buffers: vec![
            (Element::F32, len.into(), Fill::Noise),
            (Element::F32, len.into(), Fill::Noise),
            (Element::F32, len.into(), Fill::Positive),
            (Element::F32, kernel.records(len.into()), Fill::Zero),
        ],
    }
}

/// Parameters near their anchors, changed by `change`.
fn case(
    kernel: Penalty,
    name: &str,
    len: usize,
    change: impl Fn(usize, [f64; 3]) -> [f64; 3],
) -> Case<Penalty> {
    let (anchor, step, fisher) = (noise(1, len), noise(2, len), noise(3, len));
    let inputs = (0..len).map(|i| change(i, [anchor[i] + 0.05 * step[i], anchor[i], fisher[i].abs()]));
    let inputs: Vec<[f64; 3]> = inputs.collect();
    let stream =
        |i: usize, dtype| CaseBuffer::floats(dtype, &inputs.iter().map(|v| v[i]).collect::<Vec<_>>());
    let (theta, anchor, fisher) =
        (stream(0, kernel.theta), stream(1, kernel.anchor), stream(2, kernel.fisher));
    let (t, a, f) = (theta.values(), anchor.values(), fisher.values());
    let share = usize::try_from(kernel.share()).expect("shares are small");
    let shares = t.chunks(share).zip(a.chunks(share)).zip(f.chunks(share));
    let want: Vec<Want> = shares.flat_map(|((t, a), f)| want(kernel.owner, t, a, f)).collect();
    let len = u32::try_from(len).expect("cases are small");
    Case {
        name: format!("{kernel:?} {name} p={len}"),
        kernel,
        params: PenaltyParams { len },
        buffers: vec![theta, anchor, fisher, CaseBuffer::sentinel(Element::F32, want.len())],
        want: vec![(3, want)],
    }
}

/// What the definition says of one share, in the record's form.
///
/// Roundings of a term: the difference, which is squared, and two products; of the sum: [`Owner::roundings`].
fn want(owner: Owner, theta: &[f64], anchor: &[f64], fisher: &[f64]) -> [Want; WORDS] {
    let first = |values: &[f64], bad: fn(f64) -> bool| {
        Want::exact(values.iter().position(|v| bad(*v)).map_or(-1.0, |i| i as f64))
    };
    let good: Vec<usize> = (0..theta.len())
        .filter(|&i| theta[i].is_finite() && anchor[i].is_finite() && reference::stats::is_good(fisher[i]))
        .collect();
    let of = |values: &[f64]| good.iter().map(|&i| values[i]).collect::<Vec<f64>>();
    let (t, a, f) = (of(theta), of(anchor), of(fisher));
    // The difference as f32 rounds it: its exponent decides the unit.
    #[expect(clippy::cast_possible_truncation, reason = "rounding is wanted")]
    let power = |i: usize| f64::from((0.5 * t[i] - 0.5 * a[i]) as f32).abs().log2().floor() + 1.0;
    let terms = (0..t.len()).filter(|&i| t[i] != a[i] && f[i] > 0.0);
    let exponent = terms.map(|i| f[i].log2().floor() + 2.0 * power(i)).reduce(f64::max).unwrap_or(0.0);
    let sum = 2.0 * reference::ewc::penalty(1.0, &f, &t, &a) * (-exponent).exp2();
    [
        Want::computed(sum, sum, f64::from(owner.roundings(OCTETS) + 4), DType::F32),
        Want::exact(exponent),
        first(theta, |v| !v.is_finite()),
        first(anchor, |v| !v.is_finite()),
        first(fisher, |v| !reference::stats::is_good(v)),
    ]
}
