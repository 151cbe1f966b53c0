//! Files as tests make and read them: through the format's own crate, not through what is tested.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize_to_file};
use tempfile::TempDir;

/// Type, shape and bytes.
pub(crate) type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// Tensors by name.
pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// An empty folder that goes with its value.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder can be made")
}

/// A tensor of f32.
pub(crate) fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), values.len(), "the shape's elements");
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor of f64.
pub(crate) fn f64s(shape: &[usize], values: &[f64]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), values.len(), "the shape's elements");
    (Dtype::F64, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor of int64.
pub(crate) fn i64s(shape: &[usize], values: &[i64]) -> Tensor {
    assert_eq!(shape.iter().product::<usize>(), values.len(), "the shape's elements");
    (Dtype::I64, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// The values of a tensor of f32 or f64.
pub(crate) fn values((dtype, _, bytes): &Tensor) -> Vec<f64> {
    match dtype {
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
        other => panic!("{other:?} is neither f32 nor f64"),
    }
}

/// Writes a file of these tensors, with metadata.
pub(crate) fn write_with<N: AsRef<str>, T: Borrow<Tensor>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, T)>,
    metadata: &[(&str, &str)],
) -> PathBuf {
    let tensors: Vec<(N, T)> = tensors.into_iter().collect();
    let views = tensors.iter().map(|(name, tensor)| {
        let (dtype, shape, bytes) = tensor.borrow();
        (name.as_ref(), TensorView::new(*dtype, shape.clone(), bytes).expect("shape and bytes fit"))
    });
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    // The crate writes a broken header for metadata without tensors.
    let metadata = Some(metadata).filter(|_| !tensors.is_empty());
    serialize_to_file(views, metadata, path).expect("the file can be written");
    path.to_owned()
}

/// Writes a file of these tensors.
pub(crate) fn write<N: AsRef<str>, T: Borrow<Tensor>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, T)>,
) -> PathBuf {
    write_with(path, tensors, &[])
}

/// The tensors of a file.
pub(crate) fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("the file can be read");
    let tensors = SafeTensors::deserialize(&bytes).expect("a sound file");
    let parts = |view: TensorView<'_>| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    tensors.iter().map(|(name, view)| (name.to_owned(), parts(view))).collect()
}
