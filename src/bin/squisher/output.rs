//! Standard output: the result of a command and nothing else.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

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
    let mut text = if global.json {
        serde_json::to_string_pretty(&Envelope { schema_version: SCHEMA_VERSION, command, result })?
    } else {
        result.to_string()
    };
    text.push('\n');
    write(text.as_bytes())
}

/// Refuse `--dry-run` for a command that has none, rather than write after all.
pub(crate) fn no_dry_run(global: &Global, command: &str) -> Result<(), Error> {
    if global.dry_run {
        return Err(Error::argument(command, "has no --dry-run; leave it out, or write to another place"));
    }
    Ok(())
}

/// Write a result as it stands. A reader that has gone away (`| head`) is no error: it has what it wanted.
pub(crate) fn write(bytes: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::output("standard output", error.to_string()).into())
        }
        _ => Ok(()),
    }
}
