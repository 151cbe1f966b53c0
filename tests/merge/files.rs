//! Checkpoints as these tests make and read them: tensors of any type, in files and folders of shards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::Dtype;
use squisher::DType;

use crate::support::files;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A vector of floats, each rounded to `dtype`.
pub(crate) fn floats(name: &str, dtype: DType, values: &[f64]) -> Tensor {
    shaped(name, dtype, &[values.len()], values)
}

/// Floats of a shape.
pub(crate) fn shaped(name: &str, dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
    let (stored, bytes): (_, Vec<u8>) = match dtype {
        DType::F32 => (Dtype::F32, values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect()),
        DType::F16 => (Dtype::F16, values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect()),
        DType::BF16 => (Dtype::BF16, values.iter().flat_map(|&v| bf16::from_f64(v).to_le_bytes()).collect()),
    };
    Tensor { name: name.into(), dtype: stored, shape: shape.to_vec(), bytes }
}

/// A vector of any type, by its bytes.
pub(crate) fn raw(name: &str, dtype: Dtype, elements: usize, bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.into(), dtype, shape: vec![elements], bytes }
}

/// A vector of f64.
pub(crate) fn doubles(name: &str, values: &[f64]) -> Tensor {
    raw(name, Dtype::F64, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A vector of int64.
pub(crate) fn integers(name: &str, values: &[i64]) -> Tensor {
    raw(name, Dtype::I64, values.len(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Writes a file with metadata.
pub(crate) fn write_with(path: &Path, tensors: &[Tensor], metadata: &[(&str, &str)]) -> PathBuf {
    let tensors = tensors.iter().map(|t| (&t.name, (t.dtype, t.shape.clone(), t.bytes.clone())));
    files::write_with(path, tensors, metadata)
}

/// Writes a file.
pub(crate) fn write(path: &Path, tensors: &[Tensor]) -> PathBuf {
    write_with(path, tensors, &[])
}

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// The tensors of a file, or of all the safetensors files of a folder, by name.
pub(crate) fn read(path: &Path) -> Tensors {
    let mut all = BTreeMap::new();
    for file in files_of(path) {
        for (name, (dtype, shape, bytes)) in files::read(&file) {
            all.insert(name.clone(), Tensor { name, dtype, shape, bytes });
        }
    }
    all
}

fn files_of(path: &Path) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    let files = fs::read_dir(path).expect("a folder").map(|entry| entry.expect("an entry").path());
    files.filter(|file| file.extension().is_some_and(|e| e == "safetensors")).collect()
}

impl Tensor {
    /// Its values, exactly.
    pub(crate) fn values(&self) -> Vec<f64> {
        let b = &self.bytes;
        match self.dtype {
            Dtype::F64 => b.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8"))).collect(),
            Dtype::F32 => {
                b.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4")).into()).collect()
            }
            Dtype::F16 => b.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
            Dtype::BF16 => b.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
            other => panic!("{other:?} holds no floats"),
        }
    }
}

/// Every file below a folder, with its bytes.
pub(crate) fn everything(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("a folder") {
            all.extend(everything(&entry.expect("an entry").path()));
        }
    } else {
        all.insert(path.to_owned(), fs::read(path).expect("the file can be read"));
    }
    all
}
