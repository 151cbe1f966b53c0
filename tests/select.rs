//! Selection: thresholds, masks, pairs, pruning and resets, against plain sorts and PyTorch's answers.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt;
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use squisher::checkpoint::{Capture, CaptureLayer, Checkpoint, LayerKind};
use squisher::kernels::select::mask_words;
use squisher::memory::Element;
use squisher::methods::mask::{MaskOptions, ResetOptions, Unmasked, mask, reset};
use squisher::methods::prune::{Pattern, PruneOptions, SelectReport, Structure, gates, prune, prune_gates};
use squisher::methods::select::{Keep, Scope};
use squisher::methods::{Globs, NonFinite};
use squisher::record::top_k::TopK;
use squisher::{Backend, DType, Error, Interrupt, Recording, reference, wgpu};

/// Type, shape and bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// Tensors by name.
type Tensors = BTreeMap<String, Tensor>;

const CASES: [&str; 3] = ["random_bf16", "random_f32", "ties_f32"];
const FRACTIONS: [&str; 6] = ["0.0", "0.005", "0.25", "0.5", "0.75", "1.0"];

fn data(case: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/select")
        .join(case)
        .join(format!("{file}.safetensors"))
}

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("a readable file");
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let parts = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    tensors.iter().map(|(name, view)| (name.to_owned(), parts(view))).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).expect("bytes of this shape"))
    });
    safetensors::serialize_to_file(views, None, path).expect("a writable folder");
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), values.len(), "the shape's elements");
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Whether a folder holds exactly these files.
fn holds(folder: &Path, names: &[&str]) {
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .expect("a readable folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, names);
}

fn run_mask(
    backend: &Backend,
    fisher: &Path,
    options: &MaskOptions,
    out: &Path,
) -> Result<SelectReport, Error> {
    mask(backend, &Checkpoint::open(fisher)?, options, out, &(), &Interrupt::default())
}

fn run_prune(
    backend: &Backend,
    (model, fisher): (&Path, &Path),
    options: &PruneOptions,
    out: &Path,
) -> Result<SelectReport, Error> {
    let (model, fisher) = (Checkpoint::open(model)?, Checkpoint::open(fisher)?);
    prune(backend, &model, &fisher, options, out, &(), &Interrupt::default())
}

/// The definition: a stable sort of (score descending, index ascending), −0 equal to 0.
fn best(scores: &[f32], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).expect("no NaN here"));
    order.truncate(k);
    order
}

fn best_mask(scores: &[f32], k: usize) -> Vec<u8> {
    let mut mask = vec![0; scores.len()];
    best(scores, k).into_iter().for_each(|i| mask[i] = 1);
    mask
}

/// Requires that `pruned` is `model` where `mask` is 1, and zero bytes elsewhere.
fn applied(model: &Tensors, mask: &Tensors, pruned: &Tensors) {
    assert_eq!(model.keys().collect::<Vec<_>>(), pruned.keys().collect::<Vec<_>>());
    for (name, (dtype, shape, bytes)) in model {
        let (got_dtype, got_shape, got) = &pruned[name];
        assert_eq!((dtype, shape), (got_dtype, got_shape), "{name}");
        let Some((_, _, keep)) = mask.get(name) else {
            assert_eq!(bytes, got, "{name} is not in the mask and changed");
            continue;
        };
        let size = bytes.len() / keep.len().max(1);
        for (i, &keep) in keep.iter().enumerate() {
            let range = i * size..(i + 1) * size;
            let want = if keep == 1 { &bytes[range.clone()] } else { &[0; 8][..size] };
            assert_eq!(&got[range], want, "{name}[{i}]");
        }
    }
}

fn expected(all: &Tensors, prefix: &str) -> Tensors {
    let strip = |name: &String| name.strip_prefix(prefix).map(str::to_owned);
    let found: Tensors = all.iter().filter_map(|(name, t)| Some((strip(name)?, t.clone()))).collect();
    assert!(!found.is_empty(), "the oracle has nothing under {prefix}");
    found
}

fn oracle_holds_on(backend: &Backend) {
    let out = folder();
    let (mask_path, pruned_path) =
        (out.path().join("mask.safetensors"), out.path().join("pruned.safetensors"));
    for case in CASES {
        let (model, fisher) = (data(case, "model"), data(case, "fisher"));
        let all = read(&data(case, "expected"));
        for fraction in FRACTIONS {
            for (tag, scope) in [("global", Scope::Global), ("tensor", Scope::Tensor)] {
                let keep = Keep::Fraction(fraction.parse().expect("a number"));
                let options = MaskOptions { scope, overwrite: true, ..MaskOptions::new(keep) };
                let report = run_mask(backend, &fisher, &options, &mask_path).expect("a sound Fisher");
                let want = expected(&all, &format!("fish/{tag}/{fraction}/"));
                assert_eq!(read(&mask_path), want, "{case} fish {tag} {fraction}");
                let kept: usize = want.values().map(|(_, _, m)| m.iter().filter(|&&b| b == 1).count()).sum();
                assert_eq!(report.kept, kept as u64, "{case} fish {tag} {fraction}");

                let options = PruneOptions {
                    scope,
                    overwrite: true,
                    mask_out: Some(mask_path.clone()),
                    ..PruneOptions::new(Structure::Elements(keep))
                };
                run_prune(backend, (&model, &fisher), &options, &pruned_path).expect("sound inputs");
                let want = expected(&all, &format!("prune/{tag}/{fraction}/"));
                assert_eq!(read(&mask_path), want, "{case} prune {tag} {fraction}");
                applied(&read(&model), &want, &read(&pruned_path));
            }
        }
        let pattern = Structure::Pattern("2:4".parse().expect("a pattern"));
        let mut options =
            PruneOptions { overwrite: true, mask_out: Some(mask_path.clone()), ..PruneOptions::new(pattern) };
        options.globs.exclude = vec!["*conv*".into()];
        let report = run_prune(backend, (&model, &fisher), &options, &pruned_path).expect("sound inputs");
        let (want, got) = (expected(&all, "prune/2:4/"), read(&mask_path));
        want.iter().for_each(|(name, tensor)| assert_eq!(&got[name], tensor, "{case} 2:4 {name}"));
        assert!(report.copied.contains(&"model.layers.1.conv.weight".to_owned()), "{:?}", report.copied);
        applied(&read(&model), &got, &read(&pruned_path));
    }
}

#[test]
fn masks_and_pruned_models_are_pytorch_s_on_the_host() {
    oracle_holds_on(&Backend::Host);
}

#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
#[test]
fn masks_and_pruned_models_are_pytorch_s_on_the_device() {
    oracle_holds_on(&Backend::Gpu(support::gpu()));
}

/// Threshold, mask and pairs of the operation against the definition.
fn top_k_holds(backend: &Backend, scores: &[f32], k: usize) {
    let fisher = backend.buffer(scores, DType::F32).expect("a small buffer");
    let words = |len: u64| backend.alloc(len, Element::U32).expect("a small buffer");
    let (mask, indices) = (words(mask_words(scores.len() as u64)), words(k as u64));
    let values = backend.alloc(k as u64, DType::F32).expect("a small buffer");
    let top = TopK::of_fisher(backend, &fisher, k as u64).expect("k is at most the number of items");
    let mut recording = Recording::new(backend);
    top.threshold(&mut recording).expect("sound buffers");
    top.mask(&mut recording, &mask).expect("sound buffers");
    top.pairs(&mut recording, &indices, &values).expect("sound buffers");
    // A recording may run again.
    backend.run(&recording).expect("it runs");
    backend.run(&recording).expect("it runs again");

    let mut kept = best(scores, k);
    let threshold = top.cut(backend).expect("sound scores");
    assert_eq!(
        threshold.map(|t| t.score),
        kept.last().map(|&i| scores[i].abs()),
        "k={k} of {}",
        scores.len()
    );
    let mut bytes = backend.download::<u8>(&mask).expect("a small buffer");
    assert!(bytes.split_off(scores.len()).iter().all(|&b| b == 0), "bytes behind the mask");
    assert_eq!(bytes, best_mask(scores, k), "k={k} of {scores:?}");
    kept.sort_unstable();
    let want: Vec<u32> = kept.iter().map(|&i| u32::try_from(i).expect("small")).collect();
    assert_eq!(backend.download::<u32>(&indices).expect("a small buffer"), want);
    let want: Vec<f32> = kept.iter().map(|&i| scores[i]).collect();
    assert_eq!(backend.download::<f32>(&values).expect("a small buffer"), want);
}

/// Few distinct values, so that ties are everywhere; zeros of both signs and subnormals among them.
fn tied() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![0.0, -0.0, 1e-45, 3e-45, 1e-38, 0.5, 0.5000001, 1.0, 3e38])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn top_k_is_a_stable_sort(scores in prop::collection::vec(tied(), 1..200), share in 0.0_f64..=1.0) {
        let k = (scores.len() as f64 * share).round() as usize;
        top_k_holds(&Backend::Host, &scores, k);
    }

    #[test]
    fn neither_pieces_nor_tensors_show_in_a_mask(
        lens in prop::collection::vec(0_usize..40, 1..9),
        values in prop::collection::vec(tied(), 360),
        share in 0.0_f64..=1.0,
        piece in 1_u64..64,
    ) {
        let out = folder();
        let fisher = out.path().join("fisher.safetensors");
        let mut tensors = Tensors::new();
        let mut start = 0;
        for (i, &len) in lens.iter().enumerate() {
            tensors.insert(format!("t{i}"), f32s(&[len], &values[start..start + len]));
            start += len;
        }
        write(&fisher, &tensors);
        let options = MaskOptions { piece_elements: piece, ..MaskOptions::new(Keep::Fraction(share)) };
        let path = out.path().join("mask.safetensors");
        run_mask(&Backend::Host, &fisher, &options, &path).expect("a sound Fisher");
        let got: Vec<u8> = read(&path).into_values().flat_map(|(_, _, bytes)| bytes).collect();
        let k = Keep::Fraction(share).of("t", start as u64).expect("a share");
        prop_assert_eq!(got, best_mask(&values[..start], usize::try_from(k).expect("small")));
    }
}

#[test]
fn top_k_holds_at_the_edges() {
    for backend in support::backends() {
        for k in [0, 1, 2, 4095, 4096, 4097, 8999, 9000] {
            top_k_holds(&backend, &vec![0.25; 9000], k);
        }
        let ramp: Vec<f32> = (0..9000_u16).map(|i| f32::from(i.wrapping_mul(40_503) % 997)).collect();
        for k in [0, 1, 17, 4500, 9000] {
            top_k_holds(&backend, &ramp, k);
        }
        top_k_holds(&backend, &[7.0], 0);
        top_k_holds(&backend, &[7.0], 1);
        top_k_holds(&backend, &[-0.0, 0.0, 1e-45], 2);
        top_k_holds(&backend, &[], 0);
    }
}

#[test]
fn top_k_refuses_what_has_no_order() {
    for backend in support::backends() {
        for bad in [f32::NAN, -1.0, f32::INFINITY] {
            let mut scores = vec![1.0; 5000];
            (scores[4321], scores[4999]) = (bad, bad);
            let fisher = backend.buffer(&scores, DType::F32).expect("a small buffer");
            let top = TopK::of_fisher(&backend, &fisher, 10).expect("a sound k");
            let mut recording = Recording::new(&backend);
            top.threshold(&mut recording).expect("sound buffers");
            backend.run(&recording).expect("it runs");
            let refused = top.cut(&backend).expect_err("it must be refused").to_string();
            assert!(refused.contains("item 4321 "), "{refused}");
        }
        let fisher = backend.buffer(&[1.0_f32; 8], DType::F32).expect("a small buffer");
        let refused = TopK::of_fisher(&backend, &fisher, 9).expect_err("9 of 8").to_string();
        assert!(refused.contains("above the number of items, 8"), "{refused}");
    }
}

/// A large stream: the sample's guess makes one pass enough, and where it cannot, the second pass is exact too.
#[test]
fn one_pass_is_enough_where_the_guess_holds() {
    let out = folder();
    let (fisher, path) = (out.path().join("fisher.safetensors"), out.path().join("mask.safetensors"));
    let noise: Vec<f32> = (0..1_500_000_u32)
        .map(|i| {
            let u = f64::from(i.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX);
            #[expect(clippy::cast_possible_truncation, reason = "test data")]
            let value = 10_f64.powf(-9.0 * u) as f32;
            value
        })
        .collect();
    // All but a few far above are equal: the sample sees only these.
    let mut lonely = vec![1e-3; 1_500_000];
    (0..5).for_each(|i| lonely[i * 300_001 + 7] = 1.0 + i as f32);
    for (values, k, passes) in
        [(&noise, 7_500, 1), (&noise, 750_000, 1), (&lonely, 3, 2), (&lonely, 1_000_000, 1)]
    {
        let (first, second) = values.split_at(400_000);
        let tensors = [("a", f32s(&[400, 1000], first)), ("b", f32s(&[1_100_000], second))];
        write(&fisher, &tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into());
        let options = MaskOptions { overwrite: true, ..MaskOptions::new(Keep::Count(k)) };
        let report = run_mask(&Backend::Host, &fisher, &options, &path).expect("a sound Fisher");
        assert_eq!((report.passes, report.kept), (passes, k), "k = {k}");
        let got: Vec<u8> = read(&path).into_values().flat_map(|(_, _, bytes)| bytes).collect();
        assert!(got == best_mask(values, usize::try_from(k).expect("small")), "k = {k}");
    }
}

/// A model with its Fisher: a linear layer, a bias, a convolution, and what is not selected from.
fn network(at: &Path) -> (PathBuf, PathBuf) {
    let values = |seed: u32, len: u32| -> Vec<f32> {
        (0..len).map(|i| ((i + 1) * (seed + 7) * 7919 % 97) as f32 / 16.0 - 3.0).collect()
    };
    let squares = |seed, len| values(seed, len).iter().map(|v| v * v).collect::<Vec<f32>>();
    let model: Tensors = [
        ("bias", f32s(&[6], &values(1, 6))),
        ("conv.weight", f32s(&[4, 8, 3], &values(2, 96))),
        ("head.weight", f32s(&[6, 8], &values(3, 48))),
        ("steps", (Dtype::I64, vec![2], vec![9; 16])),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into();
    let fisher: Tensors = [
        ("bias", f32s(&[6], &squares(4, 6))),
        ("conv.weight", f32s(&[4, 8, 3], &squares(5, 96))),
        ("head.weight", f32s(&[6, 8], &squares(6, 48))),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into();
    let paths = (at.join("model.safetensors"), at.join("fisher.safetensors"));
    write(&paths.0, &model);
    write(&paths.1, &fisher);
    paths
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.2.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// ((0.5 · θ) · θ) · F of one tensor.
fn saliency(model: &Tensors, fisher: &Tensors, name: &str) -> Vec<f32> {
    values(&model[name]).into_iter().zip(values(&fisher[name])).map(|(t, f)| 0.5 * t * t * f).collect()
}

#[test]
fn what_is_always_kept_is_counted_and_what_is_excluded_is_not() {
    let out = folder();
    let (model, fisher) = network(out.path());
    let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
    let mut options = PruneOptions {
        mask_out: Some(mask.clone()),
        ..PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)))
    };
    options.globs = Globs { exclude: vec!["bias".into()], always: vec!["head*".into()], ..Globs::default() };
    let report = run_prune(&Backend::Host, (&model, &fisher), &options, &pruned).expect("sound inputs");
    assert_eq!((report.elements, report.kept), (144, 72));
    assert_eq!(report.copied, ["bias", "steps"]);
    let (model, fisher, mask) = (read(&model), read(&fisher), read(&mask));
    assert_eq!(mask.keys().collect::<Vec<_>>(), ["conv.weight", "head.weight"]);
    assert!(mask["head.weight"].2.iter().all(|&b| b == 1), "what is always kept is kept");
    assert_eq!(mask["conv.weight"].2, best_mask(&saliency(&model, &fisher, "conv.weight"), 72 - 48));
    applied(&model, &mask, &read(&pruned));
}

#[test]
fn patterns_run_along_the_input_axis() {
    for backend in support::backends() {
        for piece in [24, 25, 1000] {
            let out = folder();
            let (model, fisher) = network(out.path());
            let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
            let options = PruneOptions {
                mask_out: Some(mask.clone()),
                piece_elements: piece,
                ..PruneOptions::new(Structure::Pattern(Pattern { keep: 3, size: 8 }))
            };
            let report = run_prune(&backend, (&model, &fisher), &options, &pruned).expect("sound inputs");
            assert_eq!(report.copied, ["bias", "steps"]);
            let (model, fisher, mask) = (read(&model), read(&fisher), read(&mask));
            for (name, stride) in [("head.weight", 1), ("conv.weight", 3)] {
                let scores = saliency(&model, &fisher, name);
                let mut want = vec![0; scores.len()];
                for first in (0..scores.len()).filter(|i| i / stride % 8 == 0) {
                    let members: Vec<usize> = (0..8).map(|j| first + j * stride).collect();
                    let group: Vec<f32> = members.iter().map(|&i| scores[i]).collect();
                    best(&group, 3).into_iter().for_each(|j| want[members[j]] = 1);
                }
                assert_eq!(mask[name].2, want, "{name} in pieces of {piece}");
            }
            applied(&model, &mask, &read(&pruned));
        }
    }
}

#[test]
fn filters_go_as_a_whole_by_the_sum_of_their_scores() {
    for (scope, piece) in [(Scope::Global, 7), (Scope::Global, 1000), (Scope::Tensor, 7)] {
        let out = folder();
        let (model, fisher) = network(out.path());
        let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
        let options = PruneOptions {
            scope,
            mask_out: Some(mask.clone()),
            piece_elements: piece,
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

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn gates_are_half_the_squares_of_weights_times_gradients() {
    for (case, files) in [("conv2d", 2), ("conv1d", 2), ("conv_transpose2d", 2), ("sequence", 2), ("mlp", 3)]
    {
        let out = folder();
        let (captures, path) = captured(case, files, out.path());
        let (model, tensors) = (Checkpoint::open(&path).expect("a sound model"), read(&path));
        // Some samples at a time, too, where that is what a binding takes.
        let limits = wgpu::Limits { max_storage_buffer_binding_size: 8192, ..wgpu::Limits::default() };
        let [host, device] = support::backends();
        for backend in [host, device, Backend::Gpu(support::device_with(limits))] {
            let got = gates(&backend, &model, &captures, &(), &Interrupt::default()).expect("sound inputs");
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
    let model = Checkpoint::open(&path).expect("a sound model");
    let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
    let options = PruneOptions {
        mask_out: Some(mask.clone()),
        ..PruneOptions::new(Structure::Filters(Keep::Fraction(0.5)))
    };
    let stop = Interrupt::default();
    let report =
        prune_gates(&Backend::Host, &model, &captures, &options, &pruned, &(), &stop).expect("sound inputs");
    let scores = gates(&Backend::Host, &model, &captures, &(), &stop).expect("sound inputs");
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
    let done = squisher(&args);
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
        let refused = squisher(&all);
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
        let model = Checkpoint::open(path).expect("a sound model");
        let (host, stop) = (Backend::Host, Interrupt::default());
        let refused = prune_gates(&host, &model, captures, options, &pruned, &(), &stop);
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
    write(&other, &[("up.weight".to_owned(), f32s(&[2, 2], &[1.0; 4]))].into());
    let text = run(&other, &captures, &filters);
    assert!(text.contains("\"up.weight\" has shape [20, 12] by the captures, [2, 2] in the model"), "{text}");
    assert!(text.contains("\"head.weight\" is not in the model"), "{text}");
}

fn f64s(shape: &[usize], values: &[f64]) -> Tensor {
    (Dtype::F64, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// F64 is narrowed for the score with a check, and what is kept stays bit for bit.
#[test]
fn doubles_are_scored_as_f32_and_kept_as_they_are() {
    for options in [
        PruneOptions::new(Structure::Elements(Keep::Fraction(0.5))),
        PruneOptions::new(Structure::Pattern(Pattern { keep: 3, size: 8 })),
        PruneOptions::new(Structure::Filters(Keep::Fraction(0.5))),
    ] {
        let out = folder();
        let (model, fisher) = network(out.path());
        let narrow = out.path().join("narrow.safetensors");
        let mask = |name: &str| out.path().join(format!("{name}-mask.safetensors"));
        let with = |name: &str| PruneOptions { mask_out: Some(mask(name)), ..options.clone() };
        run_prune(&Backend::Host, (&model, &fisher), &with("narrow"), &narrow).expect("sound inputs");
        let (mut m, mut f) = (read(&model), read(&fisher));
        for (name, tensor) in m.iter_mut().filter(|(_, tensor)| tensor.0 == Dtype::F32) {
            // Bits below f32's, which must come back, and no score sees.
            let wide: Vec<f64> = values(tensor).iter().map(|&v| f64::from(v) + 1e-13).collect();
            *tensor = f64s(&tensor.1.clone(), &wide);
            let fisher = f.get_mut(name).expect("every float has a Fisher");
            let wide: Vec<f64> = values(fisher).iter().map(|&v| f64::from(v)).collect();
            *fisher = f64s(&fisher.1.clone(), &wide);
        }
        write(&model, &m);
        write(&fisher, &f);
        let wide = out.path().join("wide.safetensors");
        run_prune(&Backend::Host, (&model, &fisher), &with("wide"), &wide).expect("sound inputs");
        assert_eq!(read(&mask("wide")), read(&mask("narrow")), "{options:?}");
        applied(&m, &read(&mask("wide")), &read(&wide));

        f.insert("bias".into(), f64s(&[6], &[1.0, 1.0, 1e39, 1.0, 1.0, 1.0]));
        write(&fisher, &f);
        let elements = matches!(options.structure, Structure::Elements(_));
        let out = out.path().join("refused.safetensors");
        let got = run_prune(&Backend::Host, (&model, &fisher), &options, &out);
        // Only elements are selected from biases.
        assert_eq!(got.is_err(), elements, "{options:?}");
        if let Err(refused) = got {
            assert!(refused.to_string().contains("index 2 is 1e39, beyond the range of f32"), "{refused}");
            assert!(!out.exists());
        }
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn impossible_fishers_count_as_zero_where_that_is_asked_for() {
    for backend in support::backends() {
        for structure in [
            Structure::Elements(Keep::Fraction(0.5)),
            Structure::Pattern(Pattern { keep: 3, size: 8 }),
            Structure::Filters(Keep::Fraction(0.5)),
        ] {
            let out = folder();
            let at = |name: &str| out.path().join(format!("{name}.safetensors"));
            let (model, fisher) = network(out.path());
            let (mut zeroed, mut bad) = (read(&fisher), read(&fisher));
            for (index, value) in [(3, f32::NAN), (40, -1.0), (95, f32::INFINITY)] {
                set(&mut zeroed, "conv.weight", index, 0.0);
                set(&mut bad, "conv.weight", index, value);
            }
            write(&at("zeroed"), &zeroed);
            write(&at("bad"), &bad);
            let options = PruneOptions { non_finite: NonFinite::Zero, ..PruneOptions::new(structure) };
            let run = |name: &str| {
                let path = at(&format!("pruned-{name}"));
                let report = run_prune(&backend, (&model, &at(name)), &options, &path).expect("sound");
                (read(&path), report.non_finite)
            };
            let (got, want) = (run("bad"), run("zeroed"));
            assert_eq!((got.0 == want.0, got.1, want.1), (true, 3, 0), "{options:?}");
        }
        let out = folder();
        let path = out.path().join("fisher.safetensors");
        write(&path, &[("w".to_owned(), f32s(&[4], &[f32::NAN, 2.0, -1.0, 1.0]))].into());
        let options = MaskOptions { non_finite: NonFinite::Zero, ..MaskOptions::new(Keep::Count(3)) };
        let mask = out.path().join("mask.safetensors");
        let report = run_mask(&backend, &path, &options, &mask).expect("nothing is refused");
        assert_eq!((read(&mask)["w"].2.as_slice(), report.non_finite), (&[1, 1, 0, 1][..], 2));
    }
}

/// The ties that are left run along chunks, types and tensors, in the device's own memory.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn ties_are_handed_out_along_tensors_of_any_type() {
    let half = |len: usize| (Dtype::BF16, vec![len], [0x80, 0x3f].repeat(len));
    let tensors: Tensors = [
        ("a", f32s(&[900], &[1.0; 900])),
        ("b", half(700)),
        ("c", f32s(&[1], &[1.0])),
        ("d", f32s(&[0], &[])),
        ("e", half(3)),
        ("f", f32s(&[5000], &[1.0; 5000])),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into();
    for backend in support::backends() {
        for (k, piece) in [(1603, 128), (1604, 600), (1600, 1 << 20), (0, 100), (6604, 4096)] {
            let out = folder();
            let (fisher, path) = (out.path().join("fisher.safetensors"), out.path().join("mask.safetensors"));
            write(&fisher, &tensors);
            let options = MaskOptions { piece_elements: piece, ..MaskOptions::new(Keep::Count(k)) };
            let report = run_mask(&backend, &fisher, &options, &path).expect("a sound Fisher");
            let got: Vec<u8> = read(&path).into_values().flat_map(|(_, _, bytes)| bytes).collect();
            let k = usize::try_from(k).expect("small");
            assert!(got.iter().enumerate().all(|(i, &byte)| byte == u8::from(i < k)), "k = {k} of {piece}");
            assert!(report.timings.seconds > 0.0);
        }
    }
}

#[test]
fn a_tensor_that_goes_entirely_is_told() {
    let out = folder();
    let (model, fisher) = network(out.path());
    let options = PruneOptions::new(Structure::Elements(Keep::Count(1)));
    let pruned = out.path().join("pruned.safetensors");
    let report = run_prune(&Backend::Host, (&model, &fisher), &options, &pruned).expect("sound inputs");
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
    assert!(report.warnings[0].starts_with("nothing of tensor \"bias\""), "{:?}", report.warnings);
}

/// Prunes the network after a change to its files; gives the refusal. Nothing may be written.
fn refusal(change: impl Fn(&mut Tensors, &mut Tensors), options: &PruneOptions) -> Error {
    let out = folder();
    let (model, fisher) = network(out.path());
    let (mut m, mut f) = (read(&model), read(&fisher));
    change(&mut m, &mut f);
    write(&model, &m);
    write(&fisher, &f);
    let options = PruneOptions { mask_out: Some(out.path().join("mask.safetensors")), ..options.clone() };
    let pruned = out.path().join("pruned.safetensors");
    let refused =
        run_prune(&Backend::Host, (&model, &fisher), &options, &pruned).expect_err("it must be refused");
    holds(out.path(), &["fisher.safetensors", "model.safetensors"]);
    refused
}

fn set(tensors: &mut Tensors, name: &str, index: usize, value: f32) {
    let bytes = &mut tensors.get_mut(name).expect("it is there").2;
    bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn values_without_a_score_are_refused_by_tensor_and_index() {
    let half = PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)));
    let pattern = PruneOptions::new(Structure::Pattern(Pattern { keep: 2, size: 4 }));
    let filters = PruneOptions::new(Structure::Filters(Keep::Fraction(0.5)));
    for options in [half.clone(), pattern, filters, PruneOptions { scope: Scope::Tensor, ..half }] {
        for (value, text) in [(f32::NAN, "NaN"), (-2.0, "-2"), (f32::INFINITY, "inf")] {
            let refused = refusal(|_, fisher| set(fisher, "conv.weight", 77, value), &options);
            assert_eq!(refused.exit_code(), 3, "{refused}");
            let refused = refused.to_string();
            let told = format!("tensor \"conv.weight\": element 77 of the Fisher is {text}, expected");
            assert!(refused.contains("fisher.safetensors") && refused.contains(&told), "{refused}");
        }
        let refused = refusal(|model, _| set(model, "head.weight", 5, f32::NAN), &options).to_string();
        let told = refused.contains("tensor \"head.weight\": element 5 is NaN");
        assert!(refused.contains("model.safetensors") && told, "{refused}");
    }
}

#[test]
fn inputs_that_do_not_fit_together_are_refused_with_what_differs() {
    let half = PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)));
    let refused = refusal(
        |_, fisher| {
            fisher.insert("other".into(), f32s(&[1], &[1.0]));
            fisher.insert("bias".into(), f32s(&[2, 3], &[1.0; 6]));
        },
        &half,
    );
    assert_eq!(refused.exit_code(), 4, "{refused}");
    let text = refused.to_string();
    assert!(text.contains("\"bias\" has shape [2, 3], in the model [6]"), "{text}");
    assert!(text.contains("\"other\" is not in the model"), "{text}");

    let text = refusal(|_, fisher| drop(fisher.remove("bias")), &half).to_string();
    assert!(text.contains("1 of the model's tensors have no Fisher") && text.contains("\"bias\""), "{text}");

    let pattern = PruneOptions::new(Structure::Pattern(Pattern { keep: 2, size: 5 }));
    let refused = refusal(|_, _| {}, &pattern);
    assert_eq!(refused.exit_code(), 4, "{refused}");
    let text = refused.to_string();
    assert!(text.contains("\"conv.weight\" of shape [4, 8, 3] has 8 inputs, which pattern 2:5"), "{text}");

    let globs = Globs { exclude: vec!["decoder.*".into()], ..Globs::default() };
    let text = refusal(|_, _| {}, &PruneOptions { globs, ..half.clone() }).to_string();
    assert!(text.contains("exclude \"decoder.*\" matches none of the 3 tensors"), "{text}");

    let text = refusal(|_, _| {}, &PruneOptions::new(Structure::Elements(Keep::Count(151)))).to_string();
    assert!(text.contains("151 elements cannot be kept, there are 150"), "{text}");

    let globs = Globs { always: vec!["conv*".into()], ..Globs::default() };
    let tenth = PruneOptions::new(Structure::Elements(Keep::Fraction(0.1)));
    let text = refusal(|_, _| {}, &PruneOptions { globs, ..tenth }).to_string();
    assert!(text.contains("15 are to be kept, those that are always kept have 96"), "{text}");
}

#[test]
fn a_reset_takes_masked_elements_from_the_model_and_the_rest_from_the_base() {
    let out = folder();
    let at = |name: &str| out.path().join(format!("{name}.safetensors"));
    let halves = |start: u16| (Dtype::BF16, vec![3], (start..start + 3).flat_map(u16::to_le_bytes).collect());
    let longs = |start: i64| (Dtype::I64, vec![3], (start..start + 3).flat_map(i64::to_le_bytes).collect());
    let bools = |keep: [u8; 3]| (Dtype::BOOL, vec![3], keep.to_vec());
    let of = |tensors: [(&str, Tensor); 3]| -> Tensors {
        tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into()
    };
    // Bit patterns of NaNs, which a copy must keep.
    write(&at("model"), &of([("h", halves(0x7fc1)), ("n", longs(10)), ("same", longs(5))]));
    write(&at("base"), &of([("h", halves(0xffd1)), ("n", longs(20)), ("same", longs(5))]));
    write(&at("mask"), &[("h".to_owned(), bools([1, 0, 1])), ("n".to_owned(), bools([0, 0, 1]))].into());
    let run = |options: &ResetOptions| {
        let open = |name: &str| Checkpoint::open(at(name)).expect("a sound file");
        let (mask, model, base) = (open("mask"), open("model"), open("base"));
        reset(&mask, &model, &base, options, &at("out"), &(), &Interrupt::default())
    };
    let report = run(&ResetOptions::default()).expect("sound inputs");
    assert_eq!((report.elements, report.kept, report.copied), (6, 3, vec!["same".to_owned()]));
    let words = |words: [u16; 3]| words.into_iter().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let got = read(&at("out"));
    assert_eq!(got["h"].2, words([0x7fc1, 0xffd2, 0x7fc3]));
    assert_eq!(got["n"].2, [20_i64, 21, 12].into_iter().flat_map(i64::to_le_bytes).collect::<Vec<u8>>());
    assert_eq!(got["same"], longs(5));

    write(&at("base"), &of([("h", halves(0xffd1)), ("n", longs(20)), ("same", longs(6))]));
    let refused = run(&ResetOptions { overwrite: true, ..ResetOptions::default() }).expect_err("they differ");
    assert!(refused.to_string().contains("\"same\" is not in the mask and differs"), "{refused}");
    assert_eq!(read(&at("out")), got, "the old output is untouched");
    let options = ResetOptions { unmasked: Unmasked::Base, overwrite: true };
    run(&options).expect("told which one to take");
    assert_eq!(read(&at("out"))["same"], longs(6));

    write(&at("mask"), &[("h".to_owned(), bools([1, 2, 1]))].into());
    let refused = run(&options).expect_err("2 is no BOOL").to_string();
    assert!(refused.contains("tensor \"h\": element 1 is 2"), "{refused}");
    write(&at("mask"), &[("x".to_owned(), bools([1, 0, 1]))].into());
    let refused = run(&options).expect_err("no such tensor");
    assert_eq!(refused.exit_code(), 4, "{refused}");
    assert!(refused.to_string().contains("\"x\" of the mask is not in the model"), "{refused}");
}

fn squisher(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("squisher").expect("the tests are built together with the tool");
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).output().expect("the tool can be started")
}

/// The oracle's masks through the tool, wherever these flags put it.
fn the_tool_gives_the_oracle_s(flags: [&str; 2]) {
    let out = folder();
    let text = |path: &Path| path.display().to_string();
    let (mask, pruned) = (out.path().join("mask.safetensors"), out.path().join("pruned.safetensors"));
    for case in CASES {
        let (model, fisher) = (text(&data(case, "model")), text(&data(case, "fisher")));
        let all = read(&data(case, "expected"));
        for (keep, scope) in [("0.005", "global"), ("0.5", "global"), ("0.25", "tensor")] {
            let shared = ["--keep", keep, "--scope", scope, "--overwrite", "-q"];
            let (mask_text, pruned_text) = (text(&mask), text(&pruned));
            let args = [&["mask", &fisher, "-o", &mask_text], &shared[..], &flags].concat();
            let done = squisher(&args);
            assert!(done.status.success(), "{args:?}: {done:?}");
            assert_eq!(read(&mask), expected(&all, &format!("fish/{scope}/{keep}/")), "{case} {args:?}");
            let own = ["prune", &model, "--fisher", &fisher, "--mask-out", &mask_text, "-o", &pruned_text];
            let args = [&own[..], &shared, &flags].concat();
            let done = squisher(&args);
            assert!(done.status.success(), "{args:?}: {done:?}");
            let want = expected(&all, &format!("prune/{scope}/{keep}/"));
            assert_eq!(read(&mask), want, "{case} {args:?}");
            applied(&read(&data(case, "model")), &want, &read(&pruned));
        }
    }
}

#[test]
fn the_tool_on_the_host_gives_the_oracle_s() {
    the_tool_gives_the_oracle_s(["--backend", "host"]);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_tool_on_an_adapter_gives_the_oracle_s() {
    the_tool_gives_the_oracle_s(["--adapter", &support::gpu().caps().name]);
}

#[test]
fn the_command_line_prunes_masks_and_resets() {
    let out = folder();
    let text = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
    let at = |name: &str| text(&out.path().join(format!("{name}.safetensors")));
    let (model, fisher) = (text(&data("ties_f32", "model")), text(&data("ties_f32", "fisher")));
    let all = read(&data("ties_f32", "expected"));
    let done = |args: &[&str]| {
        let done = squisher(args);
        assert!(done.status.success(), "{args:?}: {done:?}");
        serde_json::from_slice::<serde_json::Value>(&done.stdout).expect("one JSON object")
    };
    let host = ["--backend", "host", "--json"];
    let (pruned, mask, fish) = (at("pruned"), at("mask"), at("fish"));
    let args =
        ["prune", &model, "--fisher", &fisher, "--sparsity", "0.75", "--mask-out", &mask, "-o", &pruned];
    let report = done(&[&args[..], &host].concat());
    assert_eq!(read(Path::new(&mask)), expected(&all, "prune/global/0.25/"));
    assert_eq!(
        (&report["command"], report["sparsity"].as_f64().map(|s| s.round())),
        (&"prune".into(), Some(1.0))
    );
    let args = ["mask", &fisher, "--keep", "0.005", "--scope", "tensor", "-o", &fish];
    done(&[&args[..], &host].concat());
    assert_eq!(read(Path::new(&fish)), expected(&all, "fish/tensor/0.005/"));
    let again = at("again");
    let args = ["reset", "--mask", &mask, "--model", &model, "--base", &pruned, "-o", &again];
    let report = done(&[&args[..], &host].concat());
    assert_eq!(report["command"], "reset");
    assert_eq!(
        read(Path::new(&again)),
        read(Path::new(&pruned)),
        "the base already has the model's kept elements"
    );

    let planned = at("planned");
    let args = ["prune", &model, "--fisher", &fisher, "--keep", "0.5", "--dry-run", "-o", &planned];
    assert_eq!(done(&[&args[..], &host].concat())["dry_run"], true);
    assert!(!Path::new(&planned).exists(), "a dry run wrote something");
    for (args, code) in [
        (vec!["prune", &model, "--fisher", &fisher, "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--keep", "1.5", "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--pattern", "5:4", "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--pattern", "2:4", "--keep", "0.3", "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--pattern", "2:4", "-o", &planned], 4),
        (vec!["mask", &fisher, "--keep", "0.5", "--exclude", "nothing*", "-o", &planned], 4),
        (vec!["mask", &fisher, "--keep", "0.5", "-o", &mask], 7),
    ] {
        let refused = squisher(&[&args[..], &["--backend", "host"]].concat());
        assert_eq!(refused.status.code(), Some(code), "{args:?}: {refused:?}");
        assert!(refused.stdout.is_empty() && !Path::new(&planned).exists(), "{args:?}");
    }
}
