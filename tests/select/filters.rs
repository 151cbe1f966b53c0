//! Whole filters, by the sum of their scores and by their gates.

use std::path::{Path, PathBuf};

use squisher::checkpoint::{Capture, CaptureLayer, LayerKind};
use squisher::methods::prune::{PruneOptions, Structure, gates};
use squisher::methods::select::{Keep, Scope};
use squisher::{Backend, Run, reference, wgpu};

use crate::support::files::{Tensors, f32s, folder, read, write};
use crate::support::tool::output;
use crate::{applied, network, run_prune, saliency, support, values};

#[test]
fn filters_go_as_a_whole_by_the_sum_of_their_scores() {
    for (scope, piece) in [(Scope::Global, 7), (Scope::Global, 1000), (Scope::Tensor, 7)] {
        let out = folder();
        let (model, fisher) = network(out.path());
        let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
        let options = PruneOptions {
            scope,
            mask_out: Some(mask.clone()),
            piece_elements: Some(piece),
            ..PruneOptions::new(Structure::Filters(Keep::Fraction(0.5)))
        };
        run_prune(&Backend::Host, (&model, &fisher), &options, &pruned).expect("sound inputs");
        let (model, fisher, mask) = (read(&model), read(&fisher), read(&mask));
        let sums = |name: &str, len: usize| -> Vec<f64> {
            let scores = saliency(&model, &fisher, name);
            scores.chunks(len).map(|row| row.iter().map(|&s| f64::from(s)).sum()).collect()
        };
        let (conv, head) = (sums("conv.weight", 24), sums("head.weight", 8));
        let keep = |sums: &[f64], k: usize| {
            let mut order: Vec<usize> = (0..sums.len()).collect();
            order.sort_by(|&a, &b| sums[b].total_cmp(&sums[a]));
            let mut keep = vec![0; sums.len()];
            order.into_iter().take(k).for_each(|i| keep[i] = 1);
            keep
        };
        let (conv_keep, head_keep) = match scope {
            Scope::Tensor => (keep(&conv, 2), keep(&head, 3)),
            Scope::Global => {
                let all = keep(&[conv, head].concat(), 5);
                (all[..4].to_vec(), all[4..].to_vec())
            }
        };
        let spread =
            |keep: Vec<u8>, len: usize| keep.into_iter().flat_map(|k| vec![k; len]).collect::<Vec<u8>>();
        assert_eq!(mask["conv.weight"].2, spread(conv_keep, 24), "{scope:?} in pieces of {piece}");
        assert_eq!(mask["head.weight"].2, spread(head_keep, 8), "{scope:?} in pieces of {piece}");
        applied(&model, &mask, &read(&pruned));
    }
}

/// A network of captured layers: its captures, and a model with weights for all of them.
fn captured(case: &str, files: usize, folder: &Path) -> (Vec<Capture>, PathBuf) {
    let path = |i: usize| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fisher").join(case);
        root.join(format!("capture-00{i}.safetensors"))
    };
    let captures: Vec<Capture> =
        (0..files).map(|i| Capture::open(path(i)).expect("a sound capture")).collect();
    let mut model = Tensors::new();
    for (seed, layer) in captures[0].layers().iter().enumerate() {
        let shape: Vec<usize> = layer.weight.iter().map(|&n| usize::try_from(n).expect("small")).collect();
        let len: usize = shape.iter().product();
        let values: Vec<f32> = (0..len).map(|i| ((i + 31 * seed) as f32 * 0.7).sin()).collect();
        model.insert(format!("{}.weight", layer.name), f32s(&shape, &values));
        if layer.bias {
            model.insert(format!("{}.bias", layer.name), f32s(&shape[..1], &vec![1.0; shape[0]]));
        }
    }
    let path = folder.join("model.safetensors");
    write(&path, &model);
    (captures, path)
}

/// One sample's gradient of a layer's weight, summed over its uses, by definition; with `abs` of the magnitudes.
fn gradient(layer: &CaptureLayer, capture: &Capture, sample: usize, abs: bool) -> Vec<f64> {
    let of_sample = |values: Vec<f32>| -> Vec<f64> {
        let len = values.len() / usize::try_from(capture.samples()).expect("small");
        let own = values[sample * len..(sample + 1) * len].iter().map(|&v| f64::from(v));
        own.map(|v| if abs { v.abs() } else { v }).collect()
    };
    let size = |n: u64| usize::try_from(n).expect("small");
    let three = |sizes: &[u64], fill: usize| -> [usize; 3] {
        let mut out = [fill; 3];
        out[3 - sizes.len()..].iter_mut().zip(sizes).for_each(|(out, &n)| *out = size(n));
        out
    };
    let mut sum: Vec<f64> = Vec::new();
    for one in &layer.uses {
        let a = of_sample(capture.floats(&one.input).expect("sound"));
        let b = of_sample(capture.floats(&one.grad_output).expect("sound"));
        let (input, output) = (&one.input.shape, &one.grad_output.shape);
        let g = match &layer.kind {
            LayerKind::Linear => {
                let (outputs, inputs) = (size(layer.weight[0]), size(layer.weight[1]));
                reference::fisher::linear(&a, &b, a.len() / inputs, inputs, outputs)
            }
            LayerKind::Conv(window) | LayerKind::ConvTranspose(window) => {
                let conv = |input: &[u64], output: &[u64]| reference::fisher::Conv {
                    channels: size(input[1]),
                    outputs: size(output[1]),
                    groups: size(window.groups),
                    input: three(&input[2..], 1),
                    grad: three(&output[2..], 1),
                    kernel: three(&window.kernel, 1),
                    stride: three(&window.stride, 1),
                    padding: three(&window.padding, 0),
                    dilation: three(&window.dilation, 1),
                };
                // A transposed convolution is one with the roles of its input and its output swapped.
                match &layer.kind {
                    LayerKind::Conv(_) => reference::fisher::conv(&conv(input, output), &a, &b),
                    _ => reference::fisher::conv(&conv(output, input), &b, &a),
                }
            }
            other => panic!("{other:?} has no filters"),
        };
        sum.resize(g.len(), 0.0);
        sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
    }
    sum
}

/// ½ Σ_n (Σ θ g_n)² of every filter of a layer, and how far f32 gradients may take it off.
fn gates_of(place: usize, captures: &[Capture], theta: &[f32]) -> Vec<(f64, f64)> {
    let layer = &captures[0].layers()[place];
    let rows = usize::try_from(layer.weight[0]).expect("small");
    let width = theta.len() / rows;
    let mut sums = vec![(0.0, 0.0); rows];
    for capture in captures {
        let layer = &capture.layers()[place];
        for sample in 0..usize::try_from(capture.samples()).expect("small") {
            let (g, m) = (gradient(layer, capture, sample, false), gradient(layer, capture, sample, true));
            for (row, (sum, off)) in sums.iter_mut().enumerate() {
                let terms = |g: &[f64], abs: bool| -> f64 {
                    let terms = (row * width..(row + 1) * width).map(|i| f64::from(theta[i]) * g[i]);
                    terms.map(|term| if abs { term.abs() } else { term }).sum()
                };
                // At most 500 terms a gradient: as many roundings, at 2⁻²⁴ each.
                let (gate, error) =
                    (terms(&g, false), 502.0 * f64::from(f32::EPSILON) / 2.0 * terms(&m, true));
                *sum += 0.5 * gate * gate;
                *off += gate.abs() * error + 0.5 * error * error;
            }
        }
    }
    sums
}

fn files_of(captures: &[Capture]) -> Vec<PathBuf> {
    captures.iter().map(|capture| capture.path().to_owned()).collect()
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn gates_are_half_the_squares_of_weights_times_gradients() {
    for (case, files) in [("conv2d", 2), ("conv1d", 2), ("conv_transpose2d", 2), ("sequence", 2), ("mlp", 3)]
    {
        let out = folder();
        let (captures, path) = captured(case, files, out.path());
        let tensors = read(&path);
        // Some samples at a time, too, where that is what a binding takes.
        let limits = wgpu::Limits { max_storage_buffer_binding_size: 8192, ..wgpu::Limits::default() };
        let [host, device] = support::backends();
        for backend in [host, device, Backend::Gpu(support::device_with(limits))] {
            let got = gates::scores(&path, &files_of(&captures), &Run::new(&backend)).expect("sound inputs");
            assert!(!got.contains_key("embed.weight"), "an embedding has no filters");
            for (name, scores) in &got {
                let layer = |l: &CaptureLayer| format!("{}.weight", l.name) == *name;
                let place = captures[0].layers().iter().position(layer).expect("a captured layer");
                let want = gates_of(place, &captures, &values(&tensors[name]));
                assert_eq!(scores.len(), want.len(), "{case} {name}");
                for (filter, (got, (want, off))) in scores.iter().zip(want).enumerate() {
                    let on = backend.name();
                    assert!(
                        (got - want).abs() <= off,
                        "{case} {name}[{filter}] on {on}: {got:e} for {want:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn filters_go_by_their_gates() {
    let out = folder();
    let (captures, path) = captured("conv2d", 2, out.path());
    let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
    let options = PruneOptions {
        mask_out: Some(mask.clone()),
        ..PruneOptions::new(Structure::Filters(Keep::Fraction(0.5)))
    };
    let (files, run) = (files_of(&captures), Run::new(&Backend::Host));
    let report = gates::prune(&path, &files, &options, &pruned, &run).expect("sound inputs");
    let scores = gates::scores(&path, &files, &run).expect("sound inputs");
    let mut order: Vec<(&String, usize, f64)> = (scores.iter())
        .flat_map(|(name, scores)| scores.iter().enumerate().map(move |(i, &score)| (name, i, score)))
        .collect();
    order.sort_by(|a, b| b.2.total_cmp(&a.2));
    order.truncate(order.len() / 2);
    let (tensors, got) = (read(&path), read(&mask));
    assert_eq!(got.keys().collect::<Vec<_>>(), scores.keys().collect::<Vec<_>>());
    for (name, (_, shape, mask)) in &got {
        for (filter, own) in mask.chunks(mask.len() / shape[0]).enumerate() {
            let kept = order.iter().any(|&(n, i, _)| n == name && i == filter);
            assert!(own.iter().all(|&byte| byte == u8::from(kept)), "{name}[{filter}]");
        }
    }
    applied(&tensors, &got, &read(&pruned));
    assert_eq!(report.kept, got.values().flat_map(|(_, _, m)| m).map(|&b| u64::from(b)).sum::<u64>());

    // Through the tool, the same bytes.
    let again = out.path().join("again.safetensors");
    let text = |path: &Path| path.display().to_string();
    let mut args = vec!["prune".to_owned(), text(&path), "--captures".into()];
    args.extend(captures.iter().map(|capture| text(capture.path())));
    args.extend(["--score", "filter-gate", "--keep", "0.5", "--backend", "host", "-o"].map(str::to_owned));
    args.push(text(&again));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = output(&args);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(read(&again), read(&pruned));
    // A Fisher has no gates, and captures have no other score.
    for (args, says) in [
        (vec!["--fisher", "f", "--score", "filter-gate"], "give captures (--captures)"),
        (vec!["--captures", "c", "--score", "filter-sum"], "captures are for --score filter-gate"),
        (vec!["--captures", "c"], "captures are for --score filter-gate"),
    ] {
        let path = text(&path);
        let all = [&["prune", &path, "--keep", "0.5", "-o", "none"], &args[..]].concat();
        let refused = output(&all);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(says), "{refused:?}");
    }
}

#[test]
fn captures_that_do_not_fit_are_refused() {
    let out = folder();
    let (captures, path) = captured("sequence", 1, out.path());
    let pruned = out.path().join("pruned.safetensors");
    let run = |path: &Path, captures: &[Capture], options: &PruneOptions| {
        let refused = gates::prune(path, &files_of(captures), options, &pruned, &Run::new(&Backend::Host));
        assert!(!pruned.exists(), "something was written");
        refused.expect_err("it must be refused").to_string()
    };
    let filters = PruneOptions::new(Structure::Filters(Keep::Fraction(0.5)));
    let text = run(&path, &captures, &filters);
    assert!(text.contains("no layer with filters for 1 of the model's tensors: \"embed.weight\""), "{text}");
    let text = run(&path, &captures, &PruneOptions::new(Structure::Elements(Keep::Fraction(0.5))));
    assert!(text.contains("filter-gate is a score of filters"), "{text}");
    let text = run(&path, &[], &filters);
    assert!(text.contains("filter-gate needs captures"), "{text}");
    let other = out.path().join("other.safetensors");
    write(&other, [("up.weight", f32s(&[2, 2], &[1.0; 4]))]);
    let text = run(&other, &captures, &filters);
    assert!(text.contains("\"up.weight\" has shape [20, 12] by the captures, [2, 2] in the model"), "{text}");
    assert!(text.contains("\"head.weight\" is not in the model"), "{text}");
}
