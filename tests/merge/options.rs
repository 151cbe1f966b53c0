//! What the flags change, and what the report counts.

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use squisher::methods::merge::{Base, MergeOptions, Method, Missing, NonFinite, Normalize};
use squisher::stream::Budget;
use squisher::{Backend, DType};

use crate::definition::Parameter;
use crate::files::{self, Tensor, doubles, floats, integers, raw, shaped, write};
use crate::support::tool::squisher;
use crate::{Vectors, command, fishers, folder, merged, noise, options, run, run_within, support};

const F: DType = DType::F32;

#[test]
fn a_floor_raises_fishers_and_counts_what_it_decides() {
    // Means are 2 and 4, so half of them are floors of 1 and 2.
    let models = [(vec![0.0; 4], vec![0.5, 0.0, 0.5, 7.0]), (vec![1.0; 4], vec![0.0, 3.0, 1.0, 12.0])];
    for backend in support::backends() {
        let vectors = Vectors::new(F, &models);
        let floored = MergeOptions { floor: 0.5, ..vectors.options(Method::Fisher) };
        let (got, report) = merged(&floored, &backend);
        let want: [f64; 4] = [2.0 / 3.0, 3.0 / 4.0, 2.0 / 3.0, 12.0 / 19.0];
        for (got, want) in got["w"].values().iter().zip(want) {
            assert!((got - want).abs() < 1e-6, "{got} {want}");
        }
        assert_eq!((report.floored, report.raised, report.fallback), (2, 5, 0), "{}", backend.name());
    }
}

#[test]
fn a_floor_is_relative_so_tiny_accumulators_do_not_become_an_average() {
    let tiny = |seed| fishers(seed, 500).iter().map(|f| f * 1e-14 + 1e-16).collect::<Vec<f64>>();
    let models = [(noise(1, 500), tiny(3)), (noise(2, 500), tiny(4))];
    let vectors = Vectors::new(F, &models);
    let plain = vectors.options(Method::Fisher);
    let (_, report) = merged(&MergeOptions { floor: 1e-30, ..plain.clone() }, &Backend::Host);
    assert_eq!((report.raised, report.floored), (0, 0));
    let (same, _) = merged(&MergeOptions { floor: 1e-30, ..plain.clone() }, &Backend::Host);
    assert_eq!(same["w"].bytes, merged(&plain, &Backend::Host).0["w"].bytes);
}

#[test]
fn dominated_parameters_are_counted() {
    let models = [(vec![0.0; 4], vec![1.0, 1.0, 0.0, 0.0]), (vec![1.0; 4], vec![98.9, 99.1, 1e-30, 0.0])];
    for backend in support::backends() {
        let (_, report) = merged(&Vectors::new(F, &models).options(Method::Fisher), &backend);
        assert_eq!((report.dominated, report.fallback), (2, 1), "{}", backend.name());
    }
}

#[test]
fn counts_do_not_depend_on_the_budget_or_the_backend() {
    let models: Vec<_> = (0..5).map(|m| (noise(m, 60_001), fishers(m + 9, 60_001))).collect();
    let vectors = Vectors::new(F, &models);
    let counts = |backend: &Backend, bytes: u64| {
        let options = MergeOptions { floor: 1e-6, ..vectors.options(Method::Fisher) };
        let budget = Budget { host_bytes: bytes, device_bytes: bytes, ..Budget::default() };
        let folder = folder();
        let report = run_within(budget, &options, &folder.path().join("merged"), backend).expect("sound");
        [report.elements, report.fallback, report.floored, report.raised, report.dominated]
    };
    let [host, device] = support::backends();
    let want = counts(&host, u64::MAX);
    assert!(want[2..].iter().all(|&count| count > 0), "{want:?}");
    for (backend, bytes) in [(&host, 6 << 20), (&device, u64::MAX), (&device, 8 << 20)] {
        assert_eq!(counts(backend, bytes), want, "{} in {bytes}", backend.name());
    }
}

#[test]
fn tensors_without_fisher_are_averaged_when_asked() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let both = |x: f64| [floats("a", F, &[x, x]), floats("b", F, &[x, x, x])];
    let (m0, m1) = (write(&path("m0"), &both(0.0)), write(&path("m1"), &both(1.0)));
    let fisher = |x: f64| [floats("a", F, &[x, x]), floats("b", F, &[x, x, x])];
    let (f0, f1) = (write(&path("f0"), &fisher(1.0)), write(&path("f1"), &fisher(3.0)[..1]));
    let options = options(Method::Fisher, &[(&m0, &f0), (&m1, &f1)]);
    for backend in support::backends() {
        let (got, report) = merged(&MergeOptions { missing: Missing::Average, ..options.clone() }, &backend);
        assert_eq!((got["a"].values(), got["b"].values()), (vec![0.75; 2], vec![0.5; 3]));
        assert_eq!((report.averaged, report.elements), (3, 5));
    }
}

#[test]
fn bad_fishers_count_as_zero_when_asked() {
    let models = [
        (vec![0.0; 5], vec![f64::NAN, f64::INFINITY, -1.0, 1.0, -0.0]),
        (vec![1.0; 5], vec![1.0, 1.0, 1.0, f64::NAN, 1.0]),
    ];
    for backend in support::backends() {
        for normalize in [Normalize::None, Normalize::Mean] {
            let vectors = Vectors::new(F, &models);
            let options =
                MergeOptions { non_finite: NonFinite::Zero, normalize, ..vectors.options(Method::Fisher) };
            let (got, report) = merged(&options, &backend);
            assert_eq!(got["w"].values(), [1.0, 1.0, 1.0, 0.0, 1.0]);
            assert_eq!(report.non_finite, 4, "minus zero is a zero, not a bad value");
        }
    }
}

#[test]
fn delta_is_added_to_the_bases_fisher() {
    let models =
        [(noise(1, 99), fishers(2, 99)), (noise(3, 99), fishers(4, 99)), (noise(5, 99), fishers(6, 99))];
    for backend in support::backends() {
        let vectors = Vectors::new(F, &models);
        let mut options = vectors.options(Method::Ubgm);
        options.base = options.base.map(|base| Base { delta: 0.125, ..base });
        let got = merged(&options, &backend).0["w"].values();
        let stored = |p: usize, m: usize| {
            let (t, f) = (&vectors.pairs[m].0, &vectors.pairs[m].1);
            (files::read(t)["w"].values()[p], files::read(f)["w"].values()[p])
        };
        for (p, got) in got.iter().enumerate() {
            let ((t0, f0), (t1, f1), (b, f)) = (stored(p, 0), stored(p, 1), stored(p, 2));
            let base = (b, f + 0.125);
            let want = Parameter { theta: &[t0, t1], fisher: &[f0, f1], lambda: &[1.0; 2], base }
                .merged(Method::Ubgm);
            // The sum F_0 + δ rounds once more.
            assert!((got - want.value).abs() <= want.bound(3), "[{p}] {got} {}", want.value);
        }
    }
}

#[test]
fn every_type_can_be_written_from_every_type() {
    let values = noise(4, 77);
    for from in DType::ALL {
        for to in DType::ALL {
            for backend in support::backends() {
                let vectors =
                    Vectors::new(from, &[(values.clone(), vec![1.0; 77]), (values.clone(), vec![1.0; 77])]);
                let options = MergeOptions { dtype: Some(to), ..vectors.options(Method::Fisher) };
                // Rounded by the half crate from what the model holds, to nearest even.
                let want = floats("w", to, &floats("w", from, &values).values());
                let (got, _) = merged(&options, &backend);
                assert_eq!((got["w"].dtype, &got["w"].bytes), (want.dtype, &want.bytes), "{from} to {to}");
            }
        }
    }
}

#[test]
fn models_of_different_types_merge_into_the_firsts() {
    let values = [0.25, 0.5, 1.0];
    for (first, second) in [(DType::F16, DType::F32), (DType::F32, DType::BF16), (DType::BF16, DType::F16)] {
        let mut vectors = Vectors::new(F, &[]);
        vectors.push(floats("w", first, &values), floats("w", DType::BF16, &[1.0; 3]));
        vectors.push(floats("w", second, &[0.75, 1.0, 2.0]), floats("w", DType::F16, &[1.0; 3]));
        for backend in support::backends() {
            let got = merged(&vectors.options(Method::Fisher), &backend).0["w"].clone();
            assert_eq!(got.dtype, floats("w", first, &[]).dtype);
            assert_eq!(got.values(), [0.5, 0.75, 1.5]);
        }
    }
}

#[test]
fn doubles_are_narrowed_and_come_back_as_f32() {
    let mut vectors = Vectors::new(F, &[]);
    for value in [1.0 + 1e-12, 2.0] {
        vectors.push(doubles("w", &[value, 0.1, 1e-50]), doubles("w", &[1.0, 1.0, 1e-3]));
    }
    for backend in support::backends() {
        let got = merged(&vectors.options(Method::Fisher), &backend).0["w"].clone();
        assert_eq!(got.dtype, Dtype::F32);
        assert_eq!(got.values(), [1.5, f64::from(0.1_f32), 0.0]);
    }
}

/// A negative Fisher is refused however small: as f32 it would be a zero.
#[test]
fn a_negative_double_below_f32_is_no_zero() {
    for (normalize, tiny) in [(Normalize::None, -1e-60), (Normalize::Mean, -1e-300)] {
        let mut vectors = Vectors::new(F, &[]);
        vectors.push(floats("w", F, &[1.0, 2.0]), doubles("w", &[1.0, tiny]));
        vectors.push(floats("w", F, &[3.0, 4.0]), doubles("w", &[1.0, 1.0]));
        for backend in support::backends() {
            let options = MergeOptions { normalize, ..vectors.options(Method::Fisher) };
            let folder = folder();
            let refused = run(&options, &folder.path().join("merged"), &backend);
            let problem = refused.expect_err("a negative Fisher").to_string();
            assert!(problem.contains("index 1"), "{problem}");
            let zeroed = MergeOptions { non_finite: NonFinite::Zero, ..options };
            let (got, report) = merged(&zeroed, &backend);
            assert_eq!((got["w"].values()[1], report.non_finite), (4.0, 1));
        }
    }
}

#[test]
fn scalars_empty_tensors_and_integers_pass_through() {
    let folder = folder();
    let model = |x: f64| {
        [
            shaped("scalar", F, &[], &[x]),
            shaped("empty", DType::BF16, &[0, 7], &[]),
            integers("ids", &[1, -2, i64::MAX]),
            raw("mask", Dtype::BOOL, 3, vec![1, 0, 1]),
            raw("nothing", Dtype::U8, 0, vec![]),
        ]
    };
    let fisher = [shaped("scalar", F, &[], &[1.0]), shaped("empty", F, &[0, 7], &[])];
    let path = |name: &str| folder.path().join(name);
    let (m0, m1) = (write(&path("m0"), &model(1.0)), write(&path("m1"), &model(2.0)));
    let f = write(&path("f"), &fisher);
    for backend in support::backends() {
        for method in [Method::Linear, Method::Fisher] {
            let options =
                MergeOptions { dtype: Some(DType::F16), ..options(method, &[(&m0, &f), (&m1, &f)]) };
            let (got, report) = merged(&options, &backend);
            assert_eq!(got["scalar"].values(), [1.5]);
            assert_eq!((got["empty"].shape.as_slice(), got["empty"].dtype), (&[0, 7][..], Dtype::F16));
            assert_eq!((got["ids"].dtype, &got["ids"].bytes), (Dtype::I64, &model(0.0)[2].bytes));
            assert_eq!((got["mask"].dtype, got["mask"].bytes.as_slice()), (Dtype::BOOL, &[1, 0, 1][..]));
            assert_eq!((report.elements, report.copied), (1, 6));
        }
    }
}

#[test]
fn a_model_of_nothing_but_integers_or_of_nothing_merges() {
    for tensors in [vec![integers("ids", &[1, 2])], vec![], vec![floats("e", F, &[])]] {
        let folder = folder();
        let path = |name: &str| folder.path().join(name);
        let (a, b) = (write(&path("a"), &tensors), write(&path("b"), &tensors));
        for backend in support::backends() {
            let (got, report) = merged(&options(Method::Linear, &[(&a, &a), (&b, &b)]), &backend);
            assert_eq!(got.len(), tensors.len());
            assert_eq!(report.elements, 0);
        }
    }
}

#[test]
fn shards_have_the_usual_names_and_an_index() {
    let folder = folder();
    let tensors: Vec<Tensor> = (0..5).map(|t| floats(&format!("t{t}"), F, &[f64::from(t); 10])).collect();
    let model = write(&folder.path().join("model"), &tensors);
    let output = folder.path().join("out");
    let options = MergeOptions {
        shard_bytes: Some(80),
        ..options(Method::Linear, &[(&model, &model), (&model, &model)])
    };
    run(&options, &output, &Backend::Host).expect("a sound merge");
    let names: Vec<String> = (1..=3).map(|n| format!("model-{n:05}-of-00003.safetensors")).collect();
    for name in &names {
        assert!(output.join(name).exists(), "{name} is missing");
    }
    let index = fs::read(output.join("model.safetensors.index.json")).expect("there is an index");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("it is JSON");
    assert_eq!(index["weight_map"].as_object().expect("a map").len(), 5);
    assert_eq!(index["weight_map"]["t4"], names[2].as_str());
    assert_eq!(files::read(&output).len(), 5);
    let again = folder.path().join("again");
    let done = command(&options, &again)
        .args(["--shard-size", "80", "--backend", "host"])
        .output()
        .expect("it runs");
    assert!(done.status.success(), "{done:?}");
    assert!(names.iter().all(|name| fs::read(output.join(name)).ok() == fs::read(again.join(name)).ok()));
}

#[test]
fn a_folders_config_says_how_the_merged_weights_are_stored() {
    let folder = folder();
    let path = folder.path().join("a");
    fs::create_dir(&path).expect("a fresh folder");
    write(&path.join("model.safetensors"), &[floats("w", F, &[1.0; 4])]);
    let config = r#"{"architectures": ["X"], "torch_dtype": "float32", "eps": 1e-05,
        "scale": 0.17677669529663687}"#;
    fs::write(path.join("config.json"), config).expect("it can be written");
    let merged = |dtype| {
        let output = folder.path().join("out");
        let options = MergeOptions { dtype, overwrite: true, ..options(Method::Linear, &[(&path, &path)]) };
        run(&options, &output, &Backend::Host).expect("a sound merge");
        fs::read_to_string(output.join("config.json")).expect("copied")
    };
    assert_eq!((merged(None).as_str(), merged(Some(DType::F32)).as_str()), (config, config));
    let stored = merged(Some(DType::BF16));
    assert!(
        stored.contains(r#""torch_dtype": "bfloat16""#)
            && stored.contains(r#""eps": 0.00001"#)
            && stored.contains(r#""scale": 0.17677669529663687"#),
        "{stored}"
    );
}

#[test]
fn a_folder_brings_its_side_files_and_a_card_with_the_recipe() {
    let folder = folder();
    let model = |name: &str, x: f64| {
        let path = folder.path().join(name);
        fs::create_dir(&path).expect("a fresh folder");
        write(&path.join("model.safetensors"), &[floats("w", F, &[x; 4])]);
        fs::write(path.join("config.json"), format!("{{\"of\": {name:?}}}")).expect("it can be written");
        path
    };
    let (a, b) = (model("a", 0.0), model("b", 1.0));
    let output = folder.path().join("out");
    let mut options = options(Method::Fisher, &[(&a, &a), (&b, &b)]);
    options.models[1].weight = 0.25;
    (options.floor, options.non_finite) = (1e-6, NonFinite::Zero);
    run(&options, &output, &Backend::Host).expect("a sound merge");
    assert_eq!(fs::read_to_string(output.join("config.json")).expect("copied"), "{\"of\": \"a\"}");
    let card = fs::read_to_string(output.join("README.md")).expect("written");
    for part in ["merge_method: fisher", "weight: 0.25", "floor: 1e-6", "non_finite: zero", "Relative paths"]
    {
        assert!(card.contains(part), "no {part:?} in {card}");
    }
    assert!(!card.contains("transformers"), "its config names no architecture: {card}");
    // The recipe in the card, beside nothing else, makes the same merge.
    let recipe = card.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a recipe");
    fs::write(folder.path().join("recipe.yml"), recipe).expect("it can be written");
    let again = folder.path().join("again");
    let done = tool(
        &["merge", "recipe.yml", "-o", "again", "--non-finite", "zero", "--backend", "host"],
        folder.path(),
    );
    assert!(done.status.success(), "{done:?}");
    assert!(
        files::everything(&output).values().eq(files::everything(&again).values()),
        "the card's recipe differs"
    );
}

fn tool(args: &[&str], at: &Path) -> std::process::Output {
    squisher(args).current_dir(at).output().expect("it runs")
}

#[test]
fn the_json_report_has_stable_keys() {
    let models = [(noise(1, 9), fishers(2, 9)), (noise(3, 9), fishers(4, 9))];
    let vectors = Vectors::new(F, &models);
    let output = vectors.folder.path().join("out");
    let done = command(&vectors.options(Method::Fisher), &output)
        .args(["--backend", "host"])
        .output()
        .expect("it runs");
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one JSON object");
    for key in [
        "elements",
        "fallback",
        "floored",
        "dominated",
        "bytes_read",
        "bytes_written",
        "seconds",
        "peak_device_bytes",
        "peak_host_bytes",
        "adapter",
    ] {
        assert!(!report[key].is_null(), "no {key} in {report}");
    }
    assert_eq!((&report["elements"], &report["bytes_read"]), (&9.into(), &(4 * 9 * 4).into()));
}

#[test]
fn a_dry_run_writes_nothing_and_shows_the_plan() {
    let models = [(noise(1, 9), fishers(2, 9)), (noise(3, 9), fishers(4, 9))];
    let vectors = Vectors::new(F, &models);
    let output = vectors.folder.path().join("out");
    let mut dry = command(&vectors.options(Method::Fisher), &output);
    let done = dry.args(["--backend", "host", "--dry-run"]).output().expect("it runs");
    assert!(done.status.success() && !output.exists(), "{done:?}");
    let plan: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one JSON object");
    assert_eq!((&plan["dry_run"], &plan["passes"][0]["plan"]["elements"]), (&true.into(), &9.into()));
}
