//! The one place that prints an error and chooses the exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;
use squisher::Error;

use crate::args::Cli;

/// Print `squisher: operation: …` with every cause, once, and give the exit code of the library's error in the chain.
pub(crate) fn report(operation: &str, error: &anyhow::Error) -> ExitCode {
    // Nobody may be reading standard error; that changes nothing about how the command ended.
    let _ = writeln!(std::io::stderr(), "squisher: {}", message(operation, error));
    ExitCode::from(exit_code(error))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    let known = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    known.map_or(1, Error::exit_code)
}

/// The chain on one line. A cause that the message before it already has is not said twice, nor is the
/// command's own name.
fn message(operation: &str, error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(said) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    match text.strip_prefix(operation) {
        Some(rest) if rest.starts_with([':', '.', ' ']) => text,
        _ => format!("{operation}: {text}"),
    }
}

/// A cause without the library's name of what was asked for, where the rest says it: it is for those who
/// program with it.
fn said(cause: &(dyn std::error::Error + 'static)) -> String {
    let text = cause.to_string();
    let op = match cause.downcast_ref::<Error>() {
        Some(Error::Argument { op, .. } | Error::Mismatch { op, .. } | Error::Budget { op, .. }) => op,
        _ => return text,
    };
    match text.strip_prefix(op.as_str()).and_then(|rest| rest.strip_prefix(": ")) {
        Some(rest) if !is_command(op) => rest.to_owned(),
        _ => text,
    }
}

fn is_command(op: &str) -> bool {
    Cli::command().get_subcommands().any(|command| command.get_name() == op)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    fn missing() -> Error {
        Error::io("open", "a.safetensors", std::io::ErrorKind::NotFound.into())
    }

    #[test]
    fn the_exit_code_is_found_below_any_context() {
        let wrapped = Err::<(), _>(missing()).context("while reading the base").unwrap_err();
        assert_eq!(exit_code(&wrapped), missing().exit_code());
        assert_eq!(exit_code(&anyhow::anyhow!("something else")), 1);
    }

    #[test]
    fn nothing_is_said_twice() {
        let text = message("merge", &missing().into());
        assert_eq!(text, "merge: a.safetensors: open: entity not found");
        let text = message("merge", &Error::argument("merge", "no models").into());
        assert_eq!(text, "merge: no models");
    }

    #[cfg(unix)]
    #[test]
    fn what_helps_against_too_many_files_is_said_once() {
        let refused = std::io::Error::from_raw_os_error(24);
        let text = message("fisher", &Error::io("open", "a.safetensors", refused).into());
        assert!(text.ends_with("; allow more with `ulimit -n`, as every input stays open"), "{text}");
        assert_eq!(text.matches("os error 24").count(), 1, "{text}");
    }

    #[test]
    fn a_command_is_named_and_a_part_of_the_library_is_not() {
        let text = |op| message("demo", &Error::mismatch(op, "they differ").into());
        assert_eq!(text("merge"), "demo: merge: they differ");
        assert_eq!(text("checkpoint.write"), "demo: they differ");
        let (op, what, flag) = ("plan".into(), "host memory".into(), "--host-memory".into());
        let budget = Error::Budget { op, what, need: 2, have: 1, flag };
        let needs = "host memory needs at least 2 bytes, the budget is 1; raise --host-memory";
        assert_eq!(message("merge", &budget.into()), format!("merge: {needs}"));
        let limit = Error::Limit { op: "fisher.gram".into(), limit: "bytes".into(), max: 1, asked: 2 };
        assert_eq!(message("step", &limit.into()), "step: fisher.gram: bytes is 1, 2 needed");
    }

    #[test]
    fn every_cause_is_said() {
        let wrapped = Err::<(), _>(missing()).context("base model").unwrap_err();
        assert_eq!(message("merge", &wrapped), "merge: base model: a.safetensors: open: entity not found");
    }
}
