//! A model's parameters, by name and shape, from whatever form the model comes in.
//!
//! Safetensors files are sorted: they tell names and shapes, not the order in which the model defines its parameters.
//! A `pytorch_model.bin` tells the order too, which is evidence for an optimizer's names ([`super::resolve`]).

use std::path::{Path, PathBuf};

use pytorch_reader::PytorchReader;

use super::names::Param;
use super::open::{Checkpoint, is_pytorch_model};
use super::pickle::{Outline, is_float, state_dicts};
use crate::error::{Error, Result, printable};

/// The floating-point tensors of a model: its parameters, and buffers like a batch norm's running mean.
#[derive(Clone, Debug, Default)]
pub struct ModelParams {
    /// Names and shapes.
    pub params: Vec<Param>,
    /// The names in the order of definition, where that is known.
    pub definition_order: Option<Vec<String>>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
}

impl ModelParams {
    /// Read names and shapes of a model: anything that [`Checkpoint::open`] takes, a state dict written by `torch.save`
    /// (`.bin`, `.pt`, `.pth`, `.ckpt`), or a folder of `pytorch_model*.bin` shards.
    ///
    /// A folder with both safetensors and `pytorch_model*.bin` is read from the safetensors, with the order
    /// of the others.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::File`] for a `torch.save` file that holds no or several state dicts.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let shards = if path.is_dir() { pytorch_shards(path)? } else { Vec::new() };
        if !path.is_dir() && is_pytorch(path) {
            return Self::of_pytorch(&[path.to_owned()]);
        }
        let has_safetensors = !path.is_dir() || holds(path, |name| name.ends_with(".safetensors"))?;
        if path.is_dir() && !has_safetensors && shards.is_empty() {
            refuse_other_pytorch_model(path)?;
        }
        match (has_safetensors, shards.is_empty()) {
            (false, false) => Self::of_pytorch(&shards),
            (_, true) => Ok(Self::of(&Checkpoint::open(path)?)),
            (true, false) => {
                let mut model = Self::of(&Checkpoint::open(path)?);
                let ordered = Self::of_pytorch(&shards)?;
                model.definition_order = ordered.definition_order;
                model.files.extend(ordered.files);
                Ok(model)
            }
        }
    }

    /// The floating-point tensors of an open checkpoint; their order of definition is unknown.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint) -> Self {
        let tensors = checkpoint.tensors().iter().filter(|tensor| tensor.is_float());
        let params = tensors.map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
        let files = checkpoint.shards().iter().map(|shard| shard.path.clone()).collect();
        Self { params, definition_order: None, files }
    }

    /// The state dicts of `torch.save` files, which together are one model in this order.
    fn of_pytorch(files: &[PathBuf]) -> Result<Self> {
        let mut params = Vec::new();
        for path in files {
            params.extend(state_dict(path)?);
        }
        let definition_order = Some(params.iter().map(|(name, _)| name.clone()).collect());
        Ok(Self { params, definition_order, files: files.to_vec() })
    }
}

fn state_dict(path: &Path) -> Result<Vec<Param>> {
    let outline = Outline::open(path)?;
    let mut found = state_dicts(&outline, &[]);
    let dict = match found.len() {
        1 => found.remove(0),
        0 => {
            return Err(Error::file(
                path,
                "holds no state dict (a dict of names to tensors); save model.state_dict()",
            ));
        }
        n => return Err(Error::file(path, format!("holds {n} state dicts; save the model's on its own"))),
    };
    let reader = PytorchReader::new(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    let mut params = Vec::new();
    for name in &dict.names {
        let Some(tensor) = dict.tensor(&reader, name) else {
            return Err(Error::tensor(path, name, "is a tensor of a kind that is not read"));
        };
        if is_float(tensor.dtype()) {
            params.push((name.clone(), tensor.shape().iter().map(|&n| n as u64).collect()));
        }
    }
    Ok(params)
}

/// Whether a file's name is one that `torch.save` files have.
fn is_pytorch(path: &Path) -> bool {
    let endings = ["bin", "pt", "pth", "ckpt"];
    path.extension().and_then(|e| e.to_str()).is_some_and(|e| endings.contains(&e))
}

/// `pytorch_model.bin`, or its shards in the order of their numbers, which is the model's.
fn pytorch_shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let one = folder.join("pytorch_model.bin");
    if one.is_file() {
        return Ok(vec![one]);
    }
    let mut shards = names(folder)?;
    shards.retain(|name| name.starts_with("pytorch_model-") && name.ends_with(".bin"));
    // Numbers have leading zeros: pytorch_model-00001-of-00003.bin.
    shards.sort();
    Ok(shards.into_iter().map(|name| folder.join(name)).collect())
}

/// A file that may be a model under a name of its own is read where it is given itself.
fn refuse_other_pytorch_model(folder: &Path) -> Result<()> {
    let mut found = names(folder)?;
    found.sort();
    let Some(name) = found.iter().find(|name| is_pytorch_model(name)) else { return Ok(()) };
    let problem = format!(
        "no .safetensors file and no pytorch_model.bin in this folder; there is {}: give that file's own path",
        printable(name)
    );
    Err(Error::file(folder, problem))
}

fn holds(folder: &Path, is: impl Fn(&str) -> bool) -> Result<bool> {
    Ok(names(folder)?.iter().any(|name| is(name)))
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let io = |e| Error::io("list", folder, e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        names.extend(entry.map_err(io)?.file_name().into_string());
    }
    Ok(names)
}
