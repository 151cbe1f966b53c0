//! Selection: thresholds, masks, pairs, pruning and resets, against plain sorts and PyTorch's answers.

mod filters;
mod masks;
mod oracle;
mod patterns;
mod refusals;
mod reset;
#[path = "../support/mod.rs"]
mod support;
mod tool;
mod top_k;

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use safetensors::Dtype;
use squisher::methods::mask::{MaskOptions, mask};
use squisher::methods::prune::{PruneOptions, prune};
use squisher::methods::select::SelectReport;
use squisher::{Backend, Error, Run};

use support::files::{Tensor, Tensors, f32s, write};

const CASES: [&str; 3] = ["random_bf16", "random_f32", "ties_f32"];
const FRACTIONS: [&str; 6] = ["0.0", "0.005", "0.25", "0.5", "0.75", "1.0"];

fn data(case: &str, file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/select")
        .join(case)
        .join(format!("{file}.safetensors"))
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
    mask(fisher, options, out, &Run::new(backend))
}

fn run_prune(
    backend: &Backend,
    (model, fisher): (&Path, &Path),
    options: &PruneOptions,
    out: &Path,
) -> Result<SelectReport, Error> {
    prune(model, fisher, options, out, &Run::new(backend))
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

/// Few distinct values, so that ties are everywhere; zeros of both signs and subnormals among them.
fn tied() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![0.0, -0.0, 1e-45, 3e-45, 1e-38, 0.5, 0.5000001, 1.0, 3e38])
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

fn set(tensors: &mut Tensors, name: &str, index: usize, value: f32) {
    let bytes = &mut tensors.get_mut(name).expect("it is there").2;
    bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
}
