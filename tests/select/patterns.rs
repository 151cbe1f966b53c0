//! N of every M.

use squisher::methods::prune::{Pattern, PruneOptions, Structure};

use crate::support::files::{folder, read};
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
