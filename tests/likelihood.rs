//! From outputs to gradients to Fishers: what holds beyond single kernels, on both backends.
//!
//! A softmax regression z = W x is the model, since everything is known of it in closed form: for the row c
//! of W, the exact Fisher is Σ_n p_nc (1 − p_nc) x_n².

mod support;

use squisher::kernel::noise;
use squisher::kernels::fisher::Epilogue;
use squisher::record::fisher::{Buffers, Linear, Squares};
use squisher::record::likelihood::{Draws, Gaussian, Gradients, IGNORED, Softmax};
use squisher::reference::likelihood as definition;
use squisher::{Backend, DType, Element, Recording, View};

const SAMPLES: u32 = 40;
const INPUTS: u32 = 3;
const CLASSES: u32 = 5;
/// Inputs of a sample.
const X: usize = INPUTS as usize;

#[expect(clippy::cast_possible_truncation, reason = "noise is exact in f32")]
fn floats(seed: u64, len: usize, scale: f64) -> Vec<f32> {
    noise(seed, len).iter().map(|v| (scale * v) as f32).collect()
}

/// The model's inputs `[n, i]` and logits `[n, c]`.
fn regression() -> (Vec<f32>, Vec<f32>) {
    let x = floats(1, (SAMPLES * INPUTS) as usize, 2.0);
    let w = floats(2, (CLASSES * INPUTS) as usize, 1.5);
    let row = |x: &[f32]| -> Vec<f32> {
        w.chunks(INPUTS as usize).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    };
    let logits = x.chunks(INPUTS as usize).flat_map(row).collect();
    (x, logits)
}

fn upload(backend: &Backend, values: &[f32]) -> View {
    backend.buffer(values, DType::F32).expect("a small buffer")
}

fn words(backend: &Backend, values: &[u32]) -> View {
    backend.buffer(values, Element::U32).expect("a small buffer")
}

/// Σ over rounds of the weighted squares of the regression's gradients, round by round into one result.
fn fisher(
    backend: &Backend,
    x: &[f32],
    outputs: u32,
    rounds: u32,
    record: impl Fn(&mut Recording, u32, &Gradients),
) -> Vec<f32> {
    let samples = u32::try_from(x.len()).expect("small") / INPUTS;
    let layer = Linear { samples, positions: 1, inputs: INPUTS, outputs };
    let input = upload(backend, x);
    let out = backend.alloc(u64::from(outputs * INPUTS), DType::F32).expect("a small buffer");
    let gradients = Gradients::new(backend, 1, samples, outputs).expect("small buffers");
    let mut recording = Recording::new(backend);
    for round in 0..rounds {
        record(&mut recording, round, &gradients);
        let epilogue = if round == 0 { Epilogue::Overwrite } else { Epilogue::Add };
        let (grad_output, weight) = (&gradients.gradient, &gradients.weight);
        let buffers = Buffers { input: &input, grad_output, weight, out: &out };
        layer.record(&mut recording, Squares { epilogue, ..Squares::default() }, buffers).expect("sizes fit");
    }
    backend.run(&recording).expect("the recording runs");
    backend.download(&out).expect("the result is there")
}

fn exact(backend: &Backend, x: &[f32], logits: &[f32], mask: Option<&[u32]>) -> Vec<f32> {
    let samples = u32::try_from(x.len()).expect("small") / INPUTS;
    let loss = Softmax::new(backend, samples, CLASSES).expect("small buffers");
    let (logits, mask) = (upload(backend, logits), mask.map(|mask| words(backend, mask)));
    let got = fisher(backend, x, CLASSES, CLASSES, |recording, class, out| {
        loss.exact(recording, &logits, mask.as_ref(), class..class + 1, out).expect("sizes fit");
    });
    loss.check(backend).expect("sound logits");
    got
}

fn monte_carlo(backend: &Backend, x: &[f32], logits: &[f32], seed: u64, of: u32) -> Vec<f32> {
    let samples = u32::try_from(x.len()).expect("small") / INPUTS;
    let loss = Softmax::new(backend, samples, CLASSES).expect("small buffers");
    let logits = upload(backend, logits);
    let drawn = backend.alloc(samples.into(), Element::U32).expect("a small buffer");
    let got = fisher(backend, x, CLASSES, of, |recording, round, out| {
        let draws = Draws { seed, first_sample: 0, draws: round..round + 1, of };
        loss.monte_carlo(recording, &logits, None, &draws, &drawn, out).expect("sizes fit");
    });
    loss.check(backend).expect("sound logits");
    got
}

fn rows(logits: &[f32]) -> impl Iterator<Item = Vec<f64>> {
    logits.chunks(CLASSES as usize).map(|row| row.iter().map(|&z| z.into()).collect())
}

/// Σ_n p (1 − p) x², class by class.
fn closed_form(x: &[f32], logits: &[f32]) -> Vec<f64> {
    let mut want = vec![0.0; (CLASSES * INPUTS) as usize];
    for (z, x) in rows(logits).zip(x.chunks(INPUTS as usize)) {
        for (c, p) in definition::softmax(&z).into_iter().enumerate() {
            for (i, &x) in x.iter().enumerate() {
                want[c * X + i] += p * (1.0 - p) * f64::from(x).powi(2);
            }
        }
    }
    want
}

fn near(got: &[f32], want: &[f64], relative: f64) {
    support::close::all_near(got, want, |want| relative * want.abs());
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_exact_fisher_of_a_softmax_regression_is_its_closed_form() {
    let (x, logits) = regression();
    for backend in support::backends() {
        near(&exact(&backend, &x, &logits, None), &closed_form(&x, &logits), 1e-5);
    }
}

/// How many deviations the estimate is off where it is off most, given what its variance is: with g² of a drawn label,
/// Var = 1/k Σ_n (Σ_c p g⁴ − (Σ_c p g²)²).
fn deviations(estimate: &[f32], x: &[f32], logits: &[f32], draws: u32) -> f64 {
    let (mut mean, mut variance) = (vec![0.0; estimate.len()], vec![0.0; estimate.len()]);
    for (z, x) in rows(logits).zip(x.chunks(X)) {
        let p = definition::softmax(&z);
        for c in 0..CLASSES as usize {
            let squares: Vec<f64> =
                (0..p.len()).map(|y| definition::cross_entropy(&z, y)[c].powi(2)).collect();
            let moment = |power: i32| p.iter().zip(&squares).map(|(p, s)| p * s.powi(power)).sum::<f64>();
            for (i, &x) in x.iter().enumerate() {
                let x = f64::from(x);
                mean[c * X + i] += moment(1) * x.powi(2);
                variance[c * X + i] += (moment(2) - moment(1).powi(2)) * x.powi(4) / f64::from(draws);
            }
        }
    }
    let off = |p: usize| (f64::from(estimate[p]) - mean[p]).abs() / variance[p].sqrt();
    (0..estimate.len()).map(off).fold(0.0, f64::max)
}

/// Fifteen estimates: beyond five deviations once in 100 000 seeds, if the probabilities are right.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn monte_carlo_approaches_exact_and_a_wrong_probability_shows() {
    let (x, logits) = regression();
    const DRAWS: u32 = 1000;
    for backend in support::backends() {
        let estimate = monte_carlo(&backend, &x, &logits, 5, DRAWS);
        let off = deviations(&estimate, &x, &logits, DRAWS);
        assert!(off < 5.0, "{off} deviations on {}", backend.name());
    }
    // Drawn from a model in which one class's odds are two fifths too high.
    let mut wrong = logits.clone();
    wrong.chunks_mut(CLASSES as usize).for_each(|row| row[2] += 1.4_f32.ln());
    let loss = Softmax::new(&Backend::Host, SAMPLES, CLASSES).expect("small buffers");
    let (right, wrong) = (upload(&Backend::Host, &logits), upload(&Backend::Host, &wrong));
    let drawn = words(&Backend::Host, &vec![0; SAMPLES as usize]);
    let planted = fisher(&Backend::Host, &x, CLASSES, DRAWS, |recording, round, out| {
        let draws = Draws { seed: 5, first_sample: 0, draws: round..round + 1, of: DRAWS };
        loss.draw(recording, &wrong, None, &draws, &drawn).expect("sizes fit");
        loss.empirical(recording, &right, &drawn, out).expect("sizes fit");
    });
    let planted: Vec<f32> = planted.iter().map(|sum| sum / DRAWS as f32).collect();
    assert!(deviations(&planted, &x, &logits, DRAWS) > 5.0, "the planted error was not seen");
}

/// All labels that a batch draws, [draw, sample].
fn labels(backend: &Backend, logits: &View, samples: u32, classes: u32, draws: Draws) -> Vec<u32> {
    let loss = Softmax::new(backend, samples, classes).expect("small buffers");
    let count = u64::from(draws.draws.end - draws.draws.start);
    let drawn = backend.alloc(count * u64::from(samples), Element::U32).expect("a small buffer");
    let mut recording = Recording::new(backend);
    loss.draw(&mut recording, logits, None, &draws, &drawn).expect("sizes fit");
    backend.run(&recording).expect("the recording runs");
    loss.check(backend).expect("sound logits");
    backend.download(&drawn).expect("the labels are there")
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn every_device_draws_the_same_labels_and_noise() {
    let (samples, classes) = (300, 37);
    let logits = floats(7, (samples * classes) as usize, 9.0);
    let draws = Draws { seed: 0xdead_beef_0bad_cafe, first_sample: 1 << 40, draws: 3..53, of: 100 };
    let [host, device] = support::backends().map(|backend| {
        let labels = labels(&backend, &upload(&backend, &logits), samples, classes, draws.clone());
        let loss = Gaussian::new(&backend, samples, classes).expect("small buffers");
        let out = Gradients::new(&backend, 50, samples, classes).expect("small buffers");
        let mut recording = Recording::new(&backend);
        loss.monte_carlo(&mut recording, &draws, &out).expect("sizes fit");
        backend.run(&recording).expect("the recording runs");
        (labels, backend.download::<u32>(&out.gradient).expect("the noise is there"))
    });
    assert_eq!(host.0.len(), 15_000);
    assert!(host == device, "draws differ between host and device");
}

#[test]
fn cutting_the_data_or_the_draws_changes_no_label() {
    let (samples, classes) = (64, 9);
    let logits = floats(8, (samples * classes) as usize, 4.0);
    let of = |first: u32, count: u32, draws: std::ops::Range<u32>| {
        let part = &logits[(first * classes) as usize..((first + count) * classes) as usize];
        let draws = Draws { seed: 1, first_sample: first.into(), draws, of: 4 };
        labels(&Backend::Host, &upload(&Backend::Host, part), count, classes, draws)
    };
    let whole = of(0, samples, 0..4);
    for (first, count, draw) in [(0, 10, 0), (10, 54, 3), (63, 1, 2)] {
        let start = (draw * samples + first) as usize;
        assert_eq!(of(first, count, draw..draw + 1), whole[start..start + count as usize]);
    }
}

/// Σ (observed − expected)² / expected, and how many deviations that is above its mean: χ² of f degrees has
/// mean f and variance 2f.
fn chi_square(observed: &[f64], expected: &[f64]) -> f64 {
    let chi: f64 = observed.iter().zip(expected).map(|(o, e)| (o - e).powi(2) / e).sum();
    let freedom = expected.len() as f64 - 1.0;
    (chi - freedom) / (2.0 * freedom).sqrt()
}

#[test]
fn drawn_classes_have_their_probabilities() {
    let (samples, draws) = (500, 400);
    let z = [0.3_f32, -1.0, 2.1, 0.0, 1.4, -2.2, 0.9];
    let logits = upload(&Backend::Host, &z.repeat(samples as usize));
    let draws = Draws { seed: 11, first_sample: 0, draws: 0..draws, of: draws };
    let labels = labels(&Backend::Host, &logits, samples, 7, draws);
    let mut observed = [0.0; 7];
    labels.iter().for_each(|&label| observed[label as usize] += 1.0);
    let expected = |z: &[f32]| -> Vec<f64> {
        let z: Vec<f64> = z.iter().map(|&z| z.into()).collect();
        definition::softmax(&z).into_iter().map(|p| p * labels.len() as f64).collect()
    };
    let off = chi_square(&observed, &expected(&z));
    assert!(off.abs() < 4.0, "{off} deviations");
    // A probability that is 3 % too high is seen.
    let mut wrong = z;
    wrong[2] += 0.03;
    assert!(chi_square(&observed, &expected(&wrong)) > 10.0, "the planted error was not seen");
}

#[test]
fn noise_is_64_coins_and_uncorrelated() {
    let (samples, outputs) = (1000, 100);
    let loss = Gaussian::new(&Backend::Host, samples, outputs).expect("small buffers");
    let out = Gradients::new(&Backend::Host, 1, samples, outputs).expect("small buffers");
    let mut recording = Recording::new(&Backend::Host);
    let draws = Draws { seed: 3, first_sample: 0, draws: 0..1, of: 1 };
    loss.monte_carlo(&mut recording, &draws, &out).expect("sizes fit");
    Backend::Host.run(&recording).expect("the recording runs");
    let noise: Vec<f64> =
        Backend::Host.download::<f32>(&out.gradient).expect("there").into_iter().map(f64::from).collect();
    let count = noise.len() as f64;
    // Of 64 coins, between 22 and 42 heads, each at least 400 times; the rest together.
    let mut choose = vec![1.0_f64];
    for k in 0..64 {
        choose.push(choose[k] * (64 - k) as f64 / (k + 1) as f64);
    }
    let bin = |heads: f64| (heads.clamp(21.0, 43.0) - 21.0) as usize;
    let (mut observed, mut expected) = (vec![0.0; 23], vec![0.0; 23]);
    noise.iter().for_each(|e| observed[bin(4.0 * e + 32.0)] += 1.0);
    choose
        .iter()
        .enumerate()
        .for_each(|(k, ways)| expected[bin(k as f64)] += count * ways * 0.5_f64.powi(64));
    let off = chi_square(&observed, &expected);
    assert!(off.abs() < 4.0, "{off} deviations");
    // Means of 1 have deviation 1/√count, those of squares √(2 − 1/32)/√count; products of neighbours 1/√count.
    let mean = |term: &dyn Fn(usize) -> f64| (0..noise.len()).map(term).sum::<f64>() / count * count.sqrt();
    assert!(mean(&|i| noise[i]).abs() < 4.0, "the mean");
    assert!(mean(&|i| noise[i].powi(2) - 1.0).abs() < 4.0 * 2.0_f64.sqrt(), "the variance");
    for step in [1, 2, outputs as usize] {
        let off = mean(&|i| noise[i] * noise[(i + step) % noise.len()]);
        assert!(off.abs() < 4.0, "elements {step} apart are correlated: {off}");
    }
}

/// For a linear regression: exact Σ_n x², for every output; Monte Carlo approaches it, Var = (3 − 1/32 − 1)/k Σ_n x⁴.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_regression_s_fisher_is_known() {
    let (x, _) = regression();
    let (outputs, draws) = (2, 300);
    let power = |i: usize, power: i32| x.chunks(X).map(|x| f64::from(x[i]).powi(power)).sum::<f64>();
    let want: Vec<f64> = (0..6).map(|p| power(p % 3, 2)).collect();
    for backend in support::backends() {
        let loss = Gaussian::new(&backend, SAMPLES, outputs).expect("small buffers");
        let got = fisher(&backend, &x, outputs, outputs, |recording, round, out| {
            loss.exact(recording, round..round + 1, out).expect("sizes fit");
        });
        near(&got, &want, 1e-5);
        let got = fisher(&backend, &x, outputs, draws, |recording, round, out| {
            let draws = Draws { seed: 9, first_sample: 0, draws: round..round + 1, of: draws };
            loss.monte_carlo(recording, &draws, out).expect("sizes fit");
        });
        for (p, (&got, want)) in got.iter().zip(&want).enumerate() {
            let deviation = ((2.0 - 1.0 / 32.0) * power(p % 3, 4) / f64::from(draws)).sqrt();
            assert!((f64::from(got) - want).abs() < 5.0 * deviation, "[{p}]: {got} {want} ± {deviation}");
        }
        let target = upload(&backend, &floats(12, 80, 1.0));
        let output = upload(&backend, &floats(13, 80, 1.0));
        let got = fisher(&backend, &x, outputs, 1, |recording, _, out| {
            loss.empirical(recording, &output, &target, out).expect("sizes fit");
        });
        let residuals: Vec<f64> = floats(13, 80, 1.0)
            .iter()
            .zip(floats(12, 80, 1.0))
            .map(|(z, y)| f64::from(*z) - f64::from(y))
            .collect();
        let empirical = |p: usize| -> f64 {
            let of = |n: usize| residuals[2 * n + p / 3] * f64::from(x[3 * n + p % 3]);
            (0..SAMPLES as usize).map(|n| of(n).powi(2)).sum()
        };
        near(&got, &(0..6).map(empirical).collect::<Vec<_>>(), 1e-5);
        loss.check(&backend).expect("all is finite");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn ignored_samples_count_for_nothing() {
    let (x, mut logits) = regression();
    let half = (SAMPLES / 2) as usize;
    let (first_x, first_logits) = (x[..half * 3].to_vec(), logits[..half * 5].to_vec());
    // What is behind may be garbage.
    logits[half * 5..].fill(f32::NAN);
    let mut mask = vec![0; SAMPLES as usize];
    mask[half..].fill(IGNORED);
    for backend in support::backends() {
        assert_eq!(exact(&backend, &x, &logits, Some(&mask)), exact(&backend, &first_x, &first_logits, None));
        let loss = Softmax::new(&backend, SAMPLES, CLASSES).expect("small buffers");
        let (logits, mask) = (upload(&backend, &logits), words(&backend, &mask));
        let drawn = backend.alloc(SAMPLES.into(), Element::U32).expect("a small buffer");
        let out = Gradients::new(&backend, 1, SAMPLES, CLASSES).expect("small buffers");
        let draws = Draws { seed: 2, first_sample: 0, draws: 0..1, of: 4 };
        let mut recording = Recording::new(&backend);
        loss.monte_carlo(&mut recording, &logits, Some(&mask), &draws, &drawn, &out).expect("sizes fit");
        backend.run(&recording).expect("the recording runs");
        loss.check(&backend).expect("ignored samples are not looked at");
        let weight = backend.download::<f32>(&out.weight).expect("there");
        assert_eq!(weight, [vec![0.25; half], vec![0.0; half]].concat());
        let gradient = backend.download::<f32>(&out.gradient).expect("there");
        assert!(gradient[half * 5..].iter().all(|g| *g == 0.0));
    }
}

/// Σ g²/s of samples of which one is certain beyond f32: its gradient is below every f32, its share of the
/// improved Fisher is not.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_improved_fisher_keeps_a_certain_sample() {
    let x = [1.0, 2.0, 3.0, -1.0, 0.5, 0.25];
    let logits = [300.0, 1.0, 0.0, -1.0, 0.0, 0.3, 0.2, 0.1, 0.0, -0.1];
    let labels = [0, 3];
    let mut want = vec![0.0; 15];
    for ((z, label), x) in rows(&logits).zip(labels).zip(x.chunks(3)) {
        // ∂ℓ/∂z in units of the largest other probability, which cancels in g²/s.
        let others: Vec<f64> =
            z.iter().enumerate().map(|(c, z)| if c == label { 0.0 } else { z.exp() }).collect();
        let direction: Vec<f64> =
            (0..5).map(|c| if c == label { -others.iter().sum::<f64>() } else { others[c] }).collect();
        let s: f64 = direction.iter().map(|g| g * g).sum();
        for p in 0..15 {
            want[p] += (direction[p / 3] * f64::from(x[p % 3])).powi(2) / s;
        }
    }
    for backend in support::backends() {
        let loss = Softmax::new(&backend, 2, CLASSES).expect("small buffers");
        let (logits, labels) = (upload(&backend, &logits), words(&backend, &[0, 3]));
        let got = fisher(&backend, &x, CLASSES, 1, |recording, _, out| {
            loss.improved(recording, &logits, &labels, out).expect("sizes fit");
        });
        near(&got, &want, 1e-5);
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn half_precision_logits_and_masked_classes_are_taken() {
    // 0, −1.5, −∞ and 2 as binary16.
    let stored = [0_u16, 0xbe00, 0xfc00, 0x4000];
    for backend in support::backends() {
        let logits = backend.buffer(&stored, DType::F16).expect("a small buffer");
        let loss = Softmax::new(&backend, 1, 4).expect("small buffers");
        let out = Gradients::new(&backend, 4, 1, 4).expect("small buffers");
        let mut recording = Recording::new(&backend);
        loss.exact(&mut recording, &logits, None, 0..4, &out).expect("sizes fit");
        backend.run(&recording).expect("the recording runs");
        loss.check(&backend).expect("a class that cannot be is no fault");
        let weight = backend.download::<f32>(&out.weight).expect("there");
        let p = definition::softmax(&[0.0, -1.5, f64::NEG_INFINITY, 2.0]);
        near(&weight, &p, 1e-6);
        assert_eq!(weight[2], 0.0);
        let draws = Draws { seed: 4, first_sample: 0, draws: 0..1000, of: 1000 };
        assert!(!labels(&backend, &logits, 1, 4, draws).contains(&2), "what cannot be is not drawn");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn faults_are_told_by_sample() {
    let sound = vec![0.5_f32; 12];
    let with = |index: usize, value: f32| {
        let mut logits = sound.clone();
        logits[index] = value;
        logits
    };
    for backend in support::backends() {
        let told = |logits: &[f32], labels: &[u32]| {
            let loss = Softmax::new(&backend, 3, 4).expect("small buffers");
            let out = Gradients::new(&backend, 1, 3, 4).expect("small buffers");
            let mut recording = Recording::new(&backend);
            let (logits, given) = (upload(&backend, logits), words(&backend, labels));
            loss.empirical(&mut recording, &logits, &given, &out).expect("sizes fit");
            let drawn = words(&backend, &[0; 3]);
            let draws = Draws { seed: 0, first_sample: 0, draws: 0..1, of: 1 };
            loss.draw(&mut recording, &logits, None, &draws, &drawn).expect("sizes fit");
            backend.run(&recording).expect("the recording runs");
            loss.check(&backend).map_err(|error| error.to_string())
        };
        assert_eq!(told(&sound, &[0, IGNORED, 3]), Ok(()));
        let nan = told(&with(6, f32::NAN), &[0, 1, 2]).expect_err("NaN");
        assert!(nan.contains("sample 1: a logit is NaN or plus infinity"), "{nan}");
        let infinite = told(&with(11, f32::INFINITY), &[0, 1, 2]).expect_err("infinity");
        assert!(infinite.contains("sample 2: a logit is NaN or plus infinity"), "{infinite}");
        let label = told(&sound, &[0, 4, 5]).expect_err("no class");
        assert!(label.contains("sample 1: the label is not a class of 4"), "{label}");
        let large = told(&with(0, 1e6), &[0, 1, 2]).expect_err("too large to draw from");
        assert!(large.contains("sample 0: the largest logit is beyond"), "{large}");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let backend = Backend::Host;
    let loss = Softmax::new(&backend, 3, 4).expect("small buffers");
    let out = Gradients::new(&backend, 1, 3, 4).expect("small buffers");
    let (logits, labels) = (upload(&backend, &[0.0; 12]), words(&backend, &[0; 3]));
    let mut recording = Recording::new(&backend);
    let refused = |problem: squisher::Result<()>, says: &str| {
        let message = problem.expect_err(says).to_string();
        assert!(message.contains(says), "{message}");
    };
    refused(loss.empirical(&mut recording, &labels, &labels, &out), "logits has u32 elements");
    refused(
        loss.empirical(&mut recording, &logits, &logits, &out),
        "labels has 12 elements, expected 3 elements",
    );
    refused(loss.exact(&mut recording, &logits, None, 3..5, &out), "rounds for classes 3..5 of 4");
    refused(
        loss.exact(&mut recording, &logits, None, 0..2, &out),
        "gradient has 12 elements, expected 24 elements",
    );
    let draws = Draws { seed: 0, first_sample: 0, draws: 2..4, of: 3 };
    refused(loss.draw(&mut recording, &logits, None, &draws, &labels), "draws 2..4 of 3");
    let none = Softmax::new(&backend, 3, 0).expect("small buffers");
    let empty = Gradients::new(&backend, 1, 3, 0).expect("small buffers");
    refused(none.empirical(&mut recording, &upload(&backend, &[]), &labels, &empty), "0 classes");
    let regression = Gaussian::new(&backend, 3, 4).expect("small buffers");
    refused(regression.exact(&mut recording, 0..5, &out), "rounds 0..5 of 4");
    refused(
        regression.empirical(&mut recording, &logits, &upload(&backend, &[0.0; 11]), &out),
        "goal has 11",
    );
}
