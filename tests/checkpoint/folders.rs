//! Folders and indexes: which file is meant, and that index and shards agree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use squisher::checkpoint::{Checkpoint, Dtype, Output, OutputLayout, OutputTensor};
use squisher::error::Error;
use tempfile::TempDir;

use super::{assert_says, contents, fill, names_in, no_metadata, raw_file, three_shards};

/// A safetensors file of U8 tensors, one byte each.
fn bytes_named(names: &[&str]) -> Vec<u8> {
    let entries: Vec<String> = names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            format!(r#""{name}":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{}]}}"#, at + 1)
        })
        .collect();
    raw_file(&format!("{{{}}}", entries.join(",")), &vec![7; names.len()])
}

/// A folder of these files.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("writes");
    }
    folder
}

#[track_caller]
fn refusal(path: impl AsRef<Path>) -> String {
    let error = Checkpoint::open(path).expect_err("must be refused");
    assert!(matches!(error, Error::File { .. } | Error::Tensor { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn a_folder_its_index_and_a_copy_of_its_shards_agree() {
    let whole = Checkpoint::open(three_shards()).expect("opens");
    let names: Vec<&str> = whole.shards().iter().map(|shard| shard.name.as_str()).collect();
    let expected = [1, 2, 3].map(|at| format!("model-{at:05}-of-00003.safetensors"));
    assert_eq!(names, expected);
    assert_eq!(whole.index_name(), Some("model.safetensors.index.json"));
    assert_eq!(whole.metadata().get("format").map(String::as_str), Some("pt"));
    assert!(whole.tensors().iter().all(|tensor| tensor.float() == Some(squisher::DType::BF16)));
    let in_shards: usize = whole.shards().iter().map(|shard| shard.tensors.len()).sum();
    assert_eq!(in_shards, whole.tensors().len());
    for (at, shard) in whole.shards().iter().enumerate() {
        assert!(shard.tensors.iter().all(|&tensor| whole.tensors()[tensor].file == at));
    }

    let by_index = Checkpoint::open(three_shards().join("model.safetensors.index.json")).expect("opens");
    assert_eq!(by_index.tensors(), whole.tensors());
    let mut by_file = BTreeMap::new();
    for name in expected {
        by_file.extend(contents(&Checkpoint::open(three_shards().join(name)).expect("opens")));
    }
    assert_eq!(by_file, contents(&whole));
    whole.verify_unchanged().expect("nothing happened");
}

#[test]
fn a_shards_contents_are_what_the_format_crate_reads() {
    let whole = Checkpoint::open(three_shards()).expect("opens");
    let ours = contents(&whole);
    for shard in whole.shards() {
        let bytes = fs::read(&shard.path).expect("reads");
        for (name, view) in safetensors::SafeTensors::deserialize(&bytes).expect("reads").tensors() {
            assert_eq!(ours[&name], view.data(), "{name}");
        }
    }
}

#[test]
fn which_file_of_a_folder_is_meant() {
    let (a, b) = (bytes_named(&["a"]), bytes_named(&["b"]));
    let index = br#"{"weight_map":{"b":"x.safetensors"}}"#.as_slice();
    let first = |folder: &TempDir| Checkpoint::open(folder.path()).expect("opens").tensors()[0].name.clone();

    let only = folder(&[
        ("adapter_model.safetensors", &a),
        ("notes.txt", b""),
        (".x.safetensors.partial-1-abcdef", &b),
    ]);
    assert_eq!(first(&only), "a");
    let model = folder(&[("model.safetensors", &a), ("x.safetensors", &b)]);
    assert_eq!(first(&model), "a");
    let some_index =
        folder(&[("model.safetensors", &a), ("x.safetensors", &b), ("x.safetensors.index.json", index)]);
    assert_eq!(first(&some_index), "b");
    let both = folder(&[
        ("x.safetensors", &b),
        ("model.safetensors.index.json", index),
        ("y.safetensors.index.json", br#"{"weight_map":{}}"#),
    ]);
    assert_eq!(first(&both), "b");
}

#[test]
fn a_folder_that_does_not_say_which() {
    let (a, b) = (bytes_named(&["a"]), bytes_named(&["b"]));
    assert_says(
        &refusal(folder(&[("x.safetensors", &a), ("y.safetensors", &b)]).path()),
        &["2 .safetensors files and no index", "\"x.safetensors\", \"y.safetensors\"", "give the path"],
    );
    let index = br#"{"weight_map":{}}"#.as_slice();
    let two = folder(&[("x.safetensors.index.json", index), ("y.safetensors.index.json", index)]);
    assert_says(&refusal(two.path()), &["2 index files"]);
    assert_says(
        &refusal(folder(&[("config.json", b"{}")]).path()),
        &["no .safetensors file", "give a model's folder"],
    );
    assert_says(
        &refusal(folder(&[("pytorch_model.bin", b"")]).path()),
        &["\"pytorch_model.bin\"", "safetensors is read here", "safe_serialization=True"],
    );
}

const INDEX: &str = "model.safetensors.index.json";

/// A folder of two shards, `1` with a and b, `2` with c, under this index.
fn indexed(index: &str) -> TempDir {
    folder(&[
        ("1.safetensors", &bytes_named(&["a", "b"])),
        ("2.safetensors", &bytes_named(&["c"])),
        (INDEX, index.as_bytes()),
    ])
}

fn weight_map(entries: &[(&str, &str)]) -> String {
    serde_json::json!({ "weight_map": entries.iter().copied().collect::<BTreeMap<_, _>>() }).to_string()
}

#[test]
fn index_and_shards_are_held_against_each_other() {
    let (one, two) = ("1.safetensors", "2.safetensors");
    let open = |entries: &[(&str, &str)]| Checkpoint::open(indexed(&weight_map(entries)).path());
    let refusal = |entries: &[(&str, &str)]| open(entries).expect_err("must be refused").to_string();
    assert_eq!(open(&[("a", one), ("b", one), ("c", two)]).expect("sound").tensors().len(), 3);

    let message = refusal(&[("a", one), ("b", one), ("c", "3.safetensors")]);
    assert_says(&message, &[INDEX, "shard \"3.safetensors\"", "not there", "1 tensors", "fetch it again"]);
    let message = refusal(&[("a", one), ("b", one), ("c", two), ("d", two)]);
    assert_says(&message, &["tensor \"d\"", "\"2.safetensors\", which does not hold it"]);
    let message = refusal(&[("a", one), ("c", two)]);
    assert_says(&message, &["tensor \"b\"", "\"1.safetensors\" but not in the index"]);
    let message = refusal(&[("a", one), ("b", two), ("c", two)]);
    assert_says(&message, &["tensor \"b\"", "shard \"1.safetensors\"", "places it in \"2.safetensors\""]);

    let both = indexed(&weight_map(&[("a", one), ("b", one), ("c", two)]));
    fs::write(both.path().join(two), bytes_named(&["c", "a"])).expect("writes");
    let message = Checkpoint::open(both.path()).expect_err("twice").to_string();
    assert_says(&message, &["tensor \"a\"", "in two shards, \"1.safetensors\" and \"2.safetensors\""]);
}

#[test]
fn an_index_cannot_lead_out_of_its_folder() {
    for outside in
        ["../1.safetensors", "/etc/passwd", "sub/1.safetensors", "..\\1.safetensors", "C:1.safetensors", ".."]
    {
        let message = refusal(indexed(&weight_map(&[("a", outside)])).path());
        assert_says(&message, &[INDEX, "tensor \"a\"", "not a plain file name"]);
    }
}

#[test]
fn an_index_that_is_no_index() {
    assert_says(&refusal(indexed("").path()), &[INDEX, "not a valid index", "EOF"]);
    assert_says(&refusal(indexed("{}").path()), &["missing field `weight_map`"]);
    assert_says(&refusal(indexed(r#"{"weight_map":{"a":1}}"#).path()), &["\"a\"", "expected a string"]);
    let twice = r#"{"weight_map":{"a":"1.safetensors","a":"2.safetensors"}}"#;
    assert_says(&refusal(indexed(twice).path()), &["\"a\" is given twice"]);
}

#[test]
fn a_damaged_shard_is_named() {
    let sound =
        indexed(&weight_map(&[("a", "1.safetensors"), ("b", "1.safetensors"), ("c", "2.safetensors")]));
    let shard = sound.path().join("2.safetensors");
    let mut bytes = fs::read(&shard).expect("reads");
    bytes.pop();
    fs::write(&shard, bytes).expect("writes");
    assert_says(&refusal(sound.path()), &["2.safetensors", "1 missing"]);
}

/// What was logged, by all tests of this program.
static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collect;

impl log::Log for Collect {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        LOGGED.lock().expect("no test panics while logging").push(format!(
            "{} {}",
            record.level(),
            record.args()
        ));
    }
    fn flush(&self) {}
}

#[test]
fn a_wrong_total_size_only_warns() {
    // Another test of this program cannot have set one.
    log::set_logger(&Collect).expect("the first logger");
    log::set_max_level(log::LevelFilter::Warn);
    let map = r#""weight_map":{"a":"1.safetensors","b":"1.safetensors","c":"2.safetensors"}"#;
    let warned = |total: &str| {
        let folder = indexed(&format!(r#"{{"metadata":{{"total_size":{total}}},{map}}}"#));
        Checkpoint::open(folder.path()).expect("opens");
        let here = folder.path().display().to_string();
        let logged = LOGGED.lock().expect("no test panics while logging");
        logged.iter().filter(|line| line.contains(&here)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(warned("3"), Vec::<String>::new());
    assert_eq!(warned("3.5"), Vec::<String>::new(), "not a whole number: nothing to compare");
    let lines = warned("4");
    assert_eq!(lines.len(), 1);
    assert_says(&lines[0], &["WARN", INDEX, "total_size is 4", "3 bytes"]);
}

const SIDE_FILES: [&str; 8] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
];

/// A model's folder with everything that may lie in one.
fn model_folder() -> TempDir {
    let a = bytes_named(&["a"]);
    let mut files: Vec<(&str, &[u8])> = SIDE_FILES.iter().map(|name| (*name, b"side".as_slice())).collect();
    let others =
        ["optimizer.pt", "modeling.py", "tokenizer.py", "README.md", ".config.json", "training_args.bin"];
    files.extend(others.iter().map(|name| (*name, b"other".as_slice())));
    files.push(("model.safetensors", &a));
    folder(&files)
}

#[test]
fn side_files_are_the_models_and_neither_code_nor_optimizer() {
    let model = model_folder();
    let names = |checkpoint: Checkpoint| -> Vec<String> {
        let paths: Vec<PathBuf> = checkpoint.side_files().expect("lists");
        paths.iter().map(|path| path.file_name().expect("named").to_string_lossy().into_owned()).collect()
    };
    assert_eq!(names(Checkpoint::open(model.path()).expect("opens")), SIDE_FILES);
    // What lies beside a lone file need not belong to it.
    assert!(names(Checkpoint::open(model.path().join("model.safetensors")).expect("opens")).is_empty());
}

#[test]
fn an_output_like_its_input_is_its_input() {
    let out = tempfile::tempdir().expect("a folder");
    let path = out.path().join("copy");
    let model = Checkpoint::open(three_shards()).expect("opens");
    let layout = OutputLayout::like(&model, |tensor| Some(tensor.dtype), no_metadata());
    let layout = layout.with_side_files_of(&model).expect("lists");
    let output = Output::create(&path, layout, false, &[model.path()]).expect("creates");
    let names: Vec<&String> = output.tensors().iter().map(|slot| &slot.name).collect();
    assert!(model.tensors().iter().map(|tensor| &tensor.name).eq(names), "positions are the same in both");
    fill(&output, &contents(&model), 100);
    assert!(!path.exists(), "shows before it is finished");
    output.finish().expect("finishes");
    assert_eq!(names_in(out.path()), ["copy"]);
    assert_eq!(names_in(&path), names_in(&three_shards()));
    let json = |folder: &Path| -> serde_json::Value {
        serde_json::from_slice(&fs::read(folder.join(INDEX)).expect("reads")).expect("an index")
    };
    assert_eq!(json(&path), json(&three_shards()));
    for name in names_in(&path).iter().filter(|name| *name != INDEX) {
        let same =
            fs::read(path.join(name)).expect("reads") == fs::read(three_shards().join(name)).expect("reads");
        assert!(same, "{name} differs from the input");
    }
}

#[test]
fn an_output_may_change_dtypes_and_leave_tensors_out() {
    let out = tempfile::tempdir().expect("a folder");
    let model = Checkpoint::open(three_shards()).expect("opens");
    let kept = &model.shards()[1];
    let layout = OutputLayout::like(&model, |tensor| (tensor.file == 1).then_some(Dtype::F32), no_metadata());
    let data = kept.tensors.iter().map(|&at| &model.tensors()[at]);
    let data: BTreeMap<String, Vec<u8>> = data
        .map(|tensor| (tensor.name.clone(), vec![3; usize::try_from(tensor.elements()).expect("small") * 4]))
        .collect();
    let output = Output::create(out.path().join("o"), layout, false, &[]).expect("creates");
    fill(&output, &data, 64);
    output.finish().expect("finishes");
    let read = Checkpoint::open(out.path().join("o")).expect("opens");
    assert_eq!(names_in(&out.path().join("o")), [kept.name.as_str(), INDEX]);
    assert_eq!(contents(&read), data);
    assert!(read.tensors().iter().all(|tensor| tensor.dtype == Dtype::F32));
}

#[test]
fn side_files_and_card_are_written_and_hidden_until_the_end() {
    let model = model_folder();
    let out = tempfile::tempdir().expect("a folder");
    let checkpoint = Checkpoint::open(model.path()).expect("opens");
    let layout = OutputLayout::like(&checkpoint, |tensor| Some(tensor.dtype), no_metadata())
        .with_side_files_of(&checkpoint)
        .expect("lists")
        .with_text("README.md", "# merged\n");
    let output = Output::create(out.path().join("o"), layout, false, &[model.path()]).expect("creates");
    fill(&output, &contents(&checkpoint), 1);
    output.finish().expect("finishes");
    let mut expected: Vec<&str> = SIDE_FILES.to_vec();
    expected.extend(["README.md", "model.safetensors"]);
    expected.sort_unstable();
    assert_eq!(names_in(&out.path().join("o")), expected);
    assert_eq!(fs::read(out.path().join("o/README.md")).expect("reads"), b"# merged\n");
    assert_eq!(fs::read(out.path().join("o/config.json")).expect("reads"), b"side");
    // Loaders look for this entry; a folder's files have it even where the input's did not.
    let read = Checkpoint::open(out.path().join("o")).expect("opens");
    assert_eq!(read.metadata().get("format").map(String::as_str), Some("pt"));
}

#[test]
fn shards_are_cut_by_size_in_name_order() {
    let sizes = [("e", 3_u64), ("a", 4), ("d", 20), ("b", 4), ("c", 1), ("f", 0)];
    let tensors = || sizes.map(|(name, bytes)| OutputTensor::new(name, Dtype::U8, [bytes])).to_vec();
    let cut = |shard_bytes| {
        let layout = OutputLayout::sharded(tensors(), shard_bytes, no_metadata()).expect("lays out");
        let text = |file: &squisher::checkpoint::OutputFile| {
            format!(
                "{}:{}",
                file.name,
                file.tensors.iter().map(|tensor| tensor.name.as_str()).collect::<String>()
            )
        };
        layout.files().iter().map(text).collect::<Vec<_>>()
    };
    assert_eq!(cut(1000), ["model.safetensors:abcdef"]);
    assert_eq!(
        cut(8),
        [
            "model-00001-of-00004.safetensors:ab",
            "model-00002-of-00004.safetensors:c",
            "model-00003-of-00004.safetensors:d",
            "model-00004-of-00004.safetensors:ef",
        ]
    );
    assert_eq!(cut(9).len(), 3);
    // Each larger than a shard, the first one too: no shard stays empty.
    assert_eq!(cut(3)[0], "model-00001-of-00005.safetensors:a");
    let error = OutputLayout::sharded(tensors(), 0, no_metadata()).expect_err("no size").to_string();
    assert_says(&error, &["shard size of 0"]);
}

#[test]
fn a_sharded_output_is_read_back_and_its_index_is_as_transformers_writes_it() {
    let out = tempfile::tempdir().expect("a folder");
    let path = out.path().join("o");
    let tensors = ["b", "a", "c"].map(|name| OutputTensor::new(name, Dtype::U8, [3])).to_vec();
    let layout = OutputLayout::sharded(tensors, 6, no_metadata()).expect("lays out");
    assert_eq!(layout.tensor_bytes().expect("small"), 9);
    let output = Output::create(&path, layout, false, &[]).expect("creates");
    let data: BTreeMap<String, Vec<u8>> =
        ["a", "b", "c"].map(|name| (name.to_owned(), name.repeat(3).into_bytes())).into();
    fill(&output, &data, 2);
    output.finish().expect("finishes");
    assert_eq!(contents(&Checkpoint::open(&path).expect("opens")), data);
    let index = fs::read_to_string(path.join(INDEX)).expect("reads");
    let expected = "{\n  \"metadata\": {\n    \"total_size\": 9\n  },\n  \"weight_map\": {\n    \
        \"a\": \"model-00001-of-00002.safetensors\",\n    \"b\": \"model-00001-of-00002.safetensors\",\n    \
        \"c\": \"model-00002-of-00002.safetensors\"\n  }\n}\n";
    assert_eq!(index, expected);
}
