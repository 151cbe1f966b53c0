//! What the tool says to someone who gave it the wrong thing: the likeliest mistakes, the words that help, the exit code.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use support::files::{self, f32s, folder};
use support::tool::squisher;

const STATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/optimizer");

/// A folder to work in, and the tool run there.
struct Bench(TempDir);

impl Bench {
    fn new() -> Self {
        Self(folder())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, line: &str) -> Output {
        squisher(line.split_whitespace()).current_dir(self.path()).output().expect("the tool can be started")
    }

    /// Runs `line`, which must fail with `code`, write nothing to standard output, and say all of `parts`.
    #[track_caller]
    fn refuses(&self, line: &str, code: i32, parts: &[&str]) -> String {
        let ended = self.run(line);
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{line}: {said}");
        assert!(ended.stdout.is_empty(), "{line}: {ended:?}");
        parts.iter().for_each(|part| assert!(said.contains(part), "{line} does not say {part:?}: {said}"));
        said
    }

    /// Runs `line`, which must succeed: standard output and standard error.
    #[track_caller]
    fn runs(&self, line: &str) -> (String, String) {
        let ended = self.run(line);
        assert!(ended.status.success(), "{line}: {ended:?}");
        (text(&ended.stdout), text(&ended.stderr))
    }

    /// A file of f32 tensors of one axis, with metadata.
    fn file(&self, name: &str, tensors: &[(&str, &[f32])], metadata: &[(&str, &str)]) -> PathBuf {
        let tensors = tensors.iter().map(|(name, values)| (*name, f32s(&[values.len()], values)));
        files::write_with(&self.path().join(name), tensors, metadata)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the tool prints UTF-8")
}

#[test]
fn numbers_below_zero_are_refused_for_what_they_are() {
    let bench = Bench::new();
    for (line, says) in [
        ("merge --method fisher --model a --fisher f --floor -1 -o o", "floor is -1, expected"),
        ("merge --method linear --model a --shard-size -5 -o o", "--shard-size"),
        ("extract s --model m -o o --batch-size -3", "expected a whole number of at least 1"),
        ("merge r.yml -o o --device-memory -5", "'-5' for '--device-memory <SIZE>'"),
        ("mask f --keep -0.1 -o o", "expected a number from 0 to 1"),
        ("fisher c --kind ema --beta -0.5 -o o", "c"),
    ] {
        let code = if line.starts_with("fisher") { 3 } else { 2 };
        let said = bench.refuses(line, code, &[says]);
        assert!(!said.contains("unexpected argument"), "{line}: {said}");
    }
}

#[test]
fn files_of_pytorch_are_named_with_what_to_do() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path().join("bin-a")).expect("writable");
    std::fs::write(bench.path().join("bin-a/pytorch_model.bin"), b"PK\x03\x04").expect("writable");
    let advice = "save_pretrained(safe_serialization=True)";
    bench.refuses("merge --method linear --model bin-a -o o", 3, &["safetensors is read here", advice]);
    let one = bench.refuses("merge --method linear --model bin-a/pytorch_model.bin -o o", 3, &[advice]);
    assert!(!one.contains("another name"), "{one}");
    // A trainer's own files are not a model.
    std::fs::rename(
        bench.path().join("bin-a/pytorch_model.bin"),
        bench.path().join("bin-a/training_args.bin"),
    )
    .expect("renamed");
    let none = bench.refuses("merge --method linear --model bin-a -o o", 3, &["no .safetensors file"]);
    assert!(!none.contains("training_args"), "{none}");
    std::fs::rename(bench.path().join("bin-a/training_args.bin"), bench.path().join("bin-a/order.pt"))
        .expect("renamed");
    let state = format!("{STATES}/adamw_f32/optimizer.pt");
    bench.refuses(
        &format!("extract {state} --model bin-a -o o"),
        3,
        &["\"order.pt\": give that file's own path"],
    );
}

#[test]
fn what_is_no_safetensors_file_is_named() {
    let bench = Bench::new();
    std::fs::write(bench.path().join("x.safetensors"), b"{\"weight_map\": {}}").expect("writable");
    bench.refuses("inspect x.safetensors", 3, &["this is JSON", ".safetensors.index.json"]);
    bench.refuses(
        "inspect mistralai/Mistral-7B-v0.1",
        3,
        &["Hugging Face Hub are not resolved", "give its folder"],
    );
    let missing = bench.refuses("inspect folder/x.safetensors", 3, &["No such file"]);
    assert!(!missing.contains("Hub"), "{missing}");
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_recipe() {
    let bench = Bench::new();
    let made = Command::new("mkfifo").arg(bench.path().join("pipe")).status();
    assert!(made.expect("mkfifo can be started").success());
    bench.refuses("merge pipe -o o", 3, &["not a YAML recipe"]);
}

#[test]
fn an_output_of_another_kind_is_a_usage_error() {
    let bench = Bench::new();
    bench.file("f.safetensors", &[("w", &[1.0, 2.0])], &[]);
    bench.refuses("report f.safetensors -o r.pdf", 2, &["r.pdf", ".html"]);
    bench.refuses("distance f.safetensors f.safetensors -o d.txt", 2, &["d.txt", ".csv"]);
    bench.refuses("verify --dry-run", 2, &["verify: has no --dry-run"]);
    let (said, _) = bench.runs("report f.safetensors -o r.html --dry-run");
    assert!(said.contains("would write r.html"), "{said}");
    let (said, _) = bench.runs("report f.safetensors -o r.HTM --dry-run --json");
    assert!(said.contains("\"dry_run\": true"), "{said}");
    assert!(!bench.path().join("r.html").exists());
    bench.runs("report f.safetensors -o r.html");
}

#[test]
fn a_model_in_a_fishers_place_is_suspected() {
    let bench = Bench::new();
    bench.file("model.safetensors", &[("w", &[1.0, -2.0])], &[]);
    bench.file("f.safetensors", &[("w", &[1.0, 2.0])], &[]);
    let swapped = "merge --method fisher --model f.safetensors --fisher model.safetensors -o o.safetensors";
    bench.refuses(swapped, 3, &["index 1 is -2.0", "so this is not a Fisher (a model in its place?)"]);
}

#[test]
fn messages_name_no_part_of_the_library() {
    let bench = Bench::new();
    let state = format!("{STATES}/refused_other_model");
    let said = bench.refuses(
        &format!("extract {state}/optimizer.pt --model {state} -o o"),
        4,
        &["not this model's"],
    );
    assert!(said.starts_with("squisher: extract: /"), "{said}");
    bench.file("f.safetensors", &[("w", &[1.0, 2.0])], &[]);
    let said = bench.refuses(
        "mask f.safetensors --keep 0.5 -o o --adapter 0 --backend host",
        2,
        &["exclude each other"],
    );
    assert!(said.starts_with("squisher: mask: --adapter 0 and"), "{said}");
    let said = bench.refuses(
        "mask f.safetensors --keep 0.5 -o o --backend dx12",
        5,
        &["an adapter of dx12 was not found"],
    );
    assert!(!said.contains("hardware adapter was"), "{said}");
}

#[test]
fn inspect_shows_a_state_whose_names_are_not_certain() {
    let bench = Bench::new();
    let (optimizer, model) =
        (format!("{STATES}/equal_shapes/optimizer.pt"), format!("{STATES}/equal_shapes"));
    let models = bench.path().join("model");
    std::fs::create_dir(&models).expect("writable");
    std::fs::copy(format!("{model}/model.safetensors"), models.join("model.safetensors")).expect("copied");
    let (shown, _) = bench.runs(&format!("inspect {optimizer} --model model"));
    for part in ["group 0: ", "exp_avg_sq", "no map to the model: ", "is not certain", "--model order.pt"] {
        assert!(shown.contains(part), "{part} is not shown: {shown}");
    }
    let (shown, _) = bench.runs(&format!("inspect {optimizer} --model model --json"));
    let shown: serde_json::Value = serde_json::from_str(&shown).expect("one JSON object");
    let shown = &shown["optimizers"][0];
    assert!(
        shown["map"].is_null()
            && shown["map_problem"].as_str().is_some_and(|why| why.contains("not certain"))
    );
}

#[test]
fn a_pattern_and_a_share_that_differ_are_both_named() {
    let bench = Bench::new();
    bench.file("f.safetensors", &[("w", &[1.0, 2.0])], &[]);
    let line = "prune f.safetensors --fisher f.safetensors --pattern 2:4 --sparsity 0.9 -o o";
    bench.refuses(line, 2, &["pattern 2:4 keeps 2 of 4, --sparsity 0.9 does not"]);
}

#[test]
fn a_tensor_without_fisher_is_counted_in_english() {
    let bench = Bench::new();
    bench.file("m.safetensors", &[("bn.running_mean", &[1.0]), ("w", &[1.0, 2.0])], &[]);
    bench.file("f.safetensors", &[("w", &[1.0, 2.0])], &[]);
    let line = "prune m.safetensors --fisher f.safetensors --keep 0.5 -o o";
    bench.refuses(line, 4, &["1 tensor of the model has no Fisher", "--exclude '*.running_*'"]);
}
