//! Repository chores, run as `cargo xtask`.

mod steps;
mod vulkan;

use std::process::ExitCode;

const HELP: &str = "\
Usage: cargo xtask test [ARGUMENT…]

Checks everything, in this order, up to the first failure: a Vulkan driver (installed where there is none),
formatting, clippy (whole workspace, then the library without default features), tests, documentation.
Arguments are passed on to `cargo test`.

The tests choose an adapter themselves; Mesa's software driver will do. Environment:
  SQUISHER_SKIP_GPU_TESTS=1  list the tests that need an adapter as ignored, and install nothing";

/// The chores' result: the text of a failure is for a person to read.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.split_first() {
        Some((task, rest)) if task == "test" => exit(steps::test(rest)),
        Some((flag, _)) if ["help", "-h", "--help"].contains(&flag.as_str()) => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}

fn exit(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("\nxtask: {problem}");
            ExitCode::FAILURE
        }
    }
}
