//! What the tool says to someone who gave it the wrong thing: the likeliest mistakes, the words that help,
//! the exit code.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use support::files::{self, f32s, f64s, folder};
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
fn a_device_is_not_asked_for_in_vain() {
    let bench = Bench::new();
    for (line, says) in [
        (
            "reset --mask k --model f --base p -o o --adapter 0",
            "reset: has no --adapter; it runs on the host's threads",
        ),
        ("extract s --model m -o o --backend gl", "extract: has no --backend but host"),
        ("inspect m --adapter 0", "inspect: has no --adapter"),
        ("report m -o o --backend vulkan", "report: has no --backend but host"),
        ("inspect m --matrix-units", "inspect: has no --matrix-units"),
    ] {
        bench.refuses(line, 2, &[says]);
    }
    bench.file("m", &[("w", &[1.0])], &[]);
    bench.runs("inspect m --backend host");
    // A dry run of a job that has a device looks for it as the run does.
    for line in ["mask m --keep 0.5 -o o", "prune m --fisher m --keep 0.5 -o o"] {
        bench.refuses(
            &format!("{line} --dry-run --adapter no-such-adapter"),
            5,
            &["\"no-such-adapter\" was not found"],
        );
    }
}

#[test]
fn device_memory_means_nothing_to_the_host() {
    let bench = Bench::new();
    bench.file("f", &[("w", &[1.0, 2.0])], &[("squisher.kind", "empirical")]);
    bench.runs("mask f --keep 0.5 -o mask --backend host --device-memory 1KiB");
    bench.runs("prune f --fisher f --keep 0.5 -o pruned --backend host --device-memory 1KiB");
    bench.refuses("mask f --keep 0.5 -o none --backend host --host-memory 1KiB", 2, &["--host-memory"]);
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

#[test]
fn a_fisher_of_zeros_is_told_with_and_without_normalisation() {
    let bench = Bench::new();
    for (name, value) in [("a", 1.0), ("b", 2.0)] {
        bench.file(&format!("{name}.safetensors"), &[("w", &[value; 5])], &[]);
    }
    bench.file("fa.safetensors", &[("w", &[1.0; 5])], &[]);
    bench.file("fb.safetensors", &[("w", &[0.0; 5])], &[]);
    let merge = "merge --method fisher --model a.safetensors --fisher fa.safetensors --model b.safetensors \
                 --fisher fb.safetensors --overwrite -o o.safetensors";
    for flags in ["", "--normalize mean", "--floor 1e-3"] {
        let (_, said) = bench.runs(&format!("{merge} {flags}"));
        assert_eq!(said.matches("fb.safetensors is zero everywhere").count(), 1, "{flags}: {said}");
        assert!(!said.contains("fa.safetensors is zero"), "{flags}: {said}");
    }
}

#[test]
fn what_a_merge_makes_of_doubles_and_adapters_is_told() {
    let bench = Bench::new();
    files::write(&bench.path().join("d.safetensors"), [("w", f64s(&[1], &[1.0]))]);
    let (_, said) = bench.runs("merge --method linear --model d.safetensors -o o.safetensors");
    assert!(said.contains("1 tensor is F64 in the first model and F32 in the result"), "{said}");
    let (_, said) =
        bench.runs("merge --method linear --model d.safetensors --dtype f32 --overwrite -o o.safetensors");
    assert!(!said.contains("F64"), "{said}");
    bench.file("l.safetensors", &[("q.lora_A.weight", &[1.0]), ("q.lora_B.weight", &[1.0])], &[]);
    let (_, said) =
        bench.runs("merge --method linear --model l.safetensors --model l.safetensors --dry-run -o o");
    assert!(said.contains("LoRA adapters: A and B are averaged each for itself"), "{said}");
}

#[test]
fn an_adapters_configuration_is_copied_and_the_rest_is_named() {
    let bench = Bench::new();
    let model = bench.path().join("m");
    std::fs::create_dir_all(model.join("1_Pooling")).expect("writable");
    bench.file("m/adapter_model.safetensors", &[("w", &[1.0])], &[]);
    for name in ["adapter_config.json", "modules.json", "training_args.bin"] {
        std::fs::write(model.join(name), "{}").expect("writable");
    }
    let (_, said) = bench.runs("merge --method linear --model m -o o -v");
    for name in ["adapter_config.json", "modules.json", "adapter_model.safetensors"] {
        assert!(bench.path().join("o").join(name).is_file(), "{name} is not there");
        assert!(!said.contains(&format!("\"{name}\" is not copied")), "{said}");
    }
    assert!(
        said.contains("m: \"1_Pooling\" is not copied")
            && said.contains("\"training_args.bin\" is not copied"),
        "{said}"
    );
}

#[test]
fn models_that_differ_in_a_usual_way_are_told_what_to_do() {
    let bench = Bench::new();
    bench.file("a.safetensors", &[("embed.weight", &[1.0]), ("head.bias", &[1.0])], &[]);
    bench.file("wrapped.safetensors", &[("model.embed.weight", &[1.0]), ("model.head.bias", &[1.0])], &[]);
    bench.file(
        "untied.safetensors",
        &[("embed.weight", &[1.0]), ("head.bias", &[1.0]), ("lm_head.weight", &[1.0])],
        &[],
    );
    let merge = |one: &str, other: &str| {
        format!("merge --method linear --model {one}.safetensors --model {other}.safetensors -o o")
    };
    let prefix = "wrapped.safetensors have \"model.\" before them";
    bench.refuses(&merge("a", "wrapped"), 4, &[prefix]);
    bench.refuses(&merge("wrapped", "a"), 4, &[prefix]);
    bench.refuses(&merge("untied", "a"), 4, &["tie_word_embeddings"]);
    for (name, rows) in [("small", 2_usize), ("large", 3)] {
        let table = f32s(&[rows, 4], &vec![0.0; 4 * rows]);
        files::write(&bench.path().join(format!("{name}.safetensors")), [("embed.weight", table)]);
    }
    bench.refuses(
        &merge("small", "large"),
        4,
        &["the vocabularies have 2 and 3 rows", "resize_token_embeddings"],
    );
    let other = bench.refuses(&merge("a", "small"), 4, &["does not fit"]);
    assert!(!other.contains("vocabular") && !other.contains("before them"), "{other}");
}

#[test]
fn the_same_file_twice_is_told() {
    let bench = Bench::new();
    bench.file("a.safetensors", &[("w", &[1.0, 2.0])], &[]);
    let merge = "merge --method fisher --model a.safetensors --fisher a.safetensors --model a.safetensors --fisher ./a.safetensors -o o.safetensors";
    let (_, said) = bench.runs(merge);
    assert!(said.contains("Fisher ./a.safetensors is given twice: two models are weighted alike"), "{said}");
    let capture = first_capture();
    let (shown, said) = bench.runs(&format!("fisher {capture} {capture} -o f.safetensors"));
    assert!(said.contains("is given twice: its samples count twice"), "{said}");
    assert!(!shown.contains("TENSOR"), "a table of names and shapes is for -v: {shown}");
    let (shown, _) = bench.runs(&format!("fisher {capture} -o f.safetensors --overwrite -v"));
    assert!(shown.contains("TENSOR"), "{shown}");
}

fn first_capture() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fisher/mlp");
    let files =
        std::fs::read_dir(folder).expect("the case is there").filter_map(|entry| Some(entry.ok()?.path()));
    let mut captures: Vec<PathBuf> =
        files.filter(|path| path.to_string_lossy().contains("capture")).collect();
    captures.sort();
    captures.first().expect("a capture").display().to_string()
}

#[test]
fn fishers_of_two_kinds_under_one_lambda_are_told() {
    let bench = Bench::new();
    bench.file("m.safetensors", &[("head", &[1.0]), ("w", &[1.0, 2.0])], &[]);
    bench.file("f.safetensors", &[("w", &[1.0, 2.0])], &[("squisher.reduction", "sum")]);
    bench.file("g.safetensors", &[("w", &[1.0, 2.0])], &[("squisher.reduction", "mean")]);
    let anchor = "--anchor m.safetensors --fisher";
    let (shown, said) = bench
        .runs(&format!("ewc --model m.safetensors {anchor} f.safetensors {anchor} g.safetensors --lambda 1"));
    assert!(said.contains("the Fishers differ in squisher.reduction; one lambda"), "{said}");
    assert!(shown.contains("free: 1 tensor (\"head\")"), "{shown}");
    let (_, said) = bench
        .runs(&format!("ewc --model m.safetensors {anchor} f.safetensors {anchor} f.safetensors --lambda 1"));
    assert!(said.contains("f.safetensors is given twice") && !said.contains("differ"), "{said}");
}

#[test]
fn scores_of_other_targets_are_told_apart_from_missing_ones() {
    let bench = Bench::new();
    for name in ["a", "b"] {
        bench.file(&format!("{name}.safetensors"), &[("w", &[1.0, 2.0])], &[]);
    }
    std::fs::write(bench.path().join("s.csv"), "source,t1,t2\na,0.5,0.6\nb,0.7,0.8\n").expect("writable");
    let line = "distance a.safetensors b.safetensors --scores s.csv";
    bench.refuses(line, 4, &["the table's targets \"t1\", \"t2\" are none of the tasks \"a\", \"b\""]);
}

#[test]
fn every_job_that_writes_has_the_common_keys() {
    let bench = Bench::new();
    bench.file("m.safetensors", &[("w", &[1.0, 2.0])], &[]);
    let capture = first_capture();
    let state = format!("{STATES}/adamw_f32");
    for line in [
        format!("extract {state}/optimizer.pt --model {state} -o o"),
        format!("fisher {capture} -o o"),
        format!("step {capture} --kind ef --damping 1 -o o"),
        "merge --method linear --model m.safetensors -o o".to_owned(),
        "embed m.safetensors -o o".to_owned(),
        "distance m.safetensors m.safetensors -o o.csv".to_owned(),
        "ewc --model m.safetensors --anchor m.safetensors --fisher m.safetensors --lambda 1 --gradient-out o"
            .to_owned(),
        "prune m.safetensors --fisher m.safetensors --keep 0.5 -o o".to_owned(),
        "mask m.safetensors --keep 0.5 -o mask".to_owned(),
        "reset --mask mask --model m.safetensors --base m.safetensors -o o".to_owned(),
        "report m.safetensors -o o.html".to_owned(),
    ] {
        let (shown, _) = bench.runs(&format!("{line} --json --overwrite --backend host"));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("one JSON object");
        assert!(shown["output"].is_string(), "{line}: {shown}");
        assert!(shown["warnings"].is_array(), "{line}: {shown}");
        assert!(shown["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{line}: {shown}");
    }
}
