//! What must hold whatever the numbers.

use squisher::methods::per_sample::PerSample;
use squisher::methods::step::StepKind;
use squisher::stream::Budget;
use squisher::{Backend, Run, reference};

use crate::support::capture_files::{Draft, LINEAR, captures, linear, load, worst};
use crate::support::files::{self, folder};
use crate::{along, gram, gram_within, noise, norms, open, options, run, share, step_tool, support, wide};

/// Without damping the loss of every sample changes by its target: 1, or s.
#[test]
fn steps_meet_their_targets_where_nothing_is_damped() {
    for backend in support::backends() {
        for case in ["mlp", "mlp_wide", "sequence", "conv2d", "conv2d_bf16", "conv2d_f16"] {
            let paths = captures(case);
            let opened = open(&paths);
            let with = Run::new(&backend);
            let job = PerSample::new(&opened, &with).expect("one network");
            for kind in [StepKind::Ef, StepKind::Ief] {
                let folder = folder();
                let (_, report) =
                    run(&backend, &paths, &options(kind, 0.0), folder.path()).expect("K has an inverse");
                let got = along(&backend, &paths, &report.output).expect("the step is of this network");
                let want = match kind {
                    StepKind::Ef => vec![1.0; got.len()],
                    StepKind::Ief => job.logit_grad_sq().expect("it was captured"),
                };
                let error = share(&got, &want);
                assert!(error < 1e-3, "{case} {kind} on {}: {error:e}", backend.name());
                let slope: f64 = got.iter().sum();
                assert!((report.slope - slope).abs() < 1e-3 * slope.abs(), "{} {slope}", report.slope);
                let square: f64 =
                    load(&report.output).values().flatten().map(|value| value * value).sum::<f64>().sqrt();
                assert!((report.step_norm - square).abs() < 1e-3 * square, "{} {square}", report.step_norm);
            }
        }
    }
}

/// Where the damping is all, xᵀ(s − λx) has no digit left.
#[test]
fn the_norm_is_that_of_the_step_that_is_written_at_any_damping() {
    for damping in [1e-2, 1e3, 1e9, 1e18] {
        let folder = folder();
        let options = options(StepKind::Ef, damping);
        let (_, report) = run(&Backend::Host, &captures("mlp"), &options, folder.path()).expect("damped");
        let square: f64 = load(&report.output).values().flatten().map(|value| value * value).sum();
        assert!((report.step_norm / square.sqrt() - 1.0).abs() < 1e-9, "{damping:e}: {}", report.step_norm);
    }
}

#[test]
fn the_matrix_is_symmetric_positive_and_has_the_squared_norms_on_its_diagonal() {
    for case in ["sequence", "conv2d", "mlp"] {
        let gram = gram(&Backend::Host, &captures(case));
        let norms = norms(&Backend::Host, &captures(case));
        let n = norms.len();
        for m in 0..n {
            assert!((gram[m * n + m].sqrt() / norms[m] - 1.0).abs() < 1e-6, "{case} {m}");
            assert!((0..m).all(|k| gram[m * n + k].to_bits() == gram[k * n + m].to_bits()), "{case} {m}");
        }
        // Positive definite up to rounding: K + λI of a small λ has an inverse.
        let least = 1e-6 * norms.iter().fold(0.0_f64, |most, norm| most.max(norm * norm));
        let (folder, damped) = (folder(), options(StepKind::Ef, least));
        run(&Backend::Host, &captures(case), &damped, folder.path()).expect("no negative direction");
    }
}

/// Budgets change which files are held together and how many parameters are taken at a time.
#[test]
fn files_and_budgets_change_nothing_beyond_rounding() {
    let folder = folder();
    for backend in support::backends() {
        for case in ["sequence", "conv2d", "mlp_wide"] {
            let all = gram(&backend, &captures(case));
            let tight = Budget { host_bytes: 8 * all.len() as u64 + 8, ..Budget::default() };
            let error = share(&gram_within(&backend, &captures(case), tight), &all);
            assert!(error < 1e-6, "{case} on {}: {error:e}", backend.name());
        }
        let (x, g) = ([0.3, -1.5, 2.5, 0.7, 1.1, -0.2], [0.4, -0.9, 1.3]);
        let whole = linear(&x, &g).write(&folder, "whole");
        let parts =
            [linear(&x[..2], &g[..1]).write(&folder, "a"), linear(&x[2..], &g[1..]).write(&folder, "b")];
        assert!(share(&gram(&backend, &parts), &gram(&backend, &[whole])) < 1e-6);
    }
}

/// A linear layer with few positions goes by their pairs, one with many by its gradients: both are the definition.
#[test]
fn pairs_and_gradients_are_both_the_definition() {
    for backend in support::backends() {
        for (n, t, i, o) in [(3, 2, 40, 50), (20, 9, 3, 4), (1, 1, 70, 90), (70, 1, 130, 150), (2, 700, 9, 8)]
        {
            let folder = folder();
            let (a, b) = (noise(1, n * t * i), noise(2, n * t * o));
            let path = Draft::new(LINEAR)
                .with("fc.input", &[n, t, i], &a)
                .with("fc.grad_output", &[n, t, o], &b)
                .write(&folder, "a");
            let gradient = |n: usize| {
                let (a, b) = (wide(&a[n * t * i..][..t * i]), wide(&b[n * t * o..][..t * o]));
                let mut all = reference::fisher::linear(&a, &b, t, i, o);
                all.extend(reference::fisher::bias(&b, t, o, false));
                all
            };
            let gradients: Vec<Vec<f64>> = (0..n).map(gradient).collect();
            let want = reference::fisher::inner_products(&gradients, &gradients);
            let paths = [path];
            let error = share(&gram(&backend, &paths), &want);
            assert!(error < 2e-6, "{n} {t} {i} {o} on {}: {error:e}", backend.name());
            let want: Vec<f64> = (0..n).map(|m| want[m * (n + 1)].sqrt()).collect();
            let error = share(&norms(&backend, &paths), &want);
            assert!(error < 2e-6, "norms {n} {t} {i} {o} on {}: {error:e}", backend.name());
        }
    }
}

#[test]
fn batch_norm_has_each_file_s_statistics() {
    let folder = folder();
    let file = |name: &str, mean: f32, x: &[f32], b: &[f32]| {
        Draft::new(r#"{"n": {"kind": "batch_norm", "eps": 0.0, "bias": true}}"#)
            .with("n.input", &[1, 1, 2], x)
            .with("n.grad_output", &[1, 1, 2], b)
            .with("n.running_mean", &[1], &[mean])
            .with("n.running_var", &[1], &[4.0])
            .write(&folder, name)
    };
    // x̂ is (1, 2) and (−1, 1): gradients of weight and bias (3, 2) and (1, 3).
    let paths = [file("a", 1.0, &[3.0, 5.0], &[1.0, 1.0]), file("b", 3.0, &[1.0, 5.0], &[1.0, 2.0])];
    for backend in support::backends() {
        assert_eq!(gram(&backend, &paths), [13.0, 9.0, 9.0, 10.0]);
    }
}

#[test]
fn a_mean_loss_is_undone() {
    let folder = folder();
    let sum = [
        linear(&[1.0, 2.0], &[1.0, 3.0]).with("logit_grad", &[2, 1], &[1.0, 3.0]).write(&folder, "s0"),
        linear(&[4.0], &[-2.0]).with("logit_grad", &[1, 1], &[-2.0]).write(&folder, "s1"),
    ];
    let mean = |x: &[f32], g: &[f32], name: &str| {
        let draft = linear(x, g).with("logit_grad", &[g.len(), 1], g);
        draft.note("loss_reduction", "mean").write(&folder, name)
    };
    let mean = [mean(&[1.0, 2.0], &[0.5, 1.5], "m0"), mean(&[4.0], &[-2.0], "m1")];
    assert_eq!(gram(&Backend::Host, &sum), gram(&Backend::Host, &mean));
    for kind in [StepKind::Ef, StepKind::Ief] {
        let (of_sum, of_mean) = (files::folder(), files::folder());
        let sum = run(&Backend::Host, &sum, &options(kind, 0.5), of_sum.path()).expect("sound").0;
        let mean = run(&Backend::Host, &mean, &options(kind, 0.5), of_mean.path()).expect("sound").0;
        assert!(worst(&mean, &sum) < 1e-6, "{kind}");
    }
}

/// Products of such gradients are below f32, their products with large inputs are not.
#[test]
fn gradients_near_the_ends_of_f32_still_count() {
    let folder = folder();
    for (scale, name) in [(1e-25_f32, "small"), (1e25, "large")] {
        let path = linear(&[2.0, 3.0, 1.0, -1.0], &[scale, 2.0 * scale]).write(&folder, name);
        let paths = [path];
        for backend in support::backends() {
            let unit = f64::from(scale) * f64::from(scale);
            let got: Vec<f64> = gram(&backend, &paths).iter().map(|k| k / unit).collect();
            // Gradients (2, 3, 1) and (2, −2, 2), times the scale.
            assert!(share(&got, &[14.0, 0.0, 0.0, 12.0]) < 1e-5, "{got:?}");
            let got: Vec<f64> = norms(&backend, &paths).iter().map(|norm| norm / f64::from(scale)).collect();
            assert!(share(&got, &[14.0_f64.sqrt(), 12.0_f64.sqrt()]) < 1e-5, "{got:?}");
            let own = files::folder();
            let (step, _) = run(&backend, &paths, &options(StepKind::Ef, 0.0), own.path()).expect("sound");
            let got: Vec<f64> = step.values().flatten().map(|value| value * f64::from(scale)).collect();
            // g₀/14 + g₁/12, bias before weight.
            let want = [1.0 / 14.0 + 1.0 / 6.0, 1.0 / 7.0 + 1.0 / 6.0, 3.0 / 14.0 - 1.0 / 6.0];
            assert!(share(&got, &want) < 1e-5, "{got:?} {want:?}");
        }
    }
}

#[test]
fn no_samples_give_a_step_of_zeros() {
    let folder = folder();
    let path = Draft::new(LINEAR).with("fc.input", &[0, 2], &[]).with("fc.grad_output", &[0, 1], &[]);
    let paths = [path.write(&folder, "none")];
    let (got, report) =
        run(&Backend::Host, &paths, &options(StepKind::Ef, 1.0), folder.path()).expect("nothing to do");
    assert_eq!((got["fc.weight"].as_slice(), report.samples), (&[0.0, 0.0][..], 0));
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn samples_without_positions_give_a_step_of_zeros() {
    let folder = folder();
    let wide = r#"{"fc": {"kind": "linear", "bias": false}}"#;
    let path = Draft::new(wide).with("fc.input", &[2, 0, 40], &[]).with("fc.grad_output", &[2, 0, 30], &[]);
    let paths = [path.write(&folder, "none")];
    for backend in support::backends() {
        let out = files::folder();
        let (got, report) =
            run(&backend, &paths, &options(StepKind::Ef, 1.0), out.path()).expect("nothing to do");
        assert!(got["fc.weight"].iter().all(|&value| value == 0.0) && report.samples == 2, "{got:?}");
    }
}

/// With the time in which there is none, a step's stages are the whole; but for reading, which may overlap,
/// none counts twice.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn stages_and_what_is_between_them_are_the_whole_time() {
    let folder = folder();
    // Pairs of positions, gradients of rows and an embedding's runs; then products with the step.
    let layers = r#"{"fc": {"kind": "linear", "bias": true}, "long": {"kind": "linear", "bias": false},
        "table": {"kind": "embedding", "rows": 4, "bias": false}}"#;
    let draft = |name: &str, labels: &str| {
        Draft::new(layers)
            .with("fc.input", &[2, 1, 20], &noise(1, 40))
            .with("fc.grad_output", &[2, 1, 30], &noise(2, 60))
            .with("long.input", &[2, 50, 3], &noise(3, 300))
            .with("long.grad_output", &[2, 50, 2], &noise(4, 200))
            .with("table.grad_output", &[2, 3, 8], &noise(5, 48))
            .ids("table.input", &[2, 3], &[1, 0, 3, 3, 3, 2])
            .with("logit_grad", &[2, 1], &[0.5, 0.25])
            .with("sample_weight", &[2], &[1.0, 1.0])
            .note("labels", labels)
            .write(&folder, name)
    };
    let (data, exact) = ([draft("data", "data")], draft("exact", "all"));
    let (exact, gram) = (exact.to_string_lossy(), folder.path().join("gram").to_string_lossy().into_owned());
    let adapter = support::gpu().device().adapter_info().name;
    for device in [["--backend", "host"], ["--adapter", &adapter]] {
        let words = [
            "--kind",
            "ief",
            "--damping",
            "1",
            "--json",
            "--overwrite",
            "--gram",
            &gram,
            "--indicator",
            &exact,
        ];
        let done = step_tool(&[&words[..], &device].concat(), &data, &folder.path().join("step"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one object");
        let times = json["timings"].as_object().expect("an object");
        let stages = ["read", "upload", "compute", "readback", "write", "idle"];
        assert_eq!(times.keys().collect::<Vec<_>>(), [&["seconds"][..], &stages].concat());
        let time = |stage: &str| times[stage].as_f64().expect("a number");
        let (sum, whole) = (stages.map(time).iter().sum::<f64>(), time("seconds"));
        assert!(sum > whole - 1e-9 && sum - time("read") < whole + 1e-9, "{sum} s: {times:?}");
        assert!(["read", "compute", "write"].iter().all(|stage| time(stage) > 0.0), "{times:?}");
        assert_eq!(json["seconds"], times["seconds"]);
    }
}
