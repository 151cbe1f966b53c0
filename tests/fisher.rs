//! Fisher diagonals from captures: against autograd's answers, and what must hold whatever the numbers.
//!
//! `tests/data/fisher` holds captures that PyTorch's hooks left of small networks, and the Fishers that one autograd call a
//! sample gave in f64.

#[path = "support/capture_files.rs"]
mod capture_files;
mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use capture_files::{CASES, Draft, LINEAR, Tensors, captures, data, folder, linear, load, worst};
use squisher::checkpoint::{Capture, Checkpoint};
use squisher::kernel::noise;
use squisher::methods::fisher::{FisherOptions, FisherReport, Kind, Reduction, fisher};
use squisher::methods::prune::gates;
use squisher::reference;
use squisher::stream::Budget;
use squisher::{Backend, Interrupt, Result, wgpu};
use tempfile::TempDir;

fn run(backend: &Backend, captures: &[PathBuf], options: FisherOptions) -> Result<(Tensors, FisherReport)> {
    let folder = folder();
    let out = folder.path().join("fisher.safetensors");
    let report = fisher(backend, captures, &options, &out, &(), &Interrupt::default())?;
    Ok((load(&out), report))
}

fn host(captures: &[PathBuf], options: FisherOptions) -> Tensors {
    run(&Backend::Host, captures, options).expect("sound captures").0
}

fn of(kind: Kind) -> FisherOptions {
    FisherOptions { kind, beta: 0.9, ..FisherOptions::default() }
}

fn agrees_with_autograd(backend: &Backend) {
    let flavours = [
        ("empirical", of(Kind::Empirical)),
        ("weighted", FisherOptions { weighted: true, ..of(Kind::Empirical) }),
        ("minibatch_joint", of(Kind::MinibatchJoint)),
        ("joint", of(Kind::Joint)),
        ("ief", of(Kind::Ief)),
        ("ema_0.9", of(Kind::Accumulator)),
    ];
    for case in CASES {
        let expected = load(&data(case).join("expected.safetensors"));
        let share = if case.ends_with("16") { 3e-2 } else { 2e-5 };
        for (flavour, options) in &flavours {
            let prefix = format!("{flavour}/");
            let of_flavour = expected
                .iter()
                .filter_map(|(name, values)| Some((name.strip_prefix(&prefix)?.to_owned(), values.clone())));
            let want: Tensors = of_flavour.collect();
            assert!(!want.is_empty(), "{case} has no {flavour}");
            let (got, _) = run(backend, &captures(case), *options).expect("sound captures");
            let error = worst(&got, &want);
            assert!(error <= share, "{case} {flavour} on {}: {error:e} of {share:e}", backend.name());
        }
    }
}

#[test]
fn every_kind_agrees_with_autograd_on_the_host() {
    agrees_with_autograd(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn every_kind_agrees_with_autograd_on_the_device() {
    agrees_with_autograd(&Backend::Gpu(support::gpu()));
}

#[test]
fn the_tool_agrees_with_autograd() {
    let folder = folder();
    for (case, flavour, kind) in
        [("sequence", "ief", "ief"), ("conv2d", "minibatch_joint", "minibatch-joint")]
    {
        let out = folder.path().join(format!("{case}.safetensors"));
        let mut tool = Command::cargo_bin("squisher").expect("the tests are built together with the tool");
        tool.arg("fisher").args(captures(case)).args(["--kind", kind, "--backend", "host", "-o"]).arg(&out);
        let done = tool.output().expect("the tool can be started");
        assert!(done.status.success(), "{done:?}");
        let prefix = format!("{flavour}/");
        let expected = load(&data(case).join("expected.safetensors"));
        let want: Tensors = expected
            .into_iter()
            .filter_map(|(name, values)| Some((name.strip_prefix(&prefix)?.to_owned(), values)))
            .collect();
        assert!(worst(&load(&out), &want) <= 2e-5, "{case}");
        let file = Checkpoint::open(&out).expect("a sound file");
        assert_eq!(file.metadata().get("squisher.kind").map(String::as_str), Some(kind));
    }
}

/// The networks of `tests/data/fisher/catalogue`, whose captures `examples/pytorch/capture.py` wrote: every layer in the shapes that per-sample
/// squares go wrong in, with the data's labels, drawn ones and all of them.
fn catalogue_agrees_with_autograd(backend: &Backend) {
    let mut captures = 0;
    for network in fs::read_dir(data("catalogue")).expect("the catalogue is there") {
        let folder = network.expect("readable").path();
        let expected = load(&folder.join("expected.safetensors"));
        let kinds = [
            ("data", "data", Kind::Empirical, "empirical"),
            ("sampled", "sampled", Kind::Empirical, "mc"),
            ("all", "all", Kind::Empirical, "exact"),
            ("joint", "data", Kind::Joint, "joint"),
            // One file is one batch.
            ("joint", "data", Kind::MinibatchJoint, "minibatch-joint"),
        ];
        for (expectation, labels, option, kind) in kinds {
            let capture = folder.join(format!("{labels}.safetensors"));
            let prefix = format!("{expectation}/");
            if !expected.keys().any(|name| name.starts_with(&prefix)) {
                continue;
            }
            let of_labels = expected
                .iter()
                .filter_map(|(name, values)| Some((name.strip_prefix(&prefix)?.to_owned(), values.clone())));
            let want: Tensors = of_labels.collect();
            let (got, report) = run(backend, &[capture], of(option)).expect("a sound capture");
            assert_eq!(report.kind, kind);
            let error = worst(&got, &want);
            assert!(error <= 2e-5, "{} {kind} on {}: {error:e}", folder.display(), backend.name());
            captures += 1;
        }
    }
    assert!(captures >= 105, "only {captures} captures");
}

#[test]
fn the_catalogue_of_shapes_agrees_with_autograd_on_the_host() {
    catalogue_agrees_with_autograd(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_catalogue_of_shapes_agrees_with_autograd_on_the_device() {
    catalogue_agrees_with_autograd(&Backend::Gpu(support::gpu()));
}

#[test]
fn one_sample_gives_its_square() {
    let folder = folder();
    let path = linear(&[3.0, -2.0], &[0.5]).write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert_eq!(got["fc.weight"], [2.25, 1.0]);
    assert_eq!(got["fc.bias"], [0.25]);
}

#[test]
fn uses_of_one_layer_add_before_squaring() {
    let folder = folder();
    // a = 1·1, b = −1·1: (a + b)² = 0 where a² + b² = 2.
    let path = Draft::new(LINEAR)
        .with("fc.input.0", &[1, 1], &[1.0])
        .with("fc.grad_output.0", &[1, 1], &[1.0])
        .with("fc.input.1", &[1, 1], &[1.0])
        .with("fc.grad_output.1", &[1, 1], &[-1.0])
        .write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert_eq!(got["fc.weight"], [0.0]);
    assert_eq!(got["fc.bias"], [0.0]);
}

/// Two positions of one sample with the input 1 and the gradients 1 and −1: the sample's gradient is 0. Squaring positions one by one gives 2.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn positions_that_cancel_leave_nothing() {
    let window =
        r#""kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": true"#;
    let layers = [
        (r#"{"l": {"kind": "linear", "bias": true}}"#.to_owned(), vec![1, 2, 1]),
        (format!(r#"{{"l": {{"kind": "conv", {window}}}}}"#), vec![1, 1, 2]),
        (format!(r#"{{"l": {{"kind": "conv_transpose", {window}, "output_padding": [0]}}}}"#), vec![1, 1, 2]),
        (r#"{"l": {"kind": "batch_norm", "eps": 0.0, "bias": true}}"#.to_owned(), vec![1, 1, 2]),
    ];
    for backend in support::backends() {
        let folder = folder();
        for (layer, shape) in &layers {
            let mut draft = Draft::new(layer).with("l.input", shape, &[1.0, 1.0]).with(
                "l.grad_output",
                shape,
                &[1.0, -1.0],
            );
            if layer.contains("batch_norm") {
                draft = draft.with("l.running_mean", &[1], &[0.0]).with("l.running_var", &[1], &[1.0]);
            }
            let (got, _) = run(&backend, &[draft.write(&folder, "a")], of(Kind::Empirical)).expect("sound");
            assert_eq!((&got["l.weight"], &got["l.bias"]), (&vec![0.0], &vec![0.0]), "{layer}");
        }
        let same_row = Draft::new(r#"{"e": {"kind": "embedding", "rows": 1, "bias": false}}"#)
            .ids("e.input", &[1, 2], &[0, 0])
            .with("e.grad_output", &[1, 2, 1], &[1.0, -1.0]);
        let (got, _) = run(&backend, &[same_row.write(&folder, "e")], of(Kind::Empirical)).expect("sound");
        assert_eq!(got["e.weight"], [0.0]);
    }
}

/// Sample 0 has 1·1 + 2·1 at one size and 3·(−1) at another: 0, not 9 + 9. Sample 1 has 2 and 1.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn uses_at_several_sizes_add_before_squaring() {
    let window =
        r#""kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": true"#;
    for backend in support::backends() {
        let folder = folder();
        let path = Draft::new(&format!(r#"{{"c": {{"kind": "conv", {window}}}}}"#))
            .with("c.input.0", &[2, 1, 2], &[1.0, 2.0, 1.0, 1.0])
            .with("c.grad_output.0", &[2, 1, 2], &[1.0, 1.0, 2.0, 0.0])
            .with("c.input.1", &[2, 1, 1], &[3.0, 1.0])
            .with("c.grad_output.1", &[2, 1, 1], &[-1.0, 1.0])
            .with("sample_weight", &[2], &[5.0, 0.5])
            .write(&folder, "a");
        let is = |options: FisherOptions, files: usize, weight: f64, bias: f64| {
            let (got, _) = run(&backend, &vec![path.clone(); files], options).expect("sound");
            for (got, want) in [(got["c.weight"][0], weight), (got["c.bias"][0], bias)] {
                assert!((got - want).abs() < 1e-5, "{:?}: {got} {want}", options.kind);
            }
        };
        is(of(Kind::Empirical), 1, 9.0, 10.0);
        is(FisherOptions { weighted: true, ..of(Kind::Empirical) }, 1, 4.5, 9.5);
        is(FisherOptions { reduction: Reduction::Mean, ..of(Kind::Empirical) }, 3, 4.5, 5.0);
        is(of(Kind::MinibatchJoint), 2, 18.0, 32.0);
        is(of(Kind::Joint), 2, 36.0, 64.0);
        is(of(Kind::Ema), 2, 0.9 * 0.9 + 0.9, 0.9 + 1.0);
    }
}

/// y = W relu(W x) with W = 2, x = 3: dy/dW = 2 W x = 12, of which each use gives 6. 144, not 72.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_tied_weight_is_squared_once() {
    let folder = folder();
    let path = Draft::new(r#"{"w": {"kind": "linear", "bias": false}}"#)
        .with("w.input.0", &[1, 1], &[3.0])
        .with("w.grad_output.0", &[1, 1], &[2.0])
        .with("w.input.1", &[1, 1], &[6.0])
        .with("w.grad_output.1", &[1, 1], &[1.0])
        .write(&folder, "a");
    for backend in support::backends() {
        let (got, _) = run(&backend, std::slice::from_ref(&path), of(Kind::Empirical)).expect("sound");
        assert_eq!(got["w.weight"], [144.0]);
    }
}

const TIED: &str = r#"{"wte": {"kind": "embedding", "rows": 11, "bias": false},
    "head": {"kind": "linear", "bias": true, "tied": {"weight": "wte"}},
    "mid": {"kind": "linear", "bias": true, "tied": {"weight": "wte", "bias": "head"}}}"#;

/// A table of 11 rows of 6 that an embedding, an output layer and a layer between share, with 4, 3 and 1 positions, and the gradients of its samples.
fn tied(folder: &TempDir, name: &str, seed: u64) -> (PathBuf, Vec<[Vec<f64>; 2]>) {
    let (n, rows, width) = (3, 11, 6);
    let ids: Vec<i64> = [3, 10, 3, 0, 5, 5, 5, 5, 9, 1, 2, 10].into();
    let table = values(seed, n * 4 * width);
    let head = (values(seed + 1, n * 3 * width), values(seed + 2, n * 3 * rows));
    let mid = (values(seed + 3, n * width), values(seed + 4, n * rows));
    let path = Draft::new(TIED)
        .ids("wte.input", &[n, 4], &ids)
        .with("wte.grad_output", &[n, 4, width], &table)
        .with("head.input", &[n, 3, width], &head.0)
        .with("head.grad_output", &[n, 3, rows], &head.1)
        .with("mid.input", &[n, width], &mid.0)
        .with("mid.grad_output", &[n, rows], &mid.1)
        .with("sample_weight", &[n], &[0.5, 0.0, 2.0])
        .with("logit_grad", &[n, 1], &[2.0, 0.0, 0.5])
        .write(folder, name);
    let wide = |values: &[f32]| values.iter().map(|&v| v.into()).collect::<Vec<f64>>();
    let gradient = |sample: usize| {
        let mut weight = vec![0.0; rows * width];
        for (t, &id) in ids[4 * sample..][..4].iter().enumerate() {
            let row = &mut weight[usize::try_from(id).expect("small") * width..][..width];
            row.iter_mut().zip(&table[(4 * sample + t) * width..]).for_each(|(g, b)| *g += f64::from(*b));
        }
        let mut bias = vec![0.0; rows];
        for ((a, b), positions) in [(&head, 3), (&mid, 1)] {
            let (a, b) =
                (&a[sample * positions * width..][..positions * width], &b[sample * positions * rows..]);
            let (a, b) = (wide(a), wide(&b[..positions * rows]));
            let of_layer = reference::fisher::linear(&a, &b, positions, width, rows);
            weight.iter_mut().zip(of_layer).for_each(|(g, own)| *g += own);
            let of_layer = reference::fisher::bias(&b, positions, rows, false);
            bias.iter_mut().zip(of_layer).for_each(|(g, own)| *g += own);
        }
        [weight, bias]
    };
    (path, (0..n).map(gradient).collect())
}

/// Layers that share a parameter have one gradient, the sum of theirs, which is squared: whatever the kind, and whatever a binding holds.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_parameter_of_several_layers_is_squared_once() {
    let folder = folder();
    let (a, first) = tied(&folder, "a", 1);
    let (b, second) = tied(&folder, "b", 11);
    let files = [a, b];
    let square = |gradients: &[[Vec<f64>; 2]], weights: [f64; 3], parameter: usize, at: usize| -> f64 {
        gradients.iter().zip(weights).map(|(g, w)| w * g[parameter][at] * g[parameter][at]).sum()
    };
    let sum = |gradients: &[[Vec<f64>; 2]], parameter: usize, at: usize| -> f64 {
        gradients.iter().map(|g| g[parameter][at]).sum()
    };
    let ones = [1.0; 3];
    let weighted = FisherOptions { weighted: true, ..of(Kind::Empirical) };
    type Element<'a> = &'a dyn Fn(usize, usize) -> f64;
    let wanted: [(FisherOptions, Element<'_>); 7] = [
        (of(Kind::Empirical), &|p, at| square(&first, ones, p, at) + square(&second, ones, p, at)),
        (weighted, &|p, at| square(&first, [0.5, 0.0, 2.0], p, at) + square(&second, [0.5, 0.0, 2.0], p, at)),
        (of(Kind::Ief), &|p, at| {
            square(&first, [0.25, 0.0, 4.0], p, at) + square(&second, [0.25, 0.0, 4.0], p, at)
        }),
        (of(Kind::MinibatchJoint), &|p, at| sum(&first, p, at).powi(2) + sum(&second, p, at).powi(2)),
        (of(Kind::Joint), &|p, at| (sum(&first, p, at) + sum(&second, p, at)).powi(2)),
        (of(Kind::Ema), &|p, at| 0.09 * square(&first, ones, p, at) + 0.1 * square(&second, ones, p, at)),
        (of(Kind::Accumulator), &|p, at| {
            (0.09 * sum(&first, p, at).powi(2) + 0.1 * sum(&second, p, at).powi(2)) / 9.0
        }),
    ];
    let [host, device] = support::backends();
    for backend in [host, device, narrow_device(128), narrow_device(64)] {
        for (options, want) in &wanted {
            let (got, report) = run(&backend, &files, *options).expect("sound");
            let of =
                |parameter: usize, len: usize| (0..len).map(|at| want(parameter, at)).collect::<Vec<f64>>();
            let want = Tensors::from([("wte.weight".into(), of(0, 66)), ("head.bias".into(), of(1, 11))]);
            assert_eq!(report.elements, 77);
            let error = worst(&got, &want);
            assert!(error < 2e-6, "{} on {}: {error:e}", options.kind, backend.name());
        }
    }
    // Not the sum of squares.
    let (got, _) = run(&Backend::Host, &files[..1], of(Kind::Empirical)).expect("sound");
    assert!(
        got["wte.weight"]
            .iter()
            .enumerate()
            .any(|(at, g)| (g - square(&first, ones, 0, at)).abs() < 1e-3 * g)
    );
}

/// More samples than have their gradients in memory at a time: those of the two layers add to 3 and 1 in turn, whose squares sum to 5 n.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn many_samples_of_a_shared_parameter_are_taken_in_groups() {
    const SAMPLES: usize = 40_000;
    let folder = folder();
    let layers = r#"{"a": {"kind": "linear", "bias": true}, "b": {"kind": "linear", "bias": true, "tied": {"weight": "a", "bias": "a"}}}"#;
    let ones = vec![1.0; SAMPLES];
    let in_turn: Vec<f32> = (0..SAMPLES).map(|n| if n % 2 == 0 { 2.0 } else { 0.0 }).collect();
    let path = Draft::new(layers)
        .with("a.input", &[SAMPLES, 1], &ones)
        .with("a.grad_output", &[SAMPLES, 1], &in_turn)
        .with("b.input", &[SAMPLES, 1], &ones)
        .with("b.grad_output", &[SAMPLES, 1], &ones)
        .write(&folder, "a");
    let n = SAMPLES as f64;
    for backend in support::backends() {
        for (kind, want) in
            [(Kind::Empirical, 10.0 * n), (Kind::Ema, 0.19 * 5.0 * n), (Kind::Joint, 16.0 * n * n)]
        {
            let (got, _) = run(&backend, &[path.clone(), path.clone()], of(kind)).expect("sound");
            for name in ["a.weight", "a.bias"] {
                let off = (got[name][0] - want).abs() / want;
                assert!(off < 2e-6, "{kind} {name} on {}: {} for {want}", backend.name(), got[name][0]);
            }
        }
    }
}

/// (1·2 + 3·(−1))² of one sample, by two convolutions of different dilation.
#[test]
fn convolutions_share_a_weight_whatever_their_windows() {
    let folder = folder();
    let conv = |dilation: u32, tied: &str| {
        format!(
            r#"{{"kind": "conv", "kernel": [1], "stride": [1], "padding": [0], "dilation": [{dilation}], "groups": 1, "bias": false{tied}}}"#
        )
    };
    let layers = format!(r#"{{"b": {}, "a": {}}}"#, conv(1, ""), conv(2, r#", "tied": {"weight": "b"}"#));
    let path = Draft::new(&layers)
        .with("a.input", &[1, 1, 1], &[1.0])
        .with("a.grad_output", &[1, 1, 1], &[2.0])
        .with("b.input", &[1, 1, 1], &[3.0])
        .with("b.grad_output", &[1, 1, 1], &[-1.0])
        .write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert_eq!(got, Tensors::from([("b.weight".into(), vec![1.0])]));
}

/// The gradient of a filter that two layers have is in neither layer's data.
#[test]
fn gates_of_filters_that_layers_share_are_refused() {
    let folder = folder();
    let model = Draft::default().with("a.weight", &[1, 2], &[1.0, 2.0]).write(&folder, "model.safetensors");
    let layers = r#"{"a": {"kind": "linear", "bias": false}, "b": {"kind": "linear", "bias": false, "tied": {"weight": "a"}}}"#;
    let capture = ["a", "b"].into_iter().fold(Draft::new(layers), |draft, name| {
        let draft = draft.with(&format!("{name}.input"), &[1, 2], &[1.0, 1.0]);
        draft.with(&format!("{name}.grad_output"), &[1, 1], &[1.0])
    });
    let captures = [Capture::open(capture.write(&folder, "capture.safetensors")).expect("sound")];
    let model = Checkpoint::open(model).expect("sound");
    let refusal = gates(&Backend::Host, &model, &captures, &(), &Interrupt::default()).expect_err("shared");
    let text = refusal.to_string();
    assert!(text.contains("\"a\" and \"b\" share a weight, whose gates are not supported"), "{text}");
}

#[test]
fn ties_without_a_meaning_are_refused_by_message() {
    let of = |a: &str, b: &str| {
        Draft::new(&format!(r#"{{"a": {a}, "b": {b}}}"#))
            .with("a.input", &[1, 2], &[1.0, 1.0])
            .with("a.grad_output", &[1, 2], &[1.0, 1.0])
            .with("b.input", &[1, 2], &[1.0, 1.0])
            .with("b.grad_output", &[1, 2], &[1.0, 1.0])
    };
    let linear = |tied: &str| format!(r#"{{"kind": "linear", "bias": false, "tied": {tied}}}"#);
    let plain = r#"{"kind": "linear", "bias": false}"#;
    refuses(of(&linear(r#"{"weight": "c"}"#), plain), "its weight is \"c\"'s: there is no such layer");
    refuses(of(&linear(r#"{"weight": "a"}"#), plain), "a layer's own parameter is not tied");
    refuses(of(&linear(r#"{"weight": "b"}"#), &linear(r#"{"weight": "a"}"#)), "which is tied itself");
    refuses(of(&linear(r#"{"bias": "b"}"#), plain), "both need a bias");
    refuses(of(&linear(r#"{"wight": "b"}"#), plain), "unknown field `wight`");
    let norm = r#"{"kind": "layer_norm", "bias": false, "eps": 1e-5, "axes": 1}"#;
    refuses(of(&linear(r#"{"weight": "b"}"#), norm), "a linear and a layer_norm cannot share it");
    let table = r#"{"kind": "embedding", "rows": 3, "bias": false}"#;
    let shapes = Draft::new(&format!(r#"{{"a": {}, "b": {table}}}"#, linear(r#"{"weight": "b"}"#)))
        .with("a.input", &[1, 2], &[1.0, 1.0])
        .with("a.grad_output", &[1, 2], &[1.0, 1.0])
        .ids("b.input", &[1, 1], &[2])
        .with("b.grad_output", &[1, 1, 2], &[1.0, 1.0]);
    refuses(shapes, "the one is [2, 2], the other [3, 2]");
}

#[test]
fn data_seen_three_times_triples_the_sum_and_keeps_the_mean() {
    let mean = |kind| FisherOptions { reduction: Reduction::Mean, ..of(kind) };
    for case in ["conv2d", "sequence"] {
        let once = captures(case);
        let thrice = [&once[..], &once, &once].concat();
        for kind in [Kind::Empirical, Kind::Ief] {
            let (sum, tripled) = (host(&once, of(kind)), host(&thrice, of(kind)));
            let three: Tensors =
                sum.iter().map(|(name, v)| (name.clone(), v.iter().map(|v| 3.0 * v).collect())).collect();
            assert!(worst(&tripled, &three) < 1e-6, "{case} {kind}");
            assert!(worst(&host(&thrice, mean(kind)), &host(&once, mean(kind))) < 1e-6, "{case} {kind}");
        }
    }
}

#[test]
fn repeated_ids_of_a_sample_add_before_squaring() {
    let folder = folder();
    let path = Draft::new(r#"{"e": {"kind": "embedding", "rows": 3, "bias": false}}"#)
        .ids("e.input", &[2, 2], &[1, 1, 1, 2])
        .with("e.grad_output", &[2, 2, 1], &[1.0, 2.0, 4.0, 5.0])
        .write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert_eq!(got["e.weight"], [0.0, 9.0 + 16.0, 25.0]);
}

#[test]
fn batch_norm_is_a_fixed_affine() {
    let folder = folder();
    let path = Draft::new(r#"{"n": {"kind": "batch_norm", "eps": 0.0, "bias": true}}"#)
        .with("n.input", &[2, 1, 2], &[3.0, 5.0, 1.0, 1.0])
        .with("n.grad_output", &[2, 1, 2], &[1.0, 1.0, 2.0, 0.0])
        .with("n.running_mean", &[1], &[1.0])
        .with("n.running_var", &[1], &[4.0])
        .write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    // x̂ is (1, 2) and (0, 0).
    assert_eq!(got["n.weight"], [9.0]);
    assert_eq!(got["n.bias"], [8.0]);
}

#[test]
fn batches_in_one_file_or_two_are_the_same() {
    let folder = folder();
    let (x, g) = ([0.3, -1.5, 2.5, 0.7, 1.1, -0.2], [0.4, -0.9, 1.3]);
    let whole = linear(&x, &g).write(&folder, "whole");
    let parts = [linear(&x[..2], &g[..1]).write(&folder, "a"), linear(&x[2..], &g[1..]).write(&folder, "b")];
    for kind in [Kind::Empirical, Kind::Joint] {
        let (one, two) = (host(std::slice::from_ref(&whole), of(kind)), host(&parts, of(kind)));
        assert!(worst(&two, &one) < 1e-6, "{kind}");
    }
    let (one, two) = (host(&[whole], of(Kind::MinibatchJoint)), host(&parts, of(Kind::MinibatchJoint)));
    assert!(worst(&two, &one) > 0.1, "batches matter where sums over them are squared");
}

#[test]
fn moving_averages_and_means_follow_their_rules() {
    let folder = folder();
    let a = linear(&[1.0, 2.0], &[1.0, 3.0]).write(&folder, "a");
    let b = linear(&[1.0, 1.0], &[2.0, 2.0]).write(&folder, "b");
    // Squares sum to 1 + 36 and 4 + 4, sums are 7 and 4.
    let ema = host(&[a.clone(), b.clone()], of(Kind::Ema));
    assert!((ema["fc.weight"][0] - (0.9 * 0.1 * 37.0 + 0.1 * 8.0)).abs() < 1e-5);
    let accumulator = host(&[a.clone(), b.clone()], of(Kind::Accumulator));
    assert!((accumulator["fc.weight"][0] - (0.9 * 0.1 * 12.25 + 0.1 * 4.0)).abs() < 1e-6);
    let mean = host(&[a, b], FisherOptions { reduction: Reduction::Mean, ..of(Kind::Empirical) });
    assert!((mean["fc.weight"][0] - 45.0 / 4.0).abs() < 1e-5);
}

#[test]
fn a_sum_beyond_f32_is_refused_by_name() {
    let folder = folder();
    let path = linear(&[1e30], &[1e30]).write(&folder, "a");
    let problem = refused(&[path], of(Kind::Empirical));
    assert!(problem.contains("\"fc.weight\"") && problem.contains("flat index 0"), "{problem}");
}

/// A batch without samples gives zeros, whatever the kind.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn no_samples_give_zeros() {
    let folder = folder();
    let path = Draft::new(LINEAR)
        .with("fc.input", &[0, 1], &[])
        .with("fc.grad_output", &[0, 1], &[])
        .with("logit_grad", &[0, 2], &[])
        .write(&folder, "a");
    for backend in support::backends() {
        for kind in Kind::ALL {
            let mean = if kind == Kind::Accumulator { Reduction::Sum } else { Reduction::Mean };
            for reduction in [Reduction::Sum, mean] {
                let options = FisherOptions { reduction, ..of(kind) };
                let (got, _) = run(&backend, std::slice::from_ref(&path), options).expect("sound");
                assert_eq!((&got["fc.weight"], &got["fc.bias"]), (&vec![0.0], &vec![0.0]), "{kind}");
            }
        }
    }
}

/// More samples than are read at a time, and more than one invocation's loops can take on software Vulkan. With a = 1 and b of 1 and 3 in turn,
/// squares sum to 5 n and gradients to 2 n.
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

fn values(seed: u64, len: usize) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "noise is exact in f32")]
    let narrow = |v: &f64| *v as f32;
    noise(seed, len).iter().map(narrow).collect()
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

/// A device whose bindings have so many bytes.
fn narrow_device(bytes: u64) -> Backend {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..wgpu::Limits::default() };
    let backend = Backend::Gpu(support::device_with(limits));
    assert_eq!(backend.caps().max_binding_bytes, bytes);
    backend
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
        let within = |bytes: u64| Budget { host_bytes: bytes, device_bytes: bytes, ..Budget::default() };
        for kind in Kind::ALL {
            let options = of(kind);
            let (want, once) = run(&backend, &files, options).expect("sound");
            let (got, report) =
                run(&backend, &files, FisherOptions { budget: within(6000), ..options }).expect("in passes");
            assert!(once.passes == 1 && report.passes > 2, "{kind}: {} passes", report.passes);
            let error = worst(&got, &want);
            assert!(error < 1e-6, "{kind} on {}: {error:e}", backend.name());
        }
        let options = FisherOptions { budget: within(200), ..of(Kind::Empirical) };
        let text = run(&backend, &files, options).expect_err("a row is more").to_string();
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

#[test]
fn a_mean_loss_is_undone() {
    let folder = folder();
    let sum = linear(&[1.0, 2.0], &[1.0, 3.0]).write(&folder, "sum");
    let mean = linear(&[1.0, 2.0], &[0.5, 1.5]).note("loss_reduction", "mean").write(&folder, "mean");
    for kind in [Kind::Empirical, Kind::MinibatchJoint, Kind::Joint, Kind::Ema, Kind::Accumulator] {
        assert_eq!(
            host(std::slice::from_ref(&sum), of(kind)),
            host(std::slice::from_ref(&mean), of(kind)),
            "{kind}"
        );
    }
}

#[test]
fn joint_over_batches_of_a_mean_loss_of_different_sizes_is_that_of_their_sum() {
    let folder = folder();
    let (x, g) = ([0.3, -1.5, 2.5, 0.7, 1.1, -0.2], [0.4, -0.9, 1.3]);
    let sum = linear(&x, &g).write(&folder, "sum");
    let mean = [
        linear(&x[..2], &g[..1]).note("loss_reduction", "mean").write(&folder, "a"),
        linear(&x[2..], &[-0.45, 0.65]).note("loss_reduction", "mean").write(&folder, "b"),
    ];
    let (one, two) = (host(&[sum], of(Kind::Joint)), host(&mean, of(Kind::Joint)));
    assert!(worst(&two, &one) < 1e-6);
}

/// Files are read in pieces of 4 MiB, which end inside samples and uses.
#[test]
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
    let got = host(&[path], of(Kind::Ief));
    for i in (0..inputs).step_by(997).chain([inputs - 1]) {
        let g = |n: usize, b: f32, c: f32| f64::from(b * first[n * inputs + i] + c * second[n * inputs + i]);
        let want = g(0, 0.5, -1.0).powi(2) / 4.0 + g(1, 2.0, 0.25).powi(2) / 9.0;
        let got = got["fc.weight"][i];
        assert!((got - want).abs() < 1e-6, "[{i}]: {got} {want}");
    }
}

/// Logistic regression has F_jj = Σ_n p_n (1 − p_n) x_nj².
#[test]
fn every_class_with_its_probability_is_the_closed_form() {
    let folder = folder();
    let x = [0.3_f32, -1.5, 2.5, 0.7];
    let p = [0.2_f32, 0.9];
    // Both labels of each sample: gradients p − 1 with probability p, p with probability 1 − p.
    let input = [x, x].concat();
    let gradient = [p[0] - 1.0, p[1] - 1.0, p[0], p[1]];
    let weight = [p[0], p[1], 1.0 - p[0], 1.0 - p[1]];
    let path = linear(&input, &gradient).with("sample_weight", &[4], &weight).note("labels", "all");
    let (got, report) =
        run(&Backend::Host, &[path.write(&folder, "a")], of(Kind::Empirical)).expect("sound captures");
    assert_eq!((report.kind.as_str(), report.samples), ("exact", 2));
    for j in 0..2 {
        let want: f64 = (0..2).map(|n| f64::from(p[n] * (1.0 - p[n]) * x[2 * n + j] * x[2 * n + j])).sum();
        assert!((got["fc.weight"][j] - want).abs() < 1e-6 * want, "{} {want}", got["fc.weight"][j]);
    }
}

/// Where the model is nearly certain, gradients are tiny and iEF's quotient is not.
#[test]
fn ief_keeps_samples_whose_gradients_nearly_vanish() {
    let folder = folder();
    let path =
        linear(&[2.0, 3.0], &[1.0, 1e-30]).with("logit_grad", &[2, 1], &[1.0, 1e-30]).write(&folder, "a");
    let got = host(&[path], of(Kind::Ief));
    assert!((got["fc.weight"][0] - 13.0).abs() < 1e-5, "{:?}", got["fc.weight"]);
    let path = linear(&[2.0, 3.0], &[1.0, 0.0]).with("logit_grad", &[2, 1], &[1.0, 0.0]).write(&folder, "b");
    let (got, report) = run(&Backend::Host, &[path], of(Kind::Ief)).expect("sound captures");
    assert_eq!((got["fc.weight"][0], report.zero_loss_samples), (4.0, 1));
}

/// Squares below f32's range come back where their sum is in it.
#[test]
fn gradients_below_the_square_root_of_f32_still_count() {
    let folder = folder();
    let path = linear(&[1e12, 1.0], &[1e-25, 0.0]).write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert!((got["fc.weight"][0] / 1e-26 - 1.0).abs() < 1e-5, "{:e}", got["fc.weight"][0]);
}

fn refused(captures: &[PathBuf], options: FisherOptions) -> String {
    run(&Backend::Host, captures, options).expect_err("must be refused").to_string()
}

fn refuses(draft: Draft, what: &str) {
    let folder = folder();
    let message = refused(&[draft.write(&folder, "bad.safetensors")], of(Kind::Empirical));
    assert!(message.contains(what) && message.contains("bad.safetensors"), "{message}");
}

#[test]
fn bad_captures_are_refused_by_message() {
    let layers = |json: &str| {
        Draft::new(json).with("fc.input", &[1, 1], &[1.0]).with("fc.grad_output", &[1, 1], &[1.0])
    };
    refuses(layers(r#"{"fc": {"kind": "lstm", "bias": true}}"#), "layer \"fc\": unknown variant `lstm`");
    refuses(layers(r#"{"fc": {"kind": "linear"}}"#), "missing field `bias`");
    refuses(layers(r#"{"fc": {"kind": "batch_norm", "eps": 1e-5, "bias": true}}"#), "running_mean");
    refuses(layers(LINEAR).note("format", "pt"), "no capture");
    refuses(layers(LINEAR).note("format", "squisher-capture-2"), "this version reads");
    refuses(layers(LINEAR).note("loss_reduction", "max"), "expected one of sum, mean");
    refuses(layers(LINEAR).note("labels", "all"), "no sample_weight");
    refuses(layers(LINEAR).with("f.input", &[1], &[1.0]), "belongs to no layer");
    refuses(layers(LINEAR).with("sample_weight", &[2], &[1.0, 1.0]), "2 samples");
    refuses(Draft::new(LINEAR).with("fc.input", &[1, 1], &[1.0]), "\"fc.grad_output\": is missing");
    refuses(linear(&[1.0, f32::NAN], &[1.0, 1.0]), "\"fc.input\": NaN or infinity at flat index 1");
    refuses(
        linear(&[1.0, 1.0], &[f32::INFINITY, 1.0]),
        "\"fc.grad_output\": NaN or infinity at flat index 0",
    );
    let shapes = Draft::new(LINEAR).with("fc.input", &[1, 2, 3], &[0.0; 6]).with(
        "fc.grad_output",
        &[1, 3, 1],
        &[0.0; 3],
    );
    refuses(shapes, "input [1, 2, 3], grad_output [1, 3, 1]");
    let embedding = Draft::new(r#"{"e": {"kind": "embedding", "rows": 3, "bias": false}}"#)
        .ids("e.input", &[1, 2], &[1, 3])
        .with("e.grad_output", &[1, 2, 1], &[1.0, 1.0]);
    refuses(embedding, "id 3 at flat index 1, the table has rows 0..3");
    let window =
        r#""kernel": [2], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": false"#;
    let conv = Draft::new(&format!(r#"{{"c": {{"kind": "conv", {window}}}}}"#))
        .with("c.input", &[1, 1, 4], &[0.0; 4])
        .with("c.grad_output", &[1, 1, 4], &[0.0; 4]);
    refuses(conv, "axis 2 of the output should have 3 for this input and window, it has 4");
}

#[test]
fn options_without_a_meaning_are_refused_by_message() {
    let folder = folder();
    let path = [linear(&[1.0], &[1.0]).write(&folder, "a.safetensors")];
    let message = refused(&path, FisherOptions { weighted: true, ..of(Kind::Empirical) });
    assert!(message.contains("no sample_weight"), "{message}");
    let message = refused(&path, FisherOptions { weighted: true, ..of(Kind::Joint) });
    assert!(message.contains("joint squares sums over samples"), "{message}");
    let message = refused(&path, FisherOptions { beta: 1.0, ..of(Kind::Ema) });
    assert!(message.contains("beta is 1"), "{message}");
    assert!(refused(&path, of(Kind::Ief)).contains("no logit_grad"));
    assert!(refused(&[], of(Kind::Empirical)).contains("no capture was given"));
    let other = linear(&[1.0, 2.0], &[1.0]).write(&folder, "b.safetensors");
    let message = refused(&[path[0].clone(), other], of(Kind::Empirical));
    assert!(message.contains("not of one network: layer \"fc\""), "{message}");
}
