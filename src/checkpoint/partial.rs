//! The partial beside a target: made, locked, and told from those of others.
//!
//! A partial is called `.NAME.partial-PID-XXXXXX` and locked while its writer lives; the system drops the lock with
//! the process, however that ends. So a partial whose lock is free is an orphan and is removed, and one that is locked
//! belongs to a run that is still writing the same output. Where a file system cannot tell, partials are left alone.
//!
//! Two runs that start within the same instant may both be refused, or one may lose its partial before it has locked
//! it and fail at the end; neither publishes anything but its own whole output.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, TempDir, TempPath};

use super::disk;
use super::kept::{self, Kept};
use super::target::refused;
use crate::error::{Error, Result};

/// A partial on disk, removed when dropped unless it is to be kept.
#[derive(Debug)]
pub(super) enum Partial {
    /// Of a lone file.
    File(TempPath),
    /// Of a folder, with the handle that holds its lock.
    Folder(TempDir, Option<File>),
    /// Of either, for a later run to go on with: left where it is when dropped.
    Kept(Kept),
}

/// Creates and locks an empty partial file beside `target`.
pub(super) fn file(target: &Path) -> Result<(Partial, File)> {
    let parent = disk::parent_of(target);
    let prefix = own_prefix(target);
    let mut builder = Builder::new();
    builder.prefix(&prefix);
    // The system takes the umask off, as for any new file; tempfile's own default is 0600.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let create = |error: io::Error| refused(target, "create a partial beside it", &error);
    let (file, path) = builder.tempfile_in(&parent).map_err(create)?.into_parts();
    lock(&file);
    settle_others(target, Some(&path))?;
    kept::refuse_left(target)?;
    Ok((Partial::File(path), file))
}

/// Creates and locks an empty partial folder beside `target`.
pub(super) fn folder(target: &Path) -> Result<Partial> {
    let parent = disk::parent_of(target);
    let prefix = own_prefix(target);
    let mut builder = Builder::new();
    builder.prefix(&prefix);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let create = |error: io::Error| refused(target, "create a partial beside it", &error);
    let folder = builder.tempdir_in(&parent).map_err(create)?;
    // Not every system opens folders; without a lock, others leave this partial alone (see `settle_others`).
    let lock = File::open(folder.path()).ok().inspect(lock);
    settle_others(target, Some(folder.path()))?;
    kept::refuse_left(target)?;
    Ok(Partial::Folder(folder, lock))
}

impl Partial {
    /// Where the partial is.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Folder(folder, _) => folder.path(),
            Self::Kept(kept) => kept.path(),
        }
    }
}

/// Locks a partial that no one else knows of yet.
fn lock(partial: &File) {
    // A file system without locks refuses; others then cannot take the lock either, and leave the partial alone.
    if let Err(error) = partial.try_lock() {
        log::debug!("a partial could not be locked: {error}");
    }
}

/// Removes what dead runs left beside `target`, and refuses if a living one is writing it.
pub(super) fn settle_others(target: &Path, own: Option<&Path>) -> Result<()> {
    for path in others(target, own) {
        let Ok(handle) = File::open(&path) else { continue };
        match handle.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let problem = format!(
                    "another run is writing this output (its partial is {}); wait for it, or stop it",
                    path.display()
                );
                return Err(Error::output(target, problem));
            }
            Err(TryLockError::Error(_)) => continue,
        }
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Ok(()) => log::warn!("{}: removed, left by a run that was killed", path.display()),
            Err(error) => {
                log::warn!("{}: left by a run that was killed, not removable: {error}", path.display());
            }
        }
    }
    Ok(())
}

/// Other partials of the same target.
fn others(target: &Path, own: Option<&Path>) -> Vec<PathBuf> {
    let prefix = prefix(target).to_string_lossy().into_owned();
    let Ok(entries) = fs::read_dir(disk::parent_of(target)) else { return Vec::new() };
    entries
        .flatten()
        // Neither links nor pipes: those were not made by a run, and opening a pipe would wait.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir()))
        .filter(|entry| {
            entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)).is_some_and(is_ours)
        })
        .map(|entry| entry.path())
        .filter(|path| own.is_none_or(|own| path.file_name() != own.file_name()))
        .collect()
}

/// Whether a partial's name goes on as this module makes them: `PID-XXXXXX`.
fn is_ours(rest: &str) -> bool {
    rest.split_once('-').is_some_and(|(pid, random)| {
        pid.parse::<u32>().is_ok()
            && random.len() == 6
            && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

fn prefix(target: &Path) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".partial-");
    prefix
}

fn own_prefix(target: &Path) -> OsString {
    let mut prefix = prefix(target);
    prefix.push(format!("{}-", std::process::id()));
    prefix
}

/// A name beside `target` for the old content, where two renames must do for a swap.
pub(super) fn aside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".replaced-{}", std::process::id()));
    disk::parent_of(target).join(name)
}
