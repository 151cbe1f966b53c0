//! The partial that stays when its run ends early, and the journal that vouches for it.
//!
//! It is called `.NAME.partial-kept`, a file or a folder like the output, and its journal
//! `.NAME.partial-kept.json`. The journal holds two texts of the job's own: which job this is, and how far it
//! was. What it says is so on disk: it is written in one step, after the data it speaks of were synced. Data
//! beyond it are written again, so that it does not matter in which moment a run is killed.
//!
//! The journal goes when the partial has taken the target's place. Where the two exchange their places (a folder
//! that replaces one) it goes before: from then on the partial's name leads to what was replaced. If the partial
//! does not get there, its journal stays or comes back. A partial without a journal, or of other sizes than the
//! job's, is worth nothing and is made anew; one whose journal cannot be read is left alone.

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
pub(super) fn is_left(target: &Path) -> Result<bool> {
    Ok(read_journal(target, &path_of(target))?.is_some())
}

/// Refuses if a run left something beside `target` to go on from, or is still writing it; removes what is
/// worth nothing.
pub(super) fn refuse_left(target: &Path) -> Result<()> {
    let path = path_of(target);
    if fs::symlink_metadata(&path).is_err() {
        return Ok(());
    }
    let _lock = lock_existing(target, &path)?;
    if is_left(target)? {
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
        if let Some(journal) = read_journal(target, &path)? {
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
        self.write_journal(&Journal { job: self.job.clone(), progress: progress.to_owned() })
    }

    fn write_journal(&self, journal: &Journal) -> Result<()> {
        let text = serde_json::to_string(journal).expect("two texts are JSON");
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

    /// Has `publish` put the partial in the target's place; `exchanges` says whether the partial's name leads to the
    /// old content then. A partial that did not get there can still be gone on from.
    pub(super) fn publish(&self, exchanges: bool, publish: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        if !exchanges {
            publish(&self.path)?;
            return self.release();
        }
        let journal = read_journal(&self.target, &self.path)?;
        self.release()?;
        publish(&self.path).inspect_err(|_| {
            if let Some(Err(error)) = journal.map(|journal| self.write_journal(&journal)) {
                log::warn!("{error}");
            }
        })
    }

    fn release(&self) -> Result<()> {
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
        let removed = read_journal(&self.target, &self.path)
            .and_then(|journal| if journal.is_none() { self.discard() } else { Ok(()) });
        if let Err(left) = removed {
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
fn read_journal(target: &Path, path: &Path) -> Result<Option<Journal>> {
    match fs::read(journal_of(path)) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(refused(target, "read the journal of an old partial", &error)),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: [Expected<'_>; 1] = [Expected { name: None, bytes: 0 }];

    /// A partial of an empty file, marked at "half".
    fn marked(target: &Path) -> Opened {
        let opened = open(target, &FILE, "job").expect("nothing is there");
        opened.kept.mark("half").expect("the folder is writable");
        opened
    }

    #[test]
    fn what_does_not_get_to_its_place_can_be_gone_on_from() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (place, exchanges) in [("a", false), ("b", true)] {
            let target = folder.path().join(place);
            let Opened { kept, files, .. } = marked(&target);
            let failed = || Err(Error::output(&target, "the place is taken"));
            assert!(kept.publish(exchanges, |_| failed()).is_err());
            drop((kept, files));
            let progress = open(&target, &FILE, "job").expect("it was kept").progress;
            assert_eq!(progress.as_deref(), Some("half"), "{exchanges}");
        }
    }

    #[test]
    fn a_partial_whose_journal_cannot_be_read_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let target = folder.path().join("a");
        let opened = marked(&target);
        let (path, journal) = (opened.kept.path().to_owned(), journal_of(opened.kept.path()));
        fs::remove_file(&journal).expect("it was written");
        fs::create_dir(&journal).expect("its name is free");
        drop(opened);
        assert!(path.exists(), "what may be the work of hours is not removed");
        for refused in [open(&target, &FILE, "job").map(|_| ()), refuse_left(&target)] {
            let problem = refused.expect_err("must be refused").to_string();
            assert!(problem.contains("read the journal"), "{problem}");
        }
        assert!(path.exists());
    }
}
