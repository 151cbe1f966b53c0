//! One error type for the whole library: each message names the operation, what it was about, what was
//! expected, what came, and what to do.

use std::path::{Path, PathBuf};

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what the user has to do about it.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has the wrong length or shape.
    #[error("{op}: {what} has {got}, expected {expected}")]
    Shape {
        /// The operation that was asked for, as `fisher.linear`.
        op: String,
        /// The argument, as `grad_output`.
        what: String,
        /// What would have been right.
        expected: String,
        /// What came.
        got: String,
    },

    /// An argument has a value the operation has no meaning for.
    #[error("{op}: {problem}")]
    Argument {
        /// The operation that was asked for.
        op: String,
        /// What is wrong with which argument, and what would be right.
        problem: String,
    },

    /// One step or buffer is larger than the device allows, or than kernels can count.
    #[error("{op}: {limit} is {max}, {asked} needed")]
    Limit {
        /// The operation that was asked for.
        op: String,
        /// The limit's name: as wgpu spells it where it is the device's, in words where it is the library's
        /// own.
        limit: String,
        /// Its value.
        max: u64,
        /// What the operation would need.
        asked: u64,
    },

    /// A memory budget is too small for even the smallest piece of the job.
    #[error("{op}: {what} needs at least {need} bytes, the budget is {have}; raise {flag}")]
    Budget {
        /// The operation that was asked for.
        op: String,
        /// Which memory ("device memory", "host memory").
        what: String,
        /// The smallest budget that works.
        need: u64,
        /// The budget given.
        have: u64,
        /// The setting to raise.
        flag: String,
    },

    /// A shader was refused: a bug in the library or in a driver.
    #[error("kernel {kernel} was refused by the device: {message} (please report this)")]
    Shader {
        /// The kernel's dotted name.
        kernel: String,
        /// The whole chain of the device's messages.
        message: String,
    },

    /// No adapter answers to the request.
    #[error("no adapter: {message}")]
    Adapter {
        /// What was asked for, what is there, and what to install or pass.
        message: String,
    },

    /// The device is gone, or out of memory; nothing it returned since can be trusted.
    #[error("{op}: the device failed: {message}")]
    Device {
        /// What was running.
        op: String,
        /// The driver's words.
        message: String,
    },

    /// An input file is damaged or of a kind that is not read.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with both numbers where there are two, and the remedy.
        problem: String,
    },

    /// One tensor of an input file cannot be used.
    #[error("{}: tensor {}: {problem}", path.display(), printable(tensor))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name as stored (escaped when printed).
        tensor: String,
        /// What is wrong with it, with the index where there is one.
        problem: String,
    },

    /// Inputs that are each sound do not fit together.
    #[error("{op}: {problem}")]
    Mismatch {
        /// The operation that was asked for.
        op: String,
        /// What differs between which inputs, listed.
        problem: String,
    },

    /// The output cannot be written; what was there before is untouched.
    #[error("{}: {problem}", path.display())]
    Output {
        /// The output.
        path: PathBuf,
        /// Why not, and the remedy.
        problem: String,
    },

    /// The operating system refused a file operation.
    #[error("{}: {op}: {source}{}", path.display(), remedy(source))]
    Io {
        /// "read", "open", …
        op: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },

    /// A signal asked for an end between two chunks.
    #[error("interrupted by signal {signal}")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
}

impl Error {
    /// The process exit code for this error: 1 failure, 2 usage, 3 bad input file, 4 inputs do not fit
    /// together, 5 no adapter, 6 device lost, out of memory or too small, 7 output not writable, 128+n signal
    /// n.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Shader { .. } => 1,
            Self::Argument { .. } | Self::Budget { .. } => 2,
            Self::File { .. } | Self::Tensor { .. } | Self::Io { .. } => 3,
            Self::Mismatch { .. } | Self::Shape { .. } => 4,
            Self::Adapter { .. } => 5,
            Self::Device { .. } | Self::Limit { .. } => 6,
            Self::Output { .. } => 7,
            Self::Interrupted { signal } => 128 + u8::try_from(*signal).unwrap_or(0),
        }
    }

    /// An argument that has no meaning for `op`.
    pub fn argument(op: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Argument { op: op.into(), problem: problem.into() }
    }

    /// Inputs of `op` that do not fit together.
    pub fn mismatch(op: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Mismatch { op: op.into(), problem: problem.into() }
    }

    /// A wrong length or shape of `what`.
    pub fn shape(
        op: impl Into<String>,
        what: impl Into<String>,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Shape { op: op.into(), what: what.into(), expected: expected.into(), got: got.into() }
    }

    /// A damaged or unreadable input file.
    pub fn file(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::File { path: path.as_ref().to_owned(), problem: problem.into() }
    }

    /// A tensor of an input file that cannot be used.
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Tensor { path: path.as_ref().to_owned(), tensor: tensor.into(), problem: problem.into() }
    }

    /// An output that cannot be written.
    pub fn output(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Output { path: path.as_ref().to_owned(), problem: problem.into() }
    }

    /// A refused operation on an input file.
    pub fn io(op: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { op, path: path.as_ref().to_owned(), source }
    }
}

/// What helps where the system's words do not say it.
fn remedy(error: &std::io::Error) -> &'static str {
    /// `EMFILE`, on every unix.
    const TOO_MANY_FILES: i32 = 24;
    let too_many = cfg!(unix) && error.raw_os_error() == Some(TOO_MANY_FILES);
    if too_many { "; allow more with `ulimit -n`, as every input stays open" } else { "" }
}

/// A tensor name as it may be printed: in quotes, with control and bidirectional characters escaped.
///
/// Names are data that strangers wrote; a terminal must not obey them.
#[must_use]
pub fn printable(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    out.push('"');
    for c in name.chars() {
        let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        if c.is_control() || hidden || c == '"' || c == '\\' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_drive_the_terminal() {
        assert_eq!(printable("a.weight"), "\"a.weight\"");
        assert_eq!(printable("a\u{1b}[2J"), "\"a\\u{1b}[2J\"");
        assert_eq!(printable("x\u{202e}y"), "\"x\\u{202e}y\"");
        assert_eq!(printable("\"\\"), "\"\\\"\\\\\"");
    }

    #[test]
    fn interrupted_exits_like_a_shell_would_say() {
        assert_eq!(Error::Interrupted { signal: 2 }.exit_code(), 130);
        assert_eq!(Error::Interrupted { signal: 15 }.exit_code(), 143);
    }
}
