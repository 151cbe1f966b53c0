//! What must hold whatever the numbers are.

use std::path::Path;

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::Dtype;
use squisher::methods::merge::{MergeOptions, Method, Model, Normalize};
use squisher::stream::Budget;
use squisher::{Backend, DType, Error, Run};

use crate::definition::{Merged, Parameter};
use crate::files::{self, Tensor, floats, raw};
use crate::oracle::rounding;
use crate::{METHODS, Vectors, fishers, folder, merged, noise, options, run, run_within, support, with_base};

/// The merged `w` of a set of vectors.
#[track_caller]
fn w(options: &MergeOptions, backend: &Backend) -> Tensor {
    merged(options, backend).0["w"].clone()
}

/// Every parameter's definition; the last vector is the base's for `ubgm`.
fn defined(models: &[(Vec<f64>, Vec<f64>)], lambda: &[f64], method: Method) -> Vec<Merged> {
    let (models, base) = match method {
        Method::Ubgm => (&models[..models.len() - 1], models.last()),
        _ => (models, None),
    };
    let one = |p: usize| {
        let theta: Vec<f64> = models.iter().map(|(t, _)| t[p]).collect();
        let fisher: Vec<f64> = models.iter().map(|(_, f)| f[p]).collect();
        let base = base.map_or((0.0, 0.0), |(t, f)| (t[p], f[p]));
        Parameter { theta: &theta, fisher: &fisher, lambda, base }.merged(method)
    };
    (0..models[0].0.len()).map(one).collect()
}

/// As f32 stores it.
fn single(values: Vec<f64>) -> Vec<f64> {
    values.into_iter().map(|value| f64::from(value as f32)).collect()
}

/// Asserts that `got` is as defined.
#[track_caller]
fn assert_defined(got: &Tensor, want: &[Merged], models: usize, at: &str) {
    for (p, (got_p, want)) in got.values().iter().zip(want).enumerate() {
        let bound = want.bound(models) + rounding(got.dtype, want.value.abs());
        let error = (got_p - want.value).abs();
        assert!(error <= bound, "{at}: [{p}] got {got_p:e}, want {:e} within {bound:e}", want.value);
    }
}

const LEN: usize = 1003;

/// Models around 0.
fn models(count: u64) -> Vec<(Vec<f64>, Vec<f64>)> {
    (0..count).map(|m| (single(noise(m + 1, LEN)), single(fishers(m + 51, LEN)))).collect()
}

#[test]
fn equal_fishers_give_the_average() {
    for backend in support::backends() {
        let mut models = models(3);
        let common = single(noise(9, LEN).iter().map(|x| 10.0_f64.powf(30.0 * x)).collect());
        models.iter_mut().for_each(|(_, fisher)| fisher.clone_from(&common));
        let vectors = Vectors::new(DType::F32, &models);
        let got = w(&vectors.options(Method::Fisher), &backend);
        assert_defined(&got, &defined(&models, &[1.0; 3], Method::Linear), 3, &backend.name());
    }
}

#[test]
fn a_common_power_of_two_changes_no_bit_and_any_common_factor_only_roundings() {
    for backend in support::backends() {
        for method in [Method::Fisher, Method::Ubgm] {
            let models = models(4);
            let scaled = |factor: f64| {
                let scale = |f: &Vec<f64>| f.iter().map(|f| f * factor).collect();
                let models: Vec<_> = models.iter().map(|(t, f)| (t.clone(), scale(f))).collect();
                w(&Vectors::new(DType::F32, &models).options(method), &backend)
            };
            let plain = scaled(1.0);
            for factor in [2.0_f64.powi(60), 2.0_f64.powi(-60)] {
                assert_eq!(
                    scaled(factor).bytes,
                    plain.bytes,
                    "{method:?} times {factor:e} on {}",
                    backend.name()
                );
            }
            // Rounding the scaled Fishers to f32 moves each weight by u once more.
            let want = defined(&models, &[1.0; 4], method);
            assert_defined(&scaled(1e-9 / 3.0), &want, 5, &backend.name());
        }
    }
}

#[test]
fn fishers_of_zeros_give_the_average_and_are_counted() {
    for backend in support::backends() {
        let mut models = models(3);
        models.iter_mut().for_each(|(_, fisher)| fisher.fill(0.0));
        let (got, report) = merged(&Vectors::new(DType::F32, &models).options(Method::Fisher), &backend);
        assert_defined(&got["w"], &defined(&models, &[1.0; 3], Method::Linear), 3, &backend.name());
        assert_eq!((report.fallback, report.dominated, report.floored), (LEN as u64, 0, 0));
        // Without any weight, ubgm stays at the base: its very bits.
        let vectors = Vectors::new(DType::F32, &models);
        let (got, report) = merged(&vectors.options(Method::Ubgm), &backend);
        assert_eq!(got["w"].bytes, files::read(&vectors.pairs[2].0)["w"].bytes);
        assert_eq!(report.fallback, LEN as u64);
    }
}

#[test]
fn a_model_with_zero_fishers_only_where_it_has_weight_is_left_out() {
    let mut models = models(2);
    models[0].1.fill(0.0);
    models[1].1.fill(1e-30);
    for backend in support::backends() {
        let vectors = Vectors::new(DType::F32, &models);
        let (got, report) = merged(&vectors.options(Method::Fisher), &backend);
        assert_defined(&got["w"], &defined(&models, &[1.0; 2], Method::Fisher), 2, &backend.name());
        assert_eq!((report.fallback, report.dominated), (0, LEN as u64));
    }
}

/// Every kind of finite number of a 16-bit type, or many of f32: signed zeros, subnormals, the largest.
fn all_patterns(dtype: DType) -> Tensor {
    let halves = |finite: fn(u16) -> bool| {
        (0..=u16::MAX).filter(|&bits| finite(bits)).flat_map(u16::to_le_bytes).collect::<Vec<u8>>()
    };
    let (stored, bytes) = match dtype {
        DType::F16 => (Dtype::F16, halves(|bits| f16::from_bits(bits).is_finite())),
        DType::BF16 => (Dtype::BF16, halves(|bits| bf16::from_bits(bits).is_finite())),
        DType::F32 => {
            let bits =
                (0..1_u32 << 16).map(|i| i.wrapping_mul(0x9e37_79b9)).chain([0, 1 << 31, 1, 0x807f_ffff]);
            let finite = bits.filter(|&bits| f32::from_bits(bits).is_finite());
            (Dtype::F32, finite.flat_map(u32::to_le_bytes).collect())
        }
    };
    raw("w", stored, bytes.len() * 8 / stored.bitsize(), bytes)
}

#[test]
fn equal_models_come_back_bit_for_bit_in_every_type_however_many() {
    for dtype in DType::ALL {
        let theta = all_patterns(dtype);
        let len = theta.shape[0];
        for backend in support::backends() {
            for count in [1, 2, 3, 9] {
                let mut vectors = Vectors::new(dtype, &[]);
                for m in 0..=count {
                    vectors.push(theta.clone(), floats("w", DType::F32, &fishers(m, len)));
                }
                for method in METHODS {
                    let got = w(&vectors.options(method), &backend);
                    let differ = got.bytes.iter().zip(&theta.bytes).position(|(a, b)| a != b);
                    assert_eq!(differ, None, "{dtype} {count} {method:?} on {}", backend.name());
                }
            }
        }
    }
}

#[test]
fn fishers_of_any_magnitude_neither_overflow_nor_vanish() {
    let far =
        |seed: u64, reach: f64| single(noise(seed, LEN).iter().map(|x| 10.0_f64.powf(reach * x)).collect());
    let tiny = |seed: u64| single(noise(seed, LEN).iter().map(|x| 1e-44 * (2.5 + 2.0 * x)).collect());
    let huge = |seed: u64| single(noise(seed, LEN).iter().map(|x| 3e38 * (0.6 + 0.4 * x)).collect());
    let theta = |seed| single(noise(seed, LEN));
    let sets: [(&str, Vec<_>); 4] = [
        ("from 1e-38 to 1e38", (0..4).map(|m| (theta(m), far(m + 9, 38.0))).collect()),
        ("subnormal", (0..4).map(|m| (theta(m), tiny(m + 9))).collect()),
        ("near the largest", (0..4).map(|m| (theta(m), huge(m + 9))).collect()),
        (
            "subnormal beside 1e-38",
            (0..4).map(|m| (theta(m), if m < 2 { tiny(m) } else { vec![1e-38; LEN] })).collect(),
        ),
    ];
    for (name, models) in sets {
        let models: Vec<_> = models.into_iter().map(|(t, f)| (t, single(f))).collect();
        for backend in support::backends() {
            for method in [Method::Fisher, Method::Ubgm] {
                let got = w(&Vectors::new(DType::F32, &models).options(method), &backend);
                let want = defined(&models, &[1.0; 4], method);
                assert_defined(&got, &want, 4, &format!("{name} {method:?} on {}", backend.name()));
            }
        }
    }
}

#[test]
fn ubgm_with_a_base_fisher_of_zeros_is_fisher_merging() {
    let mut models = models(4);
    models[3].1.fill(0.0);
    for (_, fisher) in &mut models[..3] {
        fisher.iter_mut().for_each(|f| *f = f64::from(f.max(1e-6) as f32));
    }
    for backend in support::backends() {
        let got = w(&Vectors::new(DType::F32, &models).options(Method::Ubgm), &backend);
        let theta0 = &models[3].0;
        let mut want = defined(&models[..3], &[1.0; 3], Method::Fisher);
        // It goes by way of the base, so the base's magnitude counts.
        want.iter_mut().zip(theta0).for_each(|(want, t0)| want.scale += 2.0 * t0.abs());
        assert_defined(&got, &want, 3, &backend.name());
    }
}

#[test]
fn the_order_of_models_changes_only_roundings() {
    let models = models(5);
    for backend in support::backends() {
        for method in METHODS {
            let mut vectors = Vectors::new(DType::F32, &models);
            let count = models.len() - usize::from(method == Method::Ubgm);
            let want = defined(&models, &[1.0; 5], method);
            assert_defined(&w(&vectors.options(method), &backend), &want, count, "in order");
            vectors.pairs[..count].reverse();
            let got = w(&vectors.options(method), &backend);
            let mut want = defined(&models, &[1.0; 5], method);
            // Another model is the reference.
            want.iter_mut().for_each(|want| want.scale += 4.0);
            assert_defined(&got, &want, count, "reversed");
        }
    }
}

/// Steps of two and of four models, alone and one after the other.
#[test]
fn any_number_of_models_is_merged_as_defined() {
    for backend in support::backends() {
        for count in 1..=9 {
            let models = models(count);
            let got = w(&Vectors::new(DType::F32, &models).options(Method::Fisher), &backend);
            let lambda = vec![1.0; models.len()];
            let want = defined(&models, &lambda, Method::Fisher);
            assert_defined(&got, &want, models.len(), &format!("{count} models on {}", backend.name()));
        }
    }
}

#[test]
fn host_and_device_agree_within_their_bounds() {
    let [host, device] = support::backends();
    let models = models(4);
    for dtype in DType::ALL {
        for method in METHODS {
            let stored: Vec<_> =
                models.iter().map(|(t, f)| (floats("w", dtype, t).values(), f.clone())).collect();
            let options = Vectors::new(dtype, &stored);
            let want = defined(&stored, &[1.0; 4], method);
            for backend in [&host, &device] {
                let got = w(&options.options(method), backend);
                assert_defined(&got, &want, 4, &format!("{dtype} {method:?} on {}", backend.name()));
            }
        }
    }
}

#[test]
fn normalising_makes_a_models_own_factor_irrelevant() {
    let models = models(3);
    for backend in support::backends() {
        for method in [Method::Fisher, Method::Ubgm] {
            for normalize in [Normalize::Mean, Normalize::Norm] {
                let of = |factors: [f64; 3]| {
                    let scaled = models.iter().zip(factors);
                    let scaled: Vec<_> = scaled
                        .map(|((t, f), factor)| (t.clone(), f.iter().map(|f| f * factor).collect()))
                        .collect();
                    let vectors = Vectors::new(DType::F32, &scaled);
                    w(&MergeOptions { normalize, ..vectors.options(method) }, &backend)
                };
                let plain = of([1.0; 3]);
                let at = format!("{method:?} {normalize:?} on {}", backend.name());
                assert_eq!(of([2.0_f64.powi(20), 1.0, 2.0_f64.powi(-30)]).bytes, plain.bytes, "{at}");
                // The definition with Fishers divided in f64.
                let normal: Vec<_> = models.iter().map(|(t, f)| (t.clone(), divided(f, normalize))).collect();
                assert_defined(&plain, &defined(&normal, &[1.0; 3], method), 4, &at);
            }
        }
    }
}

fn divided(fisher: &[f64], by: Normalize) -> Vec<f64> {
    let divisor = match by {
        Normalize::None => 1.0,
        Normalize::Mean => fisher.iter().sum::<f64>() / fisher.len() as f64,
        Normalize::Norm => fisher.iter().map(|f| f * f).sum::<f64>().sqrt(),
    };
    fisher.iter().map(|f| f / divisor).collect()
}

/// A model of several tensors of any type, among them scalars and empty ones.
fn random_model(seed: u64, lengths: &[(usize, u8)]) -> (Vec<Tensor>, Vec<Tensor>) {
    let shape = |len: usize| if len == 1 { vec![] } else { vec![len] };
    let tensor = |(t, &(len, kind)): (usize, &(usize, u8))| {
        let values = noise(seed + 31 * t as u64, len);
        let dtype = DType::ALL[usize::from(kind % 3)];
        files::shaped(&format!("t{t}"), dtype, &shape(len), &values)
    };
    let fisher = |(t, &(len, kind)): (usize, &(usize, u8))| {
        // Within the range of f16.
        let values: Vec<f64> = fishers(seed + 31 * t as u64 + 7, len).iter().map(|f| f.min(6e4)).collect();
        files::shaped(&format!("t{t}"), DType::ALL[usize::from(kind / 3 % 3)], &shape(len), &values)
    };
    (lengths.iter().enumerate().map(tensor).collect(), lengths.iter().enumerate().map(fisher).collect())
}

/// The least host and device memory with which `options` can be planned, as the refusals say it.
fn least_budget(options: &MergeOptions, backend: &Backend) -> Budget {
    let mut budget = Budget { host_bytes: 0, device_bytes: 0, ..Budget::default() };
    loop {
        match squisher::methods::merge::plan(options, &Run { budget, ..Run::new(backend) }) {
            Ok(_) => return budget,
            Err(Error::Budget { need, flag, .. }) if flag == "--device-memory" => budget.device_bytes = need,
            Err(Error::Budget { need, .. }) => budget.host_bytes = need,
            Err(other) => panic!("{other}"),
        }
    }
}

fn chunked_equals_whole(
    seed: u64,
    lengths: &[(usize, u8)],
    count: u64,
    method: Method,
    extra: u64,
    backend: &Backend,
) {
    let folder = folder();
    let path = |what: &str, m: u64| folder.path().join(format!("{what}{m}.safetensors"));
    let pairs: Vec<_> = (0..=count)
        .map(|m| {
            let (model, fisher) = random_model(seed + 1000 * m, lengths);
            (files::write(&path("model", m), &model), files::write(&path("fisher", m), &fisher))
        })
        .collect();
    let mut borrowed: Vec<(&Path, &Path)> = pairs.iter().map(|(m, f)| (m.as_path(), f.as_path())).collect();
    let base = borrowed.pop().expect("one more than models");
    let mut whole = options(method, &borrowed);
    if method == Method::Ubgm {
        whole = with_base(whole, base.0, base.1);
    }
    let least = least_budget(&whole, backend);
    let budget = Budget {
        host_bytes: least.host_bytes.saturating_add(extra),
        device_bytes: least.device_bytes.saturating_add(extra),
        ..least
    };
    let out = |what: &str| folder.path().join(what);
    run(&whole, &out("whole"), backend).expect("a sound merge");
    run_within(budget, &whole, &out("chunked"), backend).expect("the budget works");
    let bytes = |what: &str| std::fs::read(out(what)).expect("it was written");
    assert!(bytes("whole") == bytes("chunked"), "{method:?} of {count} models, {lengths:?}");
}

fn lengths() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let len = prop_oneof![Just(0_usize), Just(1), 2..70_usize, 1000..60_000_usize];
    prop::collection::vec((len, 0..9_u8), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunked_equals_whole_on_the_host(seed in 0..1000_u64, lengths in lengths(), count in 1..5_u64, method in 0..3_usize, extra in 0..2_000_000_u64) {
        chunked_equals_whole(seed, &lengths, count, METHODS[method], extra, &Backend::Host);
    }
}

#[test]
fn chunked_equals_whole_on_a_device() {
    let device = Backend::Gpu(support::gpu());
    let lengths = [(40_003, 0), (1, 4), (0, 0), (70_001, 0), (17, 5)];
    for (method, count) in METHODS.into_iter().zip([3, 2, 3]) {
        chunked_equals_whole(5, &lengths, count, method, 0, &device);
    }
}

/// The model that is left out has the largest Fishers there are: they must not be what the others are measured by.
#[test]
fn a_weight_of_zero_leaves_a_model_out() {
    for backend in support::backends() {
        for method in METHODS {
            let merged = if method == Method::Ubgm { 2 } else { 3 };
            for silent in 0..merged {
                let mut models = models(3);
                models[silent].1.fill(f64::from(3e38_f32));
                let mut lambda = [0.5, 1e30, 3.0];
                lambda[silent] = 0.0;
                let vectors = Vectors::new(DType::F32, &models);
                let mut options = vectors.options(method);
                options
                    .models
                    .iter_mut()
                    .zip(lambda)
                    .for_each(|(model, lambda): (&mut Model, f64)| model.weight = lambda);
                let got = w(&options, &backend);
                let at = format!("{method:?} without {silent} on {}", backend.name());
                assert_defined(&got, &defined(&models, &lambda, method), 3, &at);
            }
        }
    }
}
