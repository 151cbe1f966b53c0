//! Where an output may go: every reason to refuse, found before anything is written.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{self, Identity};
use super::index::{self, INDEX_SUFFIX};
use super::layout::OutputLayout;
use super::open::{MODEL_FILE, is_side_file};
use crate::error::{Error, Result, printable};

/// Resolves `path` to the place that will be replaced: a symbolic link's target, not the link.
pub(super) fn resolve(path: &Path) -> Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(Error::output(path, "names no file or folder to create; give the output a name"));
    }
    // Without a trailing slash, which would make a link invisible.
    let plain: PathBuf = path.components().collect();
    let target = disk::follow_links(&plain).map_err(|error| refused(path, "follow the link", &error))?;
    let parent = disk::parent_of(&target);
    if !parent.is_dir() {
        let problem = format!("the folder {} does not exist; create it first", parent.display());
        return Err(Error::output(path, problem));
    }
    Ok(target)
}

/// Refuses the name of a folder for an output of one file, which would be a file of that name.
pub(super) fn refuse_folder_name(path: &Path, layout: &OutputLayout) -> Result<()> {
    let last = path.to_string_lossy().chars().next_back();
    if layout.folder || !last.is_some_and(std::path::is_separator) {
        return Ok(());
    }
    Err(Error::output(path, "names a folder, the output is one file; give a file's name, as out.safetensors"))
}

/// Refuses a target that exists and may not be replaced by `layout`.
pub(super) fn refuse_existing(target: &Path, layout: &OutputLayout, overwrite: bool) -> Result<()> {
    let metadata = match fs::symlink_metadata(target) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(target, "look at the output", &error)),
    };
    if layout.folder && !metadata.is_dir() {
        return Err(Error::output(
            target,
            "exists and is a file, the output is a folder; choose another name",
        ));
    }
    if !layout.folder && metadata.is_dir() {
        let problem =
            "exists and is a folder, the output is one file; give a file's name, as out.safetensors";
        return Err(Error::output(target, problem));
    }
    if !layout.folder && !metadata.is_file() {
        return Err(Error::output(target, "exists and is not a regular file; choose another name"));
    }
    if layout.folder && is_empty_folder(target)? {
        return Ok(());
    }
    if !overwrite {
        return Err(Error::output(target, "exists; choose another name, or allow it with --overwrite"));
    }
    if layout.folder { refuse_strangers(target, layout) } else { Ok(()) }
}

/// Refuses to replace a folder that holds anything but a checkpoint: that would be deleted with it.
fn refuse_strangers(folder: &Path, layout: &OutputLayout) -> Result<()> {
    let names: Vec<String> = entries(folder)?
        .iter()
        .map(|path| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        .collect();
    let listed = listed_shards(folder, &names);
    let mut strangers: Vec<String> = names
        .into_iter()
        .filter(|name| !(belongs(name, layout) || listed.contains(name)) || folder.join(name).is_dir())
        .map(|name| printable(&name))
        .collect();
    strangers.sort_unstable();
    if strangers.is_empty() {
        return Ok(());
    }
    let count = strangers.len();
    strangers.truncate(5);
    let dots = if count > strangers.len() { ", …" } else { "" };
    let problem = format!(
        "replacing this folder would delete {count} entries that are not part of a checkpoint ({}{dots}); \
         move them away or choose another name",
        strangers.join(", ")
    );
    Err(Error::output(folder, problem))
}

/// The files that the folder's own indexes name. One that cannot be read names none.
fn listed_shards(folder: &Path, names: &[String]) -> HashSet<String> {
    let indexes = names.iter().filter(|name| name.ends_with(INDEX_SUFFIX));
    indexes
        .filter_map(|name| index::read(&folder.join(name)).ok())
        .flat_map(|i| i.weight_map.into_values())
        .collect()
}

/// Whether a name is one that a model's own files have: those of the new output, and Hugging Face's. Any
/// other safetensors file may be somebody's Fisher or mask.
fn belongs(name: &str, layout: &OutputLayout) -> bool {
    name == MODEL_FILE
        || is_shard(name)
        || layout.files.iter().any(|file| file.name == name)
        || name.ends_with(INDEX_SUFFIX)
        || is_side_file(name)
        || layout.texts.iter().any(|(text, _)| text == name)
}

/// `model-00001-of-00003.safetensors`
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.and_then(|numbers| numbers.split_once("-of-")).is_some_and(|(at, of)| digits(at) && digits(of))
}

/// Whether two paths of outputs lead to one place, through symbolic links, also where nothing is there yet.
pub(super) fn is_same(one: &Path, other: &Path) -> Result<bool> {
    let place = |path| -> Result<PathBuf> {
        let target = resolve(path)?;
        let folder = fs::canonicalize(disk::parent_of(&target));
        let folder = folder.map_err(|error| refused(path, "look at the folder of", &error))?;
        Ok(folder.join(target.file_name().unwrap_or_default()))
    };
    Ok(place(one)? == place(other)?)
}

/// Refuses a target that is an input, is linked to one, lies within one, or holds one.
pub(super) fn refuse_inputs(target: &Path, inputs: &[&Path]) -> Result<()> {
    let mut existing = Vec::new();
    if let Ok(identity) = Identity::of(target) {
        existing.push(identity);
        if target.is_dir() {
            existing.extend(identities(target)?);
        }
    }
    let above_target = ancestors(&disk::parent_of(target));
    for &input in inputs {
        let refuse = |what: &str| {
            let problem = format!("the output {what} the input {}; choose another output", input.display());
            Err(Error::output(target, problem))
        };
        let identity = Identity::of(input).map_err(|error| Error::io("open", input, error))?;
        if existing.first() == Some(&identity) {
            return refuse("is");
        }
        if input.is_dir() && above_target.contains(&identity) {
            return refuse("lies inside");
        }
        let above_input = ancestors(&disk::parent_of(input));
        if existing.first().is_some_and(|target| above_input.contains(target)) {
            return refuse("is a folder that holds");
        }
        let mut parts = vec![identity];
        let is_index = input.to_string_lossy().ends_with(".index.json");
        if input.is_dir() || is_index {
            let folder = if is_index { disk::parent_of(input) } else { input.to_owned() };
            parts.extend(identities(&folder)?);
        }
        if existing.iter().any(|part| parts.contains(part)) {
            return refuse("is linked to a file of");
        }
    }
    Ok(())
}

/// Refuses where fewer than `bytes` are free beside `target`.
pub(super) fn refuse_full(target: &Path, bytes: u64) -> Result<()> {
    match disk::free_bytes(&disk::parent_of(target)) {
        Some(free) if free < bytes => {
            let problem = format!(
                "needs {bytes} bytes, {free} are free on this disk ({} missing); \
                 free some space or choose another disk",
                bytes - free
            );
            Err(Error::output(target, problem))
        }
        _ => Ok(()),
    }
}

/// Whether the folder `target` has no entry.
pub(super) fn is_empty_folder(target: &Path) -> Result<bool> {
    let mut entries = fs::read_dir(target).map_err(|error| refused(target, "list the folder", &error))?;
    Ok(entries.next().is_none())
}

/// The system's refusal of an operation on an output.
pub(super) fn refused(path: &Path, op: &str, error: &io::Error) -> Error {
    let problem = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            format!("cannot {op}: no space is left ({error}); free some or choose another disk")
        }
        io::ErrorKind::FileTooLarge => {
            format!(
                "cannot {op}: larger than a file may be here ({error}); raise the limit or write smaller shards"
            )
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("cannot {op}: {error}; choose a place you may write to")
        }
        _ => format!("cannot {op}: {error}"),
    };
    Error::output(path, problem)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = |error| refused(folder, "list the folder", &error);
    fs::read_dir(folder).map_err(list)?.map(|entry| entry.map(|entry| entry.path()).map_err(list)).collect()
}

/// The identities of what lies in `folder`; a link to nothing has none.
fn identities(folder: &Path) -> Result<Vec<Identity>> {
    Ok(entries(folder)?.iter().filter_map(|path| Identity::of(path).ok()).collect())
}

/// The identities of `folder` and of everything above it.
fn ancestors(folder: &Path) -> Vec<Identity> {
    let Ok(folder) = fs::canonicalize(folder) else { return Vec::new() };
    folder.ancestors().filter_map(|path| Identity::of(path).ok()).collect()
}
