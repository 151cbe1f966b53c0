//! Names are given only where they are certain.

use std::fs;

use squisher::Error;
use squisher::checkpoint::{
    Checkpoint, GroupRule, ModelParams, NameHints, NameMap, NameSource, OptimizerState, ParamId, Scale,
    resolve,
};
use squisher::methods::squisher::{ExtractOptions, Warning};

use crate::support::files::folder;
use crate::{data, differs, f64_tensors, model, named, open, ordered_model, refused, run, scale};

#[test]
fn distinct_shapes_force_the_map_whatever_the_groups() {
    let state = open("adamw_f32_hf_groups");
    let map = named(&state, &model("adamw_f32_hf_groups")).unwrap();
    let checkpoint = Checkpoint::open(data("adamw_f32_hf_groups").join("expected.safetensors")).unwrap();
    let order: Vec<String> = serde_json::from_str(&checkpoint.metadata()["order"]).unwrap();
    assert_eq!(map.named.iter().map(|n| &n.name).collect::<Vec<_>>(), order.iter().collect::<Vec<_>>());
}

#[test]
fn equal_shapes_without_an_order_are_refused() {
    let state = open("equal_shapes");
    refused(
        named(&state, &model("equal_shapes")),
        &[
            "[6, 6]",
            "ids 0, 2 could be \"first.weight\", \"inner.weight\"",
            "sorted",
            ".state_dict(), \"order.pt\")",
            "--model order.pt",
            "--names parameters.json",
            "json.dump",
        ],
    );
}

#[test]
fn an_order_of_definition_settles_equal_shapes() {
    let (state, m) = (open("equal_shapes"), ordered_model("equal_shapes"));
    let map = named(&state, &m).unwrap();
    assert_eq!(map.source, NameSource::Order);
    let (got, _) = run("equal_shapes", &m, &scale(Scale::Raw)).unwrap();
    let want = f64_tensors(&data("equal_shapes").join("expected.safetensors"));
    assert_eq!(differs(&got, &want, 1.0, 0.0), None);
}

#[test]
fn a_state_dict_beside_the_optimizer_tells_the_order() {
    let (got, report) = run("beside_model", &model("beside_model"), &scale(Scale::Raw)).unwrap();
    assert_eq!(report.evidence, NameSource::Order);
    let want = f64_tensors(&data("beside_model").join("expected.safetensors"));
    assert_eq!(differs(&got, &want, 1.0, 0.0), None);
}

#[test]
fn a_folder_with_both_forms_has_the_order() {
    let folder = folder();
    for file in ["model.safetensors", "pytorch_model.bin"] {
        fs::copy(data("equal_shapes").join(file), folder.path().join(file)).unwrap();
    }
    let m = ModelParams::open(folder.path()).unwrap();
    assert_eq!(m.params, model("equal_shapes").params);
    assert_eq!(named(&open("equal_shapes"), &m).unwrap().source, NameSource::Order);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let m = ModelParams::open(folder.path()).unwrap();
    assert_eq!(m.params[0].0, "inner.weight");
}

#[test]
fn a_names_file_settles_it_and_is_checked() {
    for case in ["equal_shapes", "trainer_groups", "frozen_among_equals"] {
        let options = ExtractOptions { names_file: Some(data(case).join("names.json")), ..scale(Scale::Raw) };
        let (got, report) = run(case, &model(case), &options).unwrap();
        let want = f64_tensors(&data(case).join("expected.safetensors"));
        assert_eq!(differs(&got, &want, 1.0, 0.0), None, "{case}");
        assert_eq!(report.evidence, NameSource::File(data(case).join("names.json")));
    }
}

/// Resolve `equal_shapes` with the names file `text`.
fn with_names(text: &str) -> Result<NameMap, Error> {
    let folder = folder();
    let path = folder.path().join("names.txt");
    fs::write(&path, text).unwrap();
    let m = model("equal_shapes");
    let hints = NameHints { names_file: Some(&path), definition_order: None };
    resolve(&open("equal_shapes"), &m.params, hints, false)
}

#[test]
fn a_names_file_may_be_lines_and_must_fit() {
    let names: Vec<String> =
        serde_json::from_str(&fs::read_to_string(data("equal_shapes").join("names.json")).unwrap()).unwrap();
    let lines = names.join("\r\n") + "\n";
    assert_eq!(with_names(&lines).unwrap().named.len(), 8);
    refused(with_names(&names[1..].join("\n")), &["7 names", "lists 8 parameters", "json.dump"]);
    let twice = names.iter().map(|n| n.replace("first.bias", "inner.bias")).collect::<Vec<_>>().join("\n");
    refused(with_names(&twice), &["\"inner.bias\" twice"]);
    let swapped = names.iter().rev().cloned().collect::<Vec<_>>().join("\n");
    refused(
        with_names(&swapped),
        &["\"names.txt\" does not fit the model", "is [6, 6] in the state and [3] in the model"],
    );
    let unknown = names.iter().map(|n| n.replace("head", "tail")).collect::<Vec<_>>().join("\n");
    refused(with_names(&unknown), &["\"tail.weight\" [3, 6] is not in the model"]);
    refused(with_names("{\"a\": []}"), &["not a JSON list of names"]);
    refused(with_names("[1, 2]"), &["not a JSON list of names"]);
}

#[test]
fn a_names_file_in_the_models_order_is_told_apart_and_still_refused() {
    let with_order = |case: &str| {
        let (folder, m) = (folder(), ordered_model(case));
        let path = folder.path().join("names.txt");
        fs::write(&path, m.definition_order.clone().unwrap().join("\n")).unwrap();
        resolve(&open(case), &m.params, NameHints { names_file: Some(&path), definition_order: None }, false)
    };
    refused(
        with_order("trainer_groups"),
        &[
            "does not fit the model",
            "in the model's order, not the optimizer's",
            "transformers Trainer",
            "json.dump",
        ],
    );
    // No rule explains these groups, so that nothing is said of any.
    let message = with_order("no_rule").unwrap_err().to_string();
    assert!(
        message.contains("does not fit the model") && !message.contains("in the model's order"),
        "{message}"
    );
}

#[test]
fn a_swap_of_equal_shapes_would_be_seen_by_these_tests() {
    let names = fs::read_to_string(data("equal_shapes").join("names.json")).unwrap();
    let swapped = names
        .replace("inner.weight", "x")
        .replace("first.weight", "inner.weight")
        .replace("\"x\"", "\"first.weight\"");
    let folder = folder();
    let path = folder.path().join("names.json");
    fs::write(&path, swapped).unwrap();
    let options = ExtractOptions { names_file: Some(path), ..scale(Scale::Raw) };
    let (got, _) = run("equal_shapes", &model("equal_shapes"), &options).unwrap();
    let want = f64_tensors(&data("equal_shapes").join("expected.safetensors"));
    assert!(differs(&got, &want, 1.0, 0.0).unwrap().starts_with("first.weight[0]"));
}

#[test]
fn a_names_file_may_not_contradict_stored_names() {
    let m = model("param_names");
    let folder = folder();
    let path = folder.path().join("names.json");
    let names = fs::read_to_string(data("equal_shapes").join("names.json")).unwrap();
    fs::write(&path, &names).unwrap();
    let hints = NameHints { names_file: Some(&path), definition_order: None };
    assert_eq!(resolve(&open("param_names"), &m.params, hints, false).unwrap().source, NameSource::Stored);
    let swapped = names
        .replace("inner.weight", "x")
        .replace("first.weight", "inner.weight")
        .replace("\"x\"", "\"first.weight\"");
    fs::write(&path, swapped).unwrap();
    refused(
        resolve(&open("param_names"), &m.params, hints, false),
        &["contradicts the names stored in the state"],
    );
}

#[test]
fn a_parameters_json_beside_is_pointed_out_and_not_read() {
    let folder = folder();
    fs::copy(data("equal_shapes").join("optimizer.pt"), folder.path().join("optimizer.pt")).unwrap();
    fs::copy(data("equal_shapes").join("names.json"), folder.path().join("parameters.json")).unwrap();
    let state = OptimizerState::open(folder.path()).unwrap();
    refused(named(&state, &model("equal_shapes")), &["There is a parameters.json beside it", "--names"]);
}

#[test]
fn the_grouping_rules_of_trainers_are_found_by_trying() {
    for case in ["trainer_groups", "bias_groups", "vector_groups"] {
        let m = ordered_model(case);
        let (got, report) = run(case, &m, &scale(Scale::Raw)).unwrap_or_else(|e| panic!("{case}: {e}"));
        let want = f64_tensors(&data(case).join("expected.safetensors"));
        assert_eq!(differs(&got, &want, 1.0, 0.0), None, "{case}");
        assert!(matches!(report.evidence, NameSource::GroupRule(_)), "{case}");
    }
    let bias = named(&open("bias_groups"), &ordered_model("bias_groups")).unwrap();
    assert_eq!(bias.source, NameSource::GroupRule(GroupRule::Bias));
}

#[test]
fn groups_that_no_rule_explains_are_refused() {
    refused(
        named(&open("no_rule"), &ordered_model("no_rule")),
        &["no known order or grouping rule fits in exactly one way", "--names"],
    );
}

#[test]
fn groups_in_another_order_than_the_model_are_refused() {
    for case in ["layers_from_the_top", "head_first", "middle_first"] {
        let refusal = [
            "which parameter each id means is not certain",
            "with the parameters in other groups",
            "--names",
        ];
        refused(named(&open(case), &ordered_model(case)), &refusal);
        let options = ExtractOptions { names_file: Some(data(case).join("names.json")), ..scale(Scale::Raw) };
        let (got, _) = run(case, &ordered_model(case), &options).unwrap();
        let want = f64_tensors(&data(case).join("expected.safetensors"));
        assert_eq!(differs(&got, &want, 1.0, 0.0), None, "{case}");
    }
}

#[test]
fn groups_that_shapes_settle_have_the_models_order() {
    for case in ["body_and_head", "layer_by_layer"] {
        let (got, report) = run(case, &ordered_model(case), &scale(Scale::Raw)).unwrap();
        assert_eq!(report.evidence, NameSource::Order, "{case}");
        let want = f64_tensors(&data(case).join("expected.safetensors"));
        assert_eq!(differs(&got, &want, 1.0, 0.0), None, "{case}");
    }
}

#[test]
fn rules_that_fit_and_differ_are_refused() {
    let case = "two_rules";
    refused(
        named(&open(case), &ordered_model(case)),
        &["two rules give different maps", "the model's order of definition and", "biases last", "--names"],
    );
    let options = ExtractOptions { names_file: Some(data(case).join("names.json")), ..scale(Scale::Raw) };
    let (got, _) = run(case, &model(case), &options).unwrap();
    let want = f64_tensors(&data(case).join("expected.safetensors"));
    assert_eq!(differs(&got, &want, 1.0, 0.0), None);
}

#[test]
fn frozen_parameters_among_equal_shapes_are_refused_even_with_an_order() {
    refused(
        named(&open("frozen_among_equals"), &ordered_model("frozen_among_equals")),
        &["leaves more than one possibility", "ids 0 could be \"inner.weight\", \"first.weight\""],
    );
}

#[test]
fn a_frozen_parameter_that_the_order_settles_is_left_out() {
    let case = "frozen_and_settled";
    let (got, report) = run(case, &ordered_model(case), &scale(Scale::Raw)).unwrap();
    let want = f64_tensors(&data(case).join("expected.safetensors"));
    assert_eq!(differs(&got, &want, 1.0, 0.0), None);
    assert_eq!(report.absent, ["first.weight"]);
}

#[test]
fn an_order_of_other_tensors_than_the_models_is_no_order() {
    let m = ordered_model("equal_shapes");
    let order: Vec<String> =
        m.definition_order.clone().unwrap().into_iter().filter(|n| n != "norm.bias").collect();
    let hints = NameHints { names_file: None, definition_order: Some(&order) };
    refused(resolve(&open("equal_shapes"), &m.params, hints, false), &["order of definition is unknown"]);
    let more: Vec<String> = m.definition_order.clone().unwrap().into_iter().chain(["other".into()]).collect();
    let hints = NameHints { names_file: None, definition_order: Some(&more) };
    refused(resolve(&open("equal_shapes"), &m.params, hints, false), &["order of definition is unknown"]);
}

#[test]
fn a_guessed_order_is_never_taken() {
    // The file's order is the sorted one, and here it would even be right for some ids: still no evidence.
    let m = model("equal_shapes");
    assert!(m.definition_order.is_none());
    assert!(named(&open("equal_shapes"), &m).is_err());
}

#[test]
fn tied_names_are_one_tensor_in_a_state_dict() {
    let m = ordered_model("tied_and_absent");
    assert!(m.params.iter().any(|p| p.0 == "inner.weight"));
    assert!(!m.params.iter().any(|p| p.0 == "first.weight"));
}

#[test]
fn what_has_no_state_is_absent_and_not_zero() {
    let (got, report) = run("tied_and_absent", &model("tied_and_absent"), &scale(Scale::Raw)).unwrap();
    assert!(
        !got.contains_key("norm.bias") && !got.contains_key("first.weight") && !got.contains_key("unused")
    );
    assert_eq!(report.absent, ["norm.bias"]);
    assert!(report.warnings.contains(&Warning::WithoutState { params: 1 }));
}

#[test]
fn wrappers_parts_of_names_are_dropped_and_told() {
    let map = named(&open("keyed_by_name"), &model("keyed_by_name")).unwrap();
    assert_eq!(map.source, NameSource::Stored);
    assert!(
        map.renamed.contains(&("_fsdp_wrapped_module._orig_mod.inner.weight".into(), "inner.weight".into()))
    );
    assert!(matches!(open("keyed_by_name").entries()[0].id, ParamId::Name(_)));
}

#[test]
fn running_statistics_do_not_stand_for_parameters() {
    // A batch norm: weight, bias, running_mean and running_var of one shape, in this order.
    let state = open("vector_groups");
    let mut params = ordered_model("vector_groups").params;
    params.insert(2, ("vector.running_mean".into(), vec![4]));
    let order: Vec<String> = params.iter().map(|p| p.0.clone()).collect();
    let hints = NameHints { names_file: None, definition_order: Some(&order) };
    assert!(resolve(&state, &params, hints, false).is_ok());
    params[2].0 = "vector.other".into();
    let order: Vec<String> = params.iter().map(|p| p.0.clone()).collect();
    let hints = NameHints { names_file: None, definition_order: Some(&order) };
    assert!(resolve(&state, &params, hints, false).is_err());
}

#[test]
fn the_state_of_another_model_is_refused() {
    let case = "refused_other_model";
    refused(named(&open(case), &model(case)), &["not this model's", "1 × [4], the model has 0"]);
}

#[test]
fn stored_names_are_held_to_the_model() {
    for (case, parts) in [
        ("refused_names_collide", &["are both the model's \"inner.bias\""][..]),
        ("refused_names_swapped", &["is [6, 6] in the state and [6] in the model"]),
        ("refused_names_unknown", &["\"other.inner.weight\" [6, 6] is not in the model", "and 3 more"]),
    ] {
        refused(named(&open(case), &model(case)), parts);
    }
}
