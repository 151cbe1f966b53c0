//! Samples and results larger than a loop, a binding or a budget are taken in parts.

use std::path::PathBuf;

use squisher::methods::fisher::{Kind, plan};
use squisher::stream::Budget;
use squisher::{Backend, Run};
use tempfile::TempDir;

use crate::support::capture_files::{Draft, LINEAR, linear, worst};
use crate::support::files::folder;
use crate::{host, narrow_device, of, run, support, values, with};

/// More samples than are read at a time, and more than one invocation's loops can take on software Vulkan.
/// With a = 1 and b of 1 and 3 in turn, squares sum to 5 n and gradients to 2 n.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn many_samples_are_taken_in_parts() {
    const SAMPLES: usize = 70_000;
    let folder = folder();
    let gradients: Vec<f32> = (0..SAMPLES).map(|n| if n % 2 == 0 { 1.0 } else { 3.0 }).collect();
    let path = linear(&vec![1.0; SAMPLES], &gradients).write(&folder, "a");
    let n = SAMPLES as f64;
    for backend in support::backends() {
        for (kind, want) in [
            (Kind::Empirical, 2.0 * 5.0 * n),
            (Kind::MinibatchJoint, 2.0 * (2.0 * n).powi(2)),
            (Kind::Joint, (4.0 * n).powi(2)),
            (Kind::Ema, (0.09 + 0.1) * 5.0 * n),
            (Kind::Accumulator, (0.09 + 0.1) * 4.0),
        ] {
            let (got, _) = run(&backend, &[path.clone(), path.clone()], of(kind)).expect("sound");
            for name in ["fc.weight", "fc.bias"] {
                let off = (got[name][0] - want).abs() / want;
                assert!(off < 2e-6, "{kind} {name} on {}: {} for {want}", backend.name(), got[name][0]);
            }
        }
    }
}

/// Sums over many files are sums of sums: one after the other they would lose digits, as a sum in f32 here shows.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn many_files_keep_their_digits() {
    const FILES: usize = 1000;
    let folder = folder();
    let (input, gradient) = (1.440_833_3_f32, 0.7_f32);
    let path = linear(&[input], &[gradient]).write(&folder, "one");
    let paths: Vec<PathBuf> = (0..FILES)
        .map(|file| {
            let link = folder.path().join(format!("capture-{file:03}"));
            std::fs::hard_link(&path, &link).expect("the folder holds links");
            link
        })
        .collect();
    let one = f64::from(input) * f64::from(gradient);
    let n = FILES as f64;
    // At most 64 roundings in a group, one for each group, and a few in a square.
    let bound = (64.0 + (FILES / 64) as f64 + 8.0) * 0.5_f64.powi(24);
    let naive = (0..FILES).fold(0.0_f32, |sum, _| sum + (input * gradient) * (input * gradient));
    assert!((f64::from(naive) / (n * one * one) - 1.0).abs() > 2.0 * bound, "the case is hard enough");
    for backend in support::backends() {
        for (kind, want) in [
            (Kind::Empirical, n * one * one),
            (Kind::MinibatchJoint, n * one * one),
            (Kind::Joint, (n * one).powi(2)),
        ] {
            let (got, _) = run(&backend, &paths, of(kind)).expect("sound");
            let off = (got["fc.weight"][0] / want - 1.0).abs();
            assert!(off <= bound, "{kind} on {}: {off:e} of {bound:e}", backend.name());
        }
    }
}

/// One sample of more positions than software Vulkan's loops run, whose gradient is the sum over them all.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_sample_longer_than_a_loop_is_taken_in_parts() {
    const POSITIONS: usize = 70_000;
    let folder = folder();
    let ones = vec![1.0; POSITIONS];
    let window =
        r#""kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": true"#;
    let last = [1, POSITIONS, 1];
    let layers = [
        (r#"{"l": {"kind": "linear", "bias": true}}"#.to_owned(), last),
        (r#"{"l": {"kind": "rms_norm", "eps": 0, "axes": 1, "bias": true}}"#.to_owned(), last),
        (format!(r#"{{"l": {{"kind": "conv", {window}}}}}"#), [1, 1, POSITIONS]),
        (format!(r#"{{"l": {{"kind": "conv_transpose", {window}}}}}"#), [1, 1, POSITIONS]),
    ];
    let n = POSITIONS as f64;
    for backend in support::backends() {
        for (kind, want) in
            [(Kind::Empirical, 2.0 * n * n), (Kind::Joint, 4.0 * n * n), (Kind::Ema, (0.09 + 0.1) * n * n)]
        {
            let near = |name: &str, got: &[f64], of: &str| {
                let off = (got[0] - want).abs() / want;
                assert!(off < 1e-5, "{of} {kind} {name} on {}: {} for {want}", backend.name(), got[0]);
            };
            for (layer, shape) in &layers {
                let draft =
                    Draft::new(layer).with("l.input", shape, &ones).with("l.grad_output", shape, &ones);
                let path = draft.write(&folder, "a");
                let (got, _) = run(&backend, &[path.clone(), path], of(kind)).expect("sound");
                for name in ["l.weight", "l.bias"] {
                    near(name, &got[name], layer);
                }
            }
            let path = Draft::new(r#"{"l": {"kind": "embedding", "rows": 2, "bias": false}}"#)
                .ids("l.input", &[1, POSITIONS], &vec![1; POSITIONS])
                .with("l.grad_output", &last, &ones)
                .write(&folder, "e");
            let (got, _) = run(&backend, &[path.clone(), path], of(kind)).expect("sound");
            assert_eq!(got["l.weight"][0], 0.0);
            near("l.weight", &got["l.weight"][1..], "embedding");
        }
    }
}

/// A file without samples adds nothing, also where one of its samples would be taken in parts, of which it
/// has none: sums that are begun with each file, or with each group of files, are begun with this one, too.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_file_without_samples_adds_nothing() {
    const POSITIONS: usize = 70_000;
    let folder = folder();
    let ones = vec![1.0; POSITIONS];
    let file = |samples: usize, name: &str| {
        let (last, first) = ([samples, POSITIONS, 1], [samples, 1, POSITIONS]);
        let ones = &ones[..samples * POSITIONS];
        let window =
            r#""kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": true"#;
        let layers = format!(
            r#"{{"linear": {{"kind": "linear", "bias": true}}, "norm": {{"kind": "rms_norm", "eps": 0, "axes": 1, "bias": true}},
                "conv": {{"kind": "conv", {window}}}, "up": {{"kind": "conv_transpose", {window}}},
                "table": {{"kind": "embedding", "rows": 1, "bias": false}}}}"#
        );
        let mut draft = Draft::new(&layers);
        for (layer, shape) in [("linear", &last), ("norm", &last), ("conv", &first), ("up", &first)] {
            draft = draft.with(&format!("{layer}.input"), shape, ones).with(
                &format!("{layer}.grad_output"),
                shape,
                ones,
            );
        }
        let ids = vec![0; samples * POSITIONS];
        draft
            .ids("table.input", &last[..2], &ids)
            .with("table.grad_output", &last, ones)
            .with("logit_grad", &[samples, 1], &vec![2.0; samples])
            .write(&folder, name)
    };
    let (one, none) = (file(1, "one"), file(0, "none"));
    let square = (POSITIONS as f64).powi(2);
    let in_groups: Vec<PathBuf> = (0..66).map(|step| if step == 64 { &none } else { &one }.clone()).collect();
    for backend in support::backends() {
        let holds = |paths: &[PathBuf], kind, want: f64| {
            let (got, _) = run(&backend, paths, of(kind)).expect("sound");
            assert_eq!(got.len(), 9);
            for (name, got) in got {
                let off = (got[0] - want).abs() / want;
                assert!(off < 1e-5, "{kind} {name} on {}: {} for {want}", backend.name(), got[0]);
            }
        };
        let between = [one.clone(), none.clone(), one.clone()];
        holds(&between, Kind::Empirical, 2.0 * square);
        holds(&between, Kind::MinibatchJoint, 2.0 * square);
        holds(&between, Kind::Joint, 4.0 * square);
        holds(&between, Kind::Ief, 2.0 * square / 4.0);
        holds(&between, Kind::Ema, (0.081 + 0.1) * square);
        holds(&between, Kind::Accumulator, (0.081 + 0.1) * square);
        holds(&in_groups, Kind::Joint, (65.0_f64).powi(2) * square);
    }
}

/// Every kind of layer that can be divided, with weights of 2 to 8 KB and samples of about 1 KB.
fn wide(folder: &TempDir, name: &str, seed: u64) -> PathBuf {
    let plain = r#""padding": [1, 0], "dilation": [2, 1], "groups": 2, "bias": true"#;
    let layers = [
        r#""linear": {"kind": "linear", "bias": true}"#.to_owned(),
        r#""one": {"kind": "linear", "bias": true}"#.to_owned(),
        format!(r#""conv": {{"kind": "conv", "kernel": [3, 2], "stride": [2, 1], {plain}}}"#),
        format!(
            r#""up": {{"kind": "conv_transpose", "kernel": [3, 2], "stride": [2, 1], "output_padding": [1, 0], {plain}}}"#
        ),
        r#""norm": {"kind": "layer_norm", "eps": 1e-5, "axes": 2, "bias": true}"#.to_owned(),
        r#""table": {"kind": "embedding", "rows": 100, "bias": false}"#.to_owned(),
    ];
    let n = 2;
    let mut draft = Draft::new(&format!("{{{}}}", layers.join(", ")));
    let mut floats = |name: &str, shape: &[usize]| {
        let seed = seed + name.bytes().map(u64::from).sum::<u64>();
        draft = std::mem::take(&mut draft).with(name, shape, &values(seed, shape.iter().product()));
    };
    floats("linear.input", &[n, 3, 40]);
    floats("linear.grad_output", &[n, 3, 50]);
    floats("one.input", &[n, 30]);
    floats("one.grad_output", &[n, 70]);
    // ⌊(7 + 2 − 5) / 2⌋ + 1 = 3, 5 − 1 = 4.
    floats("conv.input", &[n, 8, 7, 5]);
    floats("conv.grad_output", &[n, 16, 3, 4]);
    // 2·2 − 2 + 5 + 1 = 8, 4 + 1 = 5.
    floats("up.input", &[n, 16, 3, 4]);
    floats("up.grad_output", &[n, 8, 8, 5]);
    floats("norm.input", &[n, 3, 5, 4]);
    floats("norm.grad_output", &[n, 3, 5, 4]);
    floats("table.grad_output", &[n, 5, 12]);
    floats("logit_grad", &[n, 3]);
    draft.ids("table.input", &[n, 5], &[3, 99, 3, 42, 41, 7, 0, 84, 83, 7]).write(folder, name)
}

/// What one binding cannot hold is kept in several buffers: the same bits.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_result_larger_than_a_binding_is_held_in_several() {
    let folder = folder();
    let files = [wide(&folder, "a", 1), wide(&folder, "b", 2)];
    let (whole, narrow) = (Backend::Gpu(support::gpu()), narrow_device(2560));
    for kind in Kind::ALL {
        let (want, _) = run(&whole, &files, of(kind)).expect("sound");
        let (got, _) = run(&narrow, &files, of(kind)).expect("in several buffers");
        assert_eq!(got, want, "{kind}");
    }
    // A row of 40 floats is 160 bytes.
    let (_, error) = ((), run(&narrow_device(128), &files, of(Kind::Empirical)).expect_err("no row fits"));
    let text = error.to_string();
    assert!(text.contains("the host backend has no such limit"), "{text}");
}

/// A result beyond the budget is computed some rows at a time, whether gradients are summed in a second buffer or not.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_result_beyond_the_budget_takes_several_passes() {
    let folder = folder();
    let files = [wide(&folder, "a", 1), wide(&folder, "b", 2)];
    for backend in support::backends() {
        let within = |bytes: u64| {
            let budget = Budget { host_bytes: bytes, device_bytes: bytes, ..Budget::default() };
            Run { budget, ..Run::new(&backend) }
        };
        for kind in Kind::ALL {
            let options = of(kind);
            let (want, once) = run(&backend, &files, options).expect("sound");
            let (got, report) = with(&within(6000), &files, options).expect("in passes");
            let planned = plan(&files, &options, &within(6000)).expect("in passes");
            assert_eq!((planned.passes, planned.elements), (report.passes, report.elements), "{kind}");
            assert!(once.passes == 1 && report.passes > 2, "{kind}: {} passes", report.passes);
            let error = worst(&got, &want);
            assert!(error < 1e-6, "{kind} on {}: {error:e}", backend.name());
        }
        let refused = with(&within(200), &files, of(Kind::Empirical));
        let text = refused.expect_err("a row is more").to_string();
        let planned = plan(&files, &of(Kind::Empirical), &within(200));
        assert_eq!(planned.expect_err("a row is more").to_string(), text);
        let flag = if backend.caps().is_host { "raise --host-memory" } else { "raise --device-memory" };
        assert!(text.contains("the budget is 200") && text.contains(flag), "{text}");
    }
}

/// A sample that one binding cannot hold is taken some positions at a time.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_sample_larger_than_a_binding_is_taken_in_parts() {
    let folder = folder();
    let files = [wide(&folder, "a", 1), wide(&folder, "b", 2)];
    for bytes in [1024, 800] {
        let narrow = narrow_device(bytes);
        for kind in Kind::ALL {
            let (got, _) = run(&narrow, &files, of(kind)).expect("in parts");
            let error = worst(&got, &host(&files, of(kind)));
            assert!(error < 1e-5, "{bytes} bytes, {kind}: {error:e}");
        }
    }
    let group = Draft::new(r#"{"g": {"kind": "group_norm", "eps": 1e-5, "groups": 1, "bias": false}}"#)
        .with("g.input", &[1, 2, 150], &values(1, 300))
        .with("g.grad_output", &[1, 2, 150], &values(2, 300))
        .write(&folder, "g");
    let error = run(&narrow_device(800), &[group], of(Kind::Empirical)).expect_err("not divided");
    let text = error.to_string();
    assert!(text.contains("\"g.input\"") && text.contains("the host backend has no such limit"), "{text}");
}

/// Files are read in pieces of 1 or 8 MiB, which end inside samples and uses, on every way to where kernels work.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_layer_larger_than_a_piece_is_read_whole() {
    let folder = folder();
    let inputs = 700_001;
    let value = |at: usize| (at % 1013) as f32 / 500.0 - 1.0;
    let input = |from: usize| (0..2 * inputs).map(|at| value(from + at)).collect::<Vec<_>>();
    let (first, second) = (input(0), input(77));
    let path = Draft::new(LINEAR)
        .with("fc.input.0", &[2, inputs], &first)
        .with("fc.grad_output.0", &[2, 1], &[0.5, 2.0])
        .with("fc.input.1", &[2, inputs], &second)
        .with("fc.grad_output.1", &[2, 1], &[-1.0, 0.25])
        .with("logit_grad", &[2, 1], &[2.0, 3.0])
        .write(&folder, "a");
    let [host, device] = support::backends();
    for backend in [host, device, narrow_device(128 << 20)] {
        for (kind, divisors) in [(Kind::Empirical, [1.0, 1.0]), (Kind::Ief, [4.0, 9.0])] {
            let (got, _) = run(&backend, std::slice::from_ref(&path), of(kind)).expect("sound");
            for i in (0..inputs).step_by(997).chain([inputs - 1]) {
                let g = |n: usize, b: f32, c: f32| {
                    f64::from(b * first[n * inputs + i] + c * second[n * inputs + i])
                };
                let want = g(0, 0.5, -1.0).powi(2) / divisors[0] + g(1, 2.0, 0.25).powi(2) / divisors[1];
                let got = got["fc.weight"][i];
                assert!((got - want).abs() < 3e-6, "{kind} on {}: [{i}] {got} {want}", backend.name());
            }
        }
    }
}
