//! What has no meaning is refused by message, and leaves no file.

use std::fs;
use std::path::PathBuf;

use squisher::methods::step::{StepKind, StepOptions, plan, step};
use squisher::stream::Budget;
use squisher::{Backend, Run};

use crate::support::capture_files::linear;
use crate::support::files::{self, folder};
use crate::{options, run, step_tool};

#[test]
fn what_has_no_meaning_is_refused_and_leaves_no_file() {
    let folder = folder();
    let path = [linear(&[1.0, 2.0], &[1.0, 3.0]).write(&folder, "a.safetensors")];
    let refused = |paths: &[PathBuf], options: &StepOptions| {
        let own = files::folder();
        let text = run(&Backend::Host, paths, options, own.path()).expect_err("must be refused").to_string();
        assert_eq!(fs::read_dir(own.path()).expect("readable").count(), 0, "{text}");
        text
    };
    let ef = |damping: f64| options(StepKind::Ef, damping);
    assert!(refused(&path, &ef(-1.0)).contains("the damping is -1, expected"));
    assert!(refused(&path, &ef(f64::NAN)).contains("the damping is NaN"));
    assert!(refused(&path, &ef(f64::INFINITY)).contains("the damping is inf"));
    assert!(refused(&[], &ef(1.0)).contains("no capture was given"));
    let text = refused(&path, &options(StepKind::Ief, 1.0));
    assert!(text.contains("no logit_grad") && text.contains("a.safetensors"), "{text}");
    let other = linear(&[1.0, 2.0], &[1.0]).write(&folder, "b.safetensors");
    let text = refused(&[path[0].clone(), other], &ef(1.0));
    assert!(text.contains("not of one network"), "{text}");
    let model = linear(&[1.0], &[1.0]).with("sample_weight", &[1], &[1.0]).note("labels", "all");
    let text = refused(&[model.write(&folder, "all")], &ef(1.0));
    assert!(text.contains("a step is defined by the data's labels"), "{text}");
    let budget = Budget { host_bytes: 16, ..Budget::default() };
    let small = Run { budget, ..Run::new(&Backend::Host) };
    let text = step(&path, &ef(1.0), &folder.path().join("small"), &small).expect_err("16 bytes").to_string();
    let planned = plan(&path, &ef(1.0), &small).expect_err("16 bytes").to_string();
    assert_eq!(planned, text, "a plan refuses what the run refuses");
    assert!(text.contains("Gram matrix of 2 samples, 8·N²") && text.contains("at least 32 bytes"), "{text}");
    // The same sample twice.
    let twice = linear(&[1.0, 2.0, 1.0, 2.0], &[0.5, 0.5]).write(&folder, "twice");
    let text = refused(std::slice::from_ref(&twice), &ef(0.0));
    assert!(text.contains("the gradient of sample 1") && text.contains("pass --damping"), "{text}");
    let own = files::folder();
    run(&Backend::Host, &[twice], &ef(1e-3), own.path()).expect("damped, it has an inverse");
    let same = StepOptions { gram: Some(own.path().join("ef-step.safetensors")), overwrite: true, ..ef(1.0) };
    let text =
        run(&Backend::Host, &path, &same, own.path()).expect_err("one file for both outputs").to_string();
    assert!(text.contains("is the output of the step too; give K another name"), "{text}");
    let zero = linear(&[1.0, 2.0], &[0.0, 0.0]).write(&folder, "zero");
    let text = refused(&[zero], &ef(0.0));
    assert!(text.contains("every sample's gradient is 0") && !text.contains("--damping"), "{text}");
    let done = step_tool(&["--kind", "ef", "--damping", "-1"], &path, &folder.path().join("x"));
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && text.contains("the damping is -1"), "{text}");
}
