//! What the tests of captures share: PyTorch's cases, captures that a test writes, and how results compare.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::files::{Tensor, f32s, i64s, read, values, write_with};

/// The networks that PyTorch captured.
pub(crate) const CASES: [&str; 11] = [
    "conv1d",
    "conv2d",
    "conv2d_bf16",
    "conv2d_f16",
    "conv3d",
    "conv_transpose2d",
    "mlp",
    "mlp_regression",
    "mlp_wide",
    "one_sample",
    "sequence",
];

pub(crate) fn data(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fisher").join(case)
}

pub(crate) fn captures(case: &str) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(data(case))
        .expect("the case is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("capture")))
        .collect();
    paths.sort();
    paths
}

/// Values by name.
pub(crate) type Tensors = BTreeMap<String, Vec<f64>>;

/// The values of a file of f32 and f64.
pub(crate) fn load(path: &Path) -> Tensors {
    read(path).iter().map(|(name, tensor)| (name.clone(), values(tensor))).collect()
}

/// The largest error of each tensor as a share of its largest magnitude.
pub(crate) fn worst(got: &Tensors, want: &Tensors) -> f64 {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "the same tensors");
    let of = |(got, want): (&Vec<f64>, &Vec<f64>)| {
        assert_eq!(got.len(), want.len(), "the same elements");
        let largest = want.iter().fold(0.0_f64, |most, w| most.max(w.abs()));
        let error = got.iter().zip(want).fold(0.0_f64, |most, (g, w)| most.max((g - w).abs()));
        if largest == 0.0 { error } else { error / largest }
    };
    got.values().zip(want.values()).map(of).fold(0.0, f64::max)
}

/// A capture to be written: its tensors and metadata.
#[derive(Default)]
pub(crate) struct Draft {
    tensors: Vec<(String, Tensor)>,
    metadata: Vec<(String, String)>,
}

impl Draft {
    pub(crate) fn new(layers: &str) -> Self {
        Self::default().note("format", "squisher-capture-1").note("layers", layers)
    }

    pub(crate) fn with(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.tensors.push((name.into(), f32s(shape, values)));
        self
    }

    pub(crate) fn ids(mut self, name: &str, shape: &[usize], values: &[i64]) -> Self {
        self.tensors.push((name.into(), i64s(shape, values)));
        self
    }

    pub(crate) fn note(mut self, key: &str, value: &str) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    pub(crate) fn write(self, folder: &TempDir, name: &str) -> PathBuf {
        let tensors = self.tensors.iter().map(|(name, tensor)| (name, tensor));
        let metadata: Vec<(&str, &str)> =
            self.metadata.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        write_with(&folder.path().join(name), tensors, &metadata)
    }
}

pub(crate) const LINEAR: &str = r#"{"fc": {"kind": "linear", "bias": true}}"#;

/// Two samples, two inputs, one output.
pub(crate) fn linear(input: &[f32], gradient: &[f32]) -> Draft {
    let n = gradient.len();
    Draft::new(LINEAR).with("fc.input", &[n, input.len() / n], input).with(
        "fc.grad_output",
        &[n, 1],
        gradient,
    )
}
