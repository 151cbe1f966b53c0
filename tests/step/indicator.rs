//! How good a step is, in closed form.

use std::path::{Path, PathBuf};

use squisher::methods::step::{Indicator, indicator};
use squisher::{Backend, Run};

use crate::support::capture_files::{Draft, load};
use crate::support::files::folder;
use crate::{step_tool, support};

/// Logistic regression: F = Σ_n p_n (1 − p_n) x_n x_nᵀ, ∇L = Σ_n (p_n − y_n) x_n.
fn logistic(folder: &tempfile::TempDir) -> ([PathBuf; 1], [PathBuf; 1]) {
    let (x, p, y) = ([1.0_f32, 2.0, -1.0, 0.5], [0.25_f32, 0.5], [1.0_f32, 0.0]);
    let layer = r#"{"fc": {"kind": "linear", "bias": false}}"#;
    let draft = |input: &[f32], gradient: &[f32]| {
        let n = gradient.len();
        Draft::new(layer).with("fc.input", &[n, 2], input).with("fc.grad_output", &[n, 1], gradient)
    };
    let exact = draft(&[x, x].concat(), &[p[0] - 1.0, p[1] - 1.0, p[0], p[1]])
        .with("sample_weight", &[4], &[p[0], p[1], 1.0 - p[0], 1.0 - p[1]])
        .note("labels", "all")
        .write(folder, "exact");
    let data = draft(&x, &[p[0] - y[0], p[1] - y[1]]).write(folder, "data");
    ([exact], [data])
}

fn direction(folder: &tempfile::TempDir, name: &str, values: &[f32]) -> PathBuf {
    Draft::default().with("fc.weight", &[1, 2], values).write(folder, name)
}

#[test]
fn the_indicator_of_logistic_regression_is_the_closed_form() {
    let folder = folder();
    let (exact, data) = logistic(&folder);
    for backend in support::backends() {
        let of = |name: &str, values: &[f32]| -> Indicator {
            let delta = direction(&folder, name, values);
            indicator(&exact, &data, &delta, &Run::new(&backend)).expect("sound captures")
        };
        // F = 3/16 (1, 2)(1, 2)ᵀ + 1/4 (−1, 1/2)(−1, 1/2)ᵀ, ∇L = −3/4 (1, 2) + 1/2 (−1, 1/2) = (−5/4, −5/4).
        let got = of("unit", &[1.0, 1.0]);
        let curvature = 3.0 / 16.0 * 9.0 + 0.25 * 0.25;
        assert!((got.curvature - curvature).abs() < 1e-6, "{got:?}");
        assert!((got.slope + 2.5).abs() < 1e-6, "{got:?}");
        assert!((got.gamma - curvature.sqrt() / 2.5).abs() < 1e-6, "{got:?}");
        let scaled = of("scaled", &[-300.0, -300.0]);
        assert!((scaled.gamma - got.gamma).abs() < 1e-6, "a factor changes nothing: {scaled:?}");
        // The natural gradient F⁻¹∇L is the best there is.
        let (a, b, d): (f64, f64, f64) = (3.0 / 16.0 + 0.25, 3.0 / 8.0 - 0.125, 0.75 + 0.0625);
        let det = a * d - b * b;
        let natural = [(d - b) * -1.25 / det, (a - b) * -1.25 / det].map(|value| value as f32);
        let best = of("natural", &natural);
        for (at, other) in [[1.0, 0.0], [0.0, 1.0], [1.0, 0.5], [-1.25, -1.25]].iter().enumerate() {
            assert!(best.gamma < of(&format!("other-{at}"), other).gamma + 1e-9, "{other:?}");
        }
        let flat = of("flat", &[1.0, -1.0]);
        assert!(flat.slope.abs() < 1e-6 && flat.gamma > 1e5, "{flat:?}");
    }
    let refusal = |exact: &[PathBuf], data: &[PathBuf], delta: &Path| {
        let refused = indicator(exact, data, delta, &Run::new(&Backend::Host));
        refused.expect_err("must be refused").to_string()
    };
    let delta = direction(&folder, "delta", &[1.0, 1.0]);
    assert!(refusal(&data, &data, &delta).contains("is of the data's; capture all classes"));
    assert!(refusal(&exact, &exact, &delta).contains("∇L is defined by the data's labels"));
    let other = Draft::default().with("fc.weight", &[2, 1], &[1.0, 1.0]).write(&folder, "shape");
    let text = refusal(&exact, &data, &other);
    assert!(text.contains(r#""fc.weight" is F32 [2, 1], expected floats of [1, 2]"#), "{text}");
    let nan = direction(&folder, "nan", &[1.0, f32::NAN]);
    assert!(refusal(&exact, &data, &nan).contains("\"fc.weight\": NaN or infinity at flat index 1"));
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_tool_tells_how_good_a_step_is() {
    let folder = folder();
    let (exact, data) = logistic(&folder);
    let captures = data.clone();
    let exact = exact[0].to_string_lossy().into_owned();
    let out = folder.path().join("step.safetensors");
    let adapter = support::gpu().device().adapter_info().name;
    for device in [["--backend", "host"], ["--adapter", &adapter]] {
        let words = ["--kind", "ef", "--damping", "0.1", "--json", "--overwrite", device[0], device[1]];
        let done = step_tool(&[&words[..], &["--indicator", &exact]].concat(), &captures, &out);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let delta = &load(&out)["fc.weight"];
        // F = 3/16 (1, 2)(1, 2)ᵀ + 1/4 (−1, 1/2)(−1, 1/2)ᵀ, ∇L = (−5/4, −5/4).
        let (along, across) = (delta[0] + 2.0 * delta[1], -delta[0] + 0.5 * delta[1]);
        let curvature = 3.0 / 16.0 * along * along + 0.25 * across * across;
        let want = curvature.sqrt() / (1.25 * (delta[0] + delta[1])).abs();
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one object");
        let gamma = json["indicator"]["gamma"].as_f64().expect("a number");
        assert!((gamma - want).abs() < 1e-5 * want, "{gamma} {want}");
    }
    let plain = step_tool(
        &["--kind", "ef", "--damping", "0.1", "--overwrite", "--indicator", &exact],
        &captures,
        &out,
    );
    let text = String::from_utf8_lossy(&plain.stdout).into_owned();
    assert!(text.contains("γ = √(Δᵀ F Δ) / |Δᵀ ∇L| of the step"), "{text}");
    let none = folder.path().join("none.safetensors");
    let half = Draft::new(r#"{"fc": {"kind": "linear", "bias": false}}"#)
        .with("fc.input", &[1, 2], &[1.0, 2.0])
        .with("fc.grad_output", &[1, 1], &[1.0])
        .with("sample_weight", &[1], &[1.0])
        .note("labels", "sampled")
        .write(&folder, "half")
        .to_string_lossy()
        .into_owned();
    let data = captures[0].to_string_lossy().into_owned();
    for (judges, dry, problem) in [
        (&data, "--quiet", "capture all classes"),
        (&half, "--quiet", "add up to 1, and the data's captures have 2 samples"),
        (&half, "--dry-run", "add up to 1, and the data's captures have 2 samples"),
    ] {
        let done =
            step_tool(&["--kind", "ef", "--damping", "0.1", dry, "--indicator", judges], &captures, &none);
        let text = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && text.contains(problem) && !none.exists(), "{text}");
    }
}
