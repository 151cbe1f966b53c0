//! The command-line tool as a program: what it prints where, and how it ends.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use support::files::{self, f32s, folder};
use support::tool::{self, output, squisher};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the tool prints UTF-8")
}

/// Runs the tool through a shell, for what only a shell can do to its streams.
#[cfg(unix)]
fn shell(script: &str) -> Output {
    let tool = squisher([""; 0]).get_program().to_owned();
    Command::new("bash").args(["-c", script]).env("SQUISHER", tool).output().expect("bash can be started")
}

/// A file of f32 tensors, a Fisher file where `kind` is given.
fn write(folder: &Path, name: &str, tensors: &[(&str, &[usize], &[f32])], kind: Option<&str>) -> PathBuf {
    let tensors = tensors.iter().map(|(name, shape, values)| (*name, f32s(shape, values)));
    let metadata: Vec<_> = kind.iter().map(|kind| ("squisher.kind", *kind)).collect();
    files::write_with(&folder.join(name), tensors, &metadata)
}

fn arg(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

fn json_of(args: &[&str]) -> Value {
    tool::json(&mut squisher(args))
}

fn subcommands() -> Vec<String> {
    let help = text(&output(&["--help"]).stdout);
    let listed = help.split("Commands:").nth(1).and_then(|rest| rest.split("\n\n").next());
    let lines = listed.expect("the help lists the commands").lines();
    // A line that goes on with the text of the one before it is indented further.
    let begun = lines.filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    begun.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// A path's bytes need not be text, and a report of what is done does not fail for that.
#[cfg(unix)]
#[test]
fn json_of_paths_that_are_no_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = folder();
    let fisher = write(folder.path(), "f", &[("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0])], Some("joint"));
    let strange = |name: &[u8]| folder.path().join(OsStr::from_bytes(name));
    let input = strange(b"in\xFF.safetensors");
    std::fs::rename(fisher, &input).expect("the system allows any bytes");
    let as_told = |path: &Path| Value::from(path.to_string_lossy());
    for (command, rest) in [("mask", &["--keep", "0.5"][..]), ("embed", &[]), ("prune", &["--keep", "0.5"])] {
        let (out, mask) = (strange(format!("{command}-").as_bytes()), strange(b"mask\xFE.safetensors"));
        let out = out.with_file_name(OsStr::from_bytes(
            &[out.file_name().expect("named").as_bytes(), b"\xFF"].concat(),
        ));
        let mut tool = squisher([command]);
        tool.arg(&input).args(rest).arg("-o").arg(&out).args(["--json", "--backend", "host"]);
        if command == "prune" {
            tool.arg("--fisher").arg(&input).arg("--mask-out").arg(&mask);
        }
        let told = tool::json(&mut tool);
        assert_eq!(told["output"], as_told(&out), "{command}: {told}");
        assert!(out.exists(), "{command}");
        assert!(command != "prune" || told["mask"] == as_told(&mask), "{told}");
    }
    let mut ewc = squisher(["ewc", "--lambda", "1", "--json", "--backend", "host"]);
    for flag in ["--model", "--anchor", "--fisher"] {
        ewc.arg(flag).arg(&input);
    }
    assert_eq!(tool::json(&mut ewc)["terms"][0]["fisher"], as_told(&input));
    let told = tool::json(squisher(["inspect", "--json"]).arg(&input)).to_string();
    assert!(told.contains("in\u{FFFD}.safetensors"), "{told}");
}

#[test]
fn help_goes_to_stdout_and_lists_commands_and_exit_codes() {
    let help = output(&["--help"]);
    assert!(help.status.success());
    let help = text(&help.stdout);
    for word in
        ["adapters", "verify", "inspect", "extract", "completions", "man", "Exit codes:", "130", "NO_COLOR"]
    {
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
    let coloured = |key: &str| squisher(["frobnicate"]).env(key, "1").output().expect("it starts").stderr;
    assert!(coloured("CLICOLOR_FORCE").contains(&0x1b), "this test would not see colours");
    assert!(!coloured("NO_COLOR").contains(&0x1b));
}

#[test]
fn inspect_shows_tensors_and_escapes_their_names() {
    let folder = folder();
    let tensors: [(&str, &[usize], &[f32]); 2] =
        [("w\u{1b}[2J", &[2, 3], &[0.0; 6]), ("scalar", &[], &[1.0])];
    let model = write(folder.path(), "m.safetensors", &tensors, None);
    let shown = text(&output(&["inspect", arg(&model)]).stdout);
    assert!(shown.contains(r#""w\u{1b}[2J"  F32    [2, 3]         6  24 B"#), "{shown}");
    assert!(shown.ends_with("2 tensors, 7 elements, 28 B in 1 file\n"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "an escape sequence reached the terminal");
}

#[test]
fn inspect_json_has_stable_keys() {
    let folder = folder();
    let fisher =
        write(folder.path(), "f.safetensors", &[("w", &[4], &[0.0, 1.0, 4.0, 3.0])], Some("empirical"));
    let path = arg(&fisher);
    let mut values = json!({"min": 0.0, "max": 4.0, "mean": 2.0, "sum": 8.0, "zeros": 1, "invalid": 0});
    let tensor = json!({
        "name": "w", "dtype": "F32", "shape": [4], "elements": 4, "bytes": 16, "file": path, "fisher": values,
    });
    let top = json!({"top_fraction": 0.005, "top_elements": null, "top_threshold": null, "top_share": null});
    values.as_object_mut().expect("an object").extend(top.as_object().expect("an object").clone());
    let contents = json!({
        "path": path, "files": 1, "elements": 4, "bytes": 16, "metadata": {"squisher.kind": "empirical"},
        "tensors": [tensor], "fisher": values,
    });
    let want = json!({"schema_version": 1, "command": "inspect", "checkpoints": [contents], "captures": [], "optimizers": []});
    assert_eq!(json_of(&["inspect", "--json", path]), want);
    assert_eq!(json_of(&["--json", "inspect", path]), want, "global flags may stand before the command");
}

#[test]
fn inspect_tells_what_the_largest_values_of_a_fisher_hold() {
    let folder = folder();
    let mut values = [1.0_f32; 1000];
    (values[7], values[900]) = (501.0, 501.0);
    let fisher = write(folder.path(), "f.safetensors", &[("w", &[1000], &values)], Some("empirical"));
    let shown = json_of(&["inspect", "--json", arg(&fisher)]);
    let totals = &shown["checkpoints"][0]["fisher"];
    assert_eq!(totals["top_elements"], 5, "round-half-even of 1000 · 0.005");
    assert_eq!(totals["top_threshold"], 1.0);
    assert_eq!(totals["top_share"], 1005.0 / 2000.0);
    let shown = text(&output(&["inspect", arg(&fisher)]).stdout);
    assert!(shown.contains("the largest 0.5 % (5 values) hold 50.25 % of the sum"), "{shown}");
}

#[test]
fn inspect_tells_where_values_are_that_no_fisher_can_have() {
    let folder = folder();
    let tensors: [(&str, &[usize], &[f32]); 2] =
        [("a", &[3], &[1.0, f32::NAN, -1.0]), ("b", &[2, 2], &[0.0, 1.0, 2.0, f32::INFINITY])];
    let fisher = write(folder.path(), "f.safetensors", &tensors, Some("empirical"));
    let shown = json_of(&["inspect", "--json", arg(&fisher)]);
    let found = |tensor: usize| &shown["checkpoints"][0]["tensors"][tensor]["fisher"];
    assert_eq!((&found(0)["invalid"], &found(0)["first_invalid"]), (&json!(2), &json!(1)));
    assert_eq!((&found(1)["invalid"], &found(1)["first_invalid"]), (&json!(1), &json!(3)));
    let shown = text(&output(&["inspect", arg(&fisher)]).stdout);
    assert!(shown.contains("\"a\" has 2 such values, the first at index 1"), "{shown}");
    assert!(shown.contains("\"b\" has 1 such value, the first at index 3"), "{shown}");
}

#[test]
fn inspect_refuses_what_is_missing_or_damaged_with_stdout_empty() {
    let folder = folder();
    let damaged = folder.path().join("d.safetensors");
    std::fs::write(&damaged, b"version https://git-lfs.github.com/spec/v1\n").expect("it can be written");
    let sound = write(folder.path(), "m.safetensors", &[("w", &[1], &[1.0])], None);
    for bad in [damaged, folder.path().join("missing.safetensors")] {
        for flags in [&["inspect"][..], &["inspect", "--json"]] {
            let refused = output(&[flags, &[arg(&sound), arg(&bad)]].concat());
            assert_eq!(refused.status.code(), Some(3), "{refused:?}");
            assert!(refused.stdout.is_empty(), "{refused:?}");
            let message = text(&refused.stderr);
            assert!(message.starts_with(&format!("squisher: inspect: {}: ", arg(&bad))), "{message}");
        }
    }
}

#[test]
fn without_a_terminal_progress_is_silent() {
    let folder = folder();
    let fisher = write(folder.path(), "f.safetensors", &[("w", &[1], &[1.0])], Some("empirical"));
    let done = output(&["inspect", arg(&fisher)]);
    assert!(done.stderr.is_empty(), "{done:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn growing_a_file_past_its_limit_is_an_error_and_not_a_death() {
    let folder = folder();
    let script = format!("ulimit -f 1; \"$SQUISHER\" completions bash > {}/script", arg(folder.path()));
    let ended = shell(&script);
    assert_eq!(ended.status.code(), Some(7), "{ended:?}");
    assert!(text(&ended.stderr).contains("standard output: File too large"), "{ended:?}");
}

/// A Fisher file of 256 GiB of zeros that takes no space.
#[cfg(unix)]
fn endless_fisher(folder: &Path) -> PathBuf {
    let bytes = 1_u64 << 38;
    let header = json!({
        "__metadata__": {"squisher.kind": "empirical"},
        "w": {"dtype": "F32", "shape": [bytes / 4], "data_offsets": [0, bytes]},
    });
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let path = folder.join("endless.safetensors");
    let start = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    std::fs::write(&path, &start).expect("the header can be written");
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("it was just written");
    file.set_len(start.len() as u64 + bytes).expect("the file system has sparse files");
    path
}

/// A long job that has begun, so that its signal handlers are there, and what it says from then on.
#[cfg(unix)]
fn long_job(folder: &Path) -> (std::process::Child, impl Iterator<Item = String> + use<>) {
    use std::io::{BufRead, BufReader};

    let path = endless_fisher(folder);
    let mut job = squisher(["inspect", "-v", arg(&path)]);
    let mut job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the tool can be started");
    let mut lines =
        BufReader::new(job.stderr.take().expect("stderr is a pipe")).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("squisher: inspect: reading 256.0 GiB"));
    (job, lines)
}

#[cfg(unix)]
fn kill(job: &std::process::Child, signal: &str) {
    let sent = Command::new("kill").args([format!("-{signal}"), job.id().to_string()]).status();
    assert!(sent.expect("kill can be started").success());
}

#[cfg(unix)]
#[test]
fn a_signal_ends_a_long_job_with_its_exit_code() {
    let folder = folder();
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let (mut job, lines) = long_job(folder.path());
        kill(&job, signal);
        let rest: Vec<String> = lines.collect();
        assert_eq!(job.wait().expect("it ends").code(), Some(code), "{rest:?}");
        assert!(
            rest.iter().any(|line| line.starts_with("squisher: inspect: interrupted by signal")),
            "{rest:?}"
        );
    }
}

/// A job that has begun to print more than a pipe holds, to nobody: it cannot go on, and so cannot look
/// whether a signal came.
#[cfg(unix)]
fn stuck_job(folder: &Path) -> std::process::Child {
    use std::io::Read;

    let names: Vec<String> = (0..2000).map(|i| format!("a_name_long_enough_to_fill_a_pipe_{i}")).collect();
    let tensors: Vec<(&str, &[usize], &[f32])> =
        names.iter().map(|name| (name.as_str(), &[1][..], &[1.0][..])).collect();
    let fisher = write(folder, "f.safetensors", &tensors, Some("empirical"));
    let mut job = squisher(["inspect", arg(&fisher)]);
    let mut job = job.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the tool can be started");
    let printed = job.stdout.as_mut().expect("stdout is a pipe").read_exact(&mut [0]);
    printed.expect("it begins to print");
    job
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_it_at_once() {
    use std::time::{Duration, Instant};

    let folder = folder();
    let mut job = stuck_job(folder.path());
    kill(&job, "TERM");
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(job.try_wait().expect("it can be asked"), None, "the first signal only asks for an end");
    let asked = Instant::now();
    // Again and again, since a signal that is sent before the one before arrived is the same signal.
    while job.try_wait().expect("it can be asked").is_none() {
        if asked.elapsed() > Duration::from_secs(60) {
            kill(&job, "KILL");
            panic!("signals did not end it");
        }
        kill(&job, "TERM");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(job.wait().expect("it ended").code(), Some(143));
}

const STATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/optimizer");

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn extract_writes_the_accumulator_under_the_models_names() {
    let (folder, state) = (folder(), format!("{STATES}/adamw_f32"));
    let optimizer = format!("{state}/optimizer.pt");
    let out = folder.path().join("fisher.safetensors");
    let args = ["extract", &optimizer, "--model", &state, "-o", arg(&out)];
    let planned = json_of(&[&args[..], &["--json", "--dry-run"]].concat());
    assert!(!out.exists(), "a dry run wrote its output");
    let done = json_of(&[&args[..], &["--json"]].concat());
    assert_eq!(
        keys(&done),
        [
            "schema_version",
            "command",
            "tensors",
            "evidence",
            "renamed",
            "absent",
            "warnings",
            "elements",
            "scale",
            "scale_factor",
            "bytes_written",
            "output",
            "seconds",
            "timings"
        ]
    );
    let times = done["timings"].as_object().expect("an object");
    assert_eq!(
        times.keys().collect::<Vec<_>>(),
        ["seconds", "read", "upload", "compute", "readback", "write", "idle"]
    );
    let time = |stage: &str| times[stage].as_f64().expect("a number");
    // The next tensor may be read while one is scaled and written: the parts add up to the whole or more, and
    // none of them, with the time in which nothing is under way, to more than the whole.
    let whole = time("seconds");
    let parts = ["read", "compute", "write", "idle"].map(time).iter().sum::<f64>();
    assert!(parts >= whole * (1.0 - 1e-6), "{times:?}");
    for stage in ["read", "compute", "write"] {
        assert!(time(stage) + time("idle") <= whole * (1.0 + 1e-6), "{stage}: {times:?}");
    }
    for key in ["tensors", "evidence", "renamed", "absent", "elements"] {
        assert_eq!(planned[key], done[key], "the plan and what was done differ in {key}");
    }
    let model = json_of(&["inspect", "--json", &state]);
    let fisher = json_of(&["inspect", "--json", arg(&out)]);
    let names = |shown: &Value| -> Vec<String> {
        let tensors = shown["checkpoints"][0]["tensors"].as_array().expect("a list").iter();
        tensors.map(|tensor| format!("{} {}", tensor["name"], tensor["shape"])).collect()
    };
    assert_eq!(names(&fisher), names(&model));
    assert_eq!(fisher["checkpoints"][0]["metadata"]["squisher.scale"], "raw");
}

#[test]
fn an_output_that_exists_is_kept_unless_told_otherwise() {
    let (folder, state) = (folder(), format!("{STATES}/adamw_f32"));
    let optimizer = format!("{state}/optimizer.pt");
    let out = folder.path().join("fisher.safetensors");
    std::fs::write(&out, "precious").expect("it can be written");
    let args = ["extract", &optimizer, "--model", &state, "-o", arg(&out)];
    let refused = output(&args);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    assert!(text(&refused.stderr).contains("--overwrite"), "the remedy is not named: {refused:?}");
    assert_eq!(std::fs::read(&out).expect("it is there"), b"precious");
    assert!(output(&[&args[..], &["--overwrite"]].concat()).status.success());
    assert_ne!(std::fs::read(&out).expect("it is there"), b"precious");
}

#[test]
fn extract_refuses_by_kind_of_fault() {
    let folder = folder();
    let out = folder.path().join("fisher.safetensors");
    let refusals = [
        ("refused_other_model", &[][..], 4, "the state is not this model's"),
        ("refused_nan", &[], 3, "optimizer.pt: tensor "),
        ("adamw_f32", &["--scale", "mean"], 2, "pass --batch-size"),
        ("adamw_f32", &["--scale", "median"], 2, "median"),
        ("adamw_f32", &["--batch-size", "0"], 2, "--batch-size"),
    ];
    for (case, flags, code, problem) in refusals {
        let (optimizer, model) = (format!("{STATES}/{case}/optimizer.pt"), format!("{STATES}/{case}"));
        let args = ["extract", &optimizer, "--model", &model, "-o", arg(&out)];
        let refused = output(&[&args[..], flags].concat());
        assert_eq!(refused.status.code(), Some(code), "{case} {flags:?}: {refused:?}");
        assert!(refused.stdout.is_empty() && !out.exists(), "{case} {flags:?} left something");
        assert!(text(&refused.stderr).contains(problem), "{case} {flags:?}: {refused:?}");
    }
}

#[test]
fn warnings_are_on_stderr_until_quiet() {
    let (folder, state) = (folder(), format!("{STATES}/adamw_f32"));
    let optimizer = format!("{state}/optimizer.pt");
    let out = folder.path().join("fisher.safetensors");
    let args = ["extract", &optimizer, "--model", &state, "--dry-run", "-o", arg(&out)];
    assert!(text(&output(&args).stderr).contains("squisher: warning: "));
    assert!(output(&[&args[..], &["-q"]].concat()).stderr.is_empty());
}

#[test]
fn inspect_shows_an_optimizers_names_with_their_evidence() {
    let state = format!("{STATES}/trainer_groups");
    let optimizer = format!("{state}/optimizer.pt");
    let alone = json_of(&["inspect", "--json", &optimizer]);
    let alone = &alone["optimizers"][0];
    assert_eq!(keys(alone), ["path", "container", "groups", "entries", "map"]);
    assert!(alone["map"].is_null());
    let mapped = json_of(&["inspect", "--json", &optimizer, "--model", &state]);
    let map = &mapped["optimizers"][0]["map"];
    assert!(
        map["evidence"].as_str().is_some_and(|evidence| evidence.contains("order of definition")),
        "{map}"
    );
    assert_eq!(map["tensors"].as_array().map(Vec::len), alone["entries"].as_array().map(Vec::len));
    let shown = text(&output(&["inspect", &optimizer, "--model", &state]).stdout);
    assert!(shown.contains("names: the model's order of definition"), "{shown}");
    assert!(shown.contains("group 1: "), "{shown}");
}

#[test]
fn adapters_lists_the_host_and_marks_one_default() {
    let listing = json_of(&["adapters", "--json"]);
    assert_eq!(keys(&listing), ["schema_version", "command", "host", "adapters"]);
    let adapters = listing["adapters"].as_array().expect("a list");
    let defaults = adapters.iter().chain([&listing["host"]]).filter(|entry| entry["default"] == true);
    assert_eq!(defaults.count(), 1);
    let software = adapters.iter().filter(|adapter| adapter["software"] == true);
    assert!(software.clone().all(|adapter| adapter["default"] == false), "{listing}");
    assert!(text(&output(&["adapters"]).stdout).contains("threads"));
}

#[test]
fn verify_holds_every_kernel_on_the_host() {
    let verdicts = json_of(&["verify", "--backend", "host", "--json"]);
    assert_eq!(verdicts["passed"], true);
    assert!(verdicts["adapter"].as_str().is_some_and(|name| name.starts_with("host")), "{verdicts}");
    for kernel in verdicts["kernels"].as_array().expect("a list") {
        assert_eq!(keys(kernel), ["kernel", "cases", "skipped", "elements", "worst", "failures"]);
        assert!(kernel["elements"].as_u64() > Some(0), "{kernel} compared nothing");
        assert_eq!(kernel["skipped"], 0, "the host has all that a form needs");
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn an_adapter_answers_to_the_names_that_the_tool_prints() {
    let listed = json_of(&["adapters", "--json"]);
    let vulkan = listed["adapters"].as_array().expect("a list").iter().find(|a| a["backend"] == "vulkan");
    let name = vulkan.expect("tests need a Vulkan adapter")["name"].as_str().expect("a name").to_owned();
    let fisher = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/embed/four_tasks/task0.safetensors");
    let dry = |adapter: &str| {
        json_of(&["embed", fisher, "-o", "none", "--dry-run", "--json", "--adapter", adapter])["adapter"]
            .clone()
    };
    let reported = dry(&name);
    let reported = reported.as_str().expect("a name");
    assert!(reported.len() > name.len() && reported.starts_with(&name), "{reported}");
    assert_eq!(dry(reported), *reported);
    // As of an RTX 4090: a number that no place in the list has.
    let places = listed["adapters"].as_array().expect("a list").len();
    let numbers =
        reported.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<usize>().ok());
    for number in numbers.filter(|number| *number >= places) {
        assert_eq!(dry(&number.to_string()), *reported);
    }
}

#[test]
fn an_adapter_that_is_not_there_exits_5() {
    for flags in [&["--adapter", "no such adapter"][..], &["--adapter", "4096"]] {
        let refused = output(&[&["verify"], flags].concat());
        assert_eq!(refused.status.code(), Some(5), "{refused:?}");
        assert!(text(&refused.stderr).contains("--backend host"), "the remedy is not named: {refused:?}");
    }
    let refused = output(&["verify", "--adapter", "0", "--backend", "host"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
}

#[test]
fn bench_holds_kernels_to_ceilings_of_the_same_run_and_keeps_a_record() {
    let folder = folder();
    let kept = folder.path().join("record");
    let bench = ["bench", "--backend", "host", "--only", "optimizer.ema", "--size", "4096", "--size", "100"];
    let args = [&bench[..], &["--seconds", "0", "--host-memory", "1MiB", "--record", arg(&kept)]].concat();
    let measured = json_of(&[&args[..], &["--json"]].concat());
    let ceilings = measured["ceilings"].as_array().expect("a list of ceilings");
    let names: Vec<&str> = ceilings.iter().filter_map(|row| row["kernel"].as_str()).collect();
    assert_eq!(names, ["ceiling.copy", "ceiling.fma", "ceiling.products", "ceiling.latency"]);
    let kernel = &measured["kernels"][0];
    assert_eq!((kernel["kernel"].as_str(), kernel["bytes"].as_u64()), (Some("optimizer.ema"), Some(1200)));
    assert_eq!((kernel["bound"].as_str(), kernel["clock"].as_str()), (Some("bandwidth"), Some("host")));
    // Of the ceiling that was measured beside it, which is not the run's.
    let number = |key: &str| kernel[key].as_f64().expect("a number");
    let share = number("bytes_per_second") / number("ceiling_per_second");
    assert!((number("share") / share - 1.0).abs() < 1e-9, "{kernel}");

    let file = measured["file"].as_str().expect("where it was kept").to_owned();
    let text_before = std::fs::read_to_string(&file).expect("it was kept");
    assert!(text_before.starts_with("adapter,date,"), "{text_before}");
    let again = output(&args);
    assert_eq!(again.status.code(), Some(7), "a record is not replaced unasked");
    // Refused before anything is measured: this would not end in time.
    let long = ["bench", "--backend", "host", "--seconds", "86400", "--record", arg(&kept)];
    assert_eq!(output(&long).status.code(), Some(7));
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), text_before);
    let csv = output(&[&bench[..], &["--seconds", "0", "--host-memory", "1MiB", "--csv"]].concat());
    assert_eq!(text(&csv.stdout).lines().next(), text_before.lines().next());
    assert_eq!(output(&["bench", "--backend", "host", "--only", "no such"]).status.code(), Some(2));
}
