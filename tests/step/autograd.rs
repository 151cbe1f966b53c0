//! Matrices, norms and steps are autograd's, through the library and through the tool.

use squisher::Backend;
use squisher::checkpoint::Checkpoint;
use squisher::methods::step::StepKind;

use crate::support::capture_files::{CASES, Tensors, captures, data, load, worst};
use crate::support::files::folder;
use crate::{gram, norms, options, run, share, step_tool, support};

fn expected(case: &str) -> Tensors {
    load(&data(case).join("expected.safetensors"))
}

fn of_flavour(expected: &Tensors, flavour: &str) -> Tensors {
    let prefix = format!("{flavour}/");
    let own =
        |(name, values): (&String, &Vec<f64>)| Some((name.strip_prefix(&prefix)?.to_owned(), values.clone()));
    expected.iter().filter_map(own).collect()
}

fn agrees_with_autograd(backend: &Backend) {
    for case in CASES {
        let expected = expected(case);
        // Rounding to 16 bits is in the captures: a step has that of K, times its condition number, here 20 to 60.
        let (of_gram, of_step) = if case.ends_with("16") { (3e-2, 0.1) } else { (2e-5, 5e-3) };
        let error = share(&gram(backend, &captures(case)), &expected["gram"]);
        assert!(error <= of_gram, "{case} on {}: the Gram matrix is off by {error:e}", backend.name());
        let diagonal = expected["gram"].iter().step_by(samples_of(&expected) + 1);
        let want: Vec<f64> = diagonal.map(|square| square.sqrt()).collect();
        let error = share(&norms(backend, &captures(case)), &want);
        assert!(error <= of_gram, "{case} on {}: norms are off by {error:e}", backend.name());
        for (kind, flavour) in [(StepKind::Ef, "ef_update"), (StepKind::Ief, "ief_update")] {
            let folder = folder();
            let options = options(kind, expected["damping"][0]);
            let (got, _) = run(backend, &captures(case), &options, folder.path()).expect("sound captures");
            let error = worst(&got, &of_flavour(&expected, flavour));
            assert!(error <= of_step, "{case} {kind} on {}: {error:e}", backend.name());
        }
    }
}

fn samples_of(expected: &Tensors) -> usize {
    expected["gram"].len().isqrt()
}

#[test]
fn every_case_agrees_with_autograd_on_the_host() {
    agrees_with_autograd(&Backend::Host);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn every_case_agrees_with_autograd_on_the_device() {
    agrees_with_autograd(&Backend::Gpu(support::gpu()));
}

/// The comparison with autograd is seen to fail.
#[test]
fn another_order_of_files_or_damping_is_told_from_autograd_s() {
    let expected = expected("mlp");
    let mut paths = captures("mlp");
    let folder = folder();
    let damped = options(StepKind::Ief, 300.0 * expected["damping"][0]);
    let (got, _) = run(&Backend::Host, &paths, &damped, folder.path()).expect("sound captures");
    assert!(worst(&got, &of_flavour(&expected, "ief_update")) > 5e-3);
    paths.reverse();
    assert!(share(&gram(&Backend::Host, &paths), &expected["gram"]) > 1e-2);
}

#[test]
fn the_tool_agrees_with_autograd() {
    let adapter = support::gpu().device().adapter_info().name;
    let devices = [["--backend", "host"], ["--adapter", &adapter]];
    let cases = CASES.into_iter().flat_map(|case| devices.map(|device| (case, device)));
    for ((case, device), kind) in cases.zip(["ief", "ef", "ef", "ief"].into_iter().cycle()) {
        let (of_gram, of_step, of_norm) =
            if case.ends_with("16") { (3e-2, 0.1, 3e-2) } else { (2e-5, 5e-3, 1e-4) };
        let (folder, expected) = (folder(), expected(case));
        let (out, table) = (folder.path().join("step.safetensors"), folder.path().join("gram.safetensors"));
        let damping = expected["damping"][0].to_string();
        let table_word = table.to_string_lossy();
        let words =
            ["--kind", kind, "--damping", &damping, "--gram", &table_word, "--json", device[0], device[1]];
        let done = step_tool(&words, &captures(case), &out);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let want = of_flavour(&expected, &format!("{kind}_update"));
        assert!(worst(&load(&out), &want) <= of_step, "{case}");
        assert!(share(&load(&table)["gram"], &expected["gram"]) <= of_gram, "{case}");
        let shape = &Checkpoint::open(&table).expect("sound").get("gram").expect("it is there").shape.clone();
        let samples = samples_of(&expected) as u64;
        assert_eq!(shape[..], [samples, samples]);
        let json: serde_json::Value = serde_json::from_slice(&done.stdout).expect("one object");
        assert_eq!(json["command"], "step");
        assert_eq!(json["samples"], samples);
        let norms = json["gradient_norms"].as_array().expect("a list");
        let want = expected["gram"].iter().step_by(samples_of(&expected) + 1);
        let near = |(norm, want): (&serde_json::Value, &f64)| {
            (norm.as_f64().expect("a number") - want.sqrt()).abs() < of_norm * want.sqrt()
        };
        assert!(norms.iter().zip(want).all(near), "{norms:?}");
        let kind_of = Checkpoint::open(&out).expect("sound").metadata().get("squisher.kind").cloned();
        assert_eq!(kind_of, Some(format!("{kind}-step")));
    }
}

#[test]
fn a_dry_run_writes_nothing_and_tells_the_matrix_s_size() {
    let folder = folder();
    let out = folder.path().join("step.safetensors");
    let words = ["--kind", "ef", "--damping", "1e-3", "--dry-run"];
    let done = step_tool(&words, &captures("mlp"), &out);
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && text.contains("would read 33 samples"), "{text}");
    assert!(!out.exists());
}
