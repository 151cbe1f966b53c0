//! Outputs appear whole or not at all, where they may, with the permissions of any new file.
//!
//! A disk that is full in the middle needs a small file system of its own, which only root may mount, and a write
//! that fails needs a tracer: both are tested on the process from outside. Here the disk is too small for the header's
//! promise, and the file system refuses through permissions and missing folders.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use squisher::checkpoint::{Checkpoint, Dtype, MAX_AXES, Output, OutputLayout, OutputTensor};
use squisher::error::{Error, Result};

use super::{assert_says, contents, fill, names_in, no_metadata, small_layout};

/// Data for [`small_layout`].
fn small_data(byte: u8) -> BTreeMap<String, Vec<u8>> {
    [("w".to_owned(), vec![byte; 8])].into()
}

/// Writes and finishes [`small_layout`].
fn write_small(path: &Path, byte: u8, overwrite: bool) -> Result<()> {
    let output = Output::create(path, small_layout(), overwrite, &[])?;
    fill(&output, &small_data(byte), 3);
    output.finish()
}

/// A folder of two shards with an index.
fn two_shards() -> OutputLayout {
    let tensors = ["a", "b"].map(|name| OutputTensor::new(name, Dtype::U8, [4])).to_vec();
    OutputLayout::sharded(tensors, 4, no_metadata()).expect("lays out").with_text("README.md", "card")
}

fn two_data(byte: u8) -> BTreeMap<String, Vec<u8>> {
    ["a", "b"].map(|name| (name.to_owned(), vec![byte; 4])).into()
}

fn write_two(path: &Path, byte: u8, overwrite: bool) -> Result<()> {
    let output = Output::create(path, two_shards(), overwrite, &[])?;
    fill(&output, &two_data(byte), 3);
    output.finish()
}

fn read(path: &Path) -> BTreeMap<String, Vec<u8>> {
    contents(&Checkpoint::open(path).expect("opens"))
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.expect_err("must be refused");
    assert!(matches!(error, Error::Output { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 7);
    error.to_string()
}

#[test]
fn nothing_shows_until_it_is_finished_and_nothing_is_left_when_it_is_dropped() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.safetensors");
    let output = Output::create(&path, small_layout(), false, &[]).expect("creates");
    output.write(0, 0, &[1; 8]).expect("writes");
    assert!(!path.exists());
    let partial = names_in(folder.path());
    assert_eq!(partial.len(), 1, "{partial:?}");
    assert!(partial[0].starts_with(".out.safetensors.partial-"), "{partial:?}");
    drop(output);
    assert_eq!(names_in(folder.path()), [""; 0]);

    let path = folder.path().join("out");
    let output = Output::create(&path, two_shards(), false, &[]).expect("creates");
    output.write(0, 0, &[1; 4]).expect("writes");
    assert!(!path.exists());
    drop(output);
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[test]
fn an_output_that_is_dropped_leaves_the_old_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, shards) = (folder.path().join("m.safetensors"), folder.path().join("m"));
    write_small(&file, 1, false).expect("writes");
    write_two(&shards, 1, false).expect("writes");

    let output = Output::create(&file, small_layout(), true, &[]).expect("creates");
    fill(&output, &small_data(2), 8);
    drop(output);
    let output = Output::create(&shards, two_shards(), true, &[]).expect("creates");
    fill(&output, &two_data(2), 8);
    drop(output);
    assert_eq!(read(&file), small_data(1));
    assert_eq!(read(&shards), two_data(1));
    assert_eq!(names_in(folder.path()), ["m", "m.safetensors"]);
}

#[test]
fn a_byte_that_was_never_written_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.safetensors");
    write_small(&path, 1, false).expect("writes");
    // The hole lies behind bytes that were written twice, so that a count of bytes alone would not see it.
    let output = Output::create(&path, small_layout(), true, &[]).expect("creates");
    output.write(0, 0, &[2; 5]).expect("writes");
    output.write(0, 0, &[2; 2]).expect("writes");
    output.write(0, 7, &[2; 1]).expect("writes");
    let message = refusal(output.finish());
    assert_says(&message, &["tensor \"w\"", "from byte 5 on", "6 of the file's 8 bytes", "did not complete"]);
    assert_eq!(read(&path), small_data(1));
    assert_eq!(names_in(folder.path()), ["m.safetensors"]);

    let shards = folder.path().join("m");
    let output = Output::create(&shards, two_shards(), false, &[]).expect("creates");
    output.write(output.position("a").expect("there"), 0, &[2; 4]).expect("writes");
    assert_says(&refusal(output.finish()), &["tensor \"b\"", "from byte 0 on"]);
    assert!(!shards.exists());
}

#[test]
fn an_output_without_bytes_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, tensors) in [("none", vec![]), ("empty", vec![OutputTensor::new("w", Dtype::F32, [0, 3])])] {
        let path = folder.path().join(name);
        let output =
            Output::create(&path, OutputLayout::single(tensors, no_metadata()), false, &[]).expect("creates");
        output.finish().expect("finishes");
        assert_eq!(Checkpoint::open(&path).expect("opens").total_bytes(), 0);
    }
}

#[test]
fn ranges_outside_a_tensor_are_refused_and_harm_no_neighbour() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.safetensors");
    let tensors = ["a", "b"].map(|name| OutputTensor::new(name, Dtype::U8, [4])).to_vec();
    let output =
        Output::create(&path, OutputLayout::single(tensors, no_metadata()), false, &[]).expect("creates");
    fill(&output, &two_data(1), 4);
    for (tensor, offset, len) in [(0, 0, 5), (0, 4, 1), (1, u64::MAX, 1), (2, 0, 0)] {
        let error = output.write(tensor, offset, &vec![9; len]).expect_err("outside");
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
    output.finish().expect("finishes");
    assert_eq!(read(&path), two_data(1));
}

#[test]
fn an_existing_output_is_replaced_only_on_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, shards) = (folder.path().join("m.safetensors"), folder.path().join("m"));
    write_small(&file, 1, false).expect("writes");
    write_two(&shards, 1, false).expect("writes");
    assert_says(&refusal(write_small(&file, 2, false)), &["m.safetensors", "exists", "--overwrite"]);
    assert_says(&refusal(write_two(&shards, 2, false)), &["exists", "--overwrite"]);
    assert_eq!((read(&file), read(&shards)), (small_data(1), two_data(1)));
    write_small(&file, 2, true).expect("replaces");
    write_two(&shards, 2, true).expect("replaces");
    assert_eq!((read(&file), read(&shards)), (small_data(2), two_data(2)));
    assert_eq!(names_in(folder.path()), ["m", "m.safetensors"]);

    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("creates");
    write_two(&empty, 3, false).expect("an empty folder is free");
    assert_eq!(read(&empty), two_data(3));
}

#[test]
fn an_output_that_appears_meanwhile_is_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, shards) = (folder.path().join("m.safetensors"), folder.path().join("m"));
    let output = Output::create(&file, small_layout(), false, &[]).expect("creates");
    fill(&output, &small_data(1), 8);
    fs::write(&file, "someone else's").expect("writes");
    assert_says(&refusal(output.finish()), &["exists"]);
    assert_eq!(fs::read(&file).expect("reads"), b"someone else's");

    let output = Output::create(&shards, two_shards(), false, &[]).expect("creates");
    fill(&output, &two_data(1), 8);
    fs::create_dir(&shards).expect("creates");
    fs::write(shards.join("x"), "someone else's").expect("writes");
    assert_says(&refusal(output.finish()), &["exists"]);
    assert_eq!(names_in(&shards), ["x"]);
    assert_eq!(names_in(folder.path()), ["m", "m.safetensors"]);
}

#[test]
fn a_replaced_folder_keeps_nothing_of_the_old_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m");
    write_two(&path, 1, false).expect("writes");
    fs::write(path.join("model-00003-of-00003.safetensors"), "an old shard").expect("writes");
    write_two(&path, 2, true).expect("replaces");
    let expected = [
        "README.md",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names_in(&path), expected);
}

#[test]
fn a_folder_with_anything_else_in_it_is_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m");
    write_two(&path, 1, false).expect("writes");
    fs::write(path.join("thesis.tex"), "years of work").expect("writes");
    fs::create_dir(path.join("config.json")).expect("creates");
    let message = refusal(write_two(&path, 2, true));
    assert_says(&message, &["would delete 2 entries", "\"config.json\", \"thesis.tex\"", "move them away"]);
    fs::remove_dir(path.join("config.json")).expect("removes");
    fs::remove_file(path.join("thesis.tex")).expect("removes");

    // One that comes while the job runs is as safe.
    let output = Output::create(&path, two_shards(), true, &[]).expect("creates");
    fill(&output, &two_data(2), 4);
    fs::write(path.join("thesis.tex"), "years of work").expect("writes");
    assert_says(&refusal(output.finish()), &["would delete 1 entries"]);
    assert_eq!(fs::read(path.join("thesis.tex")).expect("reads"), b"years of work");
}

#[test]
fn a_folder_with_somebody_s_safetensors_in_it_is_not_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m");
    write_two(&path, 1, false).expect("writes");
    for name in ["my.fisher.safetensors", "model-best.safetensors", "model-00001-of-2.safetensors"] {
        fs::write(path.join(name), "a day of work").expect("writes");
        assert_says(&refusal(write_two(&path, 2, true)), &["would delete 1 entries", name]);
        assert_eq!(fs::read(path.join(name)).expect("reads"), b"a day of work");
        fs::remove_file(path.join(name)).expect("removes");
    }
    // Shards of any name belong to the index that names them.
    fs::rename(path.join("model-00001-of-00002.safetensors"), path.join("first.safetensors"))
        .expect("renames");
    assert_says(&refusal(write_two(&path, 2, true)), &["would delete 1 entries", "first.safetensors"]);
    let index = path.join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).expect("reads").replace("model-00001-of-00002", "first");
    fs::write(&index, text).expect("writes");
    write_two(&path, 2, true).expect("replaces");
    assert_eq!(read(&path), two_data(2));
}

#[test]
#[cfg(unix)]
fn two_outputs_of_one_place_are_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let output = Output::create(at("m"), small_layout(), false, &[]).expect("creates");
    std::os::unix::fs::symlink("m", at("link")).expect("links");
    std::os::unix::fs::symlink(".", at("here")).expect("links");
    for same in ["m", "link", "here/m", "here/link", "./m"] {
        assert!(output.is_at(&at(same)).expect("looks"), "{same}");
    }
    assert!(!output.is_at(&at("other")).expect("looks"));
}

#[test]
fn a_file_does_not_replace_a_folder_nor_the_other_way_round() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, shards) = (folder.path().join("m.safetensors"), folder.path().join("m"));
    write_small(&file, 1, false).expect("writes");
    write_two(&shards, 1, false).expect("writes");
    assert_says(&refusal(write_small(&shards, 2, true)), &["is a folder", "give a file's name"]);
    assert_says(&refusal(write_two(&file, 2, true)), &["is a file", "choose another name"]);
}

#[test]
fn places_where_nothing_can_be_created() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_says(
        &refusal(write_small(&folder.path().join("no/m"), 1, false)),
        &["/no does not exist", "create it first"],
    );
    assert_says(&refusal(write_small(Path::new("/"), 1, true)), &["names no file"]);
    assert_says(&refusal(write_small(Path::new(".."), 1, true)), &["names no file"]);
    let slash = format!("{}/", folder.path().join("m").display());
    assert_says(
        &refusal(write_small(Path::new(&slash), 1, false)),
        &["names a folder", "give a file's name"],
    );
    assert!(!folder.path().join("m").exists(), "a file where a folder was asked for");
    assert_says(
        &refusal(write_small(&folder.path().join("n".repeat(250)), 1, false)),
        &["cannot create a partial"],
    );
    #[cfg(unix)]
    assert_says(&refusal(write_small(Path::new("/dev/null"), 1, true)), &["not a regular file"]);
    // Nobody may create files there, root included.
    #[cfg(target_os = "linux")]
    assert_says(
        &refusal(write_small(Path::new("/proc/m"), 1, false)),
        &["/proc/m", "cannot create a partial"],
    );
}

#[test]
fn an_input_is_never_the_output() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write_small(&at("m.safetensors"), 1, false).expect("writes");
    write_two(&at("m"), 1, false).expect("writes");
    let small = |out: &str, input: &str| Output::create(at(out), small_layout(), true, &[&at(input)]);
    let two = |out: &str, input: &str| Output::create(at(out), two_shards(), true, &[&at(input)]);

    assert_says(
        &refusal(small("m.safetensors", "m.safetensors")),
        &["the output is the input", "choose another output"],
    );
    assert_says(&refusal(small("m/../m.safetensors", "m.safetensors")), &["the output is the input"]);
    assert_says(&refusal(two("m", "m")), &["the output is the input"]);
    assert_says(&refusal(small("m/out.safetensors", "m")), &["lies inside the input"]);
    assert_says(&refusal(two("m/out", "m")), &["lies inside the input"]);
    assert_says(
        &refusal(two("m", "m/model-00001-of-00002.safetensors")),
        &["is a folder that holds the input"],
    );
    assert_says(&refusal(small("m/model-00001-of-00002.safetensors", "m")), &["lies inside the input"]);
    let by_index = small("m/model-00001-of-00002.safetensors", "m/model.safetensors.index.json");
    assert_says(&refusal(by_index), &["is linked to a file of the input"]);
    // Beside an input is not a fault.
    drop(small("out.safetensors", "m.safetensors").expect("creates"));
    drop(small("m/fisher.safetensors", "m/model-00001-of-00002.safetensors").expect("creates"));
    let missing = small("out.safetensors", "missing").expect_err("an input that is not there");
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
}

#[cfg(unix)]
#[test]
fn links_to_inputs_are_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write_small(&at("m.safetensors"), 1, false).expect("writes");
    write_two(&at("m"), 1, false).expect("writes");
    fs::hard_link(at("m.safetensors"), at("hard.safetensors")).expect("links");
    std::os::unix::fs::symlink("m.safetensors", at("soft.safetensors")).expect("links");
    std::os::unix::fs::symlink("m", at("soft")).expect("links");
    fs::create_dir(at("copy")).expect("creates");
    fs::hard_link(at("m/model-00001-of-00002.safetensors"), at("copy/model.safetensors")).expect("links");

    let small = |out: &str, input: &str| Output::create(at(out), small_layout(), true, &[&at(input)]);
    let two = |out: &str, input: &str| Output::create(at(out), two_shards(), true, &[&at(input)]);
    assert_says(&refusal(small("hard.safetensors", "m.safetensors")), &["the output is the input"]);
    assert_says(&refusal(small("soft.safetensors", "m.safetensors")), &["the output is the input"]);
    assert_says(&refusal(small("m.safetensors", "soft.safetensors")), &["the output is the input"]);
    assert_says(&refusal(two("soft", "m")), &["the output is the input"]);
    assert_says(&refusal(small("soft/x", "m")), &["lies inside the input"]);
    assert_says(&refusal(two("copy", "m")), &["is linked to a file of the input"]);
    assert_eq!((read(&at("m.safetensors")), read(&at("m"))), (small_data(1), two_data(1)));
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_stays_and_its_target_is_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("store")).expect("creates");
    let is_link = |name: &str| fs::symlink_metadata(at(name)).expect("there").is_symlink();
    for (link, to) in [("a", "store/a"), ("b", "store/b"), ("chain", "a")] {
        std::os::unix::fs::symlink(to, at(link)).expect("links");
    }
    write_small(&at("a"), 1, false).expect("a link to nothing yet");
    write_two(&at("b"), 1, false).expect("a link to nothing yet");
    write_small(&at("chain"), 2, true).expect("replaces through two links");
    write_two(&at("b"), 2, true).expect("replaces");
    assert!(is_link("a") && is_link("b") && is_link("chain"));
    assert_eq!((read(&at("store/a")), read(&at("store/b"))), (small_data(2), two_data(2)));
    assert_eq!(names_in(&at("store")), ["a", "b"]);

    std::os::unix::fs::symlink("circle", at("circle")).expect("links");
    assert_says(&refusal(write_small(&at("circle"), 1, true)), &["a circle"]);
}

/// The umask belongs to the whole process, so it is read off a new file and not set here.
#[cfg(unix)]
#[test]
fn permissions_are_those_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let mode = |name: &str| fs::metadata(at(name)).expect("there").permissions().mode() & 0o777;
    fs::write(at("file"), "").expect("writes");
    fs::create_dir(at("folder")).expect("creates");
    write_small(&at("m.safetensors"), 1, false).expect("writes");
    write_two(&at("m"), 1, false).expect("writes");
    assert_eq!(mode("m.safetensors"), mode("file"));
    assert_eq!(mode("m"), mode("folder"));
    for name in names_in(&at("m")) {
        assert_eq!(mode(&format!("m/{name}")), mode("file"), "{name}");
    }
    assert_ne!(mode("file"), 0o600, "an umask of 077 would hide the fault this looks for");
}

#[cfg(unix)]
#[test]
fn side_files_are_copied_without_their_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write_two(&at("m"), 1, false).expect("writes");
    fs::write(at("m/config.json"), "{}").expect("writes");
    fs::set_permissions(at("m/config.json"), fs::Permissions::from_mode(0o400)).expect("sets");
    let model = Checkpoint::open(at("m")).expect("opens");
    let layout = OutputLayout::like(&model, |tensor| Some(tensor.dtype), no_metadata());
    let output = Output::create(at("o"), layout.with_side_files_of(&model).expect("lists"), false, &[])
        .expect("creates");
    fill(&output, &two_data(1), 4);
    output.finish().expect("finishes");
    let mode = fs::metadata(at("o/config.json")).expect("there").permissions().mode();
    assert_eq!(mode & 0o200, 0o200, "the owner may write");
}

#[test]
fn a_disk_too_small_is_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.safetensors");
    write_small(&path, 1, false).expect("writes");
    let layout = OutputLayout::single(vec![OutputTensor::new("w", Dtype::U8, [1 << 60])], no_metadata());
    let message = refusal(Output::create(&path, layout, true, &[]));
    // Without a way to ask for the free space, setting it aside is what fails.
    let said = if cfg!(unix) { "are free on this disk" } else { "set" };
    assert_says(&message, &["m.safetensors", said]);
    assert_eq!(names_in(folder.path()), ["m.safetensors"]);
    assert_eq!(read(&path), small_data(1));
}

#[cfg(unix)]
#[test]
fn disk_space_is_set_aside_at_the_start() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = 8_u64 << 20;
    let layout = OutputLayout::single(vec![OutputTensor::new("w", Dtype::U8, [bytes])], no_metadata());
    let output = Output::create(folder.path().join("m"), layout, false, &[]).expect("creates");
    let partial = fs::metadata(folder.path().join(&names_in(folder.path())[0])).expect("there");
    assert_eq!(partial.len(), output.total_bytes());
    assert!(partial.blocks() * 512 >= bytes, "{} blocks for {bytes} bytes: a sparse file", partial.blocks());
}

#[test]
fn layouts_that_the_format_cannot_hold() {
    let folder = tempfile::tempdir().expect("a folder");
    let single = |tensors: Vec<OutputTensor>| {
        let layout = OutputLayout::single(tensors, no_metadata());
        refusal(Output::create(folder.path().join("m"), layout, false, &[]))
    };
    let u8s = |name: &str, shape: &[u64]| OutputTensor::new(name, Dtype::U8, shape);
    assert_says(&single(vec![u8s("a", &[1]), u8s("a", &[2])]), &["tensor \"a\" is given twice"]);
    assert_says(&single(vec![u8s("__metadata__", &[1])]), &["__metadata__", "keeps for itself"]);
    assert_says(&single(vec![u8s("a", &[u64::MAX, 2])]), &["tensor \"a\"", "more than 2^64 elements"]);
    assert_says(&single(vec![u8s("a", &[u64::MAX]), u8s("b", &[u64::MAX])]), &["exceed 2^64 bytes"]);
    assert_says(&single(vec![u8s("a", &[u64::MAX])]), &["exceed 2^64 bytes"]);
    assert_says(&single(vec![OutputTensor::new("a", Dtype::F4, [3])]), &["whole bytes"]);
    assert_says(&single(vec![u8s("a", &[1; MAX_AXES + 1])]), &["65 axes", "the limit is 64"]);
    assert_says(&single(vec![u8s(&"n".repeat(100_000_001), &[1])]), &["the format allows 100000000"]);

    let text = |name: &str| {
        let layout = two_shards().with_text(name, "");
        refusal(Output::create(folder.path().join("m"), layout, false, &[]))
    };
    assert_says(&text("../x"), &["\"../x\" is not a plain file name"]);
    assert_says(&text("README.md"), &["two files of the output would be called \"README.md\""]);
    assert_says(&text("model.safetensors.index.json"), &["two files of the output"]);
    assert_eq!(names_in(folder.path()), [""; 0]);
}

#[cfg(unix)]
#[test]
fn orphans_are_removed_and_living_partials_respected() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    // What a killed run leaves, what only looks alike, and what belongs to another output.
    fs::write(at(".m.partial-4000000-aB3dE6"), "half").expect("writes");
    fs::create_dir(at(".m.partial-4000000-xxxxxx")).expect("creates");
    fs::write(at(".m.partial-4000000-xxxxxx/w"), "half").expect("writes");
    let others = [".m.partial-1-toolong", ".m.partial-mine", ".n.partial-4000000-aB3dE6"];
    for name in others {
        fs::write(at(name), "").expect("writes");
    }
    write_small(&at("m"), 1, false).expect("writes");
    let mut expected = others.to_vec();
    expected.push("m");
    assert_eq!(names_in(folder.path()), expected);

    for (name, layout) in [("file", small_layout()), ("shards", two_shards())] {
        let living = Output::create(at(name), layout.clone(), false, &[]).expect("creates");
        let message = refusal(Output::create(at(name), layout, false, &[]));
        assert_says(&message, &["another run is writing this output", &format!("-{}-", std::process::id())]);
        if name == "file" {
            fill(&living, &small_data(5), 8);
        } else {
            fill(&living, &two_data(5), 8);
        }
        living.finish().expect("the first is not disturbed");
        assert!(at(name).exists());
    }
}

/// The other process of [`a_killed_run_leaves_the_old_output_and_an_orphan_that_the_next_run_removes`].
#[cfg(unix)]
#[test]
#[ignore = "waits to be killed"]
fn child_that_waits_to_be_killed() {
    let folder = std::env::var_os("SQUISHER_TEST_FOLDER").expect("set by the parent");
    let at = |name: &str| Path::new(&folder).join(name);
    let file = Output::create(at("file"), small_layout(), true, &[]).expect("creates");
    let shards = Output::create(at("shards"), two_shards(), true, &[]).expect("creates");
    fill(&file, &small_data(2), 8);
    shards.write(0, 0, &[2; 4]).expect("writes");
    fs::write(at("ready"), "").expect("writes");
    std::thread::sleep(std::time::Duration::from_secs(600));
}

#[cfg(unix)]
#[test]
fn a_killed_run_leaves_the_old_output_and_an_orphan_that_the_next_run_removes() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    write_small(&at("file"), 1, false).expect("writes");
    write_two(&at("shards"), 1, false).expect("writes");
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "outputs::child_that_waits_to_be_killed", "--ignored"])
        .env("SQUISHER_TEST_FOLDER", folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    while !at("ready").exists() {
        assert_eq!(child.try_wait().expect("its state"), None, "the child ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_says(&refusal(write_small(&at("file"), 3, true)), &["another run", &format!("-{}-", child.id())]);
    assert_says(&refusal(write_two(&at("shards"), 3, true)), &["another run", &format!("-{}-", child.id())]);
    child.kill().expect("kills");
    child.wait().expect("ends");

    assert_eq!((read(&at("file")), read(&at("shards"))), (small_data(1), two_data(1)));
    assert_eq!(names_in(folder.path()).len(), 5, "two outputs, two orphans, one mark");
    write_small(&at("file"), 3, true).expect("replaces");
    write_two(&at("shards"), 3, true).expect("replaces");
    assert_eq!((read(&at("file")), read(&at("shards"))), (small_data(3), two_data(3)));
    assert_eq!(names_in(folder.path()), ["file", "ready", "shards"]);
}

#[test]
fn a_relative_path_is_enough() {
    let folder = tempfile::tempdir_in(".").expect("a folder");
    let name = folder.path().file_name().expect("named").to_owned();
    let path = Path::new(&name).join("m.safetensors");
    write_small(&path, 1, false).expect("writes");
    assert_eq!(read(&path), small_data(1));
    let slash = Path::new(&name).join("o/");
    write_two(&slash, 1, false).expect("a slash at the end");
    assert_eq!(read(&slash), two_data(1));
}
