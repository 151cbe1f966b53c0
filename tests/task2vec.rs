//! Embeddings and distances of tasks, through the library and through the command line.

mod support;

use std::path::{Path, PathBuf};

use squisher::checkpoint::Checkpoint;
use squisher::methods::NonFinite;
use squisher::methods::task2vec::distance::{
    DistanceMetric, DistanceOptions, DistanceReport, Trivial, distance,
};
use squisher::methods::task2vec::embed::{EmbedOptions, embed};
use squisher::methods::task2vec::{Group, Metric};
use squisher::stream::Budget;
use squisher::{Backend, Error, Result, Run, reference};

use support::files::{f32s, folder};
use support::tool::output;
use support::{close, files, tool};

const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/embed/four_tasks");

fn tasks() -> Vec<PathBuf> {
    (0..4).map(|i| Path::new(ORACLE).join(format!("task{i}.safetensors"))).collect()
}

fn values(file: &Path, tensor: &str) -> Vec<f64> {
    files::values(&files::read(file)[tensor])
}

fn expected(tensor: &str) -> Vec<f64> {
    values(&Path::new(ORACLE).join("expected.safetensors"), tensor)
}

fn near(got: &[f64], want: &[f64], scale: impl Fn(f64) -> f64) {
    close::all_near(got, want, |want| 1e-5 * scale(want));
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
    let options = DistanceOptions { metric, group, non_finite: NonFinite::Error };
    distance(inputs, &options, &Run { budget, ..Run::new(backend) })
}

/// The means of a tensor over all axes but one.
fn means_along(shape: &[usize], values: &[f64], axis: usize) -> Vec<f64> {
    let inner: usize = shape[axis + 1..].iter().product();
    let mut sums = vec![0.0; shape[axis]];
    for (index, value) in values.iter().enumerate() {
        sums[index / inner % shape[axis]] += value;
    }
    sums.iter().map(|sum| sum * shape[axis] as f64 / values.len() as f64).collect()
}

/// From a capture to an embedding: the file of the Fisher says which weights have their outputs along the second axis.
fn rows_are_output_channels(backend: &Backend) {
    let folder = folder();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fisher/conv_transpose2d");
    let captures = std::fs::read_dir(data).expect("the case is there");
    let captures = captures.map(|entry| entry.expect("readable").path());
    let is_capture = |path: &PathBuf| path.to_string_lossy().contains("capture");
    let fisher = folder.path().join("fisher.safetensors");
    let mut command = tool::squisher(["fisher", "--backend", "host", "-o"]);
    tool::done(command.arg(&fisher).args(captures.filter(is_capture)));

    let metadata = Checkpoint::open(&fisher).expect("it was written").metadata().clone();
    let transposed: Vec<String> =
        serde_json::from_str(&metadata["squisher.transposed"]).expect("a list of names");
    assert!(!transposed.is_empty());
    let want: Vec<f64> = files::read(&fisher)
        .iter()
        .flat_map(|(name, tensor)| {
            means_along(&tensor.1, &files::values(tensor), usize::from(transposed.contains(name)))
        })
        .collect();
    let embedding = folder.path().join("embedding.safetensors");
    let options = EmbedOptions { group: Group::Row, non_finite: NonFinite::Error, overwrite: false };
    embed(std::slice::from_ref(&fisher), &options, &embedding, &Run::new(backend)).expect("a sound Fisher");
    near(&values(&embedding, "embedding"), &want, |want| want);
}

#[test]
fn rows_are_output_channels_on_the_host() {
    rows_are_output_channels(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn rows_are_output_channels_on_the_device() {
    rows_are_output_channels(&Backend::Gpu(support::gpu()));
}

/// A file of one f32 tensor `w`.
fn fisher(folder: &Path, name: &str, shape: &[usize], values: &[f32]) -> PathBuf {
    files::write(&folder.join(format!("{name}.safetensors")), [("w", f32s(shape, values))])
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn embeddings_are_the_oracle_s() {
    let folder = folder();
    for (at, backend) in support::backends().iter().enumerate() {
        for group in [Group::Tensor, Group::Row] {
            let out = folder.path().join(format!("{at}-{group}.safetensors"));
            let options = EmbedOptions { group, non_finite: NonFinite::Error, overwrite: false };
            embed(&tasks(), &options, &out, &Run::new(backend)).expect("the Fishers are sound");
            near(&values(&out, "embedding"), &expected(&group.to_string()), f64::abs);
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
    let folder = folder();
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
    let folder = folder();
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
fn the_memory_that_a_refusal_asks_for_is_enough() {
    let groups = [Group::Element, Group::Row, Group::Tensor];
    for group in groups {
        let with = |host_bytes: u64| {
            let budget = Budget { host_bytes, ..Budget::default() };
            with(&tasks(), DistanceMetric::Symmetric(Metric::Cosine), group, budget, &Backend::Host)
        };
        let Err(Error::Budget { need, have: 1000, .. }) = with(1000) else {
            panic!("{group}: not refused, or for another budget")
        };
        with(need).expect("as much as was asked for");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_message() {
    let folder = folder();
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
    let options = EmbedOptions { group: Group::Row, non_finite: NonFinite::Error, overwrite: false };
    embed(&[one, nan], &options, &out, &Run::new(&Backend::Host)).expect_err("NaN is no Fisher");
    assert!(!out.exists(), "an output was written");
}

/// What the tool prints with `--json`.
fn json_of(args: &[&str]) -> serde_json::Value {
    tool::json(tool::squisher(args).arg("--json"))
}

fn matrix_of(json: &serde_json::Value) -> Vec<f64> {
    let rows = json["matrix"].as_array().expect("a matrix").iter();
    rows.flat_map(|row| row.as_array().expect("a row")).filter_map(serde_json::Value::as_f64).collect()
}

fn task_args() -> Vec<String> {
    tasks().iter().map(|path| path.display().to_string()).collect()
}

/// The report says where the time went.
fn took_time(json: &serde_json::Value) {
    let seconds = |stage: &str| json["timings"][stage].as_f64().expect("a number of seconds");
    assert!(seconds("seconds") > 0.0 && seconds("compute") > 0.0, "{}", json["timings"]);
}

/// The oracle's embeddings and distances through the tool, wherever these flags put it.
fn the_tool_gives_the_oracle_s(flags: &[&str]) {
    let folder = folder();
    let paths = task_args();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    for group in ["tensor", "row"] {
        let out = folder.path().join(format!("{group}.safetensors"));
        let out_text = out.display().to_string();
        let json = json_of(&[&["embed", "--group", group, "-o", &out_text], flags, &paths].concat());
        took_time(&json);
        near(&values(&out, "embedding"), &expected(group), f64::abs);
        let json = json_of(&[&["distance", "--metric", "normalized", &out_text], flags].concat());
        near(&matrix_of(&json), &expected(&format!("distance/normalized/{group}")), |_| 1.0);
    }
    for metric in ["cosine", "normalized"] {
        for group in ["tensor", "row", "element"] {
            let json =
                json_of(&[&["distance", "--metric", metric, "--group", group], flags, &paths].concat());
            assert_eq!(json["names"].as_array().map(Vec::len), Some(4));
            took_time(&json);
            near(&matrix_of(&json), &expected(&format!("distance/{metric}/{group}")), |_| 1.0);
        }
    }
}

#[test]
fn the_tool_on_the_host_gives_the_oracle_s() {
    the_tool_gives_the_oracle_s(&["--backend", "host"]);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_tool_on_an_adapter_gives_the_oracle_s() {
    the_tool_gives_the_oracle_s(&["--adapter", &support::gpu().caps().name]);
}

#[test]
fn a_trivial_task_is_asked_for() {
    let refused = output(&["distance", "--backend", "host", "--metric", "asymmetric", "a", "b"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--trivial"));
}

#[test]
fn a_matrix_is_written_as_table_as_json_and_as_picture() {
    let folder = folder();
    let odd = fisher(folder.path(), "a<b>, \"c\"", &[2], &[1.0, 2.0]);
    let plain = fisher(folder.path(), "plain", &[2], &[2.0, 1.0]);
    let inputs = [odd.display().to_string(), plain.display().to_string()];
    let write = |name: &str| {
        let out = folder.path().join(name);
        let json = json_of(&[
            "distance",
            "--backend",
            "host",
            &inputs[0],
            &inputs[1],
            "-o",
            &out.display().to_string(),
        ]);
        assert_eq!(json["output"], out.display().to_string());
        (json, std::fs::read_to_string(out).expect("the file was written"))
    };
    let (json, csv) = write("d.csv");
    let cell = json["matrix"][0][1].as_f64().expect("a distance");
    assert_eq!(
        csv,
        format!("from,\"a<b>, \"\"c\"\"\",plain\n\"a<b>, \"\"c\"\"\",0.0,{cell:?}\nplain,{cell:?},0.0\n")
    );
    let (json, text) = write("d.json");
    let in_file: serde_json::Value = serde_json::from_str(&text).expect("one JSON object");
    assert_eq!((&in_file["matrix"], &in_file["command"]), (&json["matrix"], &json["command"]));
    let (_, svg) = write("d.svg");
    for part in [
        "<title>distances between 2 tasks, cosine</title>",
        "<title>a&lt;b&gt;, &quot;c&quot; plain: ",
        "prefers-color-scheme: dark",
        &format!(">{cell:.3}</text>"),
    ] {
        assert!(svg.contains(part), "{part} is missing in {svg}");
    }
    assert!(!svg.contains("<b>") && !svg.contains("<script"), "{svg}");
    // An existing file stays, and an ending that says nothing is refused, before anything is computed.
    for (name, says, code) in [("d.csv", "--overwrite", 7), ("d.txt", ".csv, .json or .svg", 2)] {
        let out = folder.path().join(name).display().to_string();
        let refused = output(&["distance", &inputs[0], "no such file", "-o", &out]);
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(says), "{refused:?}");
    }
}

#[test]
fn distances_are_held_against_known_scores() {
    let folder = folder();
    let table = folder.path().join("scores.csv");
    // For task0 the best source is task1, for task1 task0; nothing else is known.
    let scores = "source,task0,task1\ntask1,0.9,\ntask2,0.5,0.1\ntask3,0.1,0.1\ntask0,,0.2\n";
    std::fs::write(&table, scores).expect("a temporary folder is writable");
    let paths = task_args();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let table = table.display().to_string();
    let args = [&["distance", "--backend", "host", "--scores", &table], &paths[..]].concat();
    let json = json_of(&args);
    let matrix = expected("distance/cosine/element");
    let rank = |target: usize, best: usize, others: [usize; 2]| {
        let d = |source: usize| matrix[4 * source + target];
        1.0 + others.iter().filter(|&&other| d(other) < d(best)).count() as f64
    };
    let (first, second) = (rank(0, 1, [2, 3]), rank(1, 0, [2, 3]));
    let got = |key: &str| json["ranking"][key].as_f64().expect("a number");
    assert_eq!((got("targets"), got("average_rank")), (2.0, (first + second) / 2.0));
    assert!((got("mean_reciprocal_rank") - (1.0 / first + 1.0 / second) / 2.0).abs() < 1e-12);
    let ndcg = got("ndcg");
    assert!(ndcg > 0.0 && ndcg <= 1.0, "{ndcg}");
    let printed = output(&args);
    assert!(String::from_utf8_lossy(&printed.stdout).contains("over 2 targets: average rank"), "{printed:?}");
    std::fs::write(&table, "source,task0,task1\ntask2,1,\n").expect("a temporary folder is writable");
    let refused = output(&args);
    assert_eq!(refused.status.code(), Some(4));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        text.contains("the scores have no task \"task3\"; they are of \"task0\", \"task1\", \"task2\""),
        "{text}"
    );
    std::fs::write(&table, "source,task0\ntask1,high\n").expect("a temporary folder is writable");
    let refused = output(&args);
    assert_eq!(refused.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("line 2: \"high\" is not a score"),
        "{refused:?}"
    );
}

#[test]
fn a_dry_run_says_what_it_would_do_and_does_nothing() {
    let folder = folder();
    let out = folder.path().join("tasks.safetensors").display().to_string();
    let paths = task_args();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let host = ["--backend", "host", "--dry-run"];
    let embed = json_of(&[&["embed", "--group", "row", "-o", &out], &host[..], &paths].concat());
    let real = json_of(&[&["embed", "--group", "row", "-o", &out], &host[..2], &paths].concat());
    for key in ["names", "group", "groups", "elements"] {
        assert_eq!(embed[key], real[key], "{key}");
    }
    assert_eq!((&embed["dry_run"], embed["passes"].as_array().map(Vec::len)), (&true.into(), Some(4)));
    std::fs::remove_file(&out).expect("the real run wrote it");
    let svg = folder.path().join("d.svg").display().to_string();
    for (group, passes) in [("element", 1), ("row", 4)] {
        let args = [&["distance", "--group", group, "-o", &svg], &host[..], &paths].concat();
        let planned = json_of(&args);
        assert_eq!(planned["passes"].as_array().map(Vec::len), Some(passes), "{planned}");
        let text = String::from_utf8(output(&args).stdout).expect("UTF-8");
        assert!(text.contains("would write") && text.contains(": f32"), "{text}");
    }
    let nothing = std::fs::read_dir(folder.path()).expect("a readable folder").count();
    assert_eq!(nothing, 0, "something was written");
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn impossible_values_count_as_zero_where_that_is_asked_for() {
    let folder = folder();
    let bad = fisher(folder.path(), "bad", &[2, 3], &[1.0, f32::NAN, 3.0, -4.0, f32::INFINITY, 6.0]);
    let clean = fisher(folder.path(), "clean", &[2, 3], &[1.0, 0.0, 3.0, 0.0, 0.0, 6.0]);
    let other = fisher(folder.path(), "other", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let distance = |first: &PathBuf, group, backend: &Backend| {
        let options = DistanceOptions {
            metric: DistanceMetric::Symmetric(Metric::Normalized),
            group,
            non_finite: NonFinite::Zero,
        };
        distance(&[first.clone(), other.clone()], &options, &Run::new(backend)).expect("nothing is refused")
    };
    for backend in support::backends() {
        for group in [Group::Element, Group::Row] {
            let (got, want) = (distance(&bad, group, &backend), distance(&clean, group, &backend));
            assert_eq!((got.matrix, got.non_finite), (want.matrix, 3));
            assert_eq!(want.non_finite, 0);
        }
        let out = folder.path().join("out.safetensors");
        let options = EmbedOptions { group: Group::Row, non_finite: NonFinite::Zero, overwrite: true };
        let report = embed(std::slice::from_ref(&bad), &options, &out, &Run::new(&backend))
            .expect("nothing is refused");
        assert_eq!(report.non_finite, 3);
        near(&values(&out, "embedding"), &[4.0 / 3.0, 2.0], |_| 1.0);
    }
}
