//! The file that extraction writes.

use std::fs;

use squisher::checkpoint::{Checkpoint, OptimizerState, Scale};
use squisher::methods::squisher::{ExtractOptions, extract};
use squisher::{Backend, Error, Run};

use crate::support::files::folder;
use crate::{data, model, open, refused, scale};

#[test]
fn the_output_says_what_it_is() {
    let folder = folder();
    let out = folder.path().join("fisher.safetensors");
    let state = open("adamw_f32");
    let options = ExtractOptions { batch_size: Some(16), samples: Some(500), ..scale(Scale::Mean) };
    let report = extract(&state, &model("adamw_f32"), &options, &out, &Run::new(&Backend::Host)).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    let get = |key: &str| checkpoint.metadata().get(&format!("squisher.{key}")).map(String::as_str);
    assert_eq!(get("kind"), Some("accumulator"));
    assert_eq!(get("reduction"), Some("mean"));
    assert_eq!(get("samples"), Some("500"));
    assert_eq!(get("batch_size"), Some("16"));
    assert_eq!(get("decay"), Some("0.999"));
    assert_eq!(get("step"), Some("7"));
    assert_eq!(get("scale"), Some("mean"));
    assert_eq!(get("loss"), Some("mean"));
    assert_eq!(get("source"), Some("optimizer.pt"));
    assert_eq!(get("version"), Some(env!("CARGO_PKG_VERSION")));
    let json = serde_json::to_value(&report).unwrap();
    for key in [
        "tensors",
        "evidence",
        "renamed",
        "absent",
        "warnings",
        "scale",
        "scale_factor",
        "elements",
        "bytes_written",
        "output",
    ] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert_eq!(json["scale"], "mean");
    assert_eq!(report.bytes_written, fs::metadata(&out).unwrap().len());
    refused(
        extract(&state, &model("adamw_f32"), &options, &out, &Run::new(&Backend::Host)),
        &["exists", "--overwrite"],
    );
}

#[test]
fn the_output_may_not_be_an_input() {
    let folder = folder();
    let path = folder.path().join("optimizer.pt");
    fs::copy(data("adamw_f32").join("optimizer.pt"), &path).unwrap();
    let state = OptimizerState::open(&path).unwrap();
    let before = fs::read(&path).unwrap();
    let options = ExtractOptions { overwrite: true, ..scale(Scale::Raw) };
    refused(
        extract(&state, &model("adamw_f32"), &options, &path, &Run::new(&Backend::Host)),
        &["the output is the input"],
    );
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn an_interrupt_leaves_nothing() {
    let folder = folder();
    let run = Run::new(&Backend::Host);
    run.interrupt.request(2);
    let out = folder.path().join("fisher.safetensors");
    let result = extract(&open("adamw_f32"), &model("adamw_f32"), &scale(Scale::Raw), &out, &run);
    assert!(matches!(result, Err(Error::Interrupted { signal: 2 })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
