//! Optimizer states that PyTorch wrote (`tests/data/optimizer`, made by `make_states.py`): what is read
//! equals what PyTorch holds, and what must not be read is refused by name.
#![cfg(feature = "pytorch")]

mod files;
mod names;
mod output;
mod refusals;
#[path = "../support/mod.rs"]
mod support;
mod values;
mod warnings;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use squisher::checkpoint::{
    Accumulator, Dtype, ModelParams, NameHints, NameMap, OptimizerState, Scale, resolve,
};
use squisher::methods::squisher::{ExtractOptions, ExtractReport, extract};
use squisher::{Backend, Error, Run};

use support::files::{Tensor, folder, read, values as values_of};

/// 2⁻²⁴, the relative error of one rounding to f32.
const U: f64 = 1.0 / 16_777_216.0;

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
    read(path).iter().map(|(name, tensor)| (name.clone(), values_of(tensor))).collect()
}

/// The values of a file of f32.
fn f32_tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let narrow = |(dtype, _, bytes): &Tensor| {
        assert_eq!(*dtype, Dtype::F32);
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    read(path).iter().map(|(name, tensor)| (name.clone(), narrow(tensor))).collect()
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
    let folder = folder();
    let out = folder.path().join("fisher.safetensors");
    let state = OptimizerState::open(path)?;
    let result = extract(&state, model, options, &out, &Run::new(&Backend::Host));
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
