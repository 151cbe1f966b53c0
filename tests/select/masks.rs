//! What a mask of a whole checkpoint keeps, whatever its pieces, tensors and types.

use proptest::prelude::*;
use safetensors::Dtype;
use squisher::Backend;
use squisher::methods::mask::MaskOptions;
use squisher::methods::prune::{Pattern, PruneOptions, Structure};
use squisher::methods::select::Keep;
use squisher::methods::{Globs, NonFinite};

use crate::support::files::{Tensors, f32s, f64s, folder, read, write};
use crate::{applied, best_mask, network, run_mask, run_prune, saliency, set, support, tied, values};

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn neither_pieces_nor_tensors_show_in_a_mask(
        lens in prop::collection::vec(0_usize..40, 1..9),
        values in prop::collection::vec(tied(), 360),
        share in 0.0_f64..=1.0,
        piece in 1_u64..64,
    ) {
        let out = folder();
        let fisher = out.path().join("fisher.safetensors");
        let mut tensors = Tensors::new();
        let mut start = 0;
        for (i, &len) in lens.iter().enumerate() {
            tensors.insert(format!("t{i}"), f32s(&[len], &values[start..start + len]));
            start += len;
        }
        write(&fisher, &tensors);
        let options = MaskOptions { piece_elements: Some(piece), ..MaskOptions::new(Keep::Fraction(share)) };
        let path = out.path().join("mask.safetensors");
        run_mask(&Backend::Host, &fisher, &options, &path).expect("a sound Fisher");
        let got: Vec<u8> = read(&path).into_values().flat_map(|(_, _, bytes)| bytes).collect();
        let k = Keep::Fraction(share).of("t", start as u64).expect("a share");
        prop_assert_eq!(got, best_mask(&values[..start], usize::try_from(k).expect("small")));
    }
}

/// A large stream: the sample's guess makes one pass enough, and where it cannot, the second pass is exact too.
#[test]
fn one_pass_is_enough_where_the_guess_holds() {
    let out = folder();
    let (fisher, path) = (out.path().join("fisher.safetensors"), out.path().join("mask.safetensors"));
    let noise: Vec<f32> = (0..1_500_000_u32)
        .map(|i| {
            let u = f64::from(i.wrapping_mul(2_654_435_761)) / f64::from(u32::MAX);
            #[expect(clippy::cast_possible_truncation, reason = "test data")]
            let value = 10_f64.powf(-9.0 * u) as f32;
            value
        })
        .collect();
    // All but a few far above are equal: the sample sees only these.
    let mut lonely = vec![1e-3; 1_500_000];
    (0..5).for_each(|i| lonely[i * 300_001 + 7] = 1.0 + i as f32);
    for (values, k, passes) in
        [(&noise, 7_500, 1), (&noise, 750_000, 1), (&lonely, 3, 2), (&lonely, 1_000_000, 1)]
    {
        let (first, second) = values.split_at(400_000);
        let tensors = [("a", f32s(&[400, 1000], first)), ("b", f32s(&[1_100_000], second))];
        write(&fisher, tensors);
        let options = MaskOptions { overwrite: true, ..MaskOptions::new(Keep::Count(k)) };
        let report = run_mask(&Backend::Host, &fisher, &options, &path).expect("a sound Fisher");
        assert_eq!((report.passes, report.kept), (passes, k), "k = {k}");
        let got: Vec<u8> = read(&path).into_values().flat_map(|(_, _, bytes)| bytes).collect();
        assert!(got == best_mask(values, usize::try_from(k).expect("small")), "k = {k}");
    }
}

#[test]
fn what_is_always_kept_is_counted_and_what_is_excluded_is_not() {
    let out = folder();
    let (model, fisher) = network(out.path());
    let (pruned, mask) = (out.path().join("pruned.safetensors"), out.path().join("mask.safetensors"));
    let mut options = PruneOptions {
        mask_out: Some(mask.clone()),
        ..PruneOptions::new(Structure::Elements(Keep::Fraction(0.5)))
    };
    options.globs = Globs { exclude: vec!["bias".into()], always: vec!["head*".into()], ..Globs::default() };
    let report = run_prune(&Backend::Host, (&model, &fisher), &options, &pruned).expect("sound inputs");
    assert_eq!((report.elements, report.kept), (144, 72));
    assert_eq!(report.copied, ["bias", "steps"]);
    let (model, fisher, mask) = (read(&model), read(&fisher), read(&mask));
    assert_eq!(mask.keys().collect::<Vec<_>>(), ["conv.weight", "head.weight"]);
    assert!(mask["head.weight"].2.iter().all(|&b| b == 1), "what is always kept is kept");
    assert_eq!(mask["conv.weight"].2, best_mask(&saliency(&model, &fisher, "conv.weight"), 72 - 48));
    applied(&model, &mask, &read(&pruned));
}

/// F64 is narrowed for the score with a check, and what is kept stays bit for bit.
#[test]
fn doubles_are_scored_as_f32_and_kept_as_they_are() {
    for options in [
        PruneOptions::new(Structure::Elements(Keep::Fraction(0.5))),
        PruneOptions::new(Structure::Pattern(Pattern { keep: 3, size: 8 })),
        PruneOptions::new(Structure::Filters(Keep::Fraction(0.5))),
    ] {
        let out = folder();
        let (model, fisher) = network(out.path());
        let narrow = out.path().join("narrow.safetensors");
        let mask = |name: &str| out.path().join(format!("{name}-mask.safetensors"));
        let with = |name: &str| PruneOptions { mask_out: Some(mask(name)), ..options.clone() };
        run_prune(&Backend::Host, (&model, &fisher), &with("narrow"), &narrow).expect("sound inputs");
        let (mut m, mut f) = (read(&model), read(&fisher));
        for (name, tensor) in m.iter_mut().filter(|(_, tensor)| tensor.0 == Dtype::F32) {
            // Bits below f32's, which must come back, and no score sees.
            let wide: Vec<f64> = values(tensor).iter().map(|&v| f64::from(v) + 1e-13).collect();
            *tensor = f64s(&tensor.1.clone(), &wide);
            let fisher = f.get_mut(name).expect("every float has a Fisher");
            let wide: Vec<f64> = values(fisher).iter().map(|&v| f64::from(v)).collect();
            *fisher = f64s(&fisher.1.clone(), &wide);
        }
        write(&model, &m);
        write(&fisher, &f);
        let wide = out.path().join("wide.safetensors");
        run_prune(&Backend::Host, (&model, &fisher), &with("wide"), &wide).expect("sound inputs");
        assert_eq!(read(&mask("wide")), read(&mask("narrow")), "{options:?}");
        applied(&m, &read(&mask("wide")), &read(&wide));

        f.insert("bias".into(), f64s(&[6], &[1.0, 1.0, 1e39, 1.0, 1.0, 1.0]));
        write(&fisher, &f);
        let elements = matches!(options.structure, Structure::Elements(_));
        let out = out.path().join("refused.safetensors");
        let got = run_prune(&Backend::Host, (&model, &fisher), &options, &out);
        // Only elements are selected from biases.
        assert_eq!(got.is_err(), elements, "{options:?}");
        if let Err(refused) = got {
            assert!(refused.to_string().contains("index 2 is 1e39, beyond the range of f32"), "{refused}");
            assert!(!out.exists());
        }
    }
}

#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn impossible_fishers_count_as_zero_where_that_is_asked_for() {
    for backend in support::backends() {
        for structure in [
            Structure::Elements(Keep::Fraction(0.5)),
            Structure::Pattern(Pattern { keep: 3, size: 8 }),
            Structure::Filters(Keep::Fraction(0.5)),
        ] {
            let out = folder();
            let at = |name: &str| out.path().join(format!("{name}.safetensors"));
            let (model, fisher) = network(out.path());
            let (mut zeroed, mut bad) = (read(&fisher), read(&fisher));
            for (index, value) in [(3, f32::NAN), (40, -1.0), (95, f32::INFINITY)] {
                set(&mut zeroed, "conv.weight", index, 0.0);
                set(&mut bad, "conv.weight", index, value);
            }
            write(&at("zeroed"), &zeroed);
            write(&at("bad"), &bad);
            let options = PruneOptions { non_finite: NonFinite::Zero, ..PruneOptions::new(structure) };
            let run = |name: &str| {
                let path = at(&format!("pruned-{name}"));
                let report = run_prune(&backend, (&model, &at(name)), &options, &path).expect("sound");
                (read(&path), report.non_finite)
            };
            let (got, want) = (run("bad"), run("zeroed"));
            assert_eq!((got.0 == want.0, got.1, want.1), (true, 3, 0), "{options:?}");
        }
        let out = folder();
        let path = out.path().join("fisher.safetensors");
        write(&path, [("w", f32s(&[4], &[f32::NAN, 2.0, -1.0, 1.0]))]);
        let options = MaskOptions { non_finite: NonFinite::Zero, ..MaskOptions::new(Keep::Count(3)) };
        let mask = out.path().join("mask.safetensors");
        let report = run_mask(&backend, &path, &options, &mask).expect("nothing is refused");
        assert_eq!((read(&mask)["w"].2.as_slice(), report.non_finite), (&[1, 1, 0, 1][..], 2));
    }
}

/// The ties that are left run along chunks, types and tensors, in the device's own memory.
#[test]
#[cfg_attr(skip_gpu_tests, ignore = "SQUISHER_SKIP_GPU_TESTS is set")]
fn ties_are_handed_out_along_tensors_of_any_type() {
    let half = |len: usize| (Dtype::BF16, vec![len], [0x80, 0x3f].repeat(len));
    let tensors: Tensors = [
        ("a", f32s(&[900], &[1.0; 900])),
        ("b", half(700)),
        ("c", f32s(&[1], &[1.0])),
        ("d", f32s(&[0], &[])),
        ("e", half(3)),
        ("f", f32s(&[5000], &[1.0; 5000])),
    ]
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .into();
    for backend in support::backends() {
        for (k, piece) in [(1603, 128), (1604, 600), (1600, 1 << 20), (0, 100), (6604, 4096)] {
            let out = folder();
            let (fisher, path) = (out.path().join("fisher.safetensors"), out.path().join("mask.safetensors"));
            write(&fisher, &tensors);
            let options = MaskOptions { piece_elements: Some(piece), ..MaskOptions::new(Keep::Count(k)) };
            let report = run_mask(&backend, &fisher, &options, &path).expect("a sound Fisher");
            let got: Vec<u8> = read(&path).into_values().flat_map(|(_, _, bytes)| bytes).collect();
            let k = usize::try_from(k).expect("small");
            assert!(got.iter().enumerate().all(|(i, &byte)| byte == u8::from(i < k)), "k = {k} of {piece}");
            assert!(report.timings.seconds > 0.0);
        }
    }
}

#[test]
fn a_tensor_that_goes_entirely_is_told() {
    let out = folder();
    let (model, fisher) = network(out.path());
    let options = PruneOptions::new(Structure::Elements(Keep::Count(1)));
    let pruned = out.path().join("pruned.safetensors");
    let report = run_prune(&Backend::Host, (&model, &fisher), &options, &pruned).expect("sound inputs");
    let [warning] = &report.warnings[..] else { panic!("one line: {:?}", report.warnings) };
    assert!(warning.starts_with("nothing is kept of 2 tensors: \"bias\", \""), "{warning}");
    // A mask like that is what FISH masks are.
    let options = MaskOptions::new(Keep::Count(1));
    let report = run_mask(&Backend::Host, &fisher, &options, &out.path().join("mask")).expect("sound");
    assert_eq!(report.warnings, [""; 0]);
}
