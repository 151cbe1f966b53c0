//! Narrow bindings, long samples, shared weights and several sizes change nothing beyond rounding.

use squisher::methods::step::StepKind;
use squisher::{Backend, reference, wgpu};

use crate::support::capture_files::{Draft, worst};
use crate::support::files::{self, folder};
use crate::{along, gram, noise, norms, options, run, share, support, wide};

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
        let folder = files::folder();
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
        let own = files::folder();
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
        let own = files::folder();
        let (_, report) = run(&backend, &paths, &options(StepKind::Ef, 0.0), own.path()).expect("sound");
        let changes = along(&backend, &paths, &report.output).expect("its own network");
        assert!(share(&changes, &[1.0, 1.0]) < 1e-5, "{changes:?}");
    }
}
