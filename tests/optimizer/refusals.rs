//! States that hold no usable squares are refused by name.

use squisher::checkpoint::{OptimizerState, Scale};
use squisher::methods::squisher::ExtractOptions;

use crate::{data, model, refused, run, scale};

#[test]
fn optimizers_without_squares_are_refused_with_their_keys() {
    for (case, parts) in [
        ("adamax", &["Adamax keeps a maximum", "exp_inf"][..]),
        ("sgd", &["state is empty", "SGD"]),
        ("sgd_momentum", &["SGD and Muon keep a momentum", "momentum_buffer"]),
        ("lion", &["Lion keeps a momentum", "\"exp_avg\" [6, 6]"]),
        ("galore", &["GaLore", "update_proj_gap"]),
        ("soap", &["SOAP", "rotated"]),
        ("unknown_rms", &["neither or both of alpha (RMSprop) and rho (Adadelta)"]),
    ] {
        let case = format!("refused_{case}");
        refused(run(&case, &model(&case), &scale(Scale::Raw)), parts);
    }
}

#[test]
fn a_missing_step_or_beta_is_refused_where_it_is_needed() {
    for (case, parts) in [
        ("refused_no_step", &["state.0.step", "is missing", "only --scale raw and paper"][..]),
        ("refused_no_betas", &["has no betas", "only --scale raw and paper"]),
        ("refused_step_zero", &["is 0, expected at least 1"]),
        ("refused_beta_one", &["β₂ is 1, expected 0 ≤ β₂ < 1"]),
    ] {
        refused(run(case, &model(case), &scale(Scale::Unbiased)), parts);
        assert!(run(case, &model(case), &scale(Scale::Raw)).is_ok(), "{case}");
    }
}

#[test]
fn inconsistent_groups_and_states_are_refused() {
    for (case, parts) in [
        ("refused_orphan", &["an entry \"7\" that no group lists"][..]),
        ("refused_listed_twice", &["lists parameter \"0\" twice"]),
        ("refused_names_short", &["7 names for 8 parameters"]),
    ] {
        refused(OptimizerState::open(data(case).join("optimizer.pt")), parts);
    }
}

#[test]
fn values_that_no_accumulator_has_name_tensor_and_index() {
    for (case, parts) in [
        ("refused_nan", &["state.6.exp_avg_sq", "NaN at flat index 13"][..]),
        ("refused_infinite", &["state.6.exp_avg_sq", "inf at flat index 13"]),
        ("refused_negative", &["state.6.exp_avg_sq", "-0.001 at flat index 13"]),
        ("refused_beyond_f32", &["state.6.exp_avg_sq", "1e39 at flat index 13", "beyond the range of f32"]),
        ("refused_integers", &["is i64, expected f32, f16, bf16 or f64"]),
    ] {
        refused(run(case, &model(case), &scale(Scale::Raw)), parts);
    }
}

#[test]
fn scaling_beyond_f32_is_refused() {
    let case = "refused_large";
    assert!(run(case, &model(case), &scale(Scale::Raw)).is_ok());
    let options = ExtractOptions { batch_size: Some(32), ..scale(Scale::Mean) };
    refused(
        run(case, &model(case), &options),
        &["head.weight", "e38 at flat index 13 leaves f32", "--scale mean"],
    );
}
