//! Standard output: the result of a command and nothing else.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use squisher::Error;

use crate::args::Global;

/// Raised when a key of the JSON output goes away or changes its meaning; new keys do not raise it.
const SCHEMA_VERSION: u32 = 1;

/// The JSON object around every result.
#[derive(Serialize)]
struct Envelope<'a, R> {
    schema_version: u32,
    command: &'a str,
    #[serde(flatten)]
    result: &'a R,
}

/// Print a command's result: as it displays, or with `--json` as one object.
pub(crate) fn report(
    global: &Global,
    command: &str,
    result: &(impl Serialize + Display),
) -> anyhow::Result<()> {
    let text = if global.json { json(command, result)? } else { format!("{result}\n") };
    write(text.as_bytes())
}

/// A result as the one object that `--json` prints.
pub(crate) fn json(command: &str, result: &impl Serialize) -> anyhow::Result<String> {
    let envelope = Envelope { schema_version: SCHEMA_VERSION, command, result };
    Ok(serde_json::to_string_pretty(&envelope)? + "\n")
}

/// Refuse an output of one file that cannot be written in the end: before anything is computed.
///
/// One that exists is replaced only with `overwrite`, and never if it is one of `inputs` or lies in one.
pub(crate) fn refuse_output(path: &Path, overwrite: bool, inputs: &[PathBuf]) -> Result<(), Error> {
    let refuse = |problem: String| Err(Error::output(path, problem));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return refuse(format!("the folder {} does not exist; create it first", folder.display()));
    }
    if path.is_dir() {
        return refuse("is a folder, the output is one file; give it a name".into());
    }
    let Ok(existing) = path.canonicalize() else { return Ok(()) };
    let holds = |input: &&PathBuf| input.canonicalize().is_ok_and(|input| existing.starts_with(input));
    if let Some(input) = inputs.iter().find(holds) {
        return refuse(format!("the output is part of the input {}; choose another name", input.display()));
    }
    if overwrite {
        return Ok(());
    }
    refuse("exists; pass --overwrite to replace it, or choose another name".into())
}

/// Write a file beside its place and then move it there, so that it is whole or not at all.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let refused = |error: std::io::Error| Error::output(path, not_written(&error));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut builder = tempfile::Builder::new();
    // The system takes the umask off, as for any new file; tempfile's own default is 0600.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut partial = builder.tempfile_in(folder.unwrap_or(".".as_ref())).map_err(refused)?;
    partial.write_all(bytes).map_err(refused)?;
    partial.as_file().sync_all().map_err(refused)?;
    partial.persist(path).map(|_| ()).map_err(|error| refused(error.error))
}

/// Why, without the name of the temporary file that the system's error carries.
fn not_written(error: &std::io::Error) -> String {
    match error.kind() {
        kind @ (ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) => {
            format!("cannot write: {kind}; choose a place you may write to")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "cannot write: no space is left; free some or choose another disk".to_owned()
        }
        kind => format!("cannot write: {kind}"),
    }
}

/// Write a result as it stands. A reader that has gone away (`| head`) is not an error: it has what it wanted.
pub(crate) fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::output("standard output", error.to_string()).into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A temporary file would be its owner's alone, a fixed mode everybody's in spite of the umask.
    #[cfg(unix)]
    #[test]
    fn a_file_may_be_read_by_whom_any_new_file_may() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("there is room");
        let mode = |name: &str| {
            let metadata = folder.path().join(name).metadata().expect("it was written");
            metadata.permissions().mode()
        };
        write_whole(&folder.path().join("whole"), b"page").expect("there is room");
        std::fs::write(folder.path().join("plain"), b"page").expect("there is room");
        assert_eq!(mode("whole"), mode("plain"));
    }

    #[test]
    fn a_refusal_names_the_output_and_no_temporary_file() {
        let missing = Path::new("no such folder").join("report.html");
        let refused = write_whole(&missing, b"page").expect_err("there is no such folder");
        assert_eq!(refused.to_string(), format!("{}: cannot write: entity not found", missing.display()));
        let denied = not_written(&ErrorKind::PermissionDenied.into());
        assert_eq!(denied, "cannot write: permission denied; choose a place you may write to");
    }
}
