//! Where the pickle lies in a file of `torch.save`: in a zip archive, or, before PyTorch 1.6, behind three others.
//!
//! An archive is checked first: `torch.save` stores entries uncompressed, once each and side by
//! side, in little-endian order; anything else is refused before a byte of it is trusted.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::Outline;
use super::machine::run;
use super::operands::MAX_PICKLE_BYTES;
use crate::error::{Error, Result, printable};

impl Outline {
    /// Read the outline of a `torch.save` file.
    ///
    /// # Errors
    /// [`Error::File`] where the file is not one, is damaged, or holds what `torch.save` never writes.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let bytes = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if !bytes.is_file() {
            return Err(Error::file(path, "not a regular file; give the file that torch.save wrote"));
        }
        let mut reader = BufReader::new(file);
        let head = reader.fill_buf().map_err(|e| Error::io("read", path, e))?;
        match Container::of(&head[..head.len().min(262)]) {
            Container::Zip => from_zip(path, reader, bytes.len()),
            Container::Legacy => from_legacy(path, reader),
            Container::Other(what) => Err(Error::file(
                path,
                format!(
                    "{what}, not a file of torch.save; write it again with torch.save(optimizer.state_dict(), …)"
                ),
            )),
        }
    }
}

/// What a file is.
enum Container {
    Zip,
    Legacy,
    Other(&'static str),
}

impl Container {
    /// Told by the first bytes.
    fn of(head: &[u8]) -> Self {
        // 0x1950a86a20f9469cfc6c, with which files of PyTorch before 1.6 begin.
        const LEGACY: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
        if head.starts_with(b"PK\x03\x04") {
            Self::Zip
        } else if head.windows(LEGACY.len()).take(64).any(|w| w == LEGACY) {
            Self::Legacy
        } else if head.is_empty() {
            Self::Other("an empty file")
        } else if head.starts_with(b"version https://git-lfs") {
            Self::Other("a git-lfs pointer (run `git lfs pull`)")
        } else if head.get(8) == Some(&b'{') {
            Self::Other("a safetensors file")
        } else if head.get(257..262) == Some(b"ustar") {
            Self::Other("a tar archive of PyTorch before 0.1.10")
        } else if head.first() == Some(&0x80) {
            Self::Other("a bare pickle")
        } else {
            Self::Other("an unknown kind of file")
        }
    }
}

fn from_legacy(path: &Path, mut reader: BufReader<File>) -> Result<Outline> {
    // A magic number, a protocol version and the system's sizes come first, a pickle each.
    for _ in 0..3 {
        run(&mut reader).map_err(|problem| Error::file(path, problem))?;
    }
    run(&mut reader).map_err(|problem| Error::file(path, problem))
}

fn from_zip(path: &Path, reader: BufReader<File>, file_bytes: u64) -> Result<Outline> {
    let mut archive = ZipArchive::new(reader).map_err(|e| damaged(path, &e))?;
    let pickle_name = checked_pickle_entry(path, &mut archive, file_bytes)?;
    check_byte_order(path, &mut archive, pickle_name.strip_suffix("data.pkl").unwrap_or_default())?;
    let mut entry = archive.by_name(&pickle_name).map_err(|e| damaged(path, &e))?;
    if entry.size() > MAX_PICKLE_BYTES {
        let problem =
            format!("data.pkl has {} bytes, more than {MAX_PICKLE_BYTES}: not a state dict", entry.size());
        return Err(Error::file(path, problem));
    }
    let mut pickle = Vec::new();
    entry.read_to_end(&mut pickle).map_err(|e| Error::file(path, format!("data.pkl is damaged: {e}")))?;
    run(&mut pickle.as_slice()).map_err(|problem| Error::file(path, problem))
}

fn damaged(path: &Path, error: &impl std::fmt::Display) -> Error {
    Error::file(path, format!("damaged zip archive ({error}); was the copy or download cut short?"))
}

/// Check the archive against what `torch.save` writes, and name its one `data.pkl`.
fn checked_pickle_entry<R: Read + Seek>(
    path: &Path,
    archive: &mut ZipArchive<R>,
    file_bytes: u64,
) -> Result<String> {
    let refuse = |problem: String| Err(Error::file(path, problem));
    if directory_entries(path, archive.central_directory_start())? != archive.len() {
        return refuse("two zip entries have the same name, which torch.save never writes: refused".into());
    }
    let entries = stored_entries(path, archive)?;
    let total = entries.iter().fold(0_u64, |total, (_, bytes)| total.saturating_add(*bytes));
    if total > file_bytes {
        return refuse(format!("its entries claim {total} bytes, the file has {file_bytes}: refused"));
    }
    let pickles: Vec<String> = entries
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
        .collect();
    match pickles.as_slice() {
        [one] => Ok(one.clone()),
        [] => refuse("a zip archive without data.pkl, not a file of torch.save".into()),
        _ => refuse(format!("{} entries are called data.pkl, torch.save writes one: refused", pickles.len())),
    }
}

/// The names and sizes of all entries, which are stored as they are.
fn stored_entries<R: Read + Seek>(path: &Path, archive: &mut ZipArchive<R>) -> Result<Vec<(String, u64)>> {
    let mut entries = Vec::with_capacity(archive.len());
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|e| damaged(path, &e))?;
        let name = entry.name().map_err(|e| damaged(path, &e))?.into_owned();
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            let problem = format!(
                "zip entry {} is compressed or encrypted, which torch.save never writes: refused; save it again with torch.save",
                printable(&name)
            );
            return Err(Error::file(path, problem));
        }
        entries.push((name, entry.size()));
    }
    Ok(entries)
}

/// The entries that the archive's directory lists. The zip crate keeps the last of those with one name.
fn directory_entries(path: &Path, start: u64) -> Result<usize> {
    let io = |e| Error::io("read", path, e);
    let mut file = BufReader::new(File::open(path).map_err(io)?);
    file.seek(SeekFrom::Start(start)).map_err(io)?;
    let mut count = 0;
    let mut header = [0; 46];
    // A header of 46 bytes begins with its signature and ends with a name, an extra field and a comment of
    // its own lengths.
    while file.read_exact(&mut header).is_ok() && header.starts_with(b"PK\x01\x02") {
        let length = |at: usize| i64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        file.seek_relative(length(28) + length(30) + length(32)).map_err(io)?;
        count += 1;
    }
    Ok(count)
}

/// Numbers are little-endian where the archive does not say otherwise.
fn check_byte_order<R: Read + Seek>(path: &Path, archive: &mut ZipArchive<R>, root: &str) -> Result<()> {
    match small_entry(path, archive, &format!("{root}byteorder"))? {
        Some(order) if order.trim_ascii() != b"little" => {
            let problem = "written in big-endian byte order, which is not read; load and save it on a little-endian machine";
            Err(Error::file(path, problem))
        }
        _ => Ok(()),
    }
}

/// A text entry such as `byteorder`, where there is one.
fn small_entry<R: Read + Seek>(
    path: &Path,
    archive: &mut ZipArchive<R>,
    name: &str,
) -> Result<Option<Vec<u8>>> {
    let Ok(entry) = archive.by_name(name) else { return Ok(None) };
    let mut text = Vec::new();
    entry
        .take(4096)
        .read_to_end(&mut text)
        .map_err(|e| Error::file(path, format!("{} is damaged: {e}", printable(name))))?;
    Ok(Some(text))
}
