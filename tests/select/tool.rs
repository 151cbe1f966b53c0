//! Masks, pruning and resets through the command line.

use std::path::Path;

use crate::support::files::{folder, read};
use crate::support::tool::output;
use crate::{CASES, applied, data, expected, support};

/// The oracle's masks through the tool, wherever these flags put it.
fn the_tool_gives_the_oracle_s(flags: [&str; 2]) {
    let out = folder();
    let text = |path: &Path| path.display().to_string();
    let (mask, pruned) = (out.path().join("mask.safetensors"), out.path().join("pruned.safetensors"));
    for case in CASES {
        let (model, fisher) = (text(&data(case, "model")), text(&data(case, "fisher")));
        let all = read(&data(case, "expected"));
        for (keep, scope) in [("0.005", "global"), ("0.5", "global"), ("0.25", "tensor")] {
            let shared = ["--keep", keep, "--scope", scope, "--overwrite", "-q"];
            let (mask_text, pruned_text) = (text(&mask), text(&pruned));
            let args = [&["mask", &fisher, "-o", &mask_text], &shared[..], &flags].concat();
            let done = output(&args);
            assert!(done.status.success(), "{args:?}: {done:?}");
            assert_eq!(read(&mask), expected(&all, &format!("fish/{scope}/{keep}/")), "{case} {args:?}");
            let own = ["prune", &model, "--fisher", &fisher, "--mask-out", &mask_text, "-o", &pruned_text];
            let args = [&own[..], &shared, &flags].concat();
            let done = output(&args);
            assert!(done.status.success(), "{args:?}: {done:?}");
            let want = expected(&all, &format!("prune/{scope}/{keep}/"));
            assert_eq!(read(&mask), want, "{case} {args:?}");
            applied(&read(&data(case, "model")), &want, &read(&pruned));
        }
    }
}

#[test]
fn the_tool_on_the_host_gives_the_oracle_s() {
    the_tool_gives_the_oracle_s(["--backend", "host"]);
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn the_tool_on_an_adapter_gives_the_oracle_s() {
    the_tool_gives_the_oracle_s(["--adapter", &support::gpu().caps().name]);
}

#[test]
fn the_command_line_prunes_masks_and_resets() {
    let out = folder();
    let text = |path: &Path| path.to_str().expect("a UTF-8 path").to_owned();
    let at = |name: &str| text(&out.path().join(format!("{name}.safetensors")));
    let (model, fisher) = (text(&data("ties_f32", "model")), text(&data("ties_f32", "fisher")));
    let all = read(&data("ties_f32", "expected"));
    let done = |args: &[&str]| {
        let done = output(args);
        assert!(done.status.success(), "{args:?}: {done:?}");
        serde_json::from_slice::<serde_json::Value>(&done.stdout).expect("one JSON object")
    };
    let host = ["--backend", "host", "--json"];
    let (pruned, mask, fish) = (at("pruned"), at("mask"), at("fish"));
    let args =
        ["prune", &model, "--fisher", &fisher, "--sparsity", "0.75", "--mask-out", &mask, "-o", &pruned];
    let report = done(&[&args[..], &host].concat());
    assert_eq!(read(Path::new(&mask)), expected(&all, "prune/global/0.25/"));
    assert_eq!(
        (&report["command"], report["sparsity"].as_f64().map(|s| s.round())),
        (&"prune".into(), Some(1.0))
    );
    let args = ["mask", &fisher, "--keep", "0.005", "--scope", "tensor", "-o", &fish];
    done(&[&args[..], &host].concat());
    assert_eq!(read(Path::new(&fish)), expected(&all, "fish/tensor/0.005/"));
    let again = at("again");
    let args = ["reset", "--mask", &mask, "--model", &model, "--base", &pruned, "-o", &again];
    let report = done(&[&args[..], &host].concat());
    assert_eq!(report["command"], "reset");
    assert_eq!(
        read(Path::new(&again)),
        read(Path::new(&pruned)),
        "the base already has the model's kept elements"
    );

    let planned = at("planned");
    let args = ["prune", &model, "--fisher", &fisher, "--keep", "0.5", "--dry-run", "-o", &planned];
    assert_eq!(done(&[&args[..], &host].concat())["dry_run"], true);
    assert!(!Path::new(&planned).exists(), "a dry run wrote something");
    for (args, code) in [
        (vec!["prune", &model, "--fisher", &fisher, "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--keep", "1.5", "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--pattern", "5:4", "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--pattern", "2:4", "--keep", "0.3", "-o", &planned], 2),
        (vec!["prune", &model, "--fisher", &fisher, "--pattern", "2:4", "-o", &planned], 4),
        (vec!["mask", &fisher, "--keep", "0.5", "--exclude", "nothing*", "-o", &planned], 4),
        (vec!["mask", &fisher, "--keep", "0.5", "-o", &mask], 7),
    ] {
        let refused = output(&[&args[..], &["--backend", "host"]].concat());
        assert_eq!(refused.status.code(), Some(code), "{args:?}: {refused:?}");
        assert!(refused.stdout.is_empty() && !Path::new(&planned).exists(), "{args:?}");
    }
}
