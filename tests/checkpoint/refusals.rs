//! Every fault of a safetensors file that is refused, by message.

use std::fs;

use squisher::checkpoint::{Checkpoint, MAX_AXES, MAX_HEADER_BYTES};
use squisher::error::Error;

use super::{assert_says, raw_file};

/// Opens `bytes` as `model.safetensors` and returns the refusal.
#[track_caller]
fn refusal(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).expect("writes");
    let error = Checkpoint::open(&path).expect_err("this file must be refused");
    assert_eq!(error.exit_code(), 3, "{error}");
    let message = error.to_string();
    assert_says(&message, &["model.safetensors"]);
    message
}

/// The same for a file made of a header and some data.
#[track_caller]
fn refusal_of(json: &str, data: &[u8]) -> String {
    refusal(&raw_file(json, data))
}

const TWO: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#;

#[test]
fn a_short_file_says_how_much_is_missing() {
    assert!(raw_file(TWO, &[0; 11]).len() == 8 + TWO.len() + 11, "the sound file is what the next lines cut");
    let message = refusal_of(TWO, &[0; 7]);
    let (expected, got) = (8 + TWO.len() + 11, 8 + TWO.len() + 7);
    assert_says(
        &message,
        &[&format!("{expected} bytes"), &format!("has {got}"), "4 missing", "fetch it again"],
    );
}

#[test]
fn trailing_bytes_are_counted() {
    assert_says(&refusal_of(TWO, &[0; 14]), &["3 too many at the end"]);
}

#[test]
fn files_too_short_for_a_header() {
    assert_says(&refusal(&[]), &["empty (0 bytes)"]);
    assert_says(&refusal(&[1, 2, 3]), &["3 bytes in all"]);
}

#[test]
fn a_header_length_is_held_against_limit_and_file_before_anything_is_allocated() {
    assert_says(&refusal(&u64::MAX.to_le_bytes()), &["18446744073709551615 bytes", "the limit is 100000000"]);
    assert_says(&refusal(&(MAX_HEADER_BYTES + 1).to_le_bytes()), &["100000001 bytes"]);
    assert_says(&refusal(&MAX_HEADER_BYTES.to_le_bytes()), &["100000000 bytes", "has 0 after"]);
    assert_says(&refusal(&raw_file("{}", b"")[..9]), &["2 bytes", "has 1 after"]);
}

#[test]
fn a_header_that_is_no_json_object() {
    assert_says(&refusal_of("", b""), &["does not begin with \"{\""]);
    assert_says(&refusal_of("[]", b""), &["does not begin with \"{\""]);
    assert_says(&refusal_of(" {}", b""), &["does not begin with \"{\""]);
    assert_says(&refusal_of("{", b""), &["not valid", "EOF"]);
    assert_says(&refusal_of("{}x", b""), &["not valid", "trailing characters"]);
    assert_says(&refusal(&[2, 0, 0, 0, 0, 0, 0, 0, b'{', 0xff]), &["not valid"]);
}

#[test]
fn deep_json_costs_no_stack() {
    let deep = format!("{}1{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
    let entry = |field: &str| format!(r#"{{"a":{{"{field}":{deep},"dtype":"U8","data_offsets":[0,0]}}}}"#);
    assert_says(&refusal_of(&entry("shape"), b""), &["\"a\"", "invalid type: sequence"]);
    assert_says(&refusal_of(&entry("passed over"), b""), &["\"a\"", "missing field `shape`"]);
    assert_says(&refusal_of(&format!(r#"{{"__metadata__":{deep}}}"#), b""), &["object of strings"]);
}

#[test]
fn a_name_that_comes_twice() {
    let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_says(&refusal_of(twice, &[0; 2]), &["\"a\" is given twice"]);
    // The same name spelled with an escape.
    assert_says(&refusal_of(&twice.replacen("\"a\"", "\"\\u0061\"", 1), &[0; 2]), &["\"a\" is given twice"]);
    assert_says(
        &refusal_of(r#"{"__metadata__":{},"__metadata__":{}}"#, b""),
        &["__metadata__ is given twice"],
    );
    assert_says(&refusal_of(r#"{"__metadata__":{"k":"1","k":"2"}}"#, b""), &["\"k\" is given twice"]);
    let field = r#"{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#;
    assert_says(&refusal_of(field, &[0]), &["\"a\"", "duplicate field `dtype`"]);
}

#[test]
fn an_entry_without_its_parts() {
    assert_says(
        &refusal_of(r#"{"a":{"dtype":"U8","shape":[1]}}"#, &[0]),
        &["\"a\"", "missing field `data_offsets`"],
    );
    assert_says(&refusal_of(r#"{"a":3}"#, &[0]), &["\"a\"", "invalid type"]);
    let negative = r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#;
    assert_says(&refusal_of(negative, &[0]), &["\"a\"", "-1"]);
    let broken = r#"{"a":{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}}"#;
    assert_says(&refusal_of(broken, &[0]), &["\"a\"", "1.5"]);
    let beyond = r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#;
    assert_says(&refusal_of(beyond, &[0]), &["\"a\""]);
}

#[test]
fn metadata_that_is_not_text() {
    assert_says(
        &refusal_of(r#"{"__metadata__":{"step":3}}"#, b""),
        &["__metadata__", "\"step\"", "expected a string"],
    );
    assert_says(&refusal_of(r#"{"__metadata__":[]}"#, b""), &["__metadata__", "object of strings"]);
}

#[test]
fn an_unknown_dtype_is_named() {
    let json = r#"{"w":{"dtype":"F5","shape":[1],"data_offsets":[0,1]}}"#;
    assert_says(&refusal_of(json, &[0]), &["tensor \"w\"", "dtype \"F5\" is not known to this version"]);
}

#[test]
fn sizes_that_do_not_follow_from_dtype_and_shape() {
    let of = |dtype: &str, shape: &str, begin: u64, end: u64| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#)
    };
    let message = refusal_of(&of("F32", "[2,3]", 0, 20), &[0; 20]);
    assert_says(&message, &["tensor \"w\"", "F32 [2, 3] needs 24 bytes", "[0, 20]"]);
    assert_says(&refusal_of(&of("U8", "[1]", 1, 0), &[0]), &["[1, 0]"]);
    assert_says(&refusal_of(&of("F32", "[4294967296,4294967296]", 0, 0), b""), &["more than 2^64 elements"]);
    assert_says(&refusal_of(&of("F32", "[4611686018427387904]", 0, 0), b""), &["more than 2^64 bytes"]);
    assert_says(&refusal_of(&of("F4", "[3]", 0, 2), &[0; 2]), &["does not fill whole bytes (12 bits)"]);
    let end = of("U8", "[18446744073709551615]", 0, u64::MAX);
    assert_says(&refusal_of(&end, b""), &["exceed 2^64 bytes"]);
    let axes = format!("[{}1]", "1,".repeat(MAX_AXES));
    assert_says(&refusal_of(&of("U8", &axes, 0, 1), &[0]), &["\"w\"", "more than 64 axes"]);
}

#[test]
fn holes_and_overlaps() {
    let pair = |b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}},"b":{{"dtype":"U8","shape":[4],"data_offsets":[{b}]}}}}"#
        )
    };
    let message = refusal_of(&pair("5,9"), &[0; 9]);
    assert_says(&message, &["tensor \"b\"", "byte 5", "leaves a hole", "end at byte 4"]);
    assert_says(&refusal_of(&pair("3,7"), &[0; 7]), &["tensor \"b\"", "byte 3", "overlaps", "end at byte 4"]);
    assert_says(&refusal_of(&pair("0,4"), &[0; 4]), &["overlaps"]);
    let late = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    assert_says(&refusal_of(late, &[0; 2]), &["leaves a hole"]);
}

#[test]
fn other_kinds_of_file_are_recognised() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    assert_says(&refusal(pointer), &["git-LFS pointer", "git lfs pull"]);
    assert_says(&refusal(b"\n<!DOCTYPE html><html>"), &["web page"]);
    assert_says(&refusal(b"<html><body>404"), &["web page"]);
    assert_says(&refusal(b"PK\x03\x04 and so on and on"), &["zip archive", "safe_serialization=True"]);
    assert_says(&refusal(b"GGUF\x03\0\0\0\0\0\0\0"), &["GGUF"]);
}

#[test]
fn too_many_tensors_are_refused_while_the_header_is_read() {
    let mut json = String::from("{");
    for i in 0..=squisher::checkpoint::MAX_TENSORS {
        json += &format!(r#""{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#);
    }
    json.pop();
    json.push('}');
    assert_says(&refusal_of(&json, b""), &["more than 1000000 tensors"]);
}

#[test]
fn names_are_escaped_when_printed() {
    let json = r#"{"a\u001b[2J\u202e/../x":{"dtype":"F5","shape":[1],"data_offsets":[0,1]}}"#;
    let message = refusal_of(json, &[0]);
    assert!(!message.contains('\u{1b}') && !message.contains('\u{202e}'), "{message:?}");
    assert_says(&message, &["a\\u{1b}[2J\\u{202e}/../x"]);
}

#[test]
fn legal_oddities_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    // Tensors in any order, none with bytes, a scalar, a huge shape of nothing, any name, a field of the future.
    let json = r#"{"z":{"dtype":"U8","shape":[2],"data_offsets":[4,6],"later":[1]},
        "":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
        "\u0000/../é":{"dtype":"F32","shape":[18446744073709551615,0],"data_offsets":[4,4]}}   "#;
    fs::write(&path, raw_file(json, &[1, 2, 3, 4, 5, 6])).expect("writes");
    let checkpoint = Checkpoint::open(&path).expect("opens");
    let names: Vec<&str> = checkpoint.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["", "\0/../é", "z"]);
    let elements: Vec<u64> = checkpoint.tensors().iter().map(|tensor| tensor.elements()).collect();
    assert_eq!(elements, [1, 0, 2]);
    assert_eq!(super::contents(&checkpoint)["z"], [5, 6]);
    assert_eq!(checkpoint.total_bytes(), 6);
    assert!(checkpoint.get("y").is_none());
}

#[test]
fn a_missing_file_is_an_error_of_the_system() {
    let error = Checkpoint::open("does/not/exist.safetensors").expect_err("nothing there");
    assert!(matches!(error, Error::Io { op: "open", .. }), "{error}");
}

/// A pipe would block the open for ever, so it must not be opened at all.
#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_before_they_are_opened() {
    let error = Checkpoint::open("/dev/null").expect_err("a device").to_string();
    assert_says(&error, &["/dev/null", "not a regular file"]);
}

#[test]
fn ranges_outside_a_tensor_are_refused() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&file, raw_file(TWO, &[0; 11])).expect("writes");
    let checkpoint = Checkpoint::open(file.path()).expect("opens");
    let a = checkpoint.get("a").expect("there");
    for (offset, len) in [(0, 9), (8, 1), (9, 0), (u64::MAX, 1), (u64::MAX, 8)] {
        let error = checkpoint.read(a, offset, &mut vec![0; len]).expect_err("outside");
        assert_says(&error.to_string(), &["checkpoint.read", "tensor \"a\", which has 8"]);
    }
    checkpoint.read(a, 8, &mut []).expect("nothing at the end is inside");
    let mut stranger = a.clone();
    stranger.file = 1;
    let error = checkpoint.read(&stranger, 0, &mut []).expect_err("of another checkpoint");
    assert_says(&error.to_string(), &["not of this checkpoint"]);
}

#[test]
fn an_input_that_changes_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let write = |extra: u8| fs::write(&path, raw_file(TWO, &[extra; 11])).expect("writes");
    // The clock of the file system steps in milliseconds: start well before the change.
    let age = |path: &std::path::Path, seconds: u64| {
        let file = fs::File::options().write(true).open(path).expect("opens");
        let then = std::time::SystemTime::now() - std::time::Duration::from_secs(seconds);
        file.set_modified(then).expect("sets the time");
    };

    write(1);
    age(&path, 100);
    let checkpoint = Checkpoint::open(&path).expect("opens");
    checkpoint.verify_unchanged().expect("nothing happened yet");
    write(2);
    let message = checkpoint.verify_unchanged().expect_err("written to").to_string();
    assert_says(&message, &["model.safetensors", "was written to or replaced"]);

    let checkpoint = Checkpoint::open(&path).expect("opens");
    fs::File::options().write(true).open(&path).expect("opens").set_len(20).expect("cuts");
    let mut buffer = [0; 3];
    let message =
        checkpoint.read(checkpoint.get("b").expect("there"), 0, &mut buffer).expect_err("cut").to_string();
    assert_says(&message, &["has become shorter while it was being read"]);
    assert_says(&checkpoint.verify_unchanged().expect_err("cut").to_string(), &["to 20 bytes"]);

    write(3);
    let checkpoint = Checkpoint::open(&path).expect("opens");
    fs::remove_file(&path).expect("removes");
    assert!(checkpoint.verify_unchanged().is_err(), "removed");
}

/// Replacing by rename keeps size, and may keep the time: the identity tells.
#[cfg(unix)]
#[test]
fn an_input_that_is_replaced_is_noticed() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, other) = (folder.path().join("a.safetensors"), folder.path().join("b.safetensors"));
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for path in [&path, &other] {
        fs::write(path, raw_file(TWO, &[0; 11])).expect("writes");
        fs::File::options().write(true).open(path).expect("opens").set_modified(time).expect("sets the time");
    }
    let checkpoint = Checkpoint::open(&path).expect("opens");
    fs::rename(&other, &path).expect("replaces");
    assert_says(&checkpoint.verify_unchanged().expect_err("replaced").to_string(), &["replaced"]);
}
