//! What must hold whatever the numbers.

use squisher::Backend;
use squisher::methods::fisher::{FisherOptions, Kind, Reduction};

use crate::support::capture_files::{Draft, LINEAR, Tensors, captures, linear, worst};
use crate::support::files::folder;
use crate::{host, of, run, support};

#[test]
fn one_sample_gives_its_square() {
    let folder = folder();
    let path = linear(&[3.0, -2.0], &[0.5]).write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert_eq!(got["fc.weight"], [2.25, 1.0]);
    assert_eq!(got["fc.bias"], [0.25]);
}

/// Two positions of one sample with the input 1 and the gradients 1 and −1: the sample's gradient is 0.
/// Squaring positions one by one gives 2.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn positions_that_cancel_leave_nothing() {
    let window =
        r#""kernel": [1], "stride": [1], "padding": [0], "dilation": [1], "groups": 1, "bias": true"#;
    let layers = [
        (r#"{"l": {"kind": "linear", "bias": true}}"#.to_owned(), vec![1, 2, 1]),
        (format!(r#"{{"l": {{"kind": "conv", {window}}}}}"#), vec![1, 1, 2]),
        (format!(r#"{{"l": {{"kind": "conv_transpose", {window}, "output_padding": [0]}}}}"#), vec![1, 1, 2]),
        (r#"{"l": {"kind": "batch_norm", "eps": 0.0, "bias": true}}"#.to_owned(), vec![1, 1, 2]),
    ];
    for backend in support::backends() {
        let folder = folder();
        for (layer, shape) in &layers {
            let mut draft = Draft::new(layer).with("l.input", shape, &[1.0, 1.0]).with(
                "l.grad_output",
                shape,
                &[1.0, -1.0],
            );
            if layer.contains("batch_norm") {
                draft = draft.with("l.running_mean", &[1], &[0.0]).with("l.running_var", &[1], &[1.0]);
            }
            let (got, _) = run(&backend, &[draft.write(&folder, "a")], of(Kind::Empirical)).expect("sound");
            assert_eq!((&got["l.weight"], &got["l.bias"]), (&vec![0.0], &vec![0.0]), "{layer}");
        }
        let same_row = Draft::new(r#"{"e": {"kind": "embedding", "rows": 1, "bias": false}}"#)
            .ids("e.input", &[1, 2], &[0, 0])
            .with("e.grad_output", &[1, 2, 1], &[1.0, -1.0]);
        let (got, _) = run(&backend, &[same_row.write(&folder, "e")], of(Kind::Empirical)).expect("sound");
        assert_eq!(got["e.weight"], [0.0]);
    }
}

#[test]
fn data_seen_three_times_triples_the_sum_and_keeps_the_mean() {
    let mean = |kind| FisherOptions { reduction: Reduction::Mean, ..of(kind) };
    for case in ["conv2d", "sequence"] {
        let once = captures(case);
        let thrice = [&once[..], &once, &once].concat();
        for kind in [Kind::Empirical, Kind::Ief] {
            let (sum, tripled) = (host(&once, of(kind)), host(&thrice, of(kind)));
            let three: Tensors =
                sum.iter().map(|(name, v)| (name.clone(), v.iter().map(|v| 3.0 * v).collect())).collect();
            assert!(worst(&tripled, &three) < 1e-6, "{case} {kind}");
            assert!(worst(&host(&thrice, mean(kind)), &host(&once, mean(kind))) < 1e-6, "{case} {kind}");
        }
    }
}

#[test]
fn repeated_ids_of_a_sample_add_before_squaring() {
    let folder = folder();
    let path = Draft::new(r#"{"e": {"kind": "embedding", "rows": 3, "bias": false}}"#)
        .ids("e.input", &[2, 2], &[1, 1, 1, 2])
        .with("e.grad_output", &[2, 2, 1], &[1.0, 2.0, 4.0, 5.0])
        .write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert_eq!(got["e.weight"], [0.0, 9.0 + 16.0, 25.0]);
}

#[test]
fn batch_norm_is_a_fixed_affine() {
    let folder = folder();
    let path = Draft::new(r#"{"n": {"kind": "batch_norm", "eps": 0.0, "bias": true}}"#)
        .with("n.input", &[2, 1, 2], &[3.0, 5.0, 1.0, 1.0])
        .with("n.grad_output", &[2, 1, 2], &[1.0, 1.0, 2.0, 0.0])
        .with("n.running_mean", &[1], &[1.0])
        .with("n.running_var", &[1], &[4.0])
        .write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    // x̂ is (1, 2) and (0, 0).
    assert_eq!(got["n.weight"], [9.0]);
    assert_eq!(got["n.bias"], [8.0]);
}

/// Where nothing is known of the other factor, gradients of zero are zero still.
#[test]
fn batch_norm_without_gradients_has_no_fisher() {
    let folder = folder();
    let path = Draft::new(r#"{"n": {"kind": "batch_norm", "eps": 0.0, "bias": true}}"#)
        .with("n.input", &[2, 1, 2], &[3.0, 5.0, 1.0, 1.0])
        .with("n.grad_output", &[2, 1, 2], &[0.0; 4])
        .with("n.running_mean", &[1], &[1.0])
        .with("n.running_var", &[1], &[4.0])
        .write(&folder, "a");
    for kind in [Kind::Empirical, Kind::Ema, Kind::MinibatchJoint, Kind::Joint] {
        let got = host(std::slice::from_ref(&path), of(kind));
        assert_eq!((&got["n.weight"][..], &got["n.bias"][..]), (&[0.0][..], &[0.0][..]), "{kind}");
    }
}

#[test]
fn batches_in_one_file_or_two_are_the_same() {
    let folder = folder();
    let (x, g) = ([0.3, -1.5, 2.5, 0.7, 1.1, -0.2], [0.4, -0.9, 1.3]);
    let whole = linear(&x, &g).write(&folder, "whole");
    let parts = [linear(&x[..2], &g[..1]).write(&folder, "a"), linear(&x[2..], &g[1..]).write(&folder, "b")];
    for kind in [Kind::Empirical, Kind::Joint] {
        let (one, two) = (host(std::slice::from_ref(&whole), of(kind)), host(&parts, of(kind)));
        assert!(worst(&two, &one) < 1e-6, "{kind}");
    }
    let (one, two) = (host(&[whole], of(Kind::MinibatchJoint)), host(&parts, of(Kind::MinibatchJoint)));
    assert!(worst(&two, &one) > 0.1, "batches matter where sums over them are squared");
}

#[test]
fn moving_averages_and_means_follow_their_rules() {
    let folder = folder();
    let a = linear(&[1.0, 2.0], &[1.0, 3.0]).write(&folder, "a");
    let b = linear(&[1.0, 1.0], &[2.0, 2.0]).write(&folder, "b");
    // Squares sum to 1 + 36 and 4 + 4, sums are 7 and 4.
    let ema = host(&[a.clone(), b.clone()], of(Kind::Ema));
    assert!((ema["fc.weight"][0] - (0.9 * 0.1 * 37.0 + 0.1 * 8.0)).abs() < 1e-5);
    let accumulator = host(&[a.clone(), b.clone()], of(Kind::Accumulator));
    assert!((accumulator["fc.weight"][0] - (0.9 * 0.1 * 12.25 + 0.1 * 4.0)).abs() < 1e-6);
    let mean = host(&[a, b], FisherOptions { reduction: Reduction::Mean, ..of(Kind::Empirical) });
    assert!((mean["fc.weight"][0] - 45.0 / 4.0).abs() < 1e-5);
}

/// A batch without samples gives zeros, whatever the kind.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn no_samples_give_zeros() {
    let folder = folder();
    let path = Draft::new(LINEAR)
        .with("fc.input", &[0, 1], &[])
        .with("fc.grad_output", &[0, 1], &[])
        .with("logit_grad", &[0, 2], &[])
        .write(&folder, "a");
    for backend in support::backends() {
        for kind in Kind::ALL {
            let mean = if kind == Kind::Accumulator { Reduction::Sum } else { Reduction::Mean };
            for reduction in [Reduction::Sum, mean] {
                let options = FisherOptions { reduction, ..of(kind) };
                let (got, _) = run(&backend, std::slice::from_ref(&path), options).expect("sound");
                assert_eq!((&got["fc.weight"], &got["fc.bias"]), (&vec![0.0], &vec![0.0]), "{kind}");
            }
        }
    }
}

#[test]
fn a_mean_loss_is_undone() {
    let folder = folder();
    let sum = linear(&[1.0, 2.0], &[1.0, 3.0]).write(&folder, "sum");
    let mean = linear(&[1.0, 2.0], &[0.5, 1.5]).note("loss_reduction", "mean").write(&folder, "mean");
    for kind in [Kind::Empirical, Kind::MinibatchJoint, Kind::Joint, Kind::Ema, Kind::Accumulator] {
        assert_eq!(
            host(std::slice::from_ref(&sum), of(kind)),
            host(std::slice::from_ref(&mean), of(kind)),
            "{kind}"
        );
    }
}

#[test]
fn joint_over_batches_of_a_mean_loss_of_different_sizes_is_that_of_their_sum() {
    let folder = folder();
    let (x, g) = ([0.3, -1.5, 2.5, 0.7, 1.1, -0.2], [0.4, -0.9, 1.3]);
    let sum = linear(&x, &g).write(&folder, "sum");
    let mean = [
        linear(&x[..2], &g[..1]).note("loss_reduction", "mean").write(&folder, "a"),
        linear(&x[2..], &[-0.45, 0.65]).note("loss_reduction", "mean").write(&folder, "b"),
    ];
    let (one, two) = (host(&[sum], of(Kind::Joint)), host(&mean, of(Kind::Joint)));
    assert!(worst(&two, &one) < 1e-6);
}

/// Logistic regression has F_jj = Σ_n p_n (1 − p_n) x_nj².
#[test]
fn every_class_with_its_probability_is_the_closed_form() {
    let folder = folder();
    let x = [0.3_f32, -1.5, 2.5, 0.7];
    let p = [0.2_f32, 0.9];
    // Both labels of each sample: gradients p − 1 with probability p, p with probability 1 − p.
    let input = [x, x].concat();
    let gradient = [p[0] - 1.0, p[1] - 1.0, p[0], p[1]];
    let weight = [p[0], p[1], 1.0 - p[0], 1.0 - p[1]];
    let path = linear(&input, &gradient).with("sample_weight", &[4], &weight).note("labels", "all");
    let (got, report) =
        run(&Backend::Host, &[path.write(&folder, "a")], of(Kind::Empirical)).expect("sound captures");
    assert_eq!((report.kind.as_str(), report.samples), ("exact", 2));
    for j in 0..2 {
        let want: f64 = (0..2).map(|n| f64::from(p[n] * (1.0 - p[n]) * x[2 * n + j] * x[2 * n + j])).sum();
        assert!((got["fc.weight"][j] - want).abs() < 1e-6 * want, "{} {want}", got["fc.weight"][j]);
    }
}

/// Where the model is nearly certain, gradients are tiny and iEF's quotient is not.
#[test]
fn ief_keeps_samples_whose_gradients_nearly_vanish() {
    let folder = folder();
    let path =
        linear(&[2.0, 3.0], &[1.0, 1e-30]).with("logit_grad", &[2, 1], &[1.0, 1e-30]).write(&folder, "a");
    let got = host(&[path], of(Kind::Ief));
    assert!((got["fc.weight"][0] - 13.0).abs() < 1e-5, "{:?}", got["fc.weight"]);
    let path = linear(&[2.0, 3.0], &[1.0, 0.0]).with("logit_grad", &[2, 1], &[1.0, 0.0]).write(&folder, "b");
    let (got, report) = run(&Backend::Host, &[path], of(Kind::Ief)).expect("sound captures");
    assert_eq!((got["fc.weight"][0], report.zero_loss_samples), (4.0, 1));
}

/// Squares below f32's range come back where their sum is in it.
#[test]
fn gradients_below_the_square_root_of_f32_still_count() {
    let folder = folder();
    let path = linear(&[1e12, 1.0], &[1e-25, 0.0]).write(&folder, "a");
    let got = host(&[path], of(Kind::Empirical));
    assert!((got["fc.weight"][0] / 1e-26 - 1.0).abs() < 1e-5, "{:e}", got["fc.weight"][0]);
}
