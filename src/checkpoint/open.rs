//! Reading: a file, a folder of shards, or an index, as one sorted list of tensors.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;

use super::disk::{self, Stamp};
use super::header;
use super::index::{self, INDEX_SUFFIX, Index};
use crate::error::{Error, Result, printable};
use crate::shape::{DType, shape_text};

/// A model's name for its only file, and the stem of its shards' names.
pub(super) const MODEL_FILE: &str = "model.safetensors";

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name as stored: data, not to be printed without [`printable`].
    pub name: String,
    /// How elements are stored.
    pub dtype: Dtype,
    /// The shape, row-major; empty for a scalar.
    pub shape: Vec<u64>,
    /// Which of [`Checkpoint::shards`] holds it.
    pub file: usize,
    /// Where its first byte lies in that file.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

impl TensorInfo {
    /// The number of elements: 1 for a scalar, 0 where an axis is 0. (Opening refused what exceeds u64.)
    #[must_use]
    pub fn elements(&self) -> u64 {
        crate::shape::elements(&self.shape).unwrap_or(u64::MAX)
    }

    /// The storage type for kernels, where they have one.
    #[must_use]
    pub fn float(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// Whether it holds numbers that jobs compute with: f32, f16, bf16, or f64, which is narrowed to f32 when read.
    #[must_use]
    pub fn is_float(&self) -> bool {
        self.float().is_some() || self.dtype == Dtype::F64
    }
}

/// One file of a checkpoint.
#[derive(Debug)]
pub struct Shard {
    /// The file's name, without its folder.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Which of [`Checkpoint::tensors`] it holds, ascending.
    pub tensors: Vec<usize>,
    /// Its `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    file: File,
    stamp: Stamp,
}

/// An open checkpoint: headers checked and held, data read on request.
///
/// Holds one file handle a shard. All methods take `&self` and may be called from several threads.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    index_name: Option<String>,
    folder: Option<PathBuf>,
}

/// What a path given by a user turned out to be.
struct Found {
    /// The folder that side files are looked for in; none for a lone file.
    folder: Option<PathBuf>,
    kind: FoundKind,
}

enum FoundKind {
    File(PathBuf),
    Index(PathBuf),
}

impl Checkpoint {
    /// Opens `path`: a `.safetensors` file; a folder; or an index file of shards.
    ///
    /// In a folder the first of these is taken: `model.safetensors.index.json`; the only `*.safetensors.index.json`;
    /// `model.safetensors`; the only `*.safetensors`.
    ///
    /// Reads headers only, and checks them completely.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where a file cannot be opened or read; [`Error::File`] and [`Error::Tensor`] for every fault of
    /// a header, and where index and shards disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let found = find(path)?;
        let mut checkpoint = Self {
            path: path.to_owned(),
            shards: Vec::new(),
            tensors: Vec::new(),
            index_name: None,
            folder: None,
        };
        match found.kind {
            FoundKind::File(file) => checkpoint.add_shard(&file)?,
            FoundKind::Index(index) => checkpoint.add_indexed(&index)?,
        }
        checkpoint.folder = found.folder;
        checkpoint.sort_tensors();
        Ok(checkpoint)
    }

    /// Every tensor, sorted by the bytes of the names.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|at| &self.tensors[at])
    }

    /// Which of [`Self::tensors`] is called `name`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    /// The `__metadata__` of the first file.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.shards.first().map_or(&NONE, |shard| &shard.metadata)
    }

    /// The path that was opened, as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes of all tensors.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
    }

    /// The files, in the order of their names.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The file that holds `tensor`, for messages.
    #[must_use]
    pub fn file_of(&self, tensor: &TensorInfo) -> &Path {
        self.shards.get(tensor.file).map_or(&self.path, |shard| &shard.path)
    }

    /// The name of the index file, where one was read.
    #[must_use]
    pub fn index_name(&self) -> Option<&str> {
        self.index_name.as_deref()
    }

    /// Whether a folder or an index was opened, not a lone file.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// Fills `buffer` with the bytes of `tensor` from `byte_offset` on.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the range leaves the tensor; [`Error::Io`] where the system refuses;
    /// [`Error::File`] where the file has become shorter since it was opened.
    pub fn read(&self, tensor: &TensorInfo, byte_offset: u64, buffer: &mut [u8]) -> Result<()> {
        const OP: &str = "checkpoint.read";
        let shard = self.shards.get(tensor.file).ok_or_else(|| {
            Error::argument(OP, format!("tensor {} is not of this checkpoint", printable(&tensor.name)))
        })?;
        let end = byte_offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > tensor.bytes) {
            let problem = format!(
                "bytes {byte_offset} to {byte_offset} + {} of tensor {}, which has {}",
                buffer.len(),
                printable(&tensor.name),
                tensor.bytes
            );
            return Err(Error::argument(OP, problem));
        }
        disk::read_exact_at(&shard.file, buffer, tensor.offset + byte_offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                changed(shard, "has become shorter")
            } else {
                Error::io("read", &shard.path, error)
            }
        })
    }

    /// Checks that no file was changed, replaced or removed since it was opened.
    ///
    /// Call it when the last byte was read, before the output is finished: what was read from a file that changed
    /// meanwhile belongs to no version of it.
    ///
    /// # Errors
    ///
    /// [`Error::File`] naming the first file that is not what it was.
    pub fn verify_unchanged(&self) -> Result<()> {
        for shard in &self.shards {
            let metadata =
                fs::metadata(&shard.path).map_err(|error| Error::io("check", &shard.path, error))?;
            let now = Stamp::of(&metadata);
            if now.bytes != shard.stamp.bytes {
                let what = format!("went from {} to {} bytes", shard.stamp.bytes, now.bytes);
                return Err(changed(shard, &what));
            }
            if now != shard.stamp {
                return Err(changed(shard, "was written to or replaced"));
            }
        }
        Ok(())
    }

    /// One line a file: its path, size and time of change, which tell whether it is what another run has read.
    pub(crate) fn stamps(&self) -> impl Iterator<Item = String> {
        self.shards.iter().map(|shard| format!("{}: {}", shard.path.display(), shard.stamp.text()))
    }

    /// The files beside the weights that a model needs: configuration, tokenizer, processors, chat templates.
    ///
    /// Sorted by name. Empty for a lone file: what lies beside that need not belong to it. Never an optimizer state,
    /// never code.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where the folder cannot be listed.
    pub fn side_files(&self) -> Result<Vec<PathBuf>> {
        let Some(folder) = &self.folder else { return Ok(Vec::new()) };
        let names = list(folder)?;
        Ok(names.iter().filter(|name| is_side_file(name)).map(|name| folder.join(name)).collect())
    }

    /// Names beside the weights that are neither [side files](Self::side_files) nor weights that were read:
    /// other files, and folders.
    pub(crate) fn left_out(&self) -> Vec<String> {
        let entries = self.folder.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let read = |name: &str| {
            self.shards.iter().any(|shard| shard.name == name) || self.index_name.as_deref() == Some(name)
        };
        let mut names: Vec<String> =
            names.filter(|name| !name.starts_with('.') && !is_side_file(name) && !read(name)).collect();
        names.sort_unstable();
        names
    }

    /// Opens one file and takes in its tensors.
    fn add_shard(&mut self, path: &Path) -> Result<()> {
        let file = open_regular(path)?;
        let metadata = file.metadata().map_err(|error| Error::io("read", path, error))?;
        let stamp = Stamp::of(&metadata);
        let header = header::read(path, &file, stamp.bytes)?;
        let at = self.shards.len();
        self.tensors.extend(header.tensors.into_iter().map(|tensor| TensorInfo {
            name: tensor.name,
            dtype: tensor.dtype,
            shape: tensor.shape,
            file: at,
            offset: tensor.offset,
            bytes: tensor.bytes,
        }));
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let path = path.to_owned();
        self.shards.push(Shard { name, path, tensors: Vec::new(), metadata: header.metadata, file, stamp });
        Ok(())
    }

    /// Opens every shard that an index names, and holds both against each other.
    fn add_indexed(&mut self, path: &Path) -> Result<()> {
        let index = index::read(path)?;
        let folder = disk::parent_of(path);
        let mut names: Vec<&str> = index.weight_map.values().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            let shard = folder.join(name);
            if !shard.exists() {
                let of = index.weight_map.values().filter(|&other| other == name).count();
                let problem = format!(
                    "the index names shard {}, which is not there ({of} tensors are in it); \
                     the download is incomplete, fetch it again",
                    printable(name)
                );
                return Err(Error::file(path, problem));
            }
            self.add_shard(&shard)?;
        }
        self.index_name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        self.check_index(path, &index)
    }

    /// Requires that every tensor is in exactly the shard that the index gives it.
    fn check_index(&self, path: &Path, index: &Index) -> Result<()> {
        let mut stored: BTreeMap<&str, &str> = BTreeMap::new();
        for tensor in &self.tensors {
            let shard = &self.shards[tensor.file];
            if let Some(other) = stored.insert(&tensor.name, &shard.name) {
                let problem =
                    format!("is in two shards, {} and {}", printable(other), printable(&shard.name));
                return Err(Error::tensor(path, &tensor.name, problem));
            }
            match index.weight_map.get(&tensor.name) {
                Some(listed) if *listed == shard.name => {}
                Some(listed) => {
                    let problem = format!(
                        "is in shard {}, the index places it in {}",
                        printable(&shard.name),
                        printable(listed)
                    );
                    return Err(Error::tensor(path, &tensor.name, problem));
                }
                None => {
                    let problem = format!(
                        "is in shard {} but not in the index; the index belongs to another version of the shards",
                        printable(&shard.name)
                    );
                    return Err(Error::tensor(path, &tensor.name, problem));
                }
            }
        }
        if let Some((name, shard)) =
            index.weight_map.iter().find(|(name, _)| !stored.contains_key(name.as_str()))
        {
            let problem = format!("the index places it in {}, which does not hold it", printable(shard));
            return Err(Error::tensor(path, name, problem));
        }
        let total = self.total_bytes();
        if let Some(stated) = index.total_size.filter(|&stated| stated != total) {
            log::warn!("{}: total_size is {stated}, the tensors have {total} bytes", path.display());
        }
        Ok(())
    }

    /// Puts the tensors in name order and tells each shard which are its own.
    fn sort_tensors(&mut self) {
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        for (at, tensor) in self.tensors.iter().enumerate() {
            self.shards[tensor.file].tensors.push(at);
        }
    }
}

impl std::fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", printable(&self.name), self.dtype, shape_text(&self.shape))
    }
}

fn changed(shard: &Shard, what: &str) -> Error {
    let problem = format!("the file {what} while it was being read; run again when nothing writes to it");
    Error::file(&shard.path, problem)
}

/// Opens a regular file; anything else (a pipe would block) is refused before it is touched.
pub(super) fn open_regular(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
    if !metadata.is_file() {
        return Err(Error::file(path, "not a regular file; pipes and devices cannot be read by position"));
    }
    File::open(path).map_err(|error| Error::io("open", path, error))
}

/// Decides what `path` is.
fn find(path: &Path) -> Result<Found> {
    let metadata = fs::metadata(path).map_err(|error| not_there(path, error))?;
    if metadata.is_dir() {
        let kind = find_in_folder(path)?;
        return Ok(Found { folder: Some(path.to_owned()), kind });
    }
    let is_index = path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"));
    if is_index {
        return Ok(Found { folder: Some(disk::parent_of(path)), kind: FoundKind::Index(path.to_owned()) });
    }
    Ok(Found { folder: None, kind: FoundKind::File(path.to_owned()) })
}

/// The refusal of a path that cannot be looked at; one that looks like `owner/name` may be meant for the
/// Hugging Face Hub.
fn not_there(path: &Path, error: io::Error) -> Error {
    let mut parts = path.components();
    let two = matches!(
        (parts.next(), parts.next(), parts.next()),
        (Some(Component::Normal(_)), Some(Component::Normal(_)), None)
    );
    let of_file = path.extension().is_some_and(|ending| {
        ["safetensors", "json", "bin", "pt", "pth"].iter().any(|known| ending == *known)
    });
    if error.kind() != io::ErrorKind::NotFound || !two || of_file || disk::parent_of(path).exists() {
        return Error::io("open", path, error);
    }
    let problem = "there is no such file or folder; names of the Hugging Face Hub are not resolved: download it, and give its folder";
    Error::file(path, problem)
}

/// The index or the only file of a folder.
fn find_in_folder(folder: &Path) -> Result<FoundKind> {
    let names = list(folder)?;
    let ending =
        |suffix: &str| -> Vec<&String> { names.iter().filter(|name| name.ends_with(suffix)).collect() };
    let indexes = ending(INDEX_SUFFIX);
    let default_index = format!("model{INDEX_SUFFIX}");
    if names.contains(&default_index) {
        return Ok(FoundKind::Index(folder.join(default_index)));
    }
    if let [index] = indexes[..] {
        return Ok(FoundKind::Index(folder.join(index)));
    }
    if names.iter().any(|name| name == MODEL_FILE) {
        return Ok(FoundKind::File(folder.join(MODEL_FILE)));
    }
    if indexes.len() > 1 {
        return Err(several(folder, "index files", &indexes));
    }
    match ending(".safetensors")[..] {
        [file] => Ok(FoundKind::File(folder.join(file))),
        [] => Err(Error::file(folder, nothing_here(&names))),
        ref files => Err(several(folder, ".safetensors files and no index", files)),
    }
}

fn several(folder: &Path, what: &str, names: &[&String]) -> Error {
    let shown: Vec<String> = names.iter().take(5).map(|name| printable(name)).collect();
    let dots = if names.len() > shown.len() { ", …" } else { "" };
    let count = names.len();
    Error::file(
        folder,
        format!("{count} {what} ({}{dots}); give the path of the one you mean", shown.join(", ")),
    )
}

fn nothing_here(names: &[String]) -> String {
    let expected = "no .safetensors file and no *.safetensors.index.json in this folder";
    match names.iter().find(|name| is_pytorch_model(name)) {
        Some(name) => format!(
            "{expected}; there is {}, and safetensors is read here: save the model with \
             save_pretrained(safe_serialization=True)",
            printable(name)
        ),
        None => format!("{expected}; give a model's folder or a .safetensors file"),
    }
}

/// Whether a file of this name may be a model that `torch.save` wrote, and not what a trainer leaves beside one.
pub(super) fn is_pytorch_model(name: &str) -> bool {
    let beside = ["optimizer", "scheduler", "scaler", "training_args", "rng_state"];
    let ending = [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| name.ends_with(ending));
    ending && !beside.iter().any(|start| name.starts_with(start))
}

/// The names of the regular files in `folder` that are not hidden, sorted; links are followed.
fn list(folder: &Path) -> Result<Vec<String>> {
    let refused = |error| Error::io("list", folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(refused)? {
        let entry = entry.map_err(refused)?;
        // A name that is not Unicode is none that is looked for.
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with('.') && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether a file of this name belongs to a model beside its weights.
pub(super) fn is_side_file(name: &str) -> bool {
    const NAMES: [&str; 17] = [
        "config.json",
        "adapter_config.json",
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "generation_config.json",
        "added_tokens.json",
        "chat_template.json",
        "chat_template.jinja",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tekken.json",
        "vocab.json",
        "vocab.txt",
        "spm.model",
    ];
    let tokenizer = name.starts_with("tokenizer") && (name.ends_with(".json") || name.ends_with(".model"));
    NAMES.contains(&name)
        || tokenizer
        || name.ends_with("processor_config.json")
        || name.ends_with(".tiktoken")
        || name.ends_with(".jinja")
}
