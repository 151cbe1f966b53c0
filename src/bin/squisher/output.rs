//! Standard output: the result of a command and nothing else.

use std::io::{ErrorKind, Write};

use squisher::Error;

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
