//! What is read equals what PyTorch holds, at every scale.

use squisher::checkpoint::{Accumulator, NameSource, Scale};
use squisher::methods::squisher::{ExtractOptions, Warning, plan};

use crate::{ORACLE, data, differs, f64_tensors, model, open, refused, run, scale, under};

#[test]
fn raw_is_what_torch_stored_to_the_last_bit() {
    for (case, key, accumulator) in ORACLE {
        let (got, report) = run(case, &model(case), &scale(Scale::Raw)).unwrap();
        let want = under(&f64_tensors(&data(case).join("expected.safetensors")), key);
        // An f64 state is rounded once.
        let roundings = if case == "radam_f64" { 1.0 } else { 0.0 };
        assert_eq!(differs(&got, &want, 1.0, roundings), None, "{case}");
        assert!(report.tensors.iter().all(|t| t.accumulator == accumulator), "{case}");
        assert_eq!(report.evidence, NameSource::Shapes, "{case}");
        assert_eq!(report.elements, want.values().map(|v| v.len() as u64).sum::<u64>());
    }
}

#[test]
fn unbiased_is_what_the_parameters_own_step_makes_of_it() {
    for (case, key, _) in ORACLE {
        let (got, _) = run(case, &model(case), &scale(Scale::Unbiased)).unwrap();
        let expected = f64_tensors(&data(case).join("expected.safetensors"));
        let roundings = if case == "radam_f64" { 2.0 } else { 1.0 };
        let (want, factor) = match key {
            "exp_avg_sq" => (under(&expected, "bias_corrected"), 1.0),
            "sum" => (under(&expected, key), 1.0 / 7.0),
            _ => (under(&expected, key), 1.0),
        };
        assert_eq!(differs(&got, &want, factor, roundings), None, "{case}");
    }
}

#[test]
fn the_comparison_sees_one_wrong_bit() {
    let case = "adamw_f32";
    let want = under(&f64_tensors(&data(case).join("expected.safetensors")), "exp_avg_sq");
    let (mut got, _) = run(case, &model(case), &scale(Scale::Raw)).unwrap();
    let value = &mut got.values_mut().next().unwrap()[2];
    *value = f32::from_bits(value.to_bits() + 1);
    assert!(differs(&got, &want, 1.0, 0.0).is_some());
}

#[test]
fn scales_are_multiples_by_b_and_n() {
    let case = "adamw_f32";
    let expected = f64_tensors(&data(case).join("expected.safetensors"));
    let (raw, unbiased) = (under(&expected, "exp_avg_sq"), under(&expected, "bias_corrected"));
    for (name, want, factor) in
        [(Scale::Mean, &unbiased, 16.0), (Scale::Sum, &unbiased, 16.0 * 500.0), (Scale::Paper, &raw, 500.0)]
    {
        let options = ExtractOptions { batch_size: Some(16), samples: Some(500), ..scale(name) };
        let (got, report) = run(case, &model(case), &options).unwrap();
        assert_eq!(differs(&got, want, factor, 1.0), None, "{name}");
        assert_eq!(report.scale, name);
    }
}

#[test]
fn a_scale_names_the_flag_it_lacks() {
    let state = open("adamw_f32");
    let m = model("adamw_f32");
    refused(plan(&state, &m, &scale(Scale::Mean)), &["scale mean needs the batch size", "--batch-size"]);
    refused(
        plan(&state, &m, &scale(Scale::Paper)),
        &["scale paper needs the number of samples", "--samples"],
    );
    let options = ExtractOptions { batch_size: Some(16), ..scale(Scale::Sum) };
    refused(plan(&state, &m, &options), &["--samples"]);
    let options = ExtractOptions { batch_size: Some(0), ..scale(Scale::Mean) };
    refused(plan(&state, &m, &options), &["--batch-size is 0"]);
    assert_eq!("paper".parse::<Scale>().unwrap(), Scale::Paper);
    refused("best".parse::<Scale>(), &["raw, unbiased, mean, sum, paper"]);
}

#[test]
fn every_stored_form_gives_torchs_values() {
    for (case, accumulator, roundings) in [
        ("param_names", Accumulator::ExpAvgSq, 0.0),
        ("wrapped", Accumulator::ExpAvgSq, 0.0),
        ("keyed_by_name", Accumulator::ExpAvgSq, 0.0),
        ("step_in_group", Accumulator::ExpAvgSq, 0.0),
        ("tied_and_absent", Accumulator::ExpAvgSq, 0.0),
        ("coupled", Accumulator::ExpAvgSq, 0.0),
        ("capturable", Accumulator::ExpAvgSq, 0.0),
        ("eight_bit", Accumulator::EightBit, 0.0),
        ("eight_bit_fsdp", Accumulator::EightBit, 0.0),
        ("adafactor_torch", Accumulator::FactorsTorch, 1.0),
        ("adafactor_transformers", Accumulator::FactorsTransformers, 1.0),
    ] {
        let (got, report) =
            run(case, &model(case), &scale(Scale::Raw)).unwrap_or_else(|e| panic!("{case}: {e}"));
        let want = f64_tensors(&data(case).join("expected.safetensors"));
        assert_eq!(differs(&got, &want, 1.0, roundings), None, "{case}");
        assert_eq!(report.evidence, NameSource::Stored, "{case}");
        assert_eq!(report.tensors[0].accumulator, accumulator, "{case}");
    }
}

#[test]
fn adagrads_sum_comes_without_what_it_started_from() {
    for case in ["adagrad_initial", "adagrad_initial_bf16"] {
        let (got, _) = run(case, &model(case), &scale(Scale::Raw)).unwrap();
        let want = f64_tensors(&data(case).join("expected.safetensors"));
        assert_eq!(differs(&got, &want, 1.0, 1.0), None, "{case}");
        let (got, _) = run(case, &model(case), &scale(Scale::Unbiased)).unwrap();
        assert_eq!(differs(&got, &want, 1.0 / 5.0, 2.0), None, "{case}");
    }
}

#[test]
fn a_parameter_that_adagrad_never_stepped_is_absent_and_not_zero() {
    let case = "adagrad_unused";
    let want = f64_tensors(&data(case).join("expected.safetensors"));
    for (name, factor) in [(Scale::Raw, 1.0), (Scale::Unbiased, 1.0 / 5.0)] {
        let (got, report) = run(case, &model(case), &scale(name)).unwrap();
        assert_eq!(differs(&got, &want, factor, 1.0), None, "{name}");
        assert_eq!(report.absent, ["unused.bias", "unused.weight"]);
        assert!(report.warnings.contains(&Warning::WithoutState { params: 2 }), "{name}");
    }
}

#[test]
fn a_step_may_be_of_any_integer_type() {
    for case in ["step_int16", "step_uint8", "step_int8"] {
        assert!(open(case).entries().iter().all(|entry| entry.step == Some(5.0)), "{case}");
    }
}

#[test]
fn the_maximum_of_amsgrad_is_read_on_request_only() {
    let options = ExtractOptions { max_exp_avg_sq: true, ..scale(Scale::Raw) };
    let (got, report) = run("amsgrad", &model("amsgrad"), &options).unwrap();
    let want = f64_tensors(&data("amsgrad").join("expected.safetensors"));
    assert_eq!(differs(&got, &want, 1.0, 0.0), None);
    assert!(report.warnings.contains(&Warning::MaximumIsNoAverage));
    let (plain, _) = run("amsgrad", &model("amsgrad"), &scale(Scale::Raw)).unwrap();
    assert!(differs(&plain, &want, 1.0, 0.0).is_some(), "the average is another quantity");
    refused(run("adamw_f32", &model("adamw_f32"), &options), &["no max_exp_avg_sq", "not AMSGrad"]);
}

#[test]
fn settings_that_are_tensors_are_numbers() {
    let state = open("capturable");
    let (b1, b2) = state.groups()[0].betas.unwrap();
    assert!((b1 - 0.8).abs() < 1e-7 && (b2 - 0.95).abs() < 1e-7);
    assert_eq!(state.entries()[0].step, Some(5.0));
}

#[test]
fn eight_bit_states_are_corrected_by_their_second_beta() {
    let state = open("eight_bit");
    let p = plan(&state, &model("eight_bit"), &scale(Scale::Unbiased)).unwrap();
    let want = 1.0 / (1.0 - 0.995_f64.powi(4));
    assert!((p.tensors[0].factor / want - 1.0).abs() < 1e-12);
    assert_eq!(p.tensors[1].accumulator, Accumulator::EightBitWhole);
}
