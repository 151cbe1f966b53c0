//! Elastic weight consolidation, through the library and through the command line.

mod support;

use std::path::{Path, PathBuf};

use squisher::methods::NonFinite;
use squisher::methods::ewc::{Anchor, EwcOptions, EwcReport, ewc};
use squisher::stream::Budget;
use squisher::{Backend, Result, Run};
use tempfile::TempDir;

use support::files::{f32s, f64s, folder};
use support::tool::squisher;
use support::{close, files, tool};

const CASES: [(&str, f64); 2] = [("f32", 3.5), ("bf16", 1000.0)];

fn file(case: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/ewc")
        .join(case)
        .join(format!("{name}.safetensors"))
}

/// Every tensor of a file by name.
fn tensors(path: &Path) -> Vec<(String, Vec<f64>)> {
    files::read(path).iter().map(|(name, tensor)| (name.clone(), files::values(tensor))).collect()
}

fn options(case: &str, lambda: f64) -> EwcOptions {
    EwcOptions {
        model: file(case, "model"),
        anchors: vec![Anchor { path: file(case, "anchor"), fishers: vec![file(case, "fisher")] }],
        lambda,
        gamma: None,
        non_finite: NonFinite::Error,
        gradient: None,
        overwrite: false,
    }
}

/// A file of one tensor `w`.
fn save_w(folder: &TempDir, name: &str, tensor: files::Tensor) -> PathBuf {
    files::write(&folder.path().join(format!("{name}.safetensors")), [("w", tensor)])
}

fn run(options: &EwcOptions, backend: &Backend) -> Result<EwcReport> {
    ewc(options, &Run::new(backend))
}

fn near(got: f64, want: f64) {
    close::near(got, want, 1e-5 * want.abs());
}

fn is_the_oracle_s(case: &str, penalty: f64, gradient: &Path) {
    let want = tensors(&file(case, "expected"));
    let got = tensors(gradient);
    let (penalties, gradients): (Vec<_>, Vec<_>) = want.into_iter().partition(|(name, _)| name == "penalty");
    near(penalty, penalties[0].1[0]);
    assert_eq!(got.len(), gradients.len());
    for ((name, got), (want_name, want)) in got.iter().zip(&gradients) {
        assert_eq!(&format!("gradient/{name}"), want_name);
        assert_eq!(got.len(), want.len());
        got.iter().zip(want).for_each(|(got, want)| near(*got, *want));
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn penalty_and_gradient_are_the_oracle_s() {
    let folder = folder();
    for (at, backend) in support::backends().iter().enumerate() {
        for (case, lambda) in CASES {
            let out = folder.path().join(format!("{at}-{case}.safetensors"));
            let options = EwcOptions { gradient: Some(out.clone()), ..options(case, lambda) };
            let report = run(&options, backend).expect("the files are sound");
            is_the_oracle_s(case, report.penalty, &out);
        }
    }
}

/// The oracle's penalty and gradient through the tool, wherever these flags put it.
fn the_tool_gives_the_oracle_s(flags: [&str; 2]) {
    let folder = folder();
    for (case, lambda) in CASES {
        let out = folder.path().join(format!("{case}.safetensors"));
        let mut command = squisher(["ewc", "--json", "--lambda", &lambda.to_string()]);
        command.args(flags).arg("--model");
        command.arg(file(case, "model")).arg("--anchor").arg(file(case, "anchor"));
        command.arg("--fisher").arg(file(case, "fisher")).arg("--gradient-out").arg(&out);
        let json = tool::json(&mut command);
        is_the_oracle_s(case, json["penalty"].as_f64().expect("a number"), &out);
        assert_eq!(json["lambda"].as_f64(), Some(lambda));
        let formula = json["formula"].as_str().expect("text");
        assert!(formula.starts_with("penalty = 1/2 lambda sum F"), "{formula}");
    }
}

#[test]
fn the_tool_on_the_host_gives_the_oracle_s_and_states_its_conventions() {
    the_tool_gives_the_oracle_s(["--backend", "host"]);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_tool_on_an_adapter_gives_the_oracle_s_and_states_its_conventions() {
    the_tool_gives_the_oracle_s(["--adapter", &support::gpu().caps().name]);
}

#[test]
fn a_dry_run_states_the_terms_and_writes_nothing() {
    let folder = folder();
    let out = folder.path().join("gradient.safetensors");
    let mut command = squisher(["ewc", "--backend", "host", "--json", "--dry-run"]);
    command.args(["--lambda", "2", "--gamma", "0.5", "--model"]);
    command.arg(file("f32", "model")).arg("--anchor").arg(file("f32", "anchor"));
    command.arg("--fisher").arg(file("f32", "fisher")).arg("--fisher").arg(file("f32", "fisher"));
    let json = tool::json(command.arg("--gradient-out").arg(&out));
    let weights: Vec<_> =
        json["terms"].as_array().expect("terms").iter().map(|t| t["weight"].as_f64()).collect();
    assert_eq!(weights, [Some(1.0), Some(2.0)]);
    let real = run(&options("f32", 2.0), &Backend::Host).expect("sound");
    assert_eq!((json["elements"].as_u64(), json["dry_run"].as_bool()), (Some(real.elements), Some(true)));
    assert!(!out.exists(), "a dry run wrote the gradient");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn chunks_change_nothing_but_rounding() {
    let folder = folder();
    let write = |name: &str, value: &dyn Fn(u32) -> f32| {
        save_w(&folder, name, f32s(&[400, 1000], &(0..400_000).map(value).collect::<Vec<f32>>()))
    };
    let model = write("model", &|i| (i as f32).sin());
    let anchor = write("anchor", &|i| (i as f32).cos());
    let fisher = write("fisher", &|i| (i % 97) as f32);
    let small = Budget { host_bytes: 2 << 20, device_bytes: 2 << 20, ..Budget::default() };
    for backend in support::backends() {
        let mut all = Vec::new();
        for (name, budget) in [("whole", Budget::default()), ("cut", small)] {
            let out = folder.path().join(format!("{name}-gradient.safetensors"));
            let anchors = vec![Anchor { path: anchor.clone(), fishers: vec![fisher.clone()] }];
            let options = EwcOptions {
                model: model.clone(),
                anchors,
                gradient: Some(out.clone()),
                overwrite: true,
                ..options("f32", 3.0)
            };
            let penalty = ewc(&options, &Run { budget, ..Run::new(&backend) }).expect("sound").penalty;
            all.push((penalty, std::fs::read(out).expect("the gradient was written")));
        }
        assert!(all[0].1 == all[1].1, "the gradient has no sums, so its bits are the same");
        near(all[0].0, all[1].0);
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn impossible_fishers_count_as_zero_where_that_is_asked_for_and_weights_never_do() {
    let folder = folder();
    let write = |name: &str, values: [f32; 4]| save_w(&folder, name, f32s(&[4], &values));
    let anchor = write("anchor", [0.0; 4]);
    let fisher = write("fisher", [f32::NAN, -1.0, f32::INFINITY, 3.0]);
    let with = |model: PathBuf| EwcOptions {
        model,
        anchors: vec![Anchor { path: anchor.clone(), fishers: vec![fisher.clone()] }],
        non_finite: NonFinite::Zero,
        ..options("f32", 2.0)
    };
    for backend in support::backends() {
        let report = run(&with(write("model", [1.0, 2.0, 3.0, 4.0])), &backend).expect("nothing is refused");
        assert_eq!((report.penalty, report.non_finite), (48.0, 3));
        let refused = run(&with(write("nan", [1.0, f32::NAN, 3.0, 4.0])), &backend).expect_err("θ is NaN");
        assert!(refused.to_string().contains("index 1 is NaN"), "{refused}");
    }
}

/// F64 is narrowed where it fits f32, and refused where it does not.
#[test]
fn doubles_are_narrowed_with_a_check() {
    let folder = folder();
    let write = |name: &str, values: [f64; 2]| save_w(&folder, name, f64s(&[2], &values));
    let with = |fisher: PathBuf| EwcOptions {
        model: write("model", [1.0, 2.0]),
        anchors: vec![Anchor { path: write("anchor", [0.0, 0.0]), fishers: vec![fisher] }],
        ..options("f32", 2.0)
    };
    assert_eq!(run(&with(write("fisher", [1.0, 0.5])), &Backend::Host).expect("sound").penalty, 3.0);
    let refused = run(&with(write("large", [1.0, 1e39])), &Backend::Host).expect_err("beyond f32");
    assert!(refused.to_string().contains("index 1 is 1e39, beyond the range of f32"), "{refused}");
}

#[test]
fn anchors_add_up_and_only_older_fishers_decay() {
    let one = run(&options("f32", 3.5), &Backend::Host).expect("sound").penalty;
    let mut twice = options("f32", 3.5);
    twice.anchors = [twice.anchors.clone(), twice.anchors].concat();
    near(run(&twice, &Backend::Host).expect("sound").penalty, 2.0 * one);
    let mut online = options("f32", 3.5);
    online.anchors[0].fishers = vec![file("f32", "fisher"); 3];
    let refused = run(&online, &Backend::Host).expect_err("nothing says how they count");
    assert!(refused.to_string().contains("--gamma"), "{refused}");
    online.gamma = Some(0.5);
    near(run(&online, &Backend::Host).expect("sound").penalty, 1.75 * one);
}

/// Two anchors with Fishers of different tensors: each pulls to its own place, and none decays the other.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn each_anchor_pulls_with_its_own_fisher() {
    let folder = folder();
    let write = |name: &str, tensors: &[(&str, [f32; 2])]| {
        let tensors = tensors.iter().map(|(tensor, values)| (*tensor, f32s(&[2], values)));
        files::write(&folder.path().join(format!("{name}.safetensors")), tensors)
    };
    let model = write("model", &[("both", [2.0, 3.0]), ("first", [1.0, -1.0]), ("free", [9.0, 9.0])]);
    let zeros = write("zeros", &[("both", [0.0, 0.0]), ("first", [0.0, 0.0])]);
    let ones = write("ones", &[("both", [1.0, 1.0])]);
    let fisher_a = write("fa", &[("both", [1.0, 0.5]), ("first", [4.0, 2.0])]);
    let fisher_b = write("fb", &[("both", [3.0, 0.25])]);
    for backend in support::backends() {
        let out = folder.path().join("gradient.safetensors");
        let options = EwcOptions {
            model: model.clone(),
            anchors: vec![
                Anchor { path: zeros.clone(), fishers: vec![fisher_a.clone()] },
                Anchor { path: ones.clone(), fishers: vec![fisher_b.clone()] },
            ],
            gradient: Some(out.clone()),
            overwrite: true,
            ..options("f32", 2.0)
        };
        let report = run(&options, &backend).expect("sound");
        // ½ · 2 · (1·4 + 0.5·9 + 4·1 + 2·1) and ½ · 2 · (3·1 + 0.25·4): all exact in f32.
        let parts: Vec<f64> = report.terms.iter().map(|term| term.penalty).collect();
        assert_eq!((parts, report.penalty), (vec![14.5, 4.0], 18.5));
        assert_eq!((report.elements, report.free), (4, vec!["free".to_owned()]));
        assert!(report.timings.seconds > 0.0 && report.timings.compute > 0.0, "{:?}", report.timings);
        let want = [("both", vec![2.0 * (2.0 + 3.0), 2.0 * (1.5 + 0.5)]), ("first", vec![8.0, -4.0])];
        assert_eq!(tensors(&out), want.map(|(name, values)| (name.to_owned(), values)));
        // Which of the two would it decay?
        let refused = run(&EwcOptions { gamma: Some(0.9), ..options }, &backend).expect_err("unclear");
        assert!(refused.to_string().contains("no anchor has two"), "{refused}");
    }
}

#[test]
fn what_cannot_be_is_refused_and_nothing_is_written() {
    let folder = folder();
    let write = |name: &str, values: [f32; 2]| save_w(&folder, name, f32s(&[2], &values));
    let out = folder.path().join("gradient.safetensors");
    let refused = |model: &Path, fisher: PathBuf, lambda: f64, says: &str| {
        let anchors = vec![Anchor { path: write("anchor", [0.0, 0.0]), fishers: vec![fisher] }];
        let options = EwcOptions {
            model: model.to_owned(),
            anchors,
            gradient: Some(out.clone()),
            ..options("f32", lambda)
        };
        let refused = run(&options, &Backend::Host).expect_err(says);
        let exit = refused.exit_code();
        let refused = refused.to_string();
        assert!(refused.contains(says), "expected `{says}` in: {refused}");
        assert!(!out.exists(), "an output was written");
        exit
    };
    let model = write("model", [1.0, 2.0]);
    refused(&model, write("negative", [1.0, -1.0]), 1.0, "tensor \"w\": index 1 is -1.0");
    let exit = refused(&model, write("large", [1e38, 1.0]), 1e9, "beyond the range of f32");
    assert_eq!(exit, 4, "the inputs are sound, λ does not fit them");
    refused(&model, file("f32", "fisher"), 1.0, "is that Fisher of another model?");
    refused(&model, write("sound", [1.0, 1.0]), -1.0, "lambda is -1");
}
