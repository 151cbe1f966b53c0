//! Merges that end early and go on: the same bytes and counts, less work, and nothing taken up that is not theirs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use squisher::checkpoint::{Dtype, Output, OutputLayout, OutputTensor};
use squisher::methods::merge::{MergeOptions, MergeReport, Method, Missing, NonFinite, merge};
use squisher::stream::Budget;
use squisher::{Backend, DType, Error, Interrupt, Progress, Run};
use tempfile::TempDir;

use crate::{files, fishers, folder, noise, options, run_within, support};

/// Ends the run when so many chunks are done.
struct EndAfter {
    chunks: AtomicU64,
    interrupt: Interrupt,
}

impl Progress for EndAfter {
    fn begin(&self, _bytes: u64) {}

    fn advance(&self, _bytes: u64) {
        if self.chunks.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.interrupt.request(15);
        }
    }
}

/// Two models of several shards with Fishers, some values of which no Fisher can have, and one tensor without.
struct Scene {
    folder: TempDir,
    options: MergeOptions,
}

const LEN: usize = 90_000;

/// The least that works, so that there are several chunks.
fn least() -> Budget {
    Budget { host_bytes: 1 << 20, device_bytes: 1 << 20, ..Budget::default() }
}

impl Scene {
    fn new() -> Self {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        for model in 0..2 {
            let weights =
                |seed: u64, name: &str, dtype| files::floats(name, dtype, &noise(seed + model, LEN));
            let tensors = [
                weights(1, "a", DType::F32),
                weights(3, "b", DType::BF16),
                weights(5, "c", DType::F32),
                files::floats("free", DType::F32, &noise(7 + model, LEN)),
                files::integers("steps", &[3, 4]),
            ];
            files::write(&path(&format!("model{model}.safetensors")), &tensors);
            let fisher = |seed: u64, name: &str| {
                let mut values = fishers(seed + model, LEN);
                values[LEN / 2] = -1.0;
                files::floats(name, DType::F32, &values)
            };
            let tensors = [fisher(11, "a"), fisher(13, "b"), fisher(15, "c")];
            files::write(&path(&format!("fisher{model}.safetensors")), &tensors);
        }
        let pair = |m: u64| (path(&format!("model{m}.safetensors")), path(&format!("fisher{m}.safetensors")));
        let ((m0, f0), (m1, f1)) = (pair(0), pair(1));
        let options = MergeOptions {
            missing: Missing::Average,
            non_finite: NonFinite::Zero,
            floor: 1e-3,
            // A mark after each chunk.
            resume: Some(1),
            ..options(Method::Fisher, &[(&m0, &f0), (&m1, &f1)])
        };
        Self { folder, options }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("merged")
    }

    fn partial(&self) -> PathBuf {
        self.folder.path().join(".merged.partial-kept")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join(".merged.partial-kept.json")
    }

    fn run(&self, options: &MergeOptions, backend: &Backend) -> Result<MergeReport, Error> {
        run_within(least(), options, &self.output(), backend)
    }

    /// Runs until `chunks` are done; whether it was interrupted.
    fn interrupted(&self, options: &MergeOptions, backend: &Backend, chunks: u64) -> bool {
        let interrupt = Interrupt::default();
        let progress = EndAfter { chunks: AtomicU64::new(chunks), interrupt: interrupt.clone() };
        let run = Run { budget: least(), progress: &progress, interrupt, ..Run::new(backend) };
        match merge(options, &self.output(), &run) {
            Ok(_) => false,
            Err(Error::Interrupted { signal: 15 }) => true,
            Err(other) => panic!("{other}"),
        }
    }

    fn clear(&self) {
        let output = self.output();
        if output.is_dir() {
            fs::remove_dir_all(output).expect("removes");
        } else {
            fs::remove_file(output).expect("removes");
        }
    }

    fn nothing_is_left(&self) -> bool {
        !self.partial().exists() && !self.journal().exists()
    }
}

/// What must not depend on where a merge was interrupted.
fn counts(report: &MergeReport) -> [u64; 8] {
    [
        report.elements,
        report.fallback,
        report.floored,
        report.raised,
        report.dominated,
        report.averaged,
        report.non_finite,
        report.copied,
    ]
}

/// The files of an output and their bytes.
fn bytes_of(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if path.is_file() {
        return vec![(PathBuf::new(), fs::read(path).expect("reads"))];
    }
    let mut files: Vec<_> = fs::read_dir(path)
        .expect("a folder")
        .map(|entry| {
            let entry = entry.expect("an entry");
            (PathBuf::from(entry.file_name()), fs::read(entry.path()).expect("reads"))
        })
        .collect();
    files.sort();
    files
}

#[test]
fn a_merge_that_was_interrupted_goes_on_to_the_same_bytes_and_counts() {
    let scene = Scene::new();
    for shard_bytes in [None, Some(400_000)] {
        let options = MergeOptions { shard_bytes, ..scene.options.clone() };
        for backend in support::backends() {
            let whole = scene.run(&options, &backend).expect("a sound merge");
            assert!(whole.non_finite > 0 && whole.raised > 0 && whole.averaged > 0, "{whole:?}");
            let want = bytes_of(&scene.output());
            scene.clear();
            let mut interruptions = 0;
            for chunks in 1.. {
                if !scene.interrupted(&options, &backend, chunks) {
                    break;
                }
                interruptions += 1;
                assert!(!scene.output().exists() && scene.journal().exists(), "after {chunks} chunks");
                let rest = scene.run(&options, &backend).expect("it goes on");
                assert_eq!(counts(&rest), counts(&whole), "after {chunks} chunks on {}", backend.name());
                assert!(rest.bytes_read < whole.bytes_read, "after {chunks} chunks it read everything again");
                assert!(
                    bytes_of(&scene.output()) == want,
                    "other bytes after {chunks} chunks on {}",
                    backend.name()
                );
                assert!(scene.nothing_is_left());
                scene.clear();
            }
            assert!(interruptions > 3, "only {interruptions} interruptions on {}", backend.name());
            scene.clear();
        }
    }
}

#[test]
fn an_interrupt_before_the_first_mark_leaves_nothing() {
    let scene = Scene::new();
    let options = MergeOptions { resume: Some(1 << 30), ..scene.options.clone() };
    assert!(scene.interrupted(&options, &Backend::Host, 1));
    assert!(scene.nothing_is_left() && !scene.output().exists());
}

#[test]
fn a_merge_may_be_interrupted_again_and_again() {
    let scene = Scene::new();
    scene.run(&scene.options, &Backend::Host).expect("a sound merge");
    let want = bytes_of(&scene.output());
    scene.clear();
    let mut runs = 1;
    while scene.interrupted(&scene.options, &Backend::Host, 1) {
        runs += 1;
    }
    assert!(runs > 4, "{runs} runs");
    assert!(bytes_of(&scene.output()) == want && scene.nothing_is_left());
}

/// What lies beyond the mark was never vouched for: whatever a run that was killed left there is written again.
#[test]
fn bytes_beyond_the_mark_count_for_nothing() {
    let scene = Scene::new();
    scene.run(&scene.options, &Backend::Host).expect("a sound merge");
    let want = bytes_of(&scene.output());
    scene.clear();
    assert!(scene.interrupted(&scene.options, &Backend::Host, 1));
    let journal = fs::read(scene.journal()).expect("a journal");
    assert!(scene.interrupted(&scene.options, &Backend::Host, 2));
    fs::write(scene.journal(), journal).expect("the earlier mark");
    let mut bytes = fs::read(scene.partial()).expect("a partial");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[..header].fill(b'x');
    let end = bytes.len();
    bytes[end - 1000..].fill(0xff);
    fs::write(scene.partial(), bytes).expect("writes");
    scene.run(&scene.options, &Backend::Host).expect("it goes on");
    assert!(bytes_of(&scene.output()) == want);
}

#[test]
fn what_another_job_left_is_refused_and_stays() {
    let scene = Scene::new();
    assert!(scene.interrupted(&scene.options, &Backend::Host, 2));
    let left = (fs::read(scene.partial()).expect("reads"), fs::read(scene.journal()).expect("reads"));
    let refused_within = |budget: Budget, options: &MergeOptions, says: &str| {
        let error = run_within(budget, options, &scene.output(), &Backend::Host).expect_err("another job");
        assert_eq!(error.exit_code(), 7);
        assert!(error.to_string().contains(says), "`{says}` is not in: {error}");
        let now = (fs::read(scene.partial()).expect("reads"), fs::read(scene.journal()).expect("reads"));
        assert!(now == left && !scene.output().exists());
    };
    let refused = |options: &MergeOptions, says: &str| refused_within(least(), options, says);
    let mut other = scene.options.clone();
    other.models[1].weight = 0.5;
    refused(&other, "it had `weight: 1`, this one has `weight: 0.5`");
    let other = MergeOptions { dtype: Some(DType::BF16), ..scene.options.clone() };
    refused(&other, "left by another job");
    refused_within(Budget::default(), &scene.options, "memory limits that make");
    refused(
        &MergeOptions { resume: None, ..scene.options.clone() },
        "go on from it with --resume, or remove it",
    );
    let model = scene.folder.path().join("model1.safetensors");
    fs::write(&model, fs::read(&model).expect("reads")).expect("writes the same again");
    refused(&scene.options, "model1.safetensors: ");
}

/// A fault of the data would end every run alike: nothing is kept of it.
#[test]
fn nothing_is_kept_of_a_merge_that_cannot_be_done() {
    let scene = Scene::new();
    let options = MergeOptions { non_finite: NonFinite::Error, floor: 0.0, ..scene.options.clone() };
    let error = scene.run(&options, &Backend::Host).expect_err("a negative Fisher");
    assert_eq!(error.exit_code(), 3);
    assert!(scene.nothing_is_left());
}

#[test]
fn a_run_that_is_refused_leaves_nothing() {
    let scene = Scene::new();
    let tensors = vec![OutputTensor::new("w", Dtype::F32, vec![1])];
    let layout = OutputLayout::single(tensors, BTreeMap::new());
    let living = Output::create(scene.output(), layout, false, &[]).expect("creates");
    let refused = scene.run(&scene.options, &Backend::Host).expect_err("another run").to_string();
    assert!(refused.contains("another run is writing this output"), "{refused}");
    assert!(scene.nothing_is_left());
    drop(living);
}

/// A partial without its journal may be anything, such as an output that was replaced.
#[test]
fn a_partial_without_a_journal_is_made_anew() {
    let scene = Scene::new();
    scene.run(&scene.options, &Backend::Host).expect("a sound merge");
    let want = bytes_of(&scene.output());
    for resume in [Some(1), None] {
        scene.clear();
        assert!(scene.interrupted(&scene.options, &Backend::Host, 3));
        fs::remove_file(scene.journal()).expect("removes");
        let options = MergeOptions { resume, ..scene.options.clone() };
        scene.run(&options, &Backend::Host).expect("a sound merge");
        assert!(bytes_of(&scene.output()) == want && scene.nothing_is_left());
    }
}

/// The other process of [`a_killed_merge_goes_on`].
#[test]
#[ignore = "waits to be killed"]
fn child_that_waits_to_be_killed() {
    struct Waits(AtomicU64);
    impl Progress for Waits {
        fn begin(&self, _bytes: u64) {}

        fn advance(&self, _bytes: u64) {
            if self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
                println!("ready");
                std::thread::sleep(std::time::Duration::from_secs(600));
            }
        }
    }
    let folder = PathBuf::from(std::env::var_os("SQUISHER_TEST_FOLDER").expect("set by the parent"));
    let path = |name: &str| folder.join(name);
    let scene = Scene::new();
    let models =
        [0, 1].map(|m| (path(&format!("model{m}.safetensors")), path(&format!("fisher{m}.safetensors"))));
    let mut options = scene.options.clone();
    for (model, (theta, fisher)) in options.models.iter_mut().zip(models) {
        (model.path, model.fisher) = (theta, Some(fisher));
    }
    let shards = MergeOptions { shard_bytes: Some(400_000), ..options };
    let waits = Waits(AtomicU64::new(3));
    let run = Run { budget: least(), progress: &waits, ..Run::new(&Backend::Host) };
    let _ended = merge(&shards, &path("merged"), &run);
}

#[cfg(unix)]
#[test]
fn a_killed_merge_goes_on() {
    use std::io::BufRead as _;

    let scene = Scene::new();
    let options = MergeOptions { shard_bytes: Some(400_000), ..scene.options.clone() };
    let whole = scene.run(&options, &Backend::Host).expect("a sound merge");
    let want = bytes_of(&scene.output());
    scene.clear();
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "resume::child_that_waits_to_be_killed", "--ignored", "--nocapture"])
        .env("SQUISHER_TEST_FOLDER", scene.folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let output = std::io::BufReader::new(child.stdout.take().expect("a pipe"));
    assert!(output.lines().any(|line| line.expect("text").ends_with("ready")), "the child ended by itself");
    let living = scene.run(&options, &Backend::Host).expect_err("another run").to_string();
    assert!(living.contains("another run is writing this output"), "{living}");
    let living = scene.run(&MergeOptions { resume: None, ..options.clone() }, &Backend::Host);
    assert!(living.expect_err("another run").to_string().contains("another run is writing this output"));
    child.kill().expect("SIGKILL");
    child.wait().expect("ends");

    let rest = scene.run(&options, &Backend::Host).expect("it goes on");
    assert_eq!(counts(&rest), counts(&whole));
    assert!(rest.bytes_read < whole.bytes_read, "it read everything again");
    assert!(bytes_of(&scene.output()) == want && scene.nothing_is_left());
}

#[test]
fn the_tool_goes_on_where_it_was_interrupted() {
    let scene = Scene::new();
    let tool = |flags: &[&str]| {
        crate::command(&MergeOptions { ..scene.options.clone() }, &scene.output())
            .args([
                "--missing",
                "average",
                "--non-finite",
                "zero",
                "--backend",
                "host",
                "--host-memory",
                "1MiB",
            ])
            .args(flags)
            .output()
            .expect("the tool starts")
    };
    // The tool marks too seldom for so small a merge: the library leaves what the tool goes on from.
    let options = MergeOptions { floor: 0.0, ..scene.options.clone() };
    assert!(scene.interrupted(&options, &Backend::Host, 3));
    let refused = tool(&[]);
    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    let done = tool(&["--resume"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let resumed = bytes_of(&scene.output());
    scene.clear();
    assert_eq!(tool(&["--resume"]).status.code(), Some(0));
    assert!(bytes_of(&scene.output()) == resumed && scene.nothing_is_left());
}
