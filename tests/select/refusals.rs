//! What has no score or does not fit together is refused by message, and nothing is written.

use squisher::methods::Globs;
use squisher::methods::prune::{Pattern, PruneOptions, Structure};
use squisher::methods::select::{Keep, Scope};
use squisher::{Backend, Error};

use crate::support::files::{Tensors, f32s, folder, read, write};
use crate::{holds, network, run_prune, set};

/// Prunes the network after a change to its files; gives the refusal. Nothing may be written.
fn refusal(change: impl Fn(&mut Tensors, &mut Tensors), options: &PruneOptions) -> Error {
    let out = folder();
    let (model, fisher) = network(out.path());
    let (mut m, mut f) = (read(&model), read(&fisher));
    change(&mut m, &mut f);
    write(&model, &m);
    write(&fisher, &f);
    let options = PruneOptions { mask_out: Some(out.path().join("mask.safetensors")), ..options.clone() };
    let pruned = out.path().join("pruned.safetensors");
    let refused =
        run_prune(&Backend::Host, (&model, &fisher), &options, &pruned).expect_err("it must be refused");
    holds(out.path(), &["fisher.safetensors", "model.safetensors"]);
    refused
}

#[test]
fn a_mask_that_would_lie_in_the_models_place_is_refused() {
    let out = folder();
    let (model, fisher) = network(out.path());
    let at = |name: &str| out.path().join(name);
    let mut masks = vec![at("pruned"), at("./pruned")];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("pruned", at("link")).expect("links");
        masks.push(at("link"));
    }
    for mask in masks {
        let half = PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)));
        let options = PruneOptions { mask_out: Some(mask.clone()), ..half };
        let refused =
            run_prune(&Backend::Host, (&model, &fisher), &options, &at("pruned")).expect_err("one place");
        assert!(refused.to_string().contains("is the output of the model too"), "{refused}");
        assert!(!at("pruned").exists(), "{mask:?}");
    }
}

#[test]
fn values_without_a_score_are_refused_by_tensor_and_index() {
    let half = PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)));
    let pattern = PruneOptions::new(Structure::Pattern(Pattern { keep: 2, size: 4 }));
    let filters = PruneOptions::new(Structure::Filters(Keep::Fraction(0.5)));
    for options in [half.clone(), pattern, filters, PruneOptions { scope: Scope::Tensor, ..half }] {
        for (value, text) in [(f32::NAN, "NaN"), (-2.0, "-2"), (f32::INFINITY, "inf")] {
            let refused = refusal(|_, fisher| set(fisher, "conv.weight", 77, value), &options);
            assert_eq!(refused.exit_code(), 3, "{refused}");
            let refused = refused.to_string();
            let told = format!("tensor \"conv.weight\": element 77 of the Fisher is {text}, expected");
            assert!(refused.contains("fisher.safetensors") && refused.contains(&told), "{refused}");
        }
        let refused = refusal(|model, _| set(model, "head.weight", 5, f32::NAN), &options).to_string();
        let told = refused.contains("tensor \"head.weight\": element 5 is NaN");
        assert!(refused.contains("model.safetensors") && told, "{refused}");
    }
}

#[test]
fn inputs_that_do_not_fit_together_are_refused_with_what_differs() {
    let half = PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)));
    let refused = refusal(
        |_, fisher| {
            fisher.insert("other".into(), f32s(&[1], &[1.0]));
            fisher.insert("bias".into(), f32s(&[2, 3], &[1.0; 6]));
        },
        &half,
    );
    assert_eq!(refused.exit_code(), 4, "{refused}");
    let text = refused.to_string();
    assert!(text.contains("\"bias\" has shape [2, 3], in the model [6]"), "{text}");
    assert!(text.contains("\"other\" is not in the model"), "{text}");

    let text = refusal(|_, fisher| drop(fisher.remove("bias")), &half).to_string();
    assert!(text.contains("1 tensor of the model has no Fisher") && text.contains("\"bias\""), "{text}");

    let pattern = PruneOptions::new(Structure::Pattern(Pattern { keep: 2, size: 5 }));
    let refused = refusal(|_, _| {}, &pattern);
    assert_eq!(refused.exit_code(), 4, "{refused}");
    let text = refused.to_string();
    assert!(text.contains("\"conv.weight\" of shape [4, 8, 3] has 8 inputs, which pattern 2:5"), "{text}");

    let globs = Globs { exclude: vec!["decoder.*".into()], ..Globs::default() };
    let text = refusal(|_, _| {}, &PruneOptions { globs, ..half.clone() }).to_string();
    assert!(text.contains("exclude \"decoder.*\" matches none of the 3 tensors"), "{text}");

    let text = refusal(|_, _| {}, &PruneOptions::new(Structure::Elements(Keep::Count(151)))).to_string();
    assert!(text.contains("151 elements cannot be kept, there are 150"), "{text}");

    let globs = Globs { always: vec!["conv*".into()], ..Globs::default() };
    let tenth = PruneOptions::new(Structure::Elements(Keep::Fraction(0.1)));
    let text = refusal(|_, _| {}, &PruneOptions { globs, ..tenth }).to_string();
    assert!(text.contains("15 are to be kept, those that are always kept have 96"), "{text}");
}
