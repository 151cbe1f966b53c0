//! Fishers at the ends of f32: gradients whose squares leave it, beside others that do not, held to sums in
//! f64 element by element.

use squisher::Backend;
use squisher::methods::fisher::{FisherOptions, Kind};

use crate::support::capture_files::Draft;
use crate::support::files::folder;
use crate::{run, support};

/// A linear layer of one input and two outputs: one a and two b a sample.
struct Case {
    what: &'static str,
    input: f32,
    gradients: Vec<[f32; 2]>,
    /// Whether the loss was a mean, so that captured gradients were divided by their number.
    mean: bool,
}

fn cases() -> Vec<Case> {
    let case = |what, input, gradients, mean| Case { what, input, gradients, mean };
    let tiny_then_large =
        (0..20_000).map(|n| if n < 16_384 { [1e-18, 2e-18] } else { [30.0, 7.0] }).collect();
    vec![
        case("a large output beside a tiny one", 1.0, vec![[1e10, 1e-12]; 4], false),
        case("an output at the end of f32 beside a small one", 1.0, vec![[1e18, 1e-3]; 4], false),
        case("a large input and a tiny gradient", 1e20, vec![[1e-19, 3e-20]; 4], false),
        case("a tiny input and a large gradient", 1e-30, vec![[1e28, 1e33]; 4], false),
        case("a tiny portion before a large one", 1.0, tiny_then_large, false),
        case("tiny gradients of a sum", 1.0, vec![[1e-15, 1e-14]; 20_000], false),
        case("tiny gradients of a mean", 1.0, vec![[1e-18, 1e-17]; 16_000], true),
    ]
}

/// The definition, in f64. One batch: v begins at 0.
fn expected(case: &Case, kind: Kind, beta: f64, output: usize) -> f64 {
    let n = case.gradients.len() as f64;
    let of_loss = if case.mean { n } else { 1.0 };
    let gradient = |b: &[f32; 2]| of_loss * f64::from(b[output]) * f64::from(case.input);
    let squares: f64 = case.gradients.iter().map(|b| gradient(b).powi(2)).sum();
    let sum: f64 = case.gradients.iter().map(gradient).sum();
    match kind {
        Kind::Empirical => squares,
        Kind::Ema => (1.0 - beta) * squares,
        Kind::Accumulator => (1.0 - beta) * (sum / n).powi(2),
        Kind::MinibatchJoint | Kind::Joint => sum.powi(2),
        Kind::Ief => unreachable!("needs another capture"),
    }
}

/// Elements whose squares are within f32's normal range are right, whatever lies beside them; the others are
/// 0 or refused.
fn holds(backend: &Backend) {
    let folder = folder();
    for (place, case) in cases().iter().enumerate() {
        let n = case.gradients.len();
        let path = Draft::new(r#"{"fc": {"kind": "linear", "bias": false}}"#)
            .with("fc.input", &[n, 1], &vec![case.input; n])
            .with("fc.grad_output", &[n, 2], case.gradients.as_flattened())
            .note("loss_reduction", if case.mean { "mean" } else { "sum" })
            .write(&folder, &format!("capture {place}"));
        for kind in [Kind::Empirical, Kind::Ema, Kind::Accumulator, Kind::MinibatchJoint, Kind::Joint] {
            for beta in [0.9, 0.999, 0.9999] {
                let options = FisherOptions { kind, beta, ..FisherOptions::default() };
                let (got, _) = run(backend, std::slice::from_ref(&path), options)
                    .unwrap_or_else(|error| panic!("{} {kind}: {error}", case.what));
                for (output, got) in got["fc.weight"].iter().enumerate() {
                    let want = expected(case, kind, beta, output);
                    assert!(want < 3.4e38, "{}: the case is sound", case.what);
                    let bound = 1e-5 * want + f64::from(f32::MIN_POSITIVE);
                    let place = format!("{} {kind} {beta} on {}", case.what, backend.name());
                    assert!((got - want).abs() <= bound, "{place}: {got:e} for {want:e}");
                }
            }
        }
    }
}

/// Where the sum of squares leaves f32 the scale would be 0, and the Fisher with it.
fn norms_beyond_f32_are_refused(backend: &Backend) {
    let folder = folder();
    let norms = [
        ("layer_norm", r#"{"ln": {"kind": "layer_norm", "eps": 1e-5, "axes": 1, "bias": false}}"#),
        ("rms_norm", r#"{"ln": {"kind": "rms_norm", "eps": 1e-5, "axes": 1, "bias": false}}"#),
    ];
    for (kind, layers) in norms {
        for (size, fits) in [(1e17, true), (5e18, false), (1e25, false)] {
            let input: Vec<f32> = (0..64).map(|i| size * (i as f32 - 20.0) / 43.0).collect();
            let path = Draft::new(layers)
                .with("ln.input", &[1, 64], &input)
                .with("ln.grad_output", &[1, 64], &[1.0; 64])
                .write(&folder, &format!("{kind} {size:e}"));
            let done = run(backend, &[path], FisherOptions::default());
            match done {
                Ok((got, _)) => {
                    assert!(fits && got["ln.weight"].iter().any(|&f| f > 0.5), "{kind} {size:e}: {got:?}");
                }
                Err(error) => {
                    assert!(!fits && error.to_string().contains("leaves f32"), "{kind} {size:e}: {error}");
                    assert!(error.to_string().contains("ln.input"), "{error}");
                }
            }
        }
    }
}

#[test]
fn norms_beyond_f32_are_refused_on_the_host() {
    norms_beyond_f32_are_refused(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn norms_beyond_f32_are_refused_on_the_device() {
    norms_beyond_f32_are_refused(&Backend::Gpu(support::gpu()));
}

#[test]
fn the_ends_of_f32_hold_on_the_host() {
    holds(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_ends_of_f32_hold_on_the_device() {
    holds(&Backend::Gpu(support::gpu()));
}
