//! What is told of states that are read.

use squisher::checkpoint::{Accumulator, Scale};
use squisher::methods::squisher::{ExtractOptions, Warning};

use crate::{ORACLE, model, run, scale};

fn warnings(case: &str, options: &ExtractOptions) -> Vec<Warning> {
    run(case, &model(case), options).unwrap_or_else(|e| panic!("{case}: {e}")).1.warnings
}

#[test]
fn healthy_states_raise_only_the_warning_of_few_steps() {
    for (case, _, _) in ORACLE {
        for warning in warnings(case, &scale(Scale::Raw)) {
            let expected = match warning {
                Warning::FewSteps { step, .. } => step == 7.0,
                Warning::HalfAccumulator { tensors: 6, dtype: "bf16" } => case == "adam_bf16",
                // Written by a torch that does not store whether the decay is decoupled.
                Warning::CoupledWeightDecay { certain: false, .. } => case.starts_with("adamw"),
                _ => false,
            };
            assert!(expected, "{case}: {warning}");
        }
    }
}

#[test]
fn misaligned_momenta_are_told_by_tensor() {
    let found = warnings("refused_misaligned", &scale(Scale::Raw));
    let told =
        |w: &Warning| matches!(w, Warning::MomentumTooLarge { name, index: 0, .. } if name == "head.weight");
    assert!(found.iter().any(told), "{found:?}");
    let unchecked = ExtractOptions { check_momentum: false, ..scale(Scale::Raw) };
    assert!(!warnings("refused_misaligned", &unchecked).iter().any(told));
}

#[test]
fn an_accumulator_of_zeros_is_told() {
    let found = warnings("refused_all_zero", &scale(Scale::Raw));
    assert!(found.contains(&Warning::AllZero { name: "inner.weight".into() }), "{found:?}");
}

#[test]
fn coupled_weight_decay_is_told_and_decoupled_is_not() {
    let found = warnings("coupled", &scale(Scale::Raw));
    assert!(found.contains(&Warning::CoupledWeightDecay { weight_decay: 0.01, certain: true }), "{found:?}");
    let found = warnings("param_names", &scale(Scale::Raw));
    assert!(!found.iter().any(|w| matches!(w, Warning::CoupledWeightDecay { .. })), "{found:?}");
}

#[test]
fn rules_without_bias_correction_say_so() {
    for (case, accumulator) in
        [("rmsprop", Accumulator::SquareAvgRmsprop), ("adadelta", Accumulator::SquareAvgAdadelta)]
    {
        let found = warnings(case, &scale(Scale::Unbiased));
        assert!(found.contains(&Warning::NoBiasCorrection(accumulator)), "{case}: {found:?}");
        assert!(found.iter().any(|w| w.to_string().contains("no bias correction")));
        assert!(!warnings(case, &scale(Scale::Raw)).contains(&Warning::NoBiasCorrection(accumulator)));
    }
}
