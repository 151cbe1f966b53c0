//! Writing: a partial with its headers at once, data by position in any order, then everything in one step.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safetensors::Dtype;
use tempfile::{PathPersistError, TempPath};

use super::coverage::Coverage;
use super::disk;
use super::header::{self, Built, MAX_AXES, MAX_TENSORS, METADATA};
use super::index;
use super::kept;
use super::layout::{OutputFile, OutputLayout};
use super::partial::{self, Partial};
use super::target::{self, refused};
use crate::error::{Error, Result, printable};

/// Where one tensor of an output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputSlot {
    /// The tensor's name.
    pub name: String,
    /// How elements are stored.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Which of the layout's files it is in.
    pub file: usize,
    /// Where its first byte goes in that file.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// An output being written. Nothing of it shows under the target's name before [`finish`](Self::finish) succeeds;
/// dropping it removes what was written.
#[derive(Debug)]
pub struct Output {
    target: PathBuf,
    layout: OutputLayout,
    overwrite: bool,
    slots: Vec<OutputSlot>,
    files: Vec<PartialFile>,
    partial: Partial,
}

/// One file of the partial.
#[derive(Debug)]
struct PartialFile {
    file: File,
    data_start: u64,
    file_bytes: u64,
    /// Which bytes after `data_start` were written.
    written: Mutex<Coverage>,
}

impl Output {
    /// Creates the partial beside `path`, sets its space aside, and writes the headers.
    ///
    /// `inputs` are the paths that the job reads, files or folders: the output must be none of them.
    /// With `overwrite` an existing output is replaced, though not before [`finish`](Self::finish); a folder only
    /// if everything in it is part of a checkpoint: side files, an index and the shards it names, `model.safetensors`
    /// and its shards, and files that the new output has. If `path` is a symbolic link, what it points to is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::Output`] where the output exists, is or touches an input, is being written by another run, cannot be
    /// created, or does not fit on the disk; or where `layout` is not one that the format can hold.
    pub fn create(
        path: impl AsRef<Path>,
        layout: OutputLayout,
        overwrite: bool,
        inputs: &[&Path],
    ) -> Result<Self> {
        let (target, built) = place(path.as_ref(), &layout, overwrite, inputs)?;
        target::refuse_full(&target, space(&layout, &built)?)?;
        let (partial, files) = create_partial(&target, &layout)?;
        Self { target, layout, overwrite, slots: Vec::new(), files: Vec::new(), partial }.start(files, &built)
    }

    /// The same for a job that can go on where an earlier run of it ended early: the partial stays when the
    /// output is dropped, once it was [marked](Self::mark). If such a run left one, it is taken up, and what
    /// that run last gave to [`mark`](Self::mark) comes back.
    ///
    /// `job` says which job this is, in lines: everything that the output's bytes depend on.
    ///
    /// # Errors
    ///
    /// As [`create`](Self::create); [`Error::Output`], too, where what is there was left by another job.
    pub fn create_or_resume(
        path: impl AsRef<Path>,
        layout: OutputLayout,
        overwrite: bool,
        inputs: &[&Path],
        job: &str,
    ) -> Result<(Self, Option<String>)> {
        let (target, built) = place(path.as_ref(), &layout, overwrite, inputs)?;
        // What was left has its space already.
        if !kept::is_left(&target)? {
            target::refuse_full(&target, space(&layout, &built)?)?;
        }
        let opened = open_kept(&target, &layout, &built, job)?;
        let partial = Partial::Kept(opened.kept);
        let output = Self { target, layout, overwrite, slots: Vec::new(), files: Vec::new(), partial };
        Ok((output.start(opened.files, &built)?, opened.progress))
    }

    /// Sets the files' space aside and writes their headers.
    fn start(mut self, files: Vec<File>, built: &[Built]) -> Result<Self> {
        self.slots = slots(&self.layout, built);
        let start = |(file, built)| start_file(&self.target, file, built);
        self.files = files.into_iter().zip(built).map(start).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Syncs what was written, and then states how far the job is, for a run that goes on from there.
    ///
    /// Does nothing for an output that was not made by [`create_or_resume`](Self::create_or_resume).
    ///
    /// # Errors
    ///
    /// [`Error::Output`] where the system refuses; the last mark is then what it was.
    pub fn mark(&self, progress: &str) -> Result<()> {
        let Partial::Kept(kept) = &self.partial else { return Ok(()) };
        self.sync()?;
        kept.mark(progress)
    }

    /// Takes `len` bytes of the tensor at `tensor` of [`Self::tensors`], from `byte_offset` on, as written: the run
    /// that left this output has said so.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the range leaves the tensor.
    pub fn vouch(&self, tensor: usize, byte_offset: u64, len: u64) -> Result<()> {
        let slot = self.range(tensor, byte_offset, len)?;
        self.cover(slot, byte_offset, len);
        Ok(())
    }

    /// Where what is done would be kept if this were dropped now; nothing before the first [`mark`](Self::mark).
    #[must_use]
    pub fn kept(&self) -> Option<&Path> {
        match &self.partial {
            Partial::Kept(kept) => kept::is_left(&self.target).is_ok_and(|left| left).then(|| kept.path()),
            Partial::File(_) | Partial::Folder(..) => None,
        }
    }

    /// Removes a partial that would be kept; others go when this is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Output`] where the system refuses.
    pub fn discard(&self) -> Result<()> {
        match &self.partial {
            Partial::Kept(kept) => kept.discard(),
            Partial::File(_) | Partial::Folder(..) => Ok(()),
        }
    }

    /// Every tensor to be written, sorted by the bytes of the names.
    #[must_use]
    pub fn tensors(&self) -> &[OutputSlot] {
        &self.slots
    }

    /// Which of [`Self::tensors`] is called `name`.
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.slots.binary_search_by(|slot| slot.name.as_str().cmp(name)).ok()
    }

    /// Where the output will be, symbolic links followed.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Whether an output to `path` would take this one's place: as the same path, or through symbolic links.
    ///
    /// # Errors
    ///
    /// [`Error::Output`] where no output can go to `path`.
    pub fn is_at(&self, path: &Path) -> Result<bool> {
        target::is_same(&self.target, path)
    }

    /// The bytes of all safetensors files, headers included.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.file_bytes))
    }

    /// Writes `bytes` into the tensor at `tensor` of [`Self::tensors`], from `byte_offset` on.
    ///
    /// May be called from several threads, in any order; a piece written again replaces itself.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] where the range leaves the tensor; [`Error::Output`] where the system refuses.
    pub fn write(&self, tensor: usize, byte_offset: u64, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        let slot = self.range(tensor, byte_offset, len)?;
        disk::write_all_at(&self.files[slot.file].file, bytes, slot.offset + byte_offset).map_err(
            |error| refused(&self.target, &format!("write tensor {}", printable(&slot.name)), &error),
        )?;
        self.cover(slot, byte_offset, len);
        Ok(())
    }

    /// The tensor at `tensor`, if it has these bytes.
    fn range(&self, tensor: usize, byte_offset: u64, len: u64) -> Result<&OutputSlot> {
        const OP: &str = "checkpoint.write";
        let slot = self.slots.get(tensor).ok_or_else(|| {
            Error::argument(OP, format!("tensor {tensor} of an output of {} tensors", self.slots.len()))
        })?;
        if byte_offset.checked_add(len).is_none_or(|end| end > slot.bytes) {
            let problem = format!(
                "bytes {byte_offset} to {byte_offset} + {len} of tensor {}, which has {}",
                printable(&slot.name),
                slot.bytes
            );
            return Err(Error::argument(OP, problem));
        }
        Ok(slot)
    }

    /// Notes that bytes of a tensor are written.
    fn cover(&self, slot: &OutputSlot, byte_offset: u64, len: u64) {
        let file = &self.files[slot.file];
        let start = slot.offset + byte_offset - file.data_start;
        file.lock().insert(start, start + len);
    }

    fn sync(&self) -> Result<()> {
        let sync = |file: &PartialFile| file.file.sync_all();
        self.files
            .iter()
            .try_for_each(sync)
            .map_err(|error| refused(&self.target, "sync the data to disk", &error))
    }

    /// Syncs what was written and puts it in the target's place, in one step.
    ///
    /// # Errors
    ///
    /// [`Error::Output`] where a byte was never written, the system refuses, or the target has changed in a way that
    /// [`create`](Self::create) would have refused. The old output is then as it was, and the partial is removed.
    /// One failure comes later, and says so: that of making the last step durable.
    pub fn finish(self) -> Result<()> {
        self.refuse_gaps()?;
        self.sync()?;
        target::refuse_existing(&self.target, &self.layout, self.overwrite)?;
        let Self { target, layout, overwrite, files, partial, .. } = self;
        match partial {
            Partial::File(path) => publish_file(&target, path, overwrite).map_err(|(_, error)| error)?,
            Partial::Folder(folder, _lock) => {
                // Some systems do not rename a folder while files in it are open.
                drop(files);
                write_side_files(&target, folder.path(), &layout)?;
                publish_folder(&target, folder.path())?;
                // Renamed away: there is nothing left to remove under the partial's name.
                let _ = folder.keep();
            }
            Partial::Kept(kept) if layout.folder => {
                drop(files);
                write_side_files(&target, kept.path(), &layout)?;
                kept.publish(replaces_folder(&target)?, |partial| publish_folder(&target, partial))?;
            }
            Partial::Kept(kept) => kept.publish(false, |partial| {
                let path = TempPath::try_from_path(partial)
                    .map_err(|error| refused(&target, "rename the partial", &error))?;
                publish_file(&target, path, overwrite).map_err(|(path, error)| {
                    // It stays, to go on from.
                    let _ = path.keep();
                    error
                })
            })?,
        }
        disk::sync_folder(&disk::parent_of(&target)).map_err(|error| {
            refused(
                &target,
                "sync the folder (the output is complete, but may not outlast a power failure)",
                &error,
            )
        })
    }

    /// Requires that every byte of every tensor was written.
    fn refuse_gaps(&self) -> Result<()> {
        for (at, file) in self.files.iter().enumerate() {
            let len = file.file_bytes - file.data_start;
            let written = file.lock();
            let Some(gap) = written.first_gap(len) else { continue };
            let gap_at = file.data_start + gap;
            let slot = self
                .slots
                .iter()
                .find(|slot| slot.file == at && (slot.offset..slot.offset + slot.bytes).contains(&gap_at))
                .expect("the tensors cover the data section");
            let problem = format!(
                "tensor {} was not written from byte {} on ({} of the file's {len} bytes were); \
                 the job did not complete",
                printable(&slot.name),
                gap_at - slot.offset,
                written.bytes()
            );
            return Err(Error::output(&self.target, problem));
        }
        Ok(())
    }
}

impl PartialFile {
    fn lock(&self) -> std::sync::MutexGuard<'_, Coverage> {
        // A set of ranges has no state that a panic elsewhere could leave half done.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks the layout and builds every header. The error is what is wrong.
fn plan(layout: &OutputLayout) -> Result<Vec<Built>, String> {
    refuse_names(layout)?;
    layout.files.iter().map(|file| header::build(&file.tensors, &file.metadata)).collect()
}

/// Requires that no two files and no two tensors have one name, and that each can be what it is.
fn refuse_names(layout: &OutputLayout) -> Result<(), String> {
    if layout.files.is_empty() {
        return Err("an output of no file".into());
    }
    let side_names = layout.side_files.iter().filter_map(|path| path.file_name()?.to_str());
    let mut names = BTreeSet::new();
    let files = layout.files.iter().map(|file| file.name.as_str());
    for name in files
        .chain(layout.index_name.as_deref())
        .chain(layout.texts.iter().map(|text| text.0.as_str()))
        .chain(side_names)
    {
        if !index::is_plain_file_name(name) {
            return Err(format!("{} is not a plain file name", printable(name)));
        }
        if !names.insert(name) {
            return Err(format!("two files of the output would be called {}", printable(name)));
        }
    }
    let mut tensors = BTreeSet::new();
    layout.files.iter().try_for_each(|file| refuse_tensors(file, &mut tensors))
}

fn refuse_tensors<'a>(file: &'a OutputFile, seen: &mut BTreeSet<&'a str>) -> Result<(), String> {
    if file.tensors.len() > MAX_TENSORS {
        return Err(format!("{} tensors in one file, the limit is {MAX_TENSORS}", file.tensors.len()));
    }
    for tensor in &file.tensors {
        let name = printable(&tensor.name);
        if tensor.name == METADATA {
            return Err(format!("a tensor called {name}, which the format keeps for itself"));
        }
        if tensor.shape.len() > MAX_AXES {
            return Err(format!("tensor {name} has {} axes, the limit is {MAX_AXES}", tensor.shape.len()));
        }
        if !seen.insert(&tensor.name) {
            return Err(format!("tensor {name} is given twice"));
        }
    }
    Ok(())
}

/// The disk space the partial will take.
fn space(layout: &OutputLayout, built: &[Built]) -> Result<u64> {
    let mut bytes: u64 = built.iter().fold(0, |sum, built| sum.saturating_add(built.file_bytes));
    for path in &layout.side_files {
        let metadata = fs::metadata(path).map_err(|error| Error::io("open", path, error))?;
        bytes = bytes.saturating_add(metadata.len());
    }
    Ok(layout.texts.iter().fold(bytes, |sum, (_, text)| sum.saturating_add(text.len() as u64)))
}

/// Every tensor of every file, in name order.
fn slots(layout: &OutputLayout, built: &[Built]) -> Vec<OutputSlot> {
    let mut slots = Vec::new();
    for (at, (file, built)) in layout.files.iter().zip(built).enumerate() {
        for (tensor, &(offset, bytes)) in file.tensors.iter().zip(&built.places) {
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            slots.push(OutputSlot { name, dtype: tensor.dtype, shape, file: at, offset, bytes });
        }
    }
    slots.sort_by(|a, b| a.name.cmp(&b.name));
    slots
}

/// Where the output goes and the heads of its files, once nothing speaks against it.
fn place(
    path: &Path,
    layout: &OutputLayout,
    overwrite: bool,
    inputs: &[&Path],
) -> Result<(PathBuf, Vec<Built>)> {
    let built = plan(layout).map_err(|problem| Error::output(path, problem))?;
    let target = target::resolve(path)?;
    target::refuse_folder_name(path, layout)?;
    target::refuse_inputs(&target, inputs)?;
    target::refuse_existing(&target, layout, overwrite)?;
    Ok((target, built))
}

/// The partial that an earlier run left for this one, or a new one of that kind.
fn open_kept(target: &Path, layout: &OutputLayout, built: &[Built], job: &str) -> Result<kept::Opened> {
    let expected: Vec<kept::Expected<'_>> = layout
        .files
        .iter()
        .zip(built)
        .map(|(file, built)| kept::Expected {
            name: layout.folder.then_some(file.name.as_str()),
            bytes: built.file_bytes,
        })
        .collect();
    partial::settle_others(target, None)?;
    kept::open(target, &expected, job)
}

/// Creates the partial with its files, all empty.
fn create_partial(target: &Path, layout: &OutputLayout) -> Result<(Partial, Vec<File>)> {
    if !layout.folder {
        let (partial, file) = partial::file(target)?;
        return Ok((partial, vec![file]));
    }
    let partial = partial::folder(target)?;
    let files = layout.files.iter().map(|file| create_new(target, &partial.path().join(&file.name)));
    let files = files.collect::<Result<_>>()?;
    Ok((partial, files))
}

fn create_new(target: &Path, path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|error| refused(target, &format!("create {}", path.display()), &error))
}

/// Sets a file's space aside and writes its header.
fn start_file(target: &Path, file: File, built: &Built) -> Result<PartialFile> {
    disk::allocate(&file, built.file_bytes)
        .map_err(|error| refused(target, &format!("set {} bytes aside", built.file_bytes), &error))?;
    disk::write_all_at(&file, &built.head, 0).map_err(|error| refused(target, "write the header", &error))?;
    let written = Mutex::new(Coverage::default());
    Ok(PartialFile { file, data_start: built.head.len() as u64, file_bytes: built.file_bytes, written })
}

/// Renames a partial file onto its target, or gives it back.
fn publish_file(
    target: &Path,
    partial: TempPath,
    overwrite: bool,
) -> std::result::Result<(), (TempPath, Error)> {
    let replace = |partial: TempPath| {
        let failed = |error: PathPersistError| {
            let refused = refused(target, "rename the partial", &error.error);
            (error.path, refused)
        };
        partial.persist(target).map_err(failed)
    };
    if overwrite {
        return replace(partial);
    }
    let error = match partial.persist_noclobber(target) {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    // `create` and the check just before saw nothing there; a file system without this kind of rename has to do
    // with that.
    if error.error.kind() == io::ErrorKind::AlreadyExists || fs::symlink_metadata(target).is_ok() {
        let problem = "appeared while the job ran; choose another name, or allow it with --overwrite";
        return Err((error.path, Error::output(target, problem)));
    }
    replace(error.path)
}

/// Copies the side files, then writes what tells readers that the folder is complete.
fn write_side_files(target: &Path, folder: &Path, layout: &OutputLayout) -> Result<()> {
    for source in &layout.side_files {
        let Some(name) = source.file_name() else { continue };
        let mut from = super::open::open_regular(source)?;
        let mut to = create_new(target, &folder.join(name))?;
        io::copy(&mut from, &mut to)
            .and_then(|_| to.sync_all())
            .map_err(|error| refused(target, &format!("copy {}", source.display()), &error))?;
    }
    if let Some(name) = &layout.index_name {
        write_text(target, &folder.join(name), &index_text(layout)?)?;
    }
    for (name, text) in &layout.texts {
        write_text(target, &folder.join(name), text)?;
    }
    disk::sync_folder(folder).map_err(|error| refused(target, "sync the folder", &error))
}

fn write_text(target: &Path, path: &Path, text: &str) -> Result<()> {
    let mut file = create_new(target, path)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| refused(target, &format!("write {}", path.display()), &error))
}

fn index_text(layout: &OutputLayout) -> Result<String> {
    let mut weight_map = BTreeMap::new();
    for file in &layout.files {
        for tensor in &file.tensors {
            weight_map.insert(tensor.name.as_str(), file.name.as_str());
        }
    }
    Ok(index::build(&weight_map, layout.tensor_bytes()?))
}

/// Whether a folder in the target's place takes the partial's.
fn replaces_folder(target: &Path) -> Result<bool> {
    Ok(target.is_dir() && !target::is_empty_folder(target)?)
}

/// Puts a complete partial folder in the target's place; the old content is removed only after that.
fn publish_folder(target: &Path, partial: &Path) -> Result<()> {
    let rename = |error: io::Error| refused(target, "rename the partial folder", &error);
    if replaces_folder(target)? {
        disk::swap_folders(partial, target, &partial::aside(target)).map_err(rename)?;
        // The partial's name now leads to the old content.
        if let Err(error) = fs::remove_dir_all(partial) {
            log::warn!("{}: the replaced output could not be removed: {error}", partial.display());
        }
        return Ok(());
    }
    // Elsewhere than on unix a rename does not replace an empty folder.
    #[cfg(not(unix))]
    if target.is_dir() {
        fs::remove_dir(target).map_err(rename)?;
    }
    fs::rename(partial, target).map_err(rename)
}
