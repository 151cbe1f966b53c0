//! Embeddings and distances of tasks, through the library and through the command line.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use assert_cmd::cargo::CommandCargoExt;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use squisher::methods::task2vec::{
    DistanceMetric, DistanceOptions, DistanceReport, EmbedOptions, Group, Metric, Trivial, distance, embed,
};
use squisher::stream::Budget;
use squisher::{Backend, Error, Interrupt, Result, reference};

const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/embed/four_tasks");

fn tasks() -> Vec<PathBuf> {
    (0..4).map(|i| Path::new(ORACLE).join(format!("task{i}.safetensors"))).collect()
}

fn f64s(file: &Path, tensor: &str) -> Vec<f64> {
    let bytes = std::fs::read(file).expect("the file is there");
    let file = SafeTensors::deserialize(&bytes).expect("the file is sound");
    let tensor = file.tensor(tensor).expect("the tensor is there");
    assert_eq!(tensor.dtype(), Dtype::F64);
    tensor.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect()
}

fn expected(tensor: &str) -> Vec<f64> {
    f64s(&Path::new(ORACLE).join("expected.safetensors"), tensor)
}

fn near(got: &[f64], want: &[f64], scale: impl Fn(f64) -> f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-5 * scale(*want), "{i}: got {got:e}, want {want:e}");
    }
}

fn compare(inputs: &[PathBuf], metric: Metric, group: Group, backend: &Backend) -> Result<DistanceReport> {
    with(inputs, DistanceMetric::Symmetric(metric), group, Budget::default(), backend)
}

fn with(
    inputs: &[PathBuf],
    metric: DistanceMetric,
    group: Group,
    budget: Budget,
    backend: &Backend,
) -> Result<DistanceReport> {
    let options = DistanceOptions { inputs: inputs.to_vec(), metric, group, budget };
    distance(&options, backend, &(), &Interrupt::default())
}

/// A file of one f32 tensor `w`.
fn fisher(folder: &Path, name: &str, shape: &[usize], values: &[f32]) -> PathBuf {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, shape.to_vec(), &bytes).expect("shape and values fit");
    let path = folder.join(format!("{name}.safetensors"));
    serialize_to_file([("w", view)], None, &path).expect("the file can be written");
    path
}

fn squisher(args: &[&str]) -> Output {
    let mut command = Command::cargo_bin("squisher").expect("the tests are built together with the tool");
    command.args(args).output().expect("the tool can be started")
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn embeddings_are_the_oracle_s() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (at, backend) in support::backends().iter().enumerate() {
        for group in [Group::Tensor, Group::Row] {
            let out = folder.path().join(format!("{at}-{group}.safetensors"));
            let budget = Budget::default();
            let options = EmbedOptions { fishers: tasks(), group, overwrite: false, budget };
            embed(&options, &out, backend, &(), &Interrupt::default()).expect("the Fishers are sound");
            near(&f64s(&out, "embedding"), &expected(&group.to_string()), f64::abs);
        }
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn distances_are_the_oracle_s_and_symmetric() {
    for backend in support::backends() {
        for metric in [Metric::Cosine, Metric::Normalized] {
            for group in [Group::Element, Group::Row, Group::Tensor] {
                let got = compare(&tasks(), metric, group, &backend).expect("the Fishers are sound");
                near(&got.matrix.concat(), &expected(&format!("distance/{metric}/{group}")), |_| 1.0);
                assert_eq!(got.names, ["task0", "task1", "task2", "task3"]);
            }
        }
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn a_task_is_at_no_distance_from_itself_and_a_common_scale_changes_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let a: Vec<f32> = (1..400).map(|i| (i as f32).sin().abs() + 0.01).collect();
    let b: Vec<f32> = (1..400).map(|i| (i as f32).cos().abs() + 0.01).collect();
    let scaled = |v: &[f32], factor: f32| v.iter().map(|v| v * factor).collect::<Vec<f32>>();
    for backend in support::backends() {
        for metric in Metric::ALL {
            let mut first = None;
            // Far below any absolute epsilon, and far above 1; powers of two are exact.
            for (name, factor) in [("1", 1.0), ("small", 2.0_f32.powi(-110)), ("large", 2.0_f32.powi(110))] {
                let one = fisher(folder.path(), &format!("a{name}"), &[399], &scaled(&a, factor));
                let copy = fisher(folder.path(), &format!("copy{name}"), &[399], &scaled(&a, factor));
                let other = fisher(folder.path(), &format!("b{name}"), &[399], &scaled(&b, factor));
                let got = compare(&[one, copy, other], metric, Group::Element, &backend).expect("sound");
                assert_eq!(got.matrix[0][1], 0.0, "{metric} on {}", backend.name());
                let distance = *first.get_or_insert(got.matrix[0][2]);
                assert_eq!(distance, got.matrix[0][2], "{metric} at {name} on {}", backend.name());
                let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
                let want = match metric {
                    Metric::Cosine => reference::task2vec::cosine(&wide(&a), &wide(&b)),
                    Metric::Normalized => reference::task2vec::normalized(&wide(&a), &wide(&b)),
                    Metric::Kl => reference::task2vec::kl(&wide(&a), &wide(&b)),
                    Metric::Jsd => reference::task2vec::jsd(&wide(&a), &wide(&b)),
                };
                near(&[distance], &[want], |want| want.max(1.0));
            }
        }
    }
}

#[test]
fn asymmetric_subtracts_the_distance_to_the_trivial_task() {
    let trivial = Trivial { path: tasks()[3].clone(), alpha: Trivial::ALPHA };
    let metric = DistanceMetric::Asymmetric(trivial);
    let got = with(&tasks()[..3], metric, Group::Element, Budget::default(), &Backend::Host).expect("sound");
    let between = expected("distance/normalized/element");
    let want = (0..3).flat_map(|a| (0..3).map(move |b| (a, b)));
    let want: Vec<f64> = want.map(|(a, b)| between[4 * a + b] - 0.15 * between[4 * a + 3]).collect();
    near(&got.matrix.concat(), &want, |_| 1.0);
    assert_eq!(got.names.len(), 3);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn chunks_change_nothing_but_rounding() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let values = |seed: f32| (0..120_000).map(|i| (seed * i as f32).sin().abs() + 1e-3).collect::<Vec<f32>>();
    let files =
        [("a", 1.1), ("b", 2.3)].map(|(name, seed)| fisher(folder.path(), name, &[120, 1000], &values(seed)));
    let small = Budget { host_bytes: 8 << 20, device_bytes: 8 << 20, ..Budget::default() };
    for backend in support::backends() {
        for group in [Group::Element, Group::Row, Group::Tensor] {
            let metric = DistanceMetric::Symmetric(Metric::Normalized);
            let whole = with(&files, metric.clone(), group, Budget::default(), &backend).expect("sound");
            let cut = with(&files, metric, group, small, &backend).expect("sound");
            near(&cut.matrix.concat(), &whole.matrix.concat(), |_| 1.0);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_message() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let one = fisher(folder.path(), "one", &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
    let other = fisher(folder.path(), "other", &[4], &[1.0, 2.0, 3.0, 4.0]);
    let nan = fisher(folder.path(), "nan", &[2, 2], &[1.0, 2.0, f32::NAN, 4.0]);
    let zero = fisher(folder.path(), "zero", &[2, 2], &[0.0; 4]);
    let hole = fisher(folder.path(), "hole", &[2, 2], &[1.0, 2.0, 0.0, 4.0]);
    let refused = |inputs: &[&PathBuf], metric, group, says: &str| {
        let inputs: Vec<PathBuf> = inputs.iter().map(|path| (*path).clone()).collect();
        let error: Error = compare(&inputs, metric, group, &Backend::Host).expect_err(says);
        assert!(error.to_string().contains(says), "expected `{says}` in: {error}");
    };
    for group in [Group::Element, Group::Row] {
        refused(
            &[&one, &other],
            Metric::Cosine,
            group,
            "different networks: \"w\" has shape [4], expected [2, 2]",
        );
        refused(&[&one, &nan], Metric::Cosine, group, "tensor \"w\": index 2 is NaN");
        refused(&[&one, &zero], Metric::Cosine, group, "zero is zero everywhere");
        refused(&[&one], Metric::Cosine, group, "give at least two");
    }
    refused(&[&one, &hole], Metric::Kl, Group::Element, "index 2 of \"w\" is 0 in one of one and hole alone");
    compare(&[one.clone(), hole], Metric::Normalized, Group::Element, &Backend::Host).expect("0 is a Fisher");
    let out = folder.path().join("out.safetensors");
    let options = EmbedOptions {
        fishers: vec![one, nan],
        group: Group::Row,
        overwrite: false,
        budget: Budget::default(),
    };
    embed(&options, &out, &Backend::Host, &(), &Interrupt::default()).expect_err("NaN is no Fisher");
    assert!(!out.exists(), "an output was written");
}

#[test]
fn the_command_line_embeds_and_compares() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("tasks.safetensors");
    let paths: Vec<String> = tasks().iter().map(|path| path.display().to_string()).collect();
    let out_text = out.display().to_string();
    let mut args = vec!["embed", "--backend", "host", "--group", "row", "-o", &out_text];
    args.extend(paths.iter().map(String::as_str));
    let done = squisher(&args);
    assert!(done.status.success(), "{done:?}");
    near(&f64s(&out, "embedding"), &expected("row"), f64::abs);
    let matrix = |args: &[&str]| {
        let done = squisher(args);
        assert!(done.status.success(), "{done:?}");
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one JSON object");
        assert_eq!(json["names"].as_array().map(Vec::len), Some(4));
        let rows = json["matrix"].as_array().expect("a matrix").iter();
        rows.flat_map(|row| row.as_array().expect("a row"))
            .filter_map(serde_json::Value::as_f64)
            .collect::<Vec<f64>>()
    };
    let got = matrix(&["distance", "--backend", "host", "--json", "--metric", "normalized", &out_text]);
    near(&got, &expected("distance/normalized/row"), |_| 1.0);
    let mut args = vec!["distance", "--backend", "host", "--json", "--metric", "cosine", "--group", "tensor"];
    args.extend(paths.iter().map(String::as_str));
    near(&matrix(&args), &expected("distance/cosine/tensor"), |_| 1.0);
    args[5] = "asymmetric";
    let refused = squisher(&args);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--trivial"));
}
