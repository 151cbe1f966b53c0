//! Captures and options without a meaning are refused by message.

use std::path::PathBuf;
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;
use squisher::methods::fisher::{FisherOptions, Kind, Reduction, plan};
use squisher::{Backend, Run};

use crate::support::capture_files::{Draft, LINEAR, linear};
use crate::support::files::folder;
use crate::{of, refused, refuses};

#[test]
fn a_sum_beyond_f32_is_refused_by_name() {
    let folder = folder();
    let path = linear(&[1e30], &[1e30]).write(&folder, "a");
    let problem = refused(&[path], of(Kind::Empirical));
    assert!(problem.contains("\"fc.weight\"") && problem.contains("flat index 0"), "{problem}");
}

#[test]
fn bad_captures_are_refused_by_message() {
    let layers = |json: &str| {
        Draft::new(json).with("fc.input", &[1, 1], &[1.0]).with("fc.grad_output", &[1, 1], &[1.0])
    };
    refuses(layers(r#"{"fc": {"kind": "lstm", "bias": true}}"#), "layer \"fc\": unknown variant `lstm`");
    refuses(layers(r#"{"fc": {"kind": "linear"}}"#), "missing field `bias`");
    refuses(layers(r#"{"fc": {"kind": "batch_norm", "eps": 1e-5, "bias": true}}"#), "running_mean");
    refuses(layers(LINEAR).note("format", "pt"), "no capture");
    refuses(layers(LINEAR).note("format", "squisher-capture-2"), "this version reads");
    refuses(layers(LINEAR).note("loss_reduction", "max"), "expected one of sum, mean");
    refuses(layers(LINEAR).note("labels", "all"), "no sample_weight");
    refuses(layers(LINEAR).with("f.input", &[1], &[1.0]), "belongs to no layer");
    refuses(layers(LINEAR).with("sample_weight", &[2], &[1.0, 1.0]), "2 samples");
    refuses(Draft::new(LINEAR).with("fc.input", &[1, 1], &[1.0]), "\"fc.grad_output\": is missing");
    refuses(linear(&[1.0, f32::NAN], &[1.0, 1.0]), "\"fc.input\": NaN or infinity at flat index 1");
    refuses(
        linear(&[1.0, 1.0], &[f32::INFINITY, 1.0]),
        "\"fc.grad_output\": NaN or infinity at flat index 0",
    );
    let shapes = Draft::new(LINEAR).with("fc.input", &[1, 2, 3], &[0.0; 6]).with(
        "fc.grad_output",
        &[1, 3, 1],
        &[0.0; 3],
    );
    refuses(shapes, "input [1, 2, 3], grad_output [1, 3, 1]");
    let embedding = Draft::new(r#"{"e": {"kind": "embedding", "rows": 3, "bias": false}}"#)
        .ids("e.input", &[1, 2], &[1, 3])
        .with("e.grad_output", &[1, 2, 1], &[1.0, 1.0]);
    refuses(embedding, "id 3 at flat index 1, the table has rows 0..3");
    let window =
        r#""kernel": [2], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": false"#;
    let conv = Draft::new(&format!(r#"{{"c": {{"kind": "conv", {window}}}}}"#))
        .with("c.input", &[1, 1, 4], &[0.0; 4])
        .with("c.grad_output", &[1, 1, 4], &[0.0; 4]);
    refuses(conv, "axis 2 of the output should have 3 for this input and window, it has 4");
}

/// What a run refuses before it reads the layers, a plan refuses in the same words.
fn refused_and_unplanned(captures: &[PathBuf], options: FisherOptions) -> String {
    let text = refused(captures, options);
    let planned = plan(captures, &options, &Run::new(&Backend::Host));
    assert_eq!(planned.expect_err("a plan that the run refuses").to_string(), text);
    text
}

#[test]
fn options_without_a_meaning_are_refused_by_message() {
    let refused = refused_and_unplanned;
    let folder = folder();
    let path = [linear(&[1.0], &[1.0]).write(&folder, "a.safetensors")];
    let message = refused(&path, FisherOptions { weighted: true, ..of(Kind::Empirical) });
    assert!(message.contains("no sample_weight"), "{message}");
    let message = refused(&path, FisherOptions { weighted: true, ..of(Kind::Joint) });
    assert!(message.contains("joint squares sums over samples"), "{message}");
    let message = refused(&path, FisherOptions { beta: 1.0, ..of(Kind::Ema) });
    assert!(message.contains("beta is 1"), "{message}");
    assert!(refused(&path, of(Kind::Ief)).contains("no logit_grad"));
    assert!(refused(&[], of(Kind::Empirical)).contains("no capture was given"));
    let mean = FisherOptions { reduction: Reduction::Mean, ..of(Kind::Accumulator) };
    assert!(refused(&path, mean).contains("by its own rule"));
    let model = linear(&[1.0], &[1.0]).with("sample_weight", &[1], &[1.0]).note("labels", "all");
    let model = [model.write(&folder, "all.safetensors")];
    assert!(refused(&model, of(Kind::Ema)).contains("defined by the data's labels"));
    let planned = plan(&path, &of(Kind::Ema), &Run::new(&Backend::Host)).expect("sound");
    assert_eq!((planned.samples, planned.batches, planned.passes), (1, 1, 1));
    let mut tool = Command::cargo_bin("squisher").expect("the tests are built together with the tool");
    tool.args(["fisher", "--kind", "joint", "--weighted", "--dry-run", "-o", "none"]).arg(&path[0]);
    assert_eq!(tool.output().expect("the tool can be started").status.code(), Some(2));
    let other = linear(&[1.0, 2.0], &[1.0]).write(&folder, "b.safetensors");
    let message = refused(&[path[0].clone(), other], of(Kind::Empirical));
    assert!(message.contains("not of one network: layer \"fc\""), "{message}");
}
