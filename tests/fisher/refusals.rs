//! Captures and options without a meaning are refused by message.

use squisher::methods::fisher::{FisherOptions, Kind};

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

#[test]
fn options_without_a_meaning_are_refused_by_message() {
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
    let other = linear(&[1.0, 2.0], &[1.0]).write(&folder, "b.safetensors");
    let message = refused(&[path[0].clone(), other], of(Kind::Empirical));
    assert!(message.contains("not of one network: layer \"fc\""), "{message}");
}
