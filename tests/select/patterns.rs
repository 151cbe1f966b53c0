//! N of every M.

use squisher::Backend;
use squisher::methods::prune::{Pattern, PruneOptions, Structure};
use squisher::methods::select::Keep;

use crate::support::files::{f32s, folder, read, write_with};
use crate::{applied, best, network, run_prune, saliency, support};

#[test]
fn patterns_run_along_the_input_axis() {
    for backend in support::backends() {
        for piece in [24, 25, 1000] {
            let out = folder();
            let (model, fisher) = network(out.path());
            let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
            let options = PruneOptions {
                mask_out: Some(mask.clone()),
                piece_elements: Some(piece),
                ..PruneOptions::new(Structure::Pattern(Pattern { keep: 3, size: 8 }))
            };
            let report = run_prune(&backend, (&model, &fisher), &options, &pruned).expect("sound inputs");
            assert_eq!(report.copied, ["bias", "steps"]);
            let (model, fisher, mask) = (read(&model), read(&fisher), read(&mask));
            for (name, stride) in [("head.weight", 1), ("conv.weight", 3)] {
                let scores = saliency(&model, &fisher, name);
                let mut want = vec![0; scores.len()];
                for first in (0..scores.len()).filter(|i| i / stride % 8 == 0) {
                    let members: Vec<usize> = (0..8).map(|j| first + j * stride).collect();
                    let group: Vec<f32> = members.iter().map(|&i| scores[i]).collect();
                    best(&group, 3).into_iter().for_each(|j| want[members[j]] = 1);
                }
                assert_eq!(mask[name].2, want, "{name} in pieces of {piece}");
            }
            applied(&model, &mask, &read(&pruned));
        }
    }
}

/// In a transposed convolution inputs lie along the first axis, and filters along the second, where they are
/// not pruned.
#[test]
fn a_transposed_convolution_has_its_axes_the_other_way_round() {
    let out = folder();
    let theta: Vec<f32> = (0..24).map(|i| ((i * 7 + 3) % 24) as f32 + 1.0).collect();
    let (model, fisher) = (out.path().join("model"), out.path().join("fisher"));
    let file = |values: &[f32]| [("up.weight", f32s(&[4, 2, 3], values))];
    write_with(&model, file(&theta), &[]);
    write_with(&fisher, file(&[1.0; 24]), &[("squisher.transposed", r#"["up.weight"]"#)]);
    let mask = out.path().join("mask");
    let pattern = Structure::Pattern(Pattern { keep: 1, size: 4 });
    let options = PruneOptions { mask_out: Some(mask.clone()), ..PruneOptions::new(pattern) };
    run_prune(&Backend::Host, (&model, &fisher), &options, &out.path().join("pruned")).expect("sound inputs");
    let mut want = vec![0; 24];
    for first in 0..6 {
        let best = (0..4).map(|i| first + 6 * i).max_by(|&a, &b| theta[a].total_cmp(&theta[b]));
        want[best.expect("four")] = 1;
    }
    assert_eq!(read(&mask)["up.weight"].2, want);
    let filters = PruneOptions::new(Structure::Filters(Keep::Fraction(0.5)));
    let refused = run_prune(&Backend::Host, (&model, &fisher), &filters, &out.path().join("filters"));
    let problem = refused.expect_err("filters along the second axis").to_string();
    assert!(problem.contains("transposed") && problem.contains("--exclude"), "{problem}");
}
