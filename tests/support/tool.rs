//! The tool as a process.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt;
use serde_json::Value;

/// The tool with these arguments: no log, and nothing on its standard input.
pub(crate) fn squisher<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::cargo_bin("squisher").expect("the tests are built together with the tool");
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// What the tool says to these arguments, and how it ends.
pub(crate) fn output(args: &[&str]) -> Output {
    squisher(args).output().expect("the tool can be started")
}

/// Runs a command that must succeed.
#[track_caller]
pub(crate) fn done(command: &mut Command) -> Output {
    let output = command.output().expect("the tool can be started");
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// What a command that must succeed prints: one JSON object.
#[track_caller]
pub(crate) fn json(command: &mut Command) -> Value {
    serde_json::from_slice(&done(command).stdout).expect("standard output is one JSON object")
}
