//! What `cargo xtask test` does, as a list.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Result, vulkan};

/// Runs every check in order, up to the first failure.
pub(crate) fn test(test_args: &[String]) -> Result<()> {
    let start = Instant::now();
    for tool in [("fmt", "rustfmt", "rustfmt"), ("clippy", "clippy", "rust-clippy")] {
        require(tool)?;
    }

    timed("Vulkan driver", || if skip_gpu_tests() { Ok(skip_note()) } else { vulkan::ensure() })?;

    let mut test = vec!["test", "--workspace"];
    test.extend(test_args.iter().map(String::as_str));
    step("formatting", &["fmt", "--all", "--check"])?;
    step("clippy", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    step("clippy, as embedded", &["clippy", "--no-default-features", "--lib", "--", "-D", "warnings"])?;
    step("tests", &test)?;
    step("documentation", &["doc", "--no-deps"])?;

    println!("\nall checks passed in {}", seconds(start.elapsed()));
    Ok(())
}

/// The same reading as `build.rs` has.
fn skip_gpu_tests() -> bool {
    std::env::var_os("SQUISHER_SKIP_GPU_TESTS").is_some_and(|value| value == "1")
}

fn skip_note() -> String {
    "not looked for: SQUISHER_SKIP_GPU_TESTS=1, tests that need an adapter are ignored".to_owned()
}

/// Fails with the way to get it where a cargo command is not installed.
fn require((subcommand, component, package): (&str, &str, &str)) -> Result<()> {
    let found = cargo(&[subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err(format!(
        "`cargo {subcommand}` is missing: run `rustup component add {component}`, \
         or install your distribution's package (Debian: `apt-get install {package}`)"
    ))
}

fn step(title: &str, args: &[&str]) -> Result<()> {
    timed(title, || {
        println!("cargo {}", args.join(" "));
        run(&mut cargo(args)).map(|()| String::new())
    })
}

/// A heading, the work, and how long it took.
fn timed(title: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    let start = Instant::now();
    println!("\n== {title}");
    let note = work().map_err(|problem| format!("{title}: {problem}"))?;
    if !note.is_empty() {
        println!("{note}");
    }
    println!("-- {title}: passed in {}", seconds(start.elapsed()));
    Ok(())
}

/// The cargo that started us, at the repository's root. Documentation has no `-- -D warnings`.
fn cargo(args: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(program);
    command.args(args).current_dir(root);
    if args[0] == "doc" {
        command.env("RUSTDOCFLAGS", "-Dwarnings");
    }
    command
}

/// Runs a command with this terminal, and takes any end but success as a failure.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} ended with {status}")),
        Err(error) => Err(format!("cannot start {program}: {error}")),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
