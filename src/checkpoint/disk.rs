//! What differs between operating systems: positioned reads and writes, identity, space, locks, swaps.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What tells one file from another, whatever name it goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity(#[cfg(unix)] (u64, u64), #[cfg(not(unix))] PathBuf);

impl Identity {
    /// The identity of what `path` leads to, through symbolic links.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        #[cfg(unix)]
        return fs::metadata(path).map(|metadata| Self::from_metadata(&metadata));
        // Without stable file numbers in std, hard links stay undetected on other systems.
        #[cfg(not(unix))]
        return fs::canonicalize(path).map(Self);
    }

    #[cfg(unix)]
    fn from_metadata(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self((metadata.dev(), metadata.ino()))
    }
}

/// A file's size, time and identity at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) bytes: u64,
    modified: Option<SystemTime>,
    #[cfg(unix)]
    identity: Identity,
}

impl Stamp {
    /// Size and time, as text that tells one state of a file from another.
    pub(super) fn text(&self) -> String {
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let nanos =
            self.modified.and_then(since).map_or("unknown".to_owned(), |time| time.as_nanos().to_string());
        format!("{} bytes, changed {nanos} ns", self.bytes)
    }

    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            identity: Identity::from_metadata(metadata),
        }
    }
}

/// Fills `buffer` from `offset` on.
pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset);
    #[cfg(windows)]
    {
        use std::os::windows::fs::FileExt;
        let mut done = 0;
        while done < buffer.len() {
            match file.seek_read(&mut buffer[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
    #[cfg(not(any(unix, windows)))]
    {
        let _ = (file, buffer, offset);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Writes all of `bytes` from `offset` on.
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, offset);
    #[cfg(windows)]
    {
        use std::os::windows::fs::FileExt;
        let mut done = 0;
        while done < bytes.len() {
            match file.seek_write(&bytes[done..], offset + done as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
    #[cfg(not(any(unix, windows)))]
    {
        let _ = (file, bytes, offset);
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Bytes an ordinary user may still write in the file system of `folder`; nothing where the system does not say.
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let stat = rustix::fs::statvfs(folder).ok()?;
        // Some network file systems report no size at all.
        (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Gives `file` its length and, where the file system can, its disk blocks, so that a full disk shows now.
pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_vendor = "apple"))]
    {
        use rustix::io::Errno;
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            // The file system cannot: the length alone has to do.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    file.set_len(bytes)
}

/// Makes renames inside `folder` durable, where the system can sync a folder.
pub(super) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    return match File::open(folder)?.sync_all() {
        // Some network file systems cannot; the rename itself is done.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    };
    #[cfg(not(unix))]
    {
        let _ = folder;
        Ok(())
    }
}

/// Puts `new` in the place of the existing folder `old`, and the old content where `new` was.
///
/// One atomic step where the file system can exchange names, else renames by way of the free name `aside`.
pub(super) fn swap_folders(new: &Path, old: &Path, aside: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    swap_by_renames(new, old, aside)
}

fn swap_by_renames(new: &Path, old: &Path, aside: &Path) -> io::Result<()> {
    fs::rename(old, aside)?;
    if let Err(error) = fs::rename(new, old) {
        fs::rename(aside, old)?;
        return Err(error);
    }
    // The new content is in place: what is left of the old one is not a failure.
    if let Err(error) = fs::rename(aside, new) {
        log::warn!("{}: the replaced output could not be removed: {error}", aside.display());
    }
    Ok(())
}

/// What `path` leads to through symbolic links, also where the last link points to nothing yet.
pub(super) fn follow_links(path: &Path) -> io::Result<PathBuf> {
    // As many as Linux follows before it gives up with ELOOP.
    const MAX_LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                let link = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(link);
            }
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links, or a circle of them"))
}

/// The folder that holds `path`.
pub(super) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with `new` and `old`, each holding a file of its own name.
    fn two_folders() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["new", "old"] {
            fs::create_dir(folder.path().join(name)).expect("creates");
            fs::write(folder.path().join(name).join(name), "").expect("writes");
        }
        folder
    }

    #[test]
    fn both_ways_to_swap_swap() {
        for swap in [swap_folders, swap_by_renames] {
            let folder = two_folders();
            let at = |name: &str| folder.path().join(name);
            swap(&at("new"), &at("old"), &at("aside")).expect("swaps");
            assert!(at("new/old").exists() && at("old/new").exists() && !at("aside").exists());
        }
    }

    #[test]
    fn a_swap_that_fails_leaves_the_old_content() {
        for swap in [swap_folders, swap_by_renames] {
            let folder = two_folders();
            let at = |name: &str| folder.path().join(name);
            assert!(swap(&at("missing"), &at("old"), &at("aside")).is_err(), "there is nothing to put there");
            assert!(at("old/old").exists() && !at("aside").exists());
        }
    }
}
