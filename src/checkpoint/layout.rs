//! What an output will consist of: pure data, decided before a byte is written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::Dtype;

use super::header;
use super::index::INDEX_SUFFIX;
use super::open::{Checkpoint, MODEL_FILE, TensorInfo};
use crate::error::{Error, Result, printable};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputTensor {
    /// Its name.
    pub name: String,
    /// How elements are stored.
    pub dtype: Dtype,
    /// Its shape, row-major.
    pub shape: Vec<u64>,
}

impl OutputTensor {
    /// A tensor by its parts.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<u64>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// The bytes it will have.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a shape of 2^64 elements or more, or one that does not fill whole bytes.
    pub fn bytes(&self) -> Result<u64> {
        header::bytes_of(self.dtype, &self.shape).map_err(|problem| {
            Error::argument("checkpoint.write", format!("{}: {problem}", printable(&self.name)))
        })
    }
}

/// One safetensors file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputFile {
    /// Its name, without a folder.
    pub name: String,
    /// Its tensors, in any order: the writer places them as the format's own crate would.
    pub tensors: Vec<OutputTensor>,
    /// Its `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

/// The files of an output.
#[derive(Clone, Debug)]
pub struct OutputLayout {
    pub(super) files: Vec<OutputFile>,
    pub(super) folder: bool,
    pub(super) index_name: Option<String>,
    pub(super) side_files: Vec<PathBuf>,
    pub(super) texts: Vec<(String, String)>,
}

impl OutputLayout {
    /// A lone file.
    #[must_use]
    pub fn single(tensors: Vec<OutputTensor>, metadata: BTreeMap<String, String>) -> Self {
        // The file's name is the output path's; this one is never used.
        let file = OutputFile { name: MODEL_FILE.into(), tensors, metadata };
        Self { files: vec![file], folder: false, index_name: None, side_files: Vec::new(), texts: Vec::new() }
    }

    /// The files, names and index of `model`, each tensor with the dtype that `dtype_of` gives it, or left out where
    /// that gives none. A lone file if `model` was opened as one, else a folder.
    ///
    /// `metadata` goes into every file. A `format` entry that `model` has is kept, since loaders look for it.
    #[must_use]
    pub fn like(
        model: &Checkpoint,
        dtype_of: impl Fn(&TensorInfo) -> Option<Dtype>,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        let mut files: Vec<OutputFile> = Vec::new();
        for shard in model.shards() {
            let tensors: Vec<OutputTensor> = shard
                .tensors
                .iter()
                .map(|&at| &model.tensors()[at])
                .filter_map(|tensor| {
                    Some(OutputTensor::new(&tensor.name, dtype_of(tensor)?, tensor.shape.clone()))
                })
                .collect();
            // A shard with nothing in it would be named by no entry of the index.
            if tensors.is_empty() && model.shards().len() > 1 {
                continue;
            }
            let mut metadata = metadata.clone();
            if let Some(format) = shard.metadata.get("format") {
                metadata.entry("format".into()).or_insert_with(|| format.clone());
            }
            files.push(OutputFile { name: shard.name.clone(), tensors, metadata });
        }
        if !model.is_folder() {
            return Self {
                files,
                folder: false,
                index_name: None,
                side_files: Vec::new(),
                texts: Vec::new(),
            };
        }
        Self::in_folder(files, model.index_name().map(str::to_owned))
    }

    /// A folder of shards of at most `shard_bytes` bytes of tensors, in the order of the tensors' names, named as
    /// Hugging Face does: `model-00001-of-00003.safetensors`. A tensor larger than that has its own shard.
    /// What fits in one shard becomes `model.safetensors` without an index.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a shard size of 0, or a tensor without a size.
    pub fn sharded(
        mut tensors: Vec<OutputTensor>,
        shard_bytes: u64,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        if shard_bytes == 0 {
            return Err(Error::argument("checkpoint.write", "a shard size of 0 bytes; give at least 1"));
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let mut shards: Vec<Vec<OutputTensor>> = vec![Vec::new()];
        let mut filled = 0_u64;
        for tensor in tensors {
            let bytes = tensor.bytes()?;
            let last = shards.last_mut().expect("begins with one shard and only grows");
            if !last.is_empty() && filled.saturating_add(bytes) > shard_bytes {
                shards.push(vec![tensor]);
                filled = bytes;
            } else {
                last.push(tensor);
                filled = filled.saturating_add(bytes);
            }
        }
        let count = shards.len();
        let name = |at: usize| match count {
            1 => MODEL_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", at + 1),
        };
        let files = shards
            .into_iter()
            .enumerate()
            .map(|(at, tensors)| OutputFile { name: name(at), tensors, metadata: metadata.clone() })
            .collect();
        Ok(Self::in_folder(files, (count > 1).then(|| format!("model{INDEX_SUFFIX}"))))
    }

    /// A folder whose files all say how their tensors are to be taken, without which transformers refuses them.
    fn in_folder(mut files: Vec<OutputFile>, index_name: Option<String>) -> Self {
        for file in &mut files {
            file.metadata.entry("format".into()).or_insert_with(|| "pt".into());
        }
        Self { files, folder: true, index_name, side_files: Vec::new(), texts: Vec::new() }
    }

    /// Also copies the [side files](Checkpoint::side_files) of `model`, if this is a folder.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the model's folder cannot be listed.
    pub fn with_side_files_of(mut self, model: &Checkpoint) -> Result<Self> {
        if self.folder {
            self.side_files = model.side_files()?;
            let path = model.path().display();
            model.left_out().iter().for_each(|name| log::info!("{path}: {} is not copied", printable(name)));
        }
        Ok(self)
    }

    /// Also writes a text file, as `README.md`, after everything else, if this is a folder; in the place of the side
    /// file of that name, if there is one.
    #[must_use]
    pub fn with_text(mut self, name: impl Into<String>, text: impl Into<String>) -> Self {
        if self.folder {
            let name = name.into();
            self.side_files.retain(|path| path.file_name() != Some(name.as_ref()));
            self.texts.push((name, text.into()));
        }
        self
    }

    /// The safetensors files.
    #[must_use]
    pub fn files(&self) -> &[OutputFile] {
        &self.files
    }

    /// Whether the output is a folder, not a lone file.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.folder
    }

    /// The bytes of all tensors; what an index gives as its `total_size`.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for a tensor without a size, or a sum beyond 2^64.
    pub fn tensor_bytes(&self) -> Result<u64> {
        let mut tensors = self.files.iter().flat_map(|file| &file.tensors);
        tensors.try_fold(0_u64, |sum, tensor| {
            let beyond = || Error::argument("checkpoint.write", "the output would exceed 2^64 bytes");
            sum.checked_add(tensor.bytes()?).ok_or_else(beyond)
        })
    }
}
