//! The command-line tool as a program: what it prints where, and how it ends.

use std::process::{Command, Output, Stdio};

use assert_cmd::cargo::CommandCargoExt;

fn squisher(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("squisher").expect("the tests are built together with the tool");
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Output {
    squisher(args).output().expect("the tool can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the tool prints UTF-8")
}

/// Runs the tool through a shell, for what only a shell can do to its streams.
#[cfg(unix)]
fn shell(script: &str) -> Output {
    let tool = squisher(&[]).get_program().to_owned();
    Command::new("bash").args(["-c", script]).env("SQUISHER", tool).output().expect("bash can be started")
}

fn subcommands() -> Vec<String> {
    let help = text(&output(&["--help"]).stdout);
    let listed = help.split("Commands:").nth(1).and_then(|rest| rest.split("\n\n").next());
    let lines = listed.expect("the help lists the commands").lines();
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[test]
fn help_goes_to_stdout_and_lists_commands_and_exit_codes() {
    let help = output(&["--help"]);
    assert!(help.status.success());
    let help = text(&help.stdout);
    for word in ["completions", "man", "Exit codes:", "130", "NO_COLOR"] {
        assert!(help.contains(word), "--help does not mention {word}:\n{help}");
    }
}

#[test]
fn every_command_has_help_with_examples() {
    for name in subcommands() {
        let help = text(&output(&[&name, "--help"]).stdout);
        assert!(
            name == "help" || help.contains(&format!("squisher {name}")),
            "{name} shows no usage:\n{help}"
        );
        assert!(name == "help" || help.contains("Examples:"), "{name} shows no example:\n{help}");
    }
}

#[test]
fn usage_errors_exit_2_with_stdout_empty() {
    for args in [&["frobnicate"][..], &["completions"], &["completions", "tcsh2"], &["-q", "-v", "man"], &[]]
    {
        let refused = output(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert!(refused.stdout.is_empty(), "{args:?} wrote to stdout");
        assert!(!refused.stderr.is_empty(), "{args:?} said nothing");
    }
}

#[test]
fn errors_of_the_library_keep_their_code_and_name_the_operation() {
    let refused = output(&["man", "frobnicate"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(refused.stdout.is_empty());
    let message = text(&refused.stderr);
    assert!(message.starts_with("squisher: man: no command \"frobnicate\"; there are "), "{message}");
    assert!(message.contains("completions"), "the remedy is not named: {message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = text(&output(&["completions", shell]).stdout);
        for name in subcommands() {
            assert!(script.contains(&name), "the {shell} completions lack {name}");
        }
    }
}

#[test]
fn every_manual_page_renders() {
    let page = text(&output(&["man"]).stdout);
    assert!(page.contains(".TH squisher 1"), "{page}");
    assert!(page.contains("Exit codes"), "{page}");
    for name in subcommands() {
        let page = text(&output(&["man", &name]).stdout);
        assert!(page.contains(&format!(".TH squisher-{name} 1")), "{page}");
    }
}

#[cfg(unix)]
#[test]
fn closed_streams_do_not_crash_it() {
    for streams in ["<&-", ">&-", "<&- >&-", "<&- >&- 2>&-"] {
        let ended = shell(&format!("\"$SQUISHER\" man {streams}"));
        assert!(ended.status.success(), "{streams}: {ended:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_leaves_is_no_error() {
    // The writer waits until the reader is gone, so that the very first write meets the broken pipe.
    let ended = shell("set -o pipefail; { sleep 0.3; \"$SQUISHER\" completions bash; } | true");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_stdout_is_an_error() {
    let ended = shell("\"$SQUISHER\" man > /dev/full");
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    assert!(text(&ended.stderr).starts_with("squisher: man: standard output: "), "{ended:?}");
}

#[test]
fn no_color_is_honoured() {
    let coloured = |key: &str| squisher(&["frobnicate"]).env(key, "1").output().expect("it starts").stderr;
    assert!(coloured("CLICOLOR_FORCE").contains(&0x1b), "this test would not see colours");
    assert!(!coloured("NO_COLOR").contains(&0x1b));
}
