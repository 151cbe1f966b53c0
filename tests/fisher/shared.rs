//! Parameters with several uses: the gradients add before they are squared.

use std::path::PathBuf;

use squisher::methods::fisher::{FisherOptions, Kind, Reduction};
use squisher::methods::prune::gates;
use squisher::{Backend, Run, reference};
use tempfile::TempDir;

use crate::support::capture_files::{Draft, LINEAR, Tensors, worst};
use crate::support::files::folder;
use crate::{host, narrow_device, of, refuses, run, support, values};

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

/// A table of 11 rows of 6 that an embedding, an output layer and a layer between share, with 4, 3 and 1
/// positions, and the gradients of its samples.
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

/// Layers that share a parameter have one gradient, the sum of theirs, which is squared: whatever the kind,
/// and whatever a binding holds.
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

/// More samples than have their gradients in memory at a time: those of the two layers add to 3 and 1 in
/// turn, whose squares sum to 5 n.
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
    let captures = [capture.write(&folder, "capture.safetensors")];
    let refusal = gates::scores(&model, &captures, &Run::new(&Backend::Host)).expect_err("shared");
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
