//! `squisher demo`: the networks it makes read what PyTorch's read, and its command lines do what it did.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use support::files::folder as temporary;
use support::tool::{self, done, squisher};

/// What PyTorch measured on the same networks, rounded to four digits.
const YARDSTICK: &str = include_str!("../examples/data/yardstick.json");

fn demo(folder: &Path, flags: &[&str]) -> Command {
    let mut command = squisher(["demo", "--backend", "host"]);
    command.arg(folder).args(flags);
    command
}

fn json(folder: &Path, flags: &[&str]) -> Value {
    let flags = [&["--json"], flags].concat();
    tool::json(&mut demo(folder, &flags))
}

/// Every file below a folder, by its path in it.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).expect("the folder can be listed") {
            let path = entry.expect("the entry can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("it is below the folder").to_owned();
                found.insert(name, std::fs::read(&path).expect("the file can be read"));
            }
        }
    }
    found
}

fn rounded(share: &Value) -> f64 {
    (share.as_f64().expect("an accuracy is a number") * 1e4).round() / 1e4
}

#[test]
fn accuracies_equal_those_that_pytorch_measured() {
    let folder = temporary();
    let told = json(folder.path(), &[]);
    let rows = told["accuracies"].as_array().expect("a list of networks");
    let yardstick: Value = serde_json::from_str(YARDSTICK).expect("the yardstick is JSON");
    for (network, expected) in yardstick.as_object().expect("the yardstick is an object") {
        let row = rows.iter().find(|row| row["network"] == **network).expect("the table has every network");
        for view in ["whole", "top", "bottom"] {
            assert_eq!(rounded(&row[view]), rounded(&expected[view]), "{network} on {view}");
        }
    }
    assert_eq!(told["images"], 600);
    assert!(rows.iter().any(|row| row["network"] == "ubgm"), "{told}");
}

#[test]
fn a_fisher_prunes_better_than_chance() {
    let folder = temporary();
    let told = json(folder.path(), &[]);
    let rows = told["accuracies"].as_array().expect("a list of networks");
    let top = |network: &str| {
        let row = rows.iter().find(|row| row["network"] == network);
        row.unwrap_or_else(|| panic!("no {network} in {told}"))["top"].as_f64().expect("a number")
    };
    for percent in [25, 50, 75] {
        let (fisher, random) = (top(&format!("pruned-{percent}")), top(&format!("random-{percent}")));
        assert!(fisher > random, "{percent} %: {fisher} by the Fisher, {random} at random");
        let zeros = zeros_of(&folder.path().join(format!("pruned-{percent}.safetensors")));
        assert!(zeros >= 17_226 * percent / 100, "{zeros} zeros at {percent} %");
        let zeros = zeros_of(&folder.path().join(format!("reset-random-{}.safetensors", 100 - percent)));
        assert!(zeros >= 17_226 * percent / 100, "{zeros} zeros at random at {percent} %");
    }
}

fn zeros_of(model: &Path) -> usize {
    let bytes = std::fs::read(model).expect("the model can be read");
    let model = safetensors::SafeTensors::deserialize(&bytes).expect("the model is sound");
    let floats = model.iter().flat_map(|(_, tensor)| tensor.data().as_chunks::<4>().0.iter());
    floats.filter(|bytes| f32::from_le_bytes(**bytes) == 0.0).count()
}

/// Through a shell, after everything that the commands write was damaged.
#[cfg(unix)]
#[test]
fn the_printed_commands_make_the_same_files() {
    let scratch = temporary();
    // A name that a shell takes apart unless it is quoted.
    let folder = scratch.path().join("the user's digits");
    let told = json(&folder, &[]);
    let before = files(&folder);
    let commands: Vec<&str> =
        told["commands"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(commands.len() > 6, "{commands:?}");

    let made: Vec<&PathBuf> = before.keys().filter(|name| is_output(name)).collect();
    assert_eq!(made.len() + 1, commands.len(), "one file a command, and distance prints: {made:?}");
    for name in &made {
        std::fs::write(folder.join(name), "damaged").expect("the file can be written");
    }
    for command in &commands {
        done(Command::new("bash").args(["-c", command]).env_remove("RUST_LOG").stdin(Stdio::null()));
    }
    let distance = format!("{} --json", commands[commands.len() - 1]);
    let again = done(Command::new("bash").args(["-c", &distance]).stdin(Stdio::null()));
    let again: Value = serde_json::from_slice(&again.stdout).expect("stdout is one JSON object");
    assert_eq!(again["matrix"], told["distances"]["matrix"], "{distance}");
    let after = files(&folder);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, bytes) in &before {
        assert!(after[name] == *bytes, "{} differs", name.display());
    }
}

/// Whether a command of the demo wrote it, and it was not there from the start.
fn is_output(name: &Path) -> bool {
    let name = name.to_string_lossy();
    let made = ["merged-", "pruned-", "mask-", "reset-", "report"];
    made.iter().any(|stem| name.starts_with(stem)) || name.ends_with("fisher.safetensors")
}

#[test]
fn the_printed_text_has_the_commands_and_the_table() {
    let folder = temporary();
    let told = json(folder.path(), &[]);
    let text = String::from_utf8(done(&mut demo(folder.path(), &["--overwrite"])).stdout).expect("UTF-8");
    for command in told["commands"].as_array().expect("a list") {
        let command = command.as_str().expect("a command is a string");
        assert!(text.contains(&format!("\n{command}\n")), "{command} is not in\n{text}");
    }
    let row = ["fisher", "0.9367", "0.7233", "0.7217"];
    assert!(text.lines().any(|line| line.split_whitespace().eq(row)), "{text}");
}

#[test]
fn a_dry_run_lists_the_commands_and_writes_nothing() {
    let scratch = temporary();
    let folder = scratch.path().join("new");
    let planned = json(&folder, &["--dry-run"]);
    assert!(!folder.exists(), "a dry run made the folder");
    assert_eq!(planned["commands"], json(&folder, &[])["commands"]);
}

#[test]
fn a_folder_in_use_is_refused_and_left_alone() {
    let folder = temporary();
    std::fs::write(folder.path().join("mine"), "mine").expect("the file can be written");
    let refused = demo(folder.path(), &[]).output().expect("the tool can be started");
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let message = String::from_utf8(refused.stderr).expect("UTF-8");
    assert!(message.contains("the folder is not empty"), "{message}");
    assert_eq!(files(folder.path()).len(), 1);

    done(&mut demo(folder.path(), &["--overwrite"]));
    assert_eq!(files(folder.path())[Path::new("mine")], b"mine");
}

#[test]
fn without_a_folder_it_names_the_temporary_one_it_made() {
    let elsewhere = temporary();
    let mut command = squisher(["demo", "--backend", "host", "--json"]);
    command.current_dir(elsewhere.path()).env("TMPDIR", elsewhere.path()).env("TMP", elsewhere.path());
    let told = tool::json(&mut command);
    let folder = PathBuf::from(told["folder"].as_str().expect("a path"));
    assert!(folder.starts_with(elsewhere.path()) && folder.join("merged-fisher.safetensors").is_file());
}
