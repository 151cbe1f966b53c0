//! The answers of PyTorch's autograd, through the library and through the tool.

use std::fs;

use squisher::Backend;
use squisher::checkpoint::Checkpoint;
use squisher::methods::fisher::{FisherOptions, Kind};

use crate::support::capture_files::{CASES, Tensors, captures, data, load, worst};
use crate::support::files::folder;
use crate::support::tool;
use crate::{of, run, support};

fn agrees_with_autograd(backend: &Backend) {
    let flavours = [
        ("empirical", of(Kind::Empirical)),
        ("weighted", FisherOptions { weighted: true, ..of(Kind::Empirical) }),
        ("minibatch_joint", of(Kind::MinibatchJoint)),
        ("joint", of(Kind::Joint)),
        ("ief", of(Kind::Ief)),
        ("ema_0.9", of(Kind::Accumulator)),
    ];
    for case in CASES {
        let expected = load(&data(case).join("expected.safetensors"));
        let share = if case.ends_with("16") { 3e-2 } else { 2e-5 };
        for (flavour, options) in &flavours {
            let prefix = format!("{flavour}/");
            let of_flavour = expected
                .iter()
                .filter_map(|(name, values)| Some((name.strip_prefix(&prefix)?.to_owned(), values.clone())));
            let want: Tensors = of_flavour.collect();
            assert!(!want.is_empty(), "{case} has no {flavour}");
            let (got, _) = run(backend, &captures(case), *options).expect("sound captures");
            let error = worst(&got, &want);
            assert!(error <= share, "{case} {flavour} on {}: {error:e} of {share:e}", backend.name());
        }
    }
}

#[test]
fn every_kind_agrees_with_autograd_on_the_host() {
    agrees_with_autograd(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn every_kind_agrees_with_autograd_on_the_device() {
    agrees_with_autograd(&Backend::Gpu(support::gpu()));
}

#[test]
fn the_tool_agrees_with_autograd() {
    let folder = folder();
    for (case, flavour, kind) in
        [("sequence", "ief", "ief"), ("conv2d", "minibatch_joint", "minibatch-joint")]
    {
        let out = folder.path().join(format!("{case}.safetensors"));
        let mut fisher = tool::squisher(["fisher", "--kind", kind, "--backend", "host", "-o"]);
        tool::done(fisher.arg(&out).args(captures(case)));
        let prefix = format!("{flavour}/");
        let expected = load(&data(case).join("expected.safetensors"));
        let want: Tensors = expected
            .into_iter()
            .filter_map(|(name, values)| Some((name.strip_prefix(&prefix)?.to_owned(), values)))
            .collect();
        assert!(worst(&load(&out), &want) <= 2e-5, "{case}");
        let file = Checkpoint::open(&out).expect("a sound file");
        assert_eq!(file.metadata().get("squisher.kind").map(String::as_str), Some(kind));
    }
}

/// The networks of `tests/data/fisher/catalogue`, whose captures `examples/pytorch/capture.py` wrote: every
/// layer in the shapes that per-sample squares go wrong in, with the data's labels, drawn ones and all of
/// them.
fn catalogue_agrees_with_autograd(backend: &Backend) {
    let mut captures = 0;
    for network in fs::read_dir(data("catalogue")).expect("the catalogue is there") {
        let folder = network.expect("readable").path();
        let expected = load(&folder.join("expected.safetensors"));
        let kinds = [
            ("data", "data", Kind::Empirical, "empirical"),
            ("sampled", "sampled", Kind::Empirical, "mc"),
            ("all", "all", Kind::Empirical, "exact"),
            ("joint", "data", Kind::Joint, "joint"),
            // One file is one batch.
            ("joint", "data", Kind::MinibatchJoint, "minibatch-joint"),
        ];
        for (expectation, labels, option, kind) in kinds {
            let capture = folder.join(format!("{labels}.safetensors"));
            let prefix = format!("{expectation}/");
            if !expected.keys().any(|name| name.starts_with(&prefix)) {
                continue;
            }
            let of_labels = expected
                .iter()
                .filter_map(|(name, values)| Some((name.strip_prefix(&prefix)?.to_owned(), values.clone())));
            let want: Tensors = of_labels.collect();
            let (got, report) = run(backend, &[capture], of(option)).expect("a sound capture");
            assert_eq!(report.kind, kind);
            let error = worst(&got, &want);
            assert!(error <= 2e-5, "{} {kind} on {}: {error:e}", folder.display(), backend.name());
            captures += 1;
        }
    }
    assert!(captures >= 105, "only {captures} captures");
}

#[test]
fn the_catalogue_of_shapes_agrees_with_autograd_on_the_host() {
    catalogue_agrees_with_autograd(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_catalogue_of_shapes_agrees_with_autograd_on_the_device() {
    catalogue_agrees_with_autograd(&Backend::Gpu(support::gpu()));
}
