//! Containers and pickles: sound ones agree, hostile and broken ones are refused without being executed.

use std::fs;

use squisher::Error;
use squisher::checkpoint::{ModelParams, OptimizerState, Scale};
use squisher::methods::squisher::{Warning, plan};

use crate::support::files::folder;
use crate::{data, open, refused, run_file, scale};

fn hostile(file: &str) -> Result<OptimizerState, Error> {
    OptimizerState::open(data("hostile").join(file))
}

#[test]
fn sound_files_in_every_container_agree() {
    let m = ModelParams::open(data("hostile").join("model.safetensors")).unwrap();
    let read = |file: &str| run_file(&data("hostile").join(file), &m, &scale(Scale::Unbiased)).unwrap().0;
    let sound = read("sound.pt");
    assert_eq!(read("legacy.pt"), sound);
    assert_eq!(read("protocol4.pt"), sound);
    assert_eq!(read("stem_of_21_characters.pt"), sound);
    assert_eq!(read("system_beside.pt"), sound);
}

#[test]
fn hostile_and_foreign_files_are_refused_by_what_they_are() {
    for (file, parts) in [
        ("deflated.pt", &["compressed or encrypted", "refused"][..]),
        ("big_endian.pt", &["big-endian"]),
        ("no_pickle.pt", &["without data.pkl"]),
        ("two_pickles.pt", &["2 entries are called data.pkl"]),
        ("duplicate.pt", &["two zip entries have the same name"]),
        ("overclaim.pt", &["claim", "bytes, the file has"]),
        ("truncated.pt", &["damaged zip archive", "cut short"]),
        ("empty.pt", &["an empty file"]),
        ("lfs.pt", &["git-lfs pointer", "git lfs pull"]),
        ("bare.pt", &["a bare pickle"]),
        ("model.safetensors", &["a safetensors file"]),
        ("whole_optimizer.pt", &["whole pickled object", "AdamW", "save optimizer.state_dict() instead"]),
        ("system_as_groups.pt", &["param_groups is an object made by", "system"]),
        ("two_optimizers.pt", &["holds 2 optimizer states", "\"a\", \"b\""]),
        ("state_dict.pt", &["no optimizer state", "\"weight\", \"bias\""]),
        ("zero_shard.pt", &["DeepSpeed ZeRO"]),
        ("two_zeros.pt", &["two entries called \"0\""]),
    ] {
        refused(hostile(file), parts);
    }
}

#[test]
fn calls_are_named_and_refused_where_a_value_is_needed() {
    let m = ModelParams::open(data("hostile").join("model.safetensors")).unwrap();
    let beside = hostile("system_beside.pt").unwrap();
    assert_eq!(beside.foreign_imports(), ["posix.system"]);
    let p = plan(&beside, &m, &scale(Scale::Raw)).unwrap();
    assert!(p.warnings.contains(&Warning::ForeignImports(vec!["posix.system".into()])));
    let step = hostile("system_as_step.pt").unwrap();
    refused(plan(&step, &m, &scale(Scale::Unbiased)), &["state.0.step", "posix.system"]);
    assert!(plan(&step, &m, &scale(Scale::Raw)).is_ok(), "raw needs no step");
    let accumulator = hostile("system_as_accumulator.pt").unwrap();
    refused(
        plan(&accumulator, &m, &scale(Scale::Raw)),
        &["exp_avg_sq would have to be made by", "posix.system"],
    );
}

#[test]
fn a_flipped_bit_is_found_by_its_checksum() {
    let m = ModelParams::open(data("hostile").join("model.safetensors")).unwrap();
    let path = data("hostile").join("bit_flip.pt");
    refused(run_file(&path, &m, &scale(Scale::Raw)), &["state.0.exp_avg_sq", "checksum", "damaged"]);
}

#[test]
fn every_truncation_is_an_error_and_no_panic() {
    let sound = fs::read(data("hostile").join("sound.pt")).unwrap();
    let legacy = fs::read(data("hostile").join("legacy.pt")).unwrap();
    let folder = folder();
    let path = folder.path().join("optimizer.pt");
    for whole in [sound, legacy] {
        for len in (0..whole.len()).step_by(97) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(OptimizerState::open(&path).is_err(), "{len} of {} bytes", whole.len());
        }
    }
}

#[test]
fn every_flipped_byte_of_a_pickle_is_an_error_or_a_state_and_no_panic() {
    let whole = fs::read(data("hostile").join("legacy.pt")).unwrap();
    let folder = folder();
    let path = folder.path().join("optimizer.pt");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        fs::write(&path, &bytes).unwrap();
        if let Ok(state) = OptimizerState::open(&path) {
            for entry in state.entries() {
                if let Ok(accumulator) = state.accumulator(entry, false) {
                    let _ = state.param_shape(entry, accumulator);
                    let _ = state.read_accumulator(entry, accumulator);
                }
            }
        }
    }
}

#[test]
fn folders_are_searched_and_named() {
    let folder = folder();
    refused(OptimizerState::open(folder.path()), &["a folder without optimizer.pt or optimizer.bin"]);
    fs::copy(data("hostile").join("sound.pt"), folder.path().join("optimizer.bin")).unwrap();
    assert_eq!(OptimizerState::open(folder.path()).unwrap().entries().len(), 2);
    fs::copy(data("hostile").join("sound.pt"), folder.path().join("optimizer.pt")).unwrap();
    refused(OptimizerState::open(folder.path()), &["both optimizer.pt and optimizer.bin"]);
    fs::write(folder.path().join(".metadata"), b"").unwrap();
    refused(OptimizerState::open(folder.path()), &["dcp_to_torch"]);
    refused(OptimizerState::open(folder.path().join("none.pt")), &["open"]);
}

#[test]
fn the_container_of_a_wrapped_state_is_found() {
    assert_eq!(open("wrapped").container(), ["optimizer_state_dict"]);
    assert_eq!(open("beside_model").container(), ["optimizer"]);
    assert!(open("param_names").container().is_empty());
}
