//! The partial that stays when its run ends early, and the journal that vouches for it.
//!
//! It is called `.NAME.partial-kept`, a file or a folder like the output, and its journal `.NAME.partial-kept.json`. The
//! journal holds two texts of the job's own: which job this is, and how far it was. What it says is so on disk: it is
//! written in one step, after the data it speaks of were synced. Data beyond it are written again, so that it does not matter
//! in which moment a run is killed.
//!
//! The journal goes before the partial takes the target's place: from then on the partial's name may lead to what was
//! replaced. A partial without a journal, or of other sizes than the job's, is worth nothing and is made anew.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk;
use super::target::refused;
use crate::error::{Error, Result};

/// The place of a partial that stays when dropped, if it has a journal.
#[derive(Debug)]
pub(super) struct Kept {
    target: PathBuf,
    path: PathBuf,
    /// Which job it belongs to.
    job: String,
    /// Holds the lock of a folder; that of a file is held by the file itself.
    lock: Option<File>,
}

/// A file that a partial should have: its name, if the partial is a folder, and its size.
pub(super) struct Expected<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) bytes: u64,
}

/// A partial that was opened or made.
pub(super) struct Opened {
    pub(super) kept: Kept,
    pub(super) files: Vec<File>,
    /// How far the run was that left it; nothing if it was made anew.
    pub(super) progress: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Journal {
    job: String,
    progress: String,
}

/// Whether a run that was to be continued left its partial beside `target`, with a journal.
pub(super) fn is_left(target: &Path) -> bool {
    read_journal(&path_of(target)).is_some()
}

/// Refuses if a run left something beside `target` to go on from, or is still writing it; removes what is worth nothing.
pub(super) fn refuse_left(target: &Path) -> Result<()> {
    let path = path_of(target);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(());
    }
    let _lock = lock_existing(target, &path)?;
    if is_left(target) {
        let problem = format!(
            "a run that was interrupted left {}; go on from it with --resume, or remove it",
            path.display()
        );
        return Err(Error::output(target, problem));
    }
    remove(target, &path)
}

/// Opens what an interrupted run of this job left beside `target`, or makes it anew.
pub(super) fn open(target: &Path, expected: &[Expected<'_>], job: &str) -> Result<Opened> {
    let path = path_of(target);
    let kept = |lock| Kept { target: target.to_owned(), path: path.clone(), job: job.to_owned(), lock };
    if fs::symlink_metadata(&path).is_ok() {
        let lock = lock_existing(target, &path)?;
        if let Some(journal) = read_journal(&path) {
            refuse_other_job(target, &path, &journal.job, job)?;
            if let Some(files) = open_files(target, &path, expected)? {
                // A file's lock goes with its handle, so the file itself takes it over.
                let lock = path.is_dir().then_some(lock);
                lock_own(&files, &path);
                return Ok(Opened { kept: kept(lock), files, progress: Some(journal.progress) });
            }
        }
        remove(target, &path)?;
    }
    // From here on its drop removes what an error leaves.
    let mut kept = kept(None);
    let files = create(&mut kept, expected)?;
    Ok(Opened { kept, files, progress: None })
}

impl Kept {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// States how far the job is. What that speaks of is synced already.
    pub(super) fn mark(&self, progress: &str) -> Result<()> {
        let journal = Journal { job: self.job.clone(), progress: progress.to_owned() };
        let text = serde_json::to_string(&journal).expect("two texts are JSON");
        let (path, new) = (journal_of(&self.path), new_journal_of(&self.path));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            disk::sync_folder(&disk::parent_of(&path))
        };
        write().map_err(|error| refused(&self.target, "write the journal", &error))
    }

    /// Removes the journal, so that the partial can take the target's place.
    pub(super) fn release(&self) -> Result<()> {
        remove_journal(&self.path)
            .and_then(|()| disk::sync_folder(&disk::parent_of(&self.path)))
            .map_err(|error| refused(&self.target, "remove the journal", &error))
    }

    /// Removes partial and journal.
    pub(super) fn discard(&self) -> Result<()> {
        remove(&self.target, &self.path)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if read_journal(&self.path).is_none()
            && let Err(left) = self.discard()
        {
            log::warn!("{left}");
        }
    }
}

fn path_of(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".partial-kept");
    disk::parent_of(target).join(name)
}

fn journal_of(path: &Path) -> PathBuf {
    path.with_added_extension("json")
}

/// The journal before it takes its name.
fn new_journal_of(path: &Path) -> PathBuf {
    path.with_added_extension("json-new")
}

/// The journal of the partial at `path`; nothing where there is none or it says nothing.
fn read_journal(path: &Path) -> Option<Journal> {
    serde_json::from_str(&fs::read_to_string(journal_of(path)).ok()?).ok()
}

/// Locks a partial that is there, or refuses because its run still writes it.
fn lock_existing(target: &Path, path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|error| refused(target, "open the partial", &error))?;
    match file.try_lock() {
        // A file system without locks cannot tell; whoever asks for --resume says that no other run is writing.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let problem = format!(
                "another run is writing this output (its partial is {}); wait for it, or stop it",
                path.display()
            );
            Err(Error::output(target, problem))
        }
    }
}

fn refuse_other_job(target: &Path, path: &Path, left: &str, job: &str) -> Result<()> {
    let differing = left.lines().zip(job.lines()).find(|(left, own)| left != own);
    let differing = differing.or((left != job).then_some(("a list of another length", "this one")));
    let Some((left, own)) = differing else { return Ok(()) };
    let problem = format!(
        "{} was left by another job: it had `{}`, this one has `{}`; resume that job, or remove the partial",
        path.display(),
        left.trim(),
        own.trim()
    );
    Err(Error::output(target, problem))
}

/// The files of a partial, if all are there with their sizes; what else lies in a folder is removed.
fn open_files(target: &Path, path: &Path, expected: &[Expected<'_>]) -> Result<Option<Vec<File>>> {
    let mut files = Vec::new();
    for Expected { name, bytes } in expected {
        let file = name.map_or_else(|| path.to_owned(), |name| path.join(name));
        let Ok(file) = OpenOptions::new().write(true).open(file) else { return Ok(None) };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == *bytes) {
            return Ok(None);
        }
        files.push(file);
    }
    if path.is_dir() {
        remove_others(path, expected).map_err(|error| refused(target, "clear the partial", &error))?;
    }
    Ok(Some(files))
}

/// Removes what a run wrote beside the data before it was killed: that is written again.
fn remove_others(folder: &Path, expected: &[Expected<'_>]) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !expected.iter().any(|expected| expected.name.is_some_and(|name| entry.file_name() == name)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn create(kept: &mut Kept, expected: &[Expected<'_>]) -> Result<Vec<File>> {
    let (target, path) = (kept.target.clone(), kept.path.clone());
    let create = |error: io::Error| refused(&target, "create a partial beside it", &error);
    remove_journal(&path).map_err(create)?;
    if expected.iter().any(|file| file.name.is_some()) {
        fs::create_dir(&path).map_err(create)?;
        // Not every system opens folders.
        kept.lock = File::open(&path).ok();
        lock_own(kept.lock.as_slice(), &path);
    }
    let mut files = Vec::new();
    for Expected { name, .. } in expected {
        let path = name.map_or_else(|| path.clone(), |name| path.join(name));
        files.push(OpenOptions::new().write(true).create_new(true).open(path).map_err(create)?);
    }
    lock_own(&files, &path);
    Ok(files)
}

/// Locks what no other run can have locked: a partial just made, or one whose lock was just held.
fn lock_own(files: &[File], path: &Path) {
    for error in files.iter().filter_map(|file| file.try_lock().err()) {
        log::debug!("{}: could not be locked: {error}", path.display());
    }
}

fn remove(target: &Path, path: &Path) -> Result<()> {
    let removed = remove_journal(path).and_then(|()| match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    });
    removed.map_err(|error| refused(target, "remove an old partial", &error))
}

fn remove_journal(path: &Path) -> io::Result<()> {
    for journal in [journal_of(path), new_journal_of(path)] {
        match fs::remove_file(journal) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
