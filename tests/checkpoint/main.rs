//! Checkpoints: what is read, what is refused and how, and that outputs are the format's own bytes, whole or
//! not at all.

mod bytes;
mod folders;
mod outputs;
mod refusals;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use squisher::checkpoint::{Checkpoint, Dtype, Output, OutputLayout, OutputTensor};

/// A model of three shards, as transformers writes them.
fn three_shards() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/merge/three_bf16_sharded/model0")
}

/// The bytes of a safetensors file with `json` as its header, whatever that says.
fn raw_file(json: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.extend(data);
    bytes
}

fn no_metadata() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// One small tensor in a lone file.
fn small_layout() -> OutputLayout {
    OutputLayout::single(vec![OutputTensor::new("w", Dtype::F32, [2])], no_metadata())
}

/// Every byte of every tensor, by name.
fn contents(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<u8>> {
    let read = |tensor| {
        let mut buffer =
            vec![0xaa; usize::try_from(checkpoint.get(tensor).expect("listed").bytes).expect("small")];
        checkpoint.read(checkpoint.get(tensor).expect("listed"), 0, &mut buffer).expect("reads");
        buffer
    };
    checkpoint.tensors().iter().map(|tensor| (tensor.name.clone(), read(&tensor.name))).collect()
}

/// Writes `contents` into every tensor of `output`, each in pieces of `piece` bytes, last piece first.
fn fill(output: &Output, contents: &BTreeMap<String, Vec<u8>>, piece: usize) {
    for (at, slot) in output.tensors().iter().enumerate() {
        let starts: Vec<usize> = (0..contents[&slot.name].len()).step_by(piece).collect();
        for &start in starts.iter().rev() {
            let data = &contents[&slot.name][start..];
            output.write(at, start as u64, &data[..data.len().min(piece)]).expect("writes");
        }
    }
}

/// The names in a folder, hidden ones too, sorted.
fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Asserts that `message` contains each of `parts`.
#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}
