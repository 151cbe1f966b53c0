//! Gram matrices and natural-gradient steps from captures: against autograd's answers, and what must hold whatever the numbers.

#[path = "support/capture_files.rs"]
mod capture_files;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use capture_files::{CASES, Draft, LINEAR, Tensors, captures, data, folder, linear, load, worst};
use squisher::checkpoint::{Capture, Checkpoint};
use squisher::methods::per_sample::PerSample;
use squisher::methods::step::{self, Indicator, StepKind, StepOptions, StepReport, indicator, step};
use squisher::reference;
use squisher::stream::Budget;
use squisher::{Backend, Interrupt, Result, wgpu};

fn open(paths: &[PathBuf]) -> Vec<Capture> {
    paths.iter().map(|path| Capture::open(path).expect("a sound capture")).collect()
}

fn gram_within(backend: &Backend, paths: &[PathBuf], budget: Budget) -> Vec<f64> {
    let captures = open(paths);
    let job = PerSample::new(backend, &captures, budget).expect("one network");
    job.gram(&(), &Interrupt::default()).expect("sound captures")
}

fn gram(backend: &Backend, paths: &[PathBuf]) -> Vec<f64> {
    gram_within(backend, paths, Budget::default())
}

fn norms(backend: &Backend, paths: &[PathBuf]) -> Vec<f64> {
    let captures = open(paths);
    let job = PerSample::new(backend, &captures, Budget::default()).expect("one network");
    job.norms(&(), &Interrupt::default()).expect("sound captures")
}

/// J Δ of the direction in a file.
fn along(backend: &Backend, paths: &[PathBuf], direction: &Path) -> Result<Vec<f64>> {
    let captures = open(paths);
    let job = PerSample::new(backend, &captures, Budget::default())?;
    job.inner_products(&Checkpoint::open(direction)?, &(), &Interrupt::default())
}

fn options(kind: StepKind, damping: f64) -> StepOptions {
    StepOptions {
        kind,
        damping,
        gram: None,
        indicator: Vec::new(),
        budget: Budget::default(),
        overwrite: false,
    }
}

fn run(
    backend: &Backend,
    paths: &[PathBuf],
    options: &StepOptions,
    folder: &Path,
) -> Result<(Tensors, StepReport)> {
    let out = folder.join(format!("{}-step.safetensors", options.kind));
    let report = step(backend, paths, options, &out, &(), &Interrupt::default())?;
    Ok((load(&out), report))
}

fn expected(case: &str) -> Tensors {
    load(&data(case).join("expected.safetensors"))
}

fn of_flavour(expected: &Tensors, flavour: &str) -> Tensors {
    let prefix = format!("{flavour}/");
    let own =
        |(name, values): (&String, &Vec<f64>)| Some((name.strip_prefix(&prefix)?.to_owned(), values.clone()));
    expected.iter().filter_map(own).collect()
}

/// The largest difference as a share of the largest magnitude.
fn share(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0_f64, |most, w| most.max(w.abs()));
    got.iter().zip(want).fold(0.0_f64, |most, (g, w)| most.max((g - w).abs())) / largest
}

fn agrees_with_autograd(backend: &Backend) {
    for case in CASES {
        let expected = expected(case);
        // Rounding to 16 bits is in the captures: a step has that of K, times its condition number, here 20 to 60.
        let (of_gram, of_step) = if case.ends_with("16") { (3e-2, 0.1) } else { (2e-5, 5e-3) };
        let error = share(&gram(backend, &captures(case)), &expected["gram"]);
        assert!(error <= of_gram, "{case} on {}: the Gram matrix is off by {error:e}", backend.name());
        let diagonal = expected["gram"].iter().step_by(samples_of(&expected) + 1);
        let want: Vec<f64> = diagonal.map(|square| square.sqrt()).collect();
        let error = share(&norms(backend, &captures(case)), &want);
        assert!(error <= of_gram, "{case} on {}: norms are off by {error:e}", backend.name());
        for (kind, flavour) in [(StepKind::Ef, "ef_update"), (StepKind::Ief, "ief_update")] {
            let folder = folder();
            let options = options(kind, expected["damping"][0]);
            let (got, _) = run(backend, &captures(case), &options, folder.path()).expect("sound captures");
            let error = worst(&got, &of_flavour(&expected, flavour));
            assert!(error <= of_step, "{case} {kind} on {}: {error:e}", backend.name());
        }
    }
}

fn samples_of(expected: &Tensors) -> usize {
    expected["gram"].len().isqrt()
}

#[test]
fn every_case_agrees_with_autograd_on_the_host() {
    agrees_with_autograd(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn every_case_agrees_with_autograd_on_the_device() {
    agrees_with_autograd(&Backend::Gpu(support::gpu()));
}

/// The comparison with autograd is seen to fail.
#[test]
fn another_order_of_files_or_damping_is_told_from_autograd_s() {
    let expected = expected("mlp");
    let mut paths = captures("mlp");
    let folder = folder();
    let damped = options(StepKind::Ief, 300.0 * expected["damping"][0]);
    let (got, _) = run(&Backend::Host, &paths, &damped, folder.path()).expect("sound captures");
    assert!(worst(&got, &of_flavour(&expected, "ief_update")) > 5e-3);
    paths.reverse();
    assert!(share(&gram(&Backend::Host, &paths), &expected["gram"]) > 1e-2);
}

fn tool(words: &[&str], captures: &[PathBuf], out: &Path) -> Output {
    let mut tool = Command::cargo_bin("squisher").expect("the tests are built together with the tool");
    tool.arg("step").args(captures).args(words).arg("-o").arg(out).output().expect("the tool can be started")
}

#[test]
fn the_tool_agrees_with_autograd() {
    let adapter = support::gpu().device().adapter_info().name;
    let devices = [["--backend", "host"], ["--adapter", &adapter]];
    let cases = CASES.into_iter().flat_map(|case| devices.map(|device| (case, device)));
    for ((case, device), kind) in cases.zip(["ief", "ef", "ef", "ief"].into_iter().cycle()) {
        let (of_gram, of_step, of_norm) =
            if case.ends_with("16") { (3e-2, 0.1, 3e-2) } else { (2e-5, 5e-3, 1e-4) };
        let (folder, expected) = (folder(), expected(case));
        let (out, table) = (folder.path().join("step.safetensors"), folder.path().join("gram.safetensors"));
        let damping = expected["damping"][0].to_string();
        let table_word = table.to_string_lossy();
        let words =
            ["--kind", kind, "--damping", &damping, "--gram", &table_word, "--json", device[0], device[1]];
        let done = tool(&words, &captures(case), &out);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let want = of_flavour(&expected, &format!("{kind}_update"));
        assert!(worst(&load(&out), &want) <= of_step, "{case}");
        assert!(share(&load(&table)["gram"], &expected["gram"]) <= of_gram, "{case}");
        let shape = &Checkpoint::open(&table).expect("sound").get("gram").expect("it is there").shape.clone();
        let samples = samples_of(&expected) as u64;
        assert_eq!(shape[..], [samples, samples]);
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one object");
        assert_eq!(json["command"], "step");
        assert_eq!(json["samples"], samples);
        let norms = json["gradient_norms"].as_array().expect("a list");
        let want = expected["gram"].iter().step_by(samples_of(&expected) + 1);
        let near = |(norm, want): (&serde_json::Value, &f64)| {
            (norm.as_f64().expect("a number") - want.sqrt()).abs() < of_norm * want.sqrt()
        };
        assert!(norms.iter().zip(want).all(near), "{norms:?}");
        let kind_of = Checkpoint::open(&out).expect("sound").metadata().get("squisher.kind").cloned();
        assert_eq!(kind_of, Some(format!("{kind}-step")));
    }
}

#[test]
fn a_dry_run_writes_nothing_and_tells_the_matrix_s_size() {
    let folder = folder();
    let out = folder.path().join("step.safetensors");
    let words = ["--kind", "ef", "--damping", "1e-3", "--dry-run"];
    let done = tool(&words, &captures("mlp"), &out);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && text.contains("would read 33 samples"), "{text}");
    assert!(!out.exists());
}

/// Without damping the loss of every sample changes by its target: 1, or s.
#[test]
fn steps_meet_their_targets_where_nothing_is_damped() {
    for backend in support::backends() {
        for case in ["mlp", "mlp_wide", "sequence", "conv2d", "conv2d_bf16", "conv2d_f16"] {
            let paths = captures(case);
            let opened = open(&paths);
            let job = PerSample::new(&backend, &opened, Budget::default()).expect("one network");
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
        // Positive definite up to rounding: Cholesky accepts it.
        let least = 1e-6 * norms.iter().fold(0.0_f64, |most, norm| most.max(norm * norm));
        step::solve(&mut gram.clone(), least, &mut vec![1.0; n]).expect("no negative direction");
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

fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
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

/// Bindings that hold neither a file's data of a layer nor a step's rows at once.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn narrow_bindings_change_nothing_beyond_rounding() {
    let folder = folder();
    let layers = r#"{"fc": {"kind": "linear", "bias": true}, "table": {"kind": "embedding", "rows": 60, "bias": false},
        "conv": {"kind": "conv", "kernel": [3], "stride": [1], "padding": [1], "dilation": [1], "groups": 2, "bias": true}}"#;
    let file = |name: &str, seed: u32| {
        Draft::new(layers)
            .with("fc.input", &[5, 2, 20], &noise(seed, 200))
            .with("fc.grad_output", &[5, 2, 30], &noise(seed + 1, 300))
            .with("table.grad_output", &[5, 3, 8], &noise(seed + 2, 120))
            .with("conv.input", &[5, 12, 4], &noise(seed + 3, 240))
            .with("conv.grad_output", &[5, 14, 4], &noise(seed + 4, 280))
            .ids("table.input", &[5, 3], &[1, 0, 59, 7, 7, 7, 31, 32, 1, 30, 59, 33, 2, 2, 3])
            .write(&folder, name)
    };
    let paths = [file("a", 1), file("b", 11)];
    let want = gram(&Backend::Host, &paths);
    let step = |backend: &Backend| {
        let folder = tempfile::tempdir().expect("made");
        let options = options(StepKind::Ef, 1e-2 * want[0]);
        run(backend, &paths, &options, folder.path()).expect("sound").0
    };
    // A sample has 240 bytes at most.
    for bytes in [768, 192] {
        let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..wgpu::Limits::default() };
        let narrow = Backend::Gpu(support::device_with(limits));
        assert!(share(&gram(&narrow, &paths), &want) < 1e-6, "{bytes}");
        assert!(share(&norms(&narrow, &paths), &norms(&Backend::Host, &paths)) < 1e-6, "{bytes}");
        let error = worst(&step(&narrow), &step(&Backend::Host));
        assert!(error < 1e-5, "{bytes}: {error:e}");
    }
}

/// One sample of more positions than software Vulkan's loops run. Gradients are 1 at each of them.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn samples_longer_than_a_loop_have_all_their_positions() {
    const POSITIONS: usize = 70_000;
    let folder = folder();
    let ones = vec![1.0; POSITIONS];
    let window =
        r#""kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": true"#;
    let layers = format!(
        r#"{{"linear": {{"kind": "linear", "bias": true}}, "conv": {{"kind": "conv", {window}}}, "up": {{"kind": "conv_transpose", {window}}},
            "table": {{"kind": "embedding", "rows": 2, "bias": false}}}}"#
    );
    let (last, first) = ([1, POSITIONS, 1], [1, 1, POSITIONS]);
    let path = Draft::new(&layers)
        .with("linear.input", &last, &ones)
        .with("linear.grad_output", &last, &ones)
        .with("conv.input", &first, &ones)
        .with("conv.grad_output", &first, &ones)
        .with("up.input", &first, &ones)
        .with("up.grad_output", &first, &ones)
        .with("table.grad_output", &last, &ones)
        .ids("table.input", &[1, POSITIONS], &vec![1; POSITIONS])
        .write(&folder, "a");
    let paths = [path.clone(), path];
    let want = 7.0 * (POSITIONS as f64).powi(2);
    for backend in support::backends() {
        assert!(share(&gram(&backend, &paths), &[want; 4]) < 1e-5, "{}", backend.name());
        assert!(share(&norms(&backend, &paths), &[want.sqrt(); 2]) < 1e-5, "{}", backend.name());
    }
}

/// An embedding and an output layer share a table: their gradients add, in inner products and in steps.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn gradients_of_layers_that_share_a_weight_add() {
    let folder = folder();
    let layers = r#"{"wte": {"kind": "embedding", "rows": 5, "bias": false},
        "head": {"kind": "linear", "bias": true, "tied": {"weight": "wte"}}}"#;
    let (rows, width) = (5, 3);
    let mut gradients = Vec::new();
    let mut paths = Vec::new();
    for (file, ids) in [[0, 4, 4, 2, 1, 1], [3, 3, 0, 4, 2, 0]].iter().enumerate() {
        let seed = 20 * file as u32 + 1;
        let (table, a, b) = (noise(seed, 18), noise(seed + 1, 12), noise(seed + 2, 20));
        let path = Draft::new(layers)
            .ids("wte.input", &[2, 3], ids)
            .with("wte.grad_output", &[2, 3, width], &table)
            .with("head.input", &[2, 2, width], &a)
            .with("head.grad_output", &[2, 2, rows], &b)
            .write(&folder, &file.to_string());
        paths.push(path);
        for n in 0..2 {
            let (a, b) = (wide(&a[6 * n..][..6]), wide(&b[10 * n..][..10]));
            let mut gradient = reference::fisher::linear(&a, &b, 2, width, rows);
            for t in 3 * n..3 * n + 3 {
                for d in 0..width {
                    gradient[usize::try_from(ids[t]).expect("small") * width + d] +=
                        f64::from(table[t * width + d]);
                }
            }
            gradient.extend(reference::fisher::bias(&b, 2, rows, false));
            gradients.push(gradient);
        }
    }
    let want = reference::fisher::inner_products(&gradients, &gradients);
    let [host, device] = support::backends();
    let limits = wgpu::Limits { max_storage_buffer_binding_size: 128, ..wgpu::Limits::default() };
    for backend in [host, device, Backend::Gpu(support::device_with(limits))] {
        assert!(share(&gram(&backend, &paths), &want) < 2e-6, "{}", backend.name());
        let squares: Vec<f64> = norms(&backend, &paths).iter().map(|norm| norm * norm).collect();
        let diagonal: Vec<f64> = want.iter().copied().step_by(5).collect();
        assert!(share(&squares, &diagonal) < 2e-6, "{}", backend.name());
        let own = tempfile::tempdir().expect("made");
        let (step, report) = run(&backend, &paths, &options(StepKind::Ef, 0.0), own.path()).expect("sound");
        assert_eq!(step.keys().collect::<Vec<_>>(), ["head.bias", "wte.weight"]);
        let changes = along(&backend, &paths, &report.output).expect("its own network");
        assert!(share(&changes, &[1.0; 4]) < 1e-4, "{changes:?} on {}", backend.name());
    }
}

/// One convolution on an image and on a smaller one: gradients of both uses add.
#[test]
fn uses_of_several_sizes_add() {
    let folder = folder();
    let layer = r#"{"c": {"kind": "conv", "kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": true}}"#;
    let path = Draft::new(layer)
        .with("c.input.0", &[2, 1, 2], &[1.0, 2.0, 3.0, 1.0])
        .with("c.grad_output.0", &[2, 1, 2], &[1.0, 1.0, 2.0, 0.0])
        .with("c.input.1", &[2, 1, 1], &[2.0, 1.0])
        .with("c.grad_output.1", &[2, 1, 1], &[-1.0, 1.0])
        .write(&folder, "a");
    // Gradients of weight and bias: (3 − 2, 2 − 1) and (6 + 1, 2 + 1).
    let paths = [path];
    for backend in support::backends() {
        assert_eq!(gram(&backend, &paths), [2.0, 10.0, 10.0, 58.0]);
        let own = tempfile::tempdir().expect("made");
        let (_, report) = run(&backend, &paths, &options(StepKind::Ef, 0.0), own.path()).expect("sound");
        let changes = along(&backend, &paths, &report.output).expect("its own network");
        assert!(share(&changes, &[1.0, 1.0]) < 1e-5, "{changes:?}");
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
        let (of_sum, of_mean) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
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
            let own = tempfile::tempdir().expect("made");
            let (step, _) = run(&backend, &paths, &options(StepKind::Ef, 0.0), own.path()).expect("sound");
            let got: Vec<f64> = step.values().flatten().map(|value| value * f64::from(scale)).collect();
            // g₀/14 + g₁/12, bias before weight.
            let want = [1.0 / 14.0 + 1.0 / 6.0, 1.0 / 7.0 + 1.0 / 6.0, 3.0 / 14.0 - 1.0 / 6.0];
            assert!(share(&got, &want) < 1e-5, "{got:?} {want:?}");
        }
    }
}

/// Logistic regression: F = Σ_n p_n (1 − p_n) x_n x_nᵀ, ∇L = Σ_n (p_n − y_n) x_n.
fn logistic(folder: &tempfile::TempDir) -> (Vec<Capture>, Vec<Capture>) {
    let (x, p, y) = ([1.0_f32, 2.0, -1.0, 0.5], [0.25_f32, 0.5], [1.0_f32, 0.0]);
    let layer = r#"{"fc": {"kind": "linear", "bias": false}}"#;
    let draft = |input: &[f32], gradient: &[f32]| {
        let n = gradient.len();
        Draft::new(layer).with("fc.input", &[n, 2], input).with("fc.grad_output", &[n, 1], gradient)
    };
    let exact = draft(&[x, x].concat(), &[p[0] - 1.0, p[1] - 1.0, p[0], p[1]])
        .with("sample_weight", &[4], &[p[0], p[1], 1.0 - p[0], 1.0 - p[1]])
        .note("labels", "all")
        .write(folder, "exact");
    let data = draft(&x, &[p[0] - y[0], p[1] - y[1]]).write(folder, "data");
    (open(&[exact]), open(&[data]))
}

fn direction(folder: &tempfile::TempDir, name: &str, values: &[f32]) -> Checkpoint {
    let path = Draft::default().with("fc.weight", &[1, 2], values).write(folder, name);
    Checkpoint::open(path).expect("sound")
}

#[test]
fn the_indicator_of_logistic_regression_is_the_closed_form() {
    let folder = folder();
    let (exact, data) = logistic(&folder);
    for backend in support::backends() {
        let of = |name: &str, values: &[f32]| -> Indicator {
            let delta = direction(&folder, name, values);
            indicator(&backend, &exact, &data, &delta, Budget::default(), &(), &Interrupt::default())
                .expect("sound captures")
        };
        // F = 3/16 (1, 2)(1, 2)ᵀ + 1/4 (−1, 1/2)(−1, 1/2)ᵀ, ∇L = −3/4 (1, 2) + 1/2 (−1, 1/2) = (−5/4, −5/4).
        let got = of("unit", &[1.0, 1.0]);
        let curvature = 3.0 / 16.0 * 9.0 + 0.25 * 0.25;
        assert!((got.curvature - curvature).abs() < 1e-6, "{got:?}");
        assert!((got.slope + 2.5).abs() < 1e-6, "{got:?}");
        assert!((got.gamma - curvature.sqrt() / 2.5).abs() < 1e-6, "{got:?}");
        let scaled = of("scaled", &[-300.0, -300.0]);
        assert!((scaled.gamma - got.gamma).abs() < 1e-6, "a factor changes nothing: {scaled:?}");
        // The natural gradient F⁻¹∇L is the best there is.
        let (a, b, d): (f64, f64, f64) = (3.0 / 16.0 + 0.25, 3.0 / 8.0 - 0.125, 0.75 + 0.0625);
        let det = a * d - b * b;
        let natural = [(d - b) * -1.25 / det, (a - b) * -1.25 / det].map(|value| value as f32);
        let best = of("natural", &natural);
        for (at, other) in [[1.0, 0.0], [0.0, 1.0], [1.0, 0.5], [-1.25, -1.25]].iter().enumerate() {
            assert!(best.gamma < of(&format!("other-{at}"), other).gamma + 1e-9, "{other:?}");
        }
        let flat = of("flat", &[1.0, -1.0]);
        assert!(flat.slope.abs() < 1e-6 && flat.gamma > 1e5, "{flat:?}");
    }
    let refusal = |exact: &[Capture], data: &[Capture], delta: &Checkpoint| {
        indicator(&Backend::Host, exact, data, delta, Budget::default(), &(), &Interrupt::default())
            .expect_err("must be refused")
            .to_string()
    };
    let delta = direction(&folder, "delta", &[1.0, 1.0]);
    assert!(refusal(&data, &data, &delta).contains("is of the data's; capture all classes"));
    assert!(refusal(&exact, &exact, &delta).contains("∇L is defined by the data's labels"));
    let other = Draft::default().with("fc.weight", &[2, 1], &[1.0, 1.0]).write(&folder, "shape");
    let text = refusal(&exact, &data, &Checkpoint::open(other).expect("sound"));
    assert!(text.contains(r#""fc.weight" is F32 [2, 1], expected floats of [1, 2]"#), "{text}");
    let nan = direction(&folder, "nan", &[1.0, f32::NAN]);
    assert!(refusal(&exact, &data, &nan).contains("\"fc.weight\": NaN or infinity at flat index 1"));
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_tool_tells_how_good_a_step_is() {
    let folder = folder();
    let (exact, data) = logistic(&folder);
    let captures = [data[0].path().to_owned()];
    let exact = exact[0].path().to_string_lossy().into_owned();
    let out = folder.path().join("step.safetensors");
    let adapter = support::gpu().device().adapter_info().name;
    for device in [["--backend", "host"], ["--adapter", &adapter]] {
        let words = ["--kind", "ef", "--damping", "0.1", "--json", "--overwrite", device[0], device[1]];
        let done = tool(&[&words[..], &["--indicator", &exact]].concat(), &captures, &out);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let delta = &load(&out)["fc.weight"];
        // F = 3/16 (1, 2)(1, 2)ᵀ + 1/4 (−1, 1/2)(−1, 1/2)ᵀ, ∇L = (−5/4, −5/4).
        let (along, across) = (delta[0] + 2.0 * delta[1], -delta[0] + 0.5 * delta[1]);
        let curvature = 3.0 / 16.0 * along * along + 0.25 * across * across;
        let want = curvature.sqrt() / (1.25 * (delta[0] + delta[1])).abs();
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one object");
        let gamma = json["indicator"]["gamma"].as_f64().expect("a number");
        assert!((gamma - want).abs() < 1e-5 * want, "{gamma} {want}");
    }
    let plain =
        tool(&["--kind", "ef", "--damping", "0.1", "--overwrite", "--indicator", &exact], &captures, &out);
    let text = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(text.contains("γ = √(Δᵀ F Δ) / |Δᵀ ∇L| of the step"), "{text}");
    let none = folder.path().join("none.safetensors");
    let half = Draft::new(r#"{"fc": {"kind": "linear", "bias": false}}"#)
        .with("fc.input", &[1, 2], &[1.0, 2.0])
        .with("fc.grad_output", &[1, 1], &[1.0])
        .with("sample_weight", &[1], &[1.0])
        .note("labels", "sampled")
        .write(&folder, "half")
        .to_string_lossy()
        .into_owned();
    let data = captures[0].to_string_lossy().into_owned();
    for (judges, dry, problem) in [
        (&data, "--quiet", "capture all classes"),
        (&half, "--quiet", "add up to 1, and the data's captures have 2 samples"),
        (&half, "--dry-run", "add up to 1, and the data's captures have 2 samples"),
    ] {
        let done = tool(&["--kind", "ef", "--damping", "0.1", dry, "--indicator", judges], &captures, &none);
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && text.contains(problem) && !none.exists(), "{text}");
    }
}

#[test]
fn what_has_no_meaning_is_refused_and_leaves_no_file() {
    let folder = folder();
    let path = [linear(&[1.0, 2.0], &[1.0, 3.0]).write(&folder, "a.safetensors")];
    let refused = |paths: &[PathBuf], options: &StepOptions| {
        let own = tempfile::tempdir().expect("a temporary folder can be made");
        let text = run(&Backend::Host, paths, options, own.path()).expect_err("must be refused").to_string();
        assert_eq!(fs::read_dir(own.path()).expect("readable").count(), 0, "{text}");
        text
    };
    let ef = |damping: f64| options(StepKind::Ef, damping);
    assert!(refused(&path, &ef(-1.0)).contains("the damping is -1, expected"));
    assert!(refused(&path, &ef(f64::NAN)).contains("the damping is NaN"));
    assert!(refused(&path, &ef(f64::INFINITY)).contains("the damping is inf"));
    assert!(refused(&[], &ef(1.0)).contains("no capture was given"));
    let text = refused(&path, &options(StepKind::Ief, 1.0));
    assert!(text.contains("no logit_grad") && text.contains("a.safetensors"), "{text}");
    let other = linear(&[1.0, 2.0], &[1.0]).write(&folder, "b.safetensors");
    let text = refused(&[path[0].clone(), other], &ef(1.0));
    assert!(text.contains("not of one network"), "{text}");
    let model = linear(&[1.0], &[1.0]).with("sample_weight", &[1], &[1.0]).note("labels", "all");
    let text = refused(&[model.write(&folder, "all")], &ef(1.0));
    assert!(text.contains("a step is defined by the data's labels"), "{text}");
    let small = StepOptions { budget: Budget { host_bytes: 16, ..Budget::default() }, ..ef(1.0) };
    let text = refused(&path, &small);
    assert!(text.contains("Gram matrix of 2 samples, 8·N²") && text.contains("at least 32 bytes"), "{text}");
    // The same sample twice.
    let twice = linear(&[1.0, 2.0, 1.0, 2.0], &[0.5, 0.5]).write(&folder, "twice");
    let text = refused(std::slice::from_ref(&twice), &ef(0.0));
    assert!(text.contains("the gradient of sample 1") && text.contains("pass --damping"), "{text}");
    let own = tempfile::tempdir().expect("a temporary folder can be made");
    run(&Backend::Host, &[twice], &ef(1e-3), own.path()).expect("damped, it has an inverse");
    let same = StepOptions { gram: Some(own.path().join("ef-step.safetensors")), overwrite: true, ..ef(1.0) };
    assert!(run(&Backend::Host, &path, &same, own.path()).is_err(), "one file for both outputs");
    let done = tool(&["--kind", "ef", "--damping", "-1"], &path, &folder.path().join("x"));
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && text.contains("the damping is -1"), "{text}");
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
