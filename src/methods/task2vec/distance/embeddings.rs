//! Embedding files: vectors that lie ready.

use safetensors::Dtype;

use super::OP;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::shape::shape_text;

/// Whether a file is one that [`embed`](crate::methods::task2vec::embed) writes.
pub(super) fn is_embedding(file: &Checkpoint) -> bool {
    file.metadata().contains_key("groups") && file.get("embedding").is_some() && file.tensors().len() == 1
}

/// The vectors of embedding files, all of the same groups.
#[derive(Default)]
pub(super) struct Embeddings {
    pub(super) names: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) vectors: Vec<Vec<f64>>,
}

impl Embeddings {
    pub(super) fn read(files: &[Checkpoint]) -> Result<Self> {
        let mut all = Self::default();
        for file in files {
            let (names, groups) = (list(file, "names")?, list(file, "groups")?);
            if all.groups.is_empty() {
                all.groups.clone_from(&groups);
            } else if all.groups != groups {
                let problem = format!(
                    "{} and {} have different groups: they are embeddings of different networks, or by different --group",
                    files[0].path().display(),
                    file.path().display()
                );
                return Err(Error::mismatch(OP, problem));
            }
            all.vectors.extend(rows_of(file, names.len(), groups.len())?);
            all.names.extend(names);
        }
        Ok(all)
    }
}

fn list(file: &Checkpoint, key: &str) -> Result<Vec<String>> {
    let text = file.metadata().get(key).map_or("", String::as_str);
    serde_json::from_str(text).map_err(|error| {
        Error::file(file.path(), format!("its metadata entry {key} is not a JSON list of strings: {error}"))
    })
}

/// The rows of the tensor `embedding`, checked as a Fisher's means.
fn rows_of(file: &Checkpoint, names: usize, groups: usize) -> Result<Vec<Vec<f64>>> {
    let tensor = file.get("embedding").expect("looked for when the file was told to be an embedding");
    let refuse = |problem: String| Error::tensor(file.path(), "embedding", problem);
    if tensor.shape != [names as u64, groups as u64] || groups == 0 {
        let shape = shape_text(&tensor.shape);
        return Err(refuse(format!(
            "has shape {shape}, expected [{names}, {groups}] by its names and groups"
        )));
    }
    let mut bytes = vec![0; usize::try_from(tensor.bytes).map_err(|_| refuse("does not fit memory".into()))?];
    file.read(tensor, 0, &mut bytes)?;
    let values: Vec<f64> = match tensor.dtype {
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b).into()).collect(),
        other => return Err(refuse(format!("has type {other:?}, expected F64 or F32"))),
    };
    if let Some(index) = values.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
        return Err(refuse(format!(
            "index {index} is {:?}, expected a finite number of at least 0",
            values[index]
        )));
    }
    Ok(values.chunks(groups).map(<[f64]>::to_vec).collect())
}
