//! The cases, and what the definition says of them.

use super::{FAR, OCTETS, Similarity, SimilarityParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, FLUSHED, Fill, Want, noise};
use crate::kernels::task2vec::Metric;
use crate::kernels::{BENCHED, Owner};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Similarity {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for metric in Metric::ALL {
            for owner in [Owner::Workgroup, Owner::Invocation] {
                for a in DType::ALL {
                    for b in DType::ALL {
                        let kernel = Self { metric, a, b, owner };
                        let share = usize::try_from(kernel.share()).expect("shares are small");
                        for len in [0, 1, 7, 8, 9, 2049, share - 1, share, share + 1, 2 * share + 5] {
                            // Above 0.01: what is 0 in one alone has its own cases.
                            let [x, y] = [1, 2].map(|seed| positive(seed, len));
                            cases.push(case(kernel, "positive", &x, &y));
                        }
                    }
                }
                let kernel = Self { metric, a: DType::F32, b: DType::F32, owner };
                cases.extend(shapes_of_values().map(|(name, x, y)| case(kernel, name, &x, &y)));
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

fn bench(caps: &Caps, elements: u64) -> Bench<Similarity> {
    let owner = Owner::of(caps);
    let kernel = Similarity { metric: Metric::Normalized, a: DType::F32, b: DType::F32, owner };
    let len = u32::try_from(elements).unwrap_or(u32::MAX);
    Bench {
        name: format!("normalized {len} f32"),
        kernel,
        params: SimilarityParams { len },
        buffers: vec![
            (Element::F32, len.into(), Fill::Positive),
            (Element::F32, len.into(), Fill::Positive),
            (Element::F32, kernel.records(len.into()), Fill::Zero),
        ],
    }
}

fn positive(seed: u64, len: usize) -> Vec<f64> {
    noise(seed, len).iter().map(|v| v.abs() + 0.01).collect()
}

/// Pairs of vectors that would overflow, vanish, cancel or mislead.
fn shapes_of_values() -> impl Iterator<Item = (&'static str, Vec<f64>, Vec<f64>)> {
    const LEN: usize = 3000;
    let all = |seed| noise(seed, LEN).iter().map(|v| (138.0 * v - 11.0).exp2()).collect::<Vec<f64>>();
    let near = |v: f64| positive(1, LEN).iter().map(|x| x * (1.0 + v)).collect::<Vec<f64>>();
    let holes = |seed, at: usize| {
        let hole = |(i, v): (usize, f64)| if i % 7 == at { 0.0 } else { v };
        positive(seed, LEN).into_iter().enumerate().map(hole).collect::<Vec<f64>>()
    };
    let bad = |at: usize| {
        let values = [f64::NAN, f64::INFINITY, -1.0, f64::NEG_INFINITY];
        let value = |(i, v): (usize, f64)| if i % 401 == at { values[i % 4] } else { v };
        positive(4, LEN).into_iter().enumerate().map(value).collect::<Vec<f64>>()
    };
    let growing = |seed| {
        let value = |(i, v): (usize, f64)| v * (i as f64 / 40.0 - 40.0).exp2();
        positive(seed, LEN).into_iter().enumerate().map(value).collect::<Vec<f64>>()
    };
    let swapped = |v: &[f64]| v.iter().rev().copied().collect::<Vec<f64>>();
    [
        ("every magnitude", all(1), all(2)),
        ("every magnitude, reversed", all(1), swapped(&all(1))),
        ("one tiny, one huge", vec![1e-38; LEN], vec![1e38; LEN]),
        ("one small, one large", vec![1e-36; LEN], vec![1e37; LEN]),
        ("both huge", vec![3e38; LEN], vec![2e38; LEN]),
        ("sums of two at the end of what divides", vec![8e37; LEN], vec![7e37; LEN]),
        ("both subnormal", vec![3e-45; LEN], vec![1e-41; LEN]),
        ("equal", positive(3, LEN), positive(3, LEN)),
        ("nearly equal", near(0.0), near(1e-3)),
        ("a factor of two apart", near(0.0), near(1.0)),
        ("far apart", near(0.0), near(1e12)),
        ("zeros in both", holes(1, 3), holes(2, 3)),
        ("zeros in one alone", holes(1, 3), holes(2, 5)),
        ("zeros only", vec![0.0; LEN], vec![-0.0; LEN]),
        ("bad in either", bad(17), bad(29)),
        ("growing", growing(1), growing(2)),
        ("one grows, one shrinks", growing(1), swapped(&growing(2))),
    ]
    .into_iter()
}

fn case(kernel: Similarity, name: &str, a: &[f64], b: &[f64]) -> Case<Similarity> {
    let (a, b) = (CaseBuffer::floats(kernel.a, a), CaseBuffer::floats(kernel.b, b));
    let (stored_a, stored_b) = (a.values(), b.values());
    let share = usize::try_from(kernel.share()).expect("shares are small");
    let shares = stored_a.chunks(share).zip(stored_b.chunks(share));
    let want: Vec<Want> = shares.flat_map(|(a, b)| want(kernel, a, b)).collect();
    let len = u32::try_from(a.len()).expect("cases are small");
    Case {
        name: format!("{kernel:?} {name} p={len}"),
        kernel,
        params: SimilarityParams { len },
        buffers: vec![a, b, CaseBuffer::sentinel(Element::F32, want.len())],
        want: vec![(2, want)],
    }
}

/// What the definition says of one share, in the record's form.
fn want(Similarity { metric, owner, .. }: Similarity, a: &[f64], b: &[f64]) -> Vec<Want> {
    let good = |v: &f64| reference::stats::is_good(*v);
    let first = |is: &dyn Fn(usize) -> bool| (0..a.len()).find(|&i| is(i)).map_or(-1.0, |i| i as f64);
    let bad = [first(&|i| !good(&a[i])), first(&|i| !good(&b[i]))];
    let one_zero = first(&|i| good(&a[i]) && good(&b[i]) && (a[i] == 0.0) != (b[i] == 0.0));
    let zeroed = |v: &[f64]| v.iter().map(|v| if good(v) { v.abs() } else { 0.0 }).collect::<Vec<f64>>();
    let Defined { sums, x, y, roundings } = defined(metric, &zeroed(a), &zeroed(b));
    let scaled = [sums[0] * (-x - y).exp2(), sums[1] * (-2.0 * x).exp2(), sums[2] * (-2.0 * y).exp2()];
    let depth = roundings + f64::from(owner.roundings(OCTETS));
    let mut wants = scaled.map(|sum| Want::computed(sum, sum, depth, DType::F32)).to_vec();
    // A device may flush what is below 2^-126 of the unit, in each term once.
    wants.iter_mut().for_each(|want| want.bound += 4.0 * a.len() as f64 * FLUSHED);
    wants.extend([x, y, bad[0], bad[1], one_zero].map(Want::exact));
    wants
}

/// A metric's sums over two vectors, the exponents of their units, and the roundings of a term.
///
/// Those of summing are [`Owner::roundings`]. A division counts 3 and a ratio's logarithm 4; where the two parts of a
/// difference exceed it, their roundings count as often as they do.
struct Defined {
    sums: [f64; 3],
    x: f64,
    y: f64,
    roundings: f64,
}

fn defined(metric: Metric, a: &[f64], b: &[f64]) -> Defined {
    let exponent = |v: f64| v.log2().floor();
    let greatest = |e: &mut dyn Iterator<Item = f64>| {
        Some(e.fold(f64::MIN, f64::max)).filter(|e| *e > f64::MIN).unwrap_or(0.0)
    };
    let pairs: Vec<(f64, f64)> = a.iter().copied().zip(b.iter().copied()).collect();
    let both: Vec<(f64, f64)> = pairs.iter().copied().filter(|(a, b)| *a > 0.0 && *b > 0.0).collect();
    let (both_a, both_b): (Vec<f64>, Vec<f64>) = both.iter().copied().unzip();
    match metric {
        Metric::Cosine => {
            let above = |v: &[f64]| greatest(&mut v.iter().filter(|v| **v > 0.0).map(|v| exponent(*v)));
            Defined { sums: reference::task2vec::products(a, b), x: above(a), y: above(b), roundings: 2.0 }
        }
        Metric::Normalized => {
            let [sa, sb] = reference::task2vec::shares(a, b);
            let power = |one: f64, other: f64| exponent(one) - exponent(one.max(other));
            let x = greatest(&mut pairs.iter().filter(|p| p.0 > 0.0).map(|p| power(p.0, p.1)));
            let y = greatest(&mut pairs.iter().filter(|p| p.1 > 0.0).map(|p| power(p.1, p.0)));
            Defined { sums: reference::task2vec::products(&sa, &sb), x, y, roundings: 9.0 }
        }
        Metric::Kl => {
            let powers = both.iter().map(|(a, b)| (exponent(*a) - exponent(*b)).abs());
            let x = greatest(&mut powers.filter(|power| *power >= FAR.into()));
            let sum = reference::task2vec::kl(&both_a, &both_b);
            Defined { sums: [sum, 0.0, 0.0], x, y: 0.0, roundings: 35.0 }
        }
        Metric::Jsd => {
            let mean = if both.is_empty() { 0.0 } else { reference::task2vec::jsd(&both_a, &both_b) };
            Defined { sums: [mean * both.len() as f64, 0.0, 0.0], x: 0.0, y: 0.0, roundings: 30.0 }
        }
    }
}
