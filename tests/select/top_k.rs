//! The operation in buffers: threshold, mask and pairs against a stable sort.

use half::{bf16, f16};
use proptest::prelude::*;
use squisher::kernels::select::mask_words;
use squisher::memory::{Element, View};
use squisher::record::top_k::TopK;
use squisher::{Backend, DType, Recording, reference};

use crate::{best, best_mask, support, tied};

/// What a selection is made from, as it is stored.
enum Scored {
    Fisher(View),
    /// θ and F.
    Saliency(View, View),
}

impl Scored {
    fn top(&self, backend: &Backend, k: usize) -> squisher::Result<TopK> {
        match self {
            Self::Fisher(fisher) => TopK::of_fisher(backend, fisher, k as u64),
            Self::Saliency(theta, fisher) => TopK::of_saliency(backend, theta, fisher, k as u64),
        }
    }
}

/// A buffer of `dtype`, and what it holds of these values.
fn stored(backend: &Backend, values: &[f32], dtype: DType) -> (View, Vec<f32>) {
    match dtype {
        DType::F32 => (backend.buffer(values, dtype).expect("a small buffer"), values.to_vec()),
        DType::F16 => {
            let narrow: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
            (
                backend.buffer(&narrow, dtype).expect("a small buffer"),
                narrow.iter().map(|v| v.to_f32()).collect(),
            )
        }
        DType::BF16 => {
            let narrow: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            (
                backend.buffer(&narrow, dtype).expect("a small buffer"),
                narrow.iter().map(|v| v.to_f32()).collect(),
            )
        }
    }
}

/// The definition's scores: an f32 each, as every product is rounded to one.
fn saliencies(theta: &[f32], fisher: &[f32]) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "the definition is an f32")]
    let score = |(&t, &f): (&f32, &f32)| reference::select::prune(t.into(), f.into()) as f32;
    theta.iter().zip(fisher).map(score).collect()
}

/// Threshold, mask and pairs of the operation, bit for bit, against a stable sort of `scores`.
fn is_a_stable_sort(backend: &Backend, scored: &Scored, scores: &[f32], k: usize) {
    let words = |len: u64| backend.alloc(len, Element::U32).expect("a small buffer");
    let (mask, indices) = (words(mask_words(scores.len() as u64)), words(k as u64));
    let pairs = backend.alloc(k as u64, DType::F32).expect("a small buffer");
    let top = scored.top(backend, k).expect("k is at most the number of items");
    let mut recording = Recording::new(backend);
    top.threshold(&mut recording).expect("sound buffers");
    top.mask(&mut recording, &mask).expect("sound buffers");
    top.pairs(&mut recording, &indices, &pairs).expect("sound buffers");
    // A recording may run again.
    backend.run(&recording).expect("it runs");
    backend.run(&recording).expect("it runs again");

    let mut kept = best(scores, k);
    let threshold = top.cut(backend).expect("sound scores").map(|t| t.score.to_bits());
    assert_eq!(threshold, kept.last().map(|&i| scores[i].abs().to_bits()), "k={k} of {}", scores.len());
    let mut bytes = backend.download::<u8>(&mask).expect("a small buffer");
    assert!(bytes.split_off(scores.len()).iter().all(|&b| b == 0), "bytes behind the mask");
    assert!(bytes == best_mask(scores, k), "k={k} of {}: another mask", scores.len());
    kept.sort_unstable();
    let want: Vec<u32> = kept.iter().map(|&i| u32::try_from(i).expect("small")).collect();
    assert_eq!(backend.download::<u32>(&indices).expect("a small buffer"), want);
    let want: Vec<f32> = kept.iter().map(|&i| scores[i]).collect();
    assert_eq!(backend.download::<f32>(&pairs).expect("a small buffer"), want);
}

/// The k largest of `values` as Fishers of every type.
fn holds_of_fishers(backend: &Backend, values: &[f32], k: usize) {
    for dtype in DType::ALL {
        // Beyond the largest f16 a Fisher would be infinite, which is refused.
        let most = if dtype == DType::F16 { 65504.0 } else { f32::MAX };
        let values: Vec<f32> = values.iter().map(|v| v.min(most)).collect();
        let (fisher, scores) = stored(backend, &values, dtype);
        is_a_stable_sort(backend, &Scored::Fisher(fisher), &scores, k);
    }
}

/// The k largest ½ θ² F, θ and F of every pair of types. No product may be subnormal, as a device may flush those.
fn holds_of_saliencies(backend: &Backend, theta: &[f32], fisher: &[f32], k: usize) {
    for (of_theta, of_fisher) in DType::ALL.iter().flat_map(|t| DType::ALL.map(|f| (*t, f))) {
        let (t, theta) = stored(backend, theta, of_theta);
        let (f, fisher) = stored(backend, fisher, of_fisher);
        let scores = saliencies(&theta, &fisher);
        assert!(scores.iter().all(|s| *s == 0.0 || s.is_normal()), "a subnormal: change the test's numbers");
        is_a_stable_sort(backend, &Scored::Saliency(t, f), &scores, k);
    }
}

/// Few distinct magnitudes of both signs, so that products tie where neither factor does.
fn weight() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![0.0, -0.0, 0.25, -0.5, 0.5, 1.0, -1.0, 1.7, 2.0, -3.3])
}

/// Fishers to go with them.
fn curvature() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![0.0, -0.0, 0.001, 0.0625, 0.25, 1.0, 4.0, 16.0, 777.0])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn of_fishers_is_a_stable_sort(scores in prop::collection::vec(tied(), 1..200), share in 0.0_f64..=1.0) {
        let k = (scores.len() as f64 * share).round() as usize;
        holds_of_fishers(&Backend::Host, &scores, k);
    }

    #[test]
    fn of_saliencies_is_a_stable_sort(
        items in prop::collection::vec((weight(), curvature()), 1..200),
        share in 0.0_f64..=1.0,
    ) {
        let (theta, fisher): (Vec<f32>, Vec<f32>) = items.into_iter().unzip();
        let k = (theta.len() as f64 * share).round() as usize;
        holds_of_saliencies(&Backend::Host, &theta, &fisher, k);
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn it_holds_at_the_edges() {
    let ramp: Vec<f32> = (0..9000_u16).map(|i| f32::from(i.wrapping_mul(40_503) % 997)).collect();
    let theta: Vec<f32> = (0..9000_u16).map(|i| f32::from(i.wrapping_mul(7919) % 61) / 16.0 - 1.9).collect();
    for backend in support::backends() {
        for k in [0, 1, 2, 4095, 4096, 4097, 8999, 9000] {
            holds_of_fishers(&backend, &vec![0.25; 9000], k);
        }
        for k in [0, 1, 17, 4500, 9000] {
            holds_of_fishers(&backend, &ramp, k);
        }
        for k in [0, 1, 4097, 9000] {
            holds_of_saliencies(&backend, &theta, &ramp, k);
        }
        // ½ · 2² · ½ and ½ · 1² · 2: both 1.
        let alternating = |pair: [f32; 2]| pair.repeat(4500);
        holds_of_saliencies(&backend, &alternating([-2.0, 1.0]), &alternating([0.5, 2.0]), 4097);
        for (values, k) in [(&[7.0][..], 0), (&[7.0], 1), (&[-0.0, 0.0, 1e-45], 2), (&[], 0)] {
            holds_of_fishers(&backend, values, k);
        }
        for (theta, fisher, k) in [(&[-7.0][..], &[2.0][..], 0), (&[-7.0], &[2.0], 1), (&[], &[], 0)] {
            holds_of_saliencies(&backend, theta, fisher, k);
        }
    }
}

/// A score of a large weight is infinite where its product is, and is the largest; the Fisher alone decides nothing.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_saliency_beyond_f32_is_the_largest() {
    for backend in support::backends() {
        let (theta, fisher) = ([1.0, 1e30, 3.0, -1e30, 2.0], [1e9, 1.0, 1e3, 2.0, 1e10]);
        let scored =
            Scored::Saliency(stored(&backend, &theta, DType::F32).0, stored(&backend, &fisher, DType::F32).0);
        (0..=5).for_each(|k| is_a_stable_sort(&backend, &scored, &saliencies(&theta, &fisher), k));
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn what_has_no_order_is_refused() {
    for backend in support::backends() {
        let ones = backend.buffer(&[1.0_f32; 5000], DType::F32).expect("a small buffer");
        let with = |bad: f32| {
            let mut values = vec![1.0; 5000];
            (values[4321], values[4999]) = (bad, bad);
            backend.buffer(&values, DType::F32).expect("a small buffer")
        };
        let of_fishers = [f32::NAN, -1.0, f32::INFINITY].map(with);
        let bad = of_fishers.iter().cloned().map(Scored::Fisher);
        let bad = bad.chain(of_fishers.iter().cloned().map(|fisher| Scored::Saliency(ones.clone(), fisher)));
        for scored in bad.chain([Scored::Saliency(with(f32::NAN), ones.clone())]) {
            let top = scored.top(&backend, 10).expect("a sound k");
            let mut recording = Recording::new(&backend);
            top.threshold(&mut recording).expect("sound buffers");
            backend.run(&recording).expect("it runs");
            let refused = top.cut(&backend).expect_err("it must be refused").to_string();
            assert!(refused.contains("item 4321 "), "{refused}");
        }
        let eight = backend.buffer(&[1.0_f32; 8], DType::F32).expect("a small buffer");
        for scored in [Scored::Fisher(eight.clone()), Scored::Saliency(eight.clone(), eight.clone())] {
            let refused = scored.top(&backend, 9).expect_err("9 of 8").to_string();
            assert!(refused.contains("above the number of items, 8"), "{refused}");
        }
        let refused = Scored::Saliency(ones, eight).top(&backend, 1).expect_err("5000 beside 8").to_string();
        assert!(refused.contains("theta") && refused.contains("5000") && refused.contains('8'), "{refused}");
    }
}
