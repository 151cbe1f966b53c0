//! Masks and pruned models are PyTorch's.

use squisher::Backend;
use squisher::methods::mask::MaskOptions;
use squisher::methods::prune::{PruneOptions, Structure};
use squisher::methods::select::{Keep, Scope};

use crate::support::files::{folder, read};
use crate::{CASES, FRACTIONS, applied, data, expected, run_mask, run_prune, support};

fn oracle_holds_on(backend: &Backend) {
    let out = folder();
    let (mask_path, pruned_path) =
        (out.path().join("mask.safetensors"), out.path().join("pruned.safetensors"));
    for case in CASES {
        let (model, fisher) = (data(case, "model"), data(case, "fisher"));
        let all = read(&data(case, "expected"));
        for fraction in FRACTIONS {
            for (tag, scope) in [("global", Scope::Global), ("tensor", Scope::Tensor)] {
                let keep = Keep::Fraction(fraction.parse().expect("a number"));
                let options = MaskOptions { scope, overwrite: true, ..MaskOptions::new(keep) };
                let report = run_mask(backend, &fisher, &options, &mask_path).expect("a sound Fisher");
                let want = expected(&all, &format!("fish/{tag}/{fraction}/"));
                assert_eq!(read(&mask_path), want, "{case} fish {tag} {fraction}");
                let kept: usize = want.values().map(|(_, _, m)| m.iter().filter(|&&b| b == 1).count()).sum();
                assert_eq!(report.kept, kept as u64, "{case} fish {tag} {fraction}");

                let options = PruneOptions {
                    scope,
                    overwrite: true,
                    mask_out: Some(mask_path.clone()),
                    ..PruneOptions::new(Structure::Elements(keep))
                };
                run_prune(backend, (&model, &fisher), &options, &pruned_path).expect("sound inputs");
                let want = expected(&all, &format!("prune/{tag}/{fraction}/"));
                assert_eq!(read(&mask_path), want, "{case} prune {tag} {fraction}");
                applied(&read(&model), &want, &read(&pruned_path));
            }
        }
        let pattern = Structure::Pattern("2:4".parse().expect("a pattern"));
        let mut options =
            PruneOptions { overwrite: true, mask_out: Some(mask_path.clone()), ..PruneOptions::new(pattern) };
        options.globs.exclude = vec!["*conv*".into()];
        let report = run_prune(backend, (&model, &fisher), &options, &pruned_path).expect("sound inputs");
        let (want, got) = (expected(&all, "prune/2:4/"), read(&mask_path));
        want.iter().for_each(|(name, tensor)| assert_eq!(&got[name], tensor, "{case} 2:4 {name}"));
        assert!(report.copied.contains(&"model.layers.1.conv.weight".to_owned()), "{:?}", report.copied);
        applied(&read(&model), &got, &read(&pruned_path));
    }
}

#[test]
fn masks_and_pruned_models_are_pytorch_s_on_the_host() {
    oracle_holds_on(&Backend::Host);
}

#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
#[test]
fn masks_and_pruned_models_are_pytorch_s_on_the_device() {
    oracle_holds_on(&Backend::Gpu(support::gpu()));
}
