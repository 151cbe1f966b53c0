//! Optimizer states that PyTorch wrote (`tests/data/optimizer`, made by `make_states.py`): what is read equals what PyTorch holds,
//! and what must not be read is refused by name.
#![cfg(feature = "pytorch")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use squisher::checkpoint::{
    Accumulator, Checkpoint, GroupRule, ModelParams, NameHints, NameMap, NameSource, OptimizerState, ParamId,
    Scale, resolve,
};
use squisher::methods::squisher::{ExtractOptions, ExtractReport, Warning, extract, plan};
use squisher::{Error, Interrupt};

/// 2⁻²⁴, the relative error of one rounding to f32.
const U: f64 = 1.0 / 16_777_216.0;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/optimizer").join(name)
}

fn open(case: &str) -> OptimizerState {
    OptimizerState::open(data(case).join("optimizer.pt")).unwrap_or_else(|e| panic!("{case}: {e}"))
}

fn model(case: &str) -> ModelParams {
    ModelParams::open(data(case).join("model.safetensors")).unwrap()
}

/// The case's model with its order of definition.
fn ordered_model(case: &str) -> ModelParams {
    ModelParams::open(data(case).join("pytorch_model.bin")).unwrap()
}

fn hints(model: &ModelParams) -> NameHints<'_> {
    NameHints { names_file: None, definition_order: model.definition_order.as_deref() }
}

fn named(state: &OptimizerState, model: &ModelParams) -> Result<NameMap, Error> {
    resolve(state, &model.params, hints(model), false)
}

fn f64_tensors(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let read = |tensor: &squisher::checkpoint::TensorInfo| {
        let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap()];
        checkpoint.read(tensor, 0, &mut bytes).unwrap();
        let values = bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect();
        (tensor.name.clone(), values)
    };
    checkpoint.tensors().iter().map(read).collect()
}

fn f32_tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let read = |tensor: &squisher::checkpoint::TensorInfo| {
        let mut bytes = vec![0; usize::try_from(tensor.bytes).unwrap()];
        checkpoint.read(tensor, 0, &mut bytes).unwrap();
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        (tensor.name.clone(), values)
    };
    checkpoint.tensors().iter().map(read).collect()
}

/// The first difference beyond `roundings` roundings to f32, in words.
fn differs(
    got: &BTreeMap<String, Vec<f32>>,
    want: &BTreeMap<String, Vec<f64>>,
    factor: f64,
    roundings: f64,
) -> Option<String> {
    let (names, wanted): (Vec<_>, Vec<_>) = (got.keys().collect(), want.keys().collect());
    if names != wanted {
        return Some(format!("names {names:?}, want {wanted:?}"));
    }
    for (name, values) in got {
        if values.len() != want[name].len() {
            return Some(format!("{name}: {} values, want {}", values.len(), want[name].len()));
        }
        for (i, (&got, &want)) in values.iter().zip(&want[name]).enumerate() {
            // A factor computed in f64 is off by some 2⁻⁵³ / (1 − β^t), far below a thousandth of u.
            let want = want * factor;
            let bound = roundings * 1.001 * U * want.abs() + f64::from(f32::from_bits(1)) / 2.0;
            if (f64::from(got) - want).abs() > if roundings == 0.0 { 0.0 } else { bound } {
                return Some(format!("{name}[{i}]: got {got:e}, want {want:e}, bound {bound:e}"));
            }
        }
    }
    None
}

/// The part of `all` under `prefix/`.
fn under(all: &BTreeMap<String, Vec<f64>>, prefix: &str) -> BTreeMap<String, Vec<f64>> {
    let strip = |(name, values): (&String, &Vec<f64>)| {
        Some((name.strip_prefix(prefix)?.strip_prefix('/')?.to_owned(), values.clone()))
    };
    all.iter().filter_map(strip).collect()
}

fn run(
    case: &str,
    model: &ModelParams,
    options: &ExtractOptions,
) -> Result<(BTreeMap<String, Vec<f32>>, ExtractReport), Error> {
    run_file(&data(case).join("optimizer.pt"), model, options)
}

fn run_file(
    path: &Path,
    model: &ModelParams,
    options: &ExtractOptions,
) -> Result<(BTreeMap<String, Vec<f32>>, ExtractReport), Error> {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("fisher.safetensors");
    let state = OptimizerState::open(path)?;
    let result = extract(&state, model, options, &out, &(), &Interrupt::default());
    match result {
        Ok(report) => Ok((f32_tensors(&out), report)),
        Err(e) => {
            let left = fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(left, 0, "a failed extraction leaves nothing behind");
            Err(e)
        }
    }
}

fn scale(scale: Scale) -> ExtractOptions {
    ExtractOptions { scale, ..ExtractOptions::default() }
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, parts: &[&str]) {
    let message = match result {
        Ok(_) => panic!("accepted, expected a refusal with {parts:?}"),
        Err(e) => e.to_string(),
    };
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

// ------------------------------------------------------------------ values

/// Each oracle case with the key of its accumulator.
const ORACLE: [(&str, &str, Accumulator); 9] = [
    ("adamw_f32", "exp_avg_sq", Accumulator::ExpAvgSq),
    ("adamw_f32_hf_groups", "exp_avg_sq", Accumulator::ExpAvgSq),
    ("adam_bf16", "exp_avg_sq", Accumulator::ExpAvgSq),
    ("adam_amsgrad", "exp_avg_sq", Accumulator::ExpAvgSq),
    ("nadam", "exp_avg_sq", Accumulator::ExpAvgSq),
    ("radam_f64", "exp_avg_sq", Accumulator::ExpAvgSq),
    ("rmsprop", "square_avg", Accumulator::SquareAvgRmsprop),
    ("adagrad", "sum", Accumulator::Sum),
    ("adadelta", "square_avg", Accumulator::SquareAvgAdadelta),
];

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

// ------------------------------------------------------------------ names

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
    let folder = tempfile::tempdir().unwrap();
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
    let folder = tempfile::tempdir().unwrap();
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
    refused(with_names(&swapped), &["do not fit the model", "is [6, 6] in the state and [3] in the model"]);
    let unknown = names.iter().map(|n| n.replace("head", "tail")).collect::<Vec<_>>().join("\n");
    refused(with_names(&unknown), &["\"tail.weight\" [3, 6] is not in the model"]);
    refused(with_names("{\"a\": []}"), &["no JSON list of names"]);
    refused(with_names("[1, 2]"), &["no JSON list of names"]);
}

#[test]
fn a_swap_of_equal_shapes_would_be_seen_by_these_tests() {
    let names = fs::read_to_string(data("equal_shapes").join("names.json")).unwrap();
    let swapped = names
        .replace("inner.weight", "x")
        .replace("first.weight", "inner.weight")
        .replace("\"x\"", "\"first.weight\"");
    let folder = tempfile::tempdir().unwrap();
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
    let folder = tempfile::tempdir().unwrap();
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
    let folder = tempfile::tempdir().unwrap();
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

// ------------------------------------------------------------------ refusals of contents

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
fn stored_names_are_held_to_the_model() {
    for (case, parts) in [
        ("refused_names_collide", &["are both the model's \"inner.bias\""][..]),
        ("refused_names_swapped", &["is [6, 6] in the state and [6] in the model"]),
        ("refused_names_unknown", &["\"other.inner.weight\" [6, 6] is not in the model", "and 3 more"]),
    ] {
        refused(named(&open(case), &model(case)), parts);
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

// ------------------------------------------------------------------ warnings

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

// ------------------------------------------------------------------ output

#[test]
fn the_output_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("fisher.safetensors");
    let state = open("adamw_f32");
    let options = ExtractOptions { batch_size: Some(16), samples: Some(500), ..scale(Scale::Mean) };
    let report = extract(&state, &model("adamw_f32"), &options, &out, &(), &Interrupt::default()).unwrap();
    let checkpoint = Checkpoint::open(&out).unwrap();
    let get = |key: &str| checkpoint.metadata().get(&format!("squisher.{key}")).map(String::as_str);
    assert_eq!(get("kind"), Some("accumulator"));
    assert_eq!(get("reduction"), Some("mean"));
    assert_eq!(get("samples"), Some("500"));
    assert_eq!(get("batch_size"), Some("16"));
    assert_eq!(get("decay"), Some("0.999"));
    assert_eq!(get("step"), Some("7"));
    assert_eq!(get("scale"), Some("mean"));
    assert_eq!(get("loss"), Some("mean"));
    assert_eq!(get("source"), Some("optimizer.pt"));
    assert_eq!(get("version"), Some(env!("CARGO_PKG_VERSION")));
    let json = serde_json::to_value(&report).unwrap();
    for key in [
        "tensors",
        "evidence",
        "renamed",
        "absent",
        "warnings",
        "scale",
        "scale_factor",
        "elements",
        "bytes_written",
        "output",
    ] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert_eq!(json["scale"], "mean");
    assert_eq!(report.bytes_written, fs::metadata(&out).unwrap().len());
    refused(
        extract(&state, &model("adamw_f32"), &options, &out, &(), &Interrupt::default()),
        &["exists", "--overwrite"],
    );
}

#[test]
fn the_output_may_not_be_an_input() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.pt");
    fs::copy(data("adamw_f32").join("optimizer.pt"), &path).unwrap();
    let state = OptimizerState::open(&path).unwrap();
    let before = fs::read(&path).unwrap();
    let options = ExtractOptions { overwrite: true, ..scale(Scale::Raw) };
    refused(
        extract(&state, &model("adamw_f32"), &options, &path, &(), &Interrupt::default()),
        &["the output is the input"],
    );
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn an_interrupt_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let interrupt = Interrupt::default();
    interrupt.request(2);
    let out = folder.path().join("fisher.safetensors");
    let result = extract(&open("adamw_f32"), &model("adamw_f32"), &scale(Scale::Raw), &out, &(), &interrupt);
    assert!(matches!(result, Err(Error::Interrupted { signal: 2 })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

// ------------------------------------------------------------------ hostile files

fn hostile(file: &str) -> Result<OptimizerState, Error> {
    OptimizerState::open(data("hostile").join(file))
}

#[test]
fn sound_files_in_every_container_agree() {
    let m = ModelParams::open(data("hostile").join("model.safetensors")).unwrap();
    let read = |file: &str| run_file(&data("hostile").join(file), &m, &scale(Scale::Unbiased)).unwrap().0;
    let sound = read("sound.pt");
    assert_eq!(read("legacy.pt"), sound);
    assert_eq!(read("protocol4.pt"), sound);
    assert_eq!(read("stem_of_21_characters.pt"), sound);
    assert_eq!(read("system_beside.pt"), sound);
}

#[test]
fn hostile_and_foreign_files_are_refused_by_what_they_are() {
    for (file, parts) in [
        ("deflated.pt", &["compressed or encrypted", "refused"][..]),
        ("big_endian.pt", &["big-endian"]),
        ("no_pickle.pt", &["without data.pkl"]),
        ("two_pickles.pt", &["2 entries are called data.pkl"]),
        ("duplicate.pt", &["two zip entries have the same name"]),
        ("overclaim.pt", &["claim", "bytes, the file has"]),
        ("truncated.pt", &["damaged zip archive", "cut short"]),
        ("empty.pt", &["an empty file"]),
        ("lfs.pt", &["git-lfs pointer", "git lfs pull"]),
        ("bare.pt", &["a bare pickle"]),
        ("model.safetensors", &["a safetensors file"]),
        ("whole_optimizer.pt", &["whole pickled object", "AdamW", "save optimizer.state_dict() instead"]),
        ("system_as_groups.pt", &["param_groups is an object made by", "system"]),
        ("two_optimizers.pt", &["holds 2 optimizer states", "\"a\", \"b\""]),
        ("state_dict.pt", &["no optimizer state", "\"weight\", \"bias\""]),
        ("zero_shard.pt", &["DeepSpeed ZeRO"]),
        ("two_zeros.pt", &["two entries called \"0\""]),
    ] {
        refused(hostile(file), parts);
    }
}

#[test]
fn calls_are_named_and_refused_where_a_value_is_needed() {
    let m = ModelParams::open(data("hostile").join("model.safetensors")).unwrap();
    let beside = hostile("system_beside.pt").unwrap();
    assert_eq!(beside.foreign_imports(), ["posix.system"]);
    let p = plan(&beside, &m, &scale(Scale::Raw)).unwrap();
    assert!(p.warnings.contains(&Warning::ForeignImports(vec!["posix.system".into()])));
    let step = hostile("system_as_step.pt").unwrap();
    refused(plan(&step, &m, &scale(Scale::Unbiased)), &["state.0.step", "posix.system"]);
    assert!(plan(&step, &m, &scale(Scale::Raw)).is_ok(), "raw needs no step");
    let accumulator = hostile("system_as_accumulator.pt").unwrap();
    refused(
        plan(&accumulator, &m, &scale(Scale::Raw)),
        &["exp_avg_sq would have to be made by", "posix.system"],
    );
}

#[test]
fn a_flipped_bit_is_found_by_its_checksum() {
    let m = ModelParams::open(data("hostile").join("model.safetensors")).unwrap();
    let path = data("hostile").join("bit_flip.pt");
    refused(run_file(&path, &m, &scale(Scale::Raw)), &["state.0.exp_avg_sq", "checksum", "damaged"]);
}

#[test]
fn every_truncation_is_an_error_and_no_panic() {
    let sound = fs::read(data("hostile").join("sound.pt")).unwrap();
    let legacy = fs::read(data("hostile").join("legacy.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.pt");
    for whole in [sound, legacy] {
        for len in (0..whole.len()).step_by(97) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(OptimizerState::open(&path).is_err(), "{len} of {} bytes", whole.len());
        }
    }
}

#[test]
fn every_flipped_byte_of_a_pickle_is_an_error_or_a_state_and_no_panic() {
    let whole = fs::read(data("hostile").join("legacy.pt")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.pt");
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x15;
        fs::write(&path, &bytes).unwrap();
        if let Ok(state) = OptimizerState::open(&path) {
            for entry in state.entries() {
                if let Ok(accumulator) = state.accumulator(entry, false) {
                    let _ = state.param_shape(entry, accumulator);
                    let _ = state.read_accumulator(entry, accumulator);
                }
            }
        }
    }
}

#[test]
fn folders_are_searched_and_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(OptimizerState::open(folder.path()), &["a folder without optimizer.pt or optimizer.bin"]);
    fs::copy(data("hostile").join("sound.pt"), folder.path().join("optimizer.bin")).unwrap();
    assert_eq!(OptimizerState::open(folder.path()).unwrap().entries().len(), 2);
    fs::copy(data("hostile").join("sound.pt"), folder.path().join("optimizer.pt")).unwrap();
    refused(OptimizerState::open(folder.path()), &["both optimizer.pt and optimizer.bin"]);
    fs::write(folder.path().join(".metadata"), b"").unwrap();
    refused(OptimizerState::open(folder.path()), &["dcp_to_torch"]);
    refused(OptimizerState::open(folder.path().join("none.pt")), &["open"]);
}

#[test]
fn the_container_of_a_wrapped_state_is_found() {
    assert_eq!(open("wrapped").container(), ["optimizer_state_dict"]);
    assert_eq!(open("beside_model").container(), ["optimizer"]);
    assert!(open("param_names").container().is_empty());
}
