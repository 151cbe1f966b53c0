//! What the tests of captures share: PyTorch's cases, captures that a test writes, and how results compare.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use squisher::checkpoint::Checkpoint;
use tempfile::TempDir;

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

pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

pub(crate) type Tensors = BTreeMap<String, Vec<f64>>;

pub(crate) fn load(path: &Path) -> Tensors {
    let file = Checkpoint::open(path).expect("a sound file");
    let values = |tensor: &squisher::checkpoint::TensorInfo| {
        let mut bytes = vec![0; usize::try_from(tensor.bytes).expect("small")];
        file.read(tensor, 0, &mut bytes).expect("readable");
        match tensor.dtype {
            Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
            Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
            other => panic!("{other}"),
        }
    };
    file.tensors().iter().map(|tensor| (tensor.name.clone(), values(tensor))).collect()
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

/// A capture to be written: f32 tensors, ids, and metadata.
#[derive(Default)]
pub(crate) struct Draft {
    floats: Vec<(String, Vec<usize>, Vec<f32>)>,
    ids: Vec<(String, Vec<usize>, Vec<i64>)>,
    metadata: HashMap<String, String>,
}

impl Draft {
    pub(crate) fn new(layers: &str) -> Self {
        let metadata = [("format", "squisher-capture-1"), ("layers", layers)];
        Self { metadata: metadata.map(|(k, v)| (k.into(), v.into())).into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        self.floats.push((name.into(), shape.to_vec(), values.to_vec()));
        self
    }

    #[allow(dead_code, reason = "not every test file has embeddings of its own")]
    pub(crate) fn ids(mut self, name: &str, shape: &[usize], values: &[i64]) -> Self {
        self.ids.push((name.into(), shape.to_vec(), values.to_vec()));
        self
    }

    pub(crate) fn note(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    pub(crate) fn write(self, folder: &TempDir, name: &str) -> PathBuf {
        let bytes: Vec<Vec<u8>> = self
            .floats
            .iter()
            .map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect())
            .chain(self.ids.iter().map(|(_, _, ids)| ids.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let heads = self
            .floats
            .iter()
            .map(|(name, shape, _)| (name, Dtype::F32, shape))
            .chain(self.ids.iter().map(|(name, shape, _)| (name, Dtype::I64, shape)));
        let views = heads.zip(&bytes).map(|((name, dtype, shape), bytes)| {
            (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).expect("shape and values fit"))
        });
        let path = folder.path().join(name);
        serialize_to_file(views, Some(self.metadata.clone()), &path).expect("writable");
        path
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
