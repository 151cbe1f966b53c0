//! Gram matrices and natural-gradient steps from captures: against autograd's answers, and what must hold
//! whatever the numbers.

mod autograd;
mod identities;
mod indicator;
mod parts;
mod refusals;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Output;

use squisher::checkpoint::{Capture, Checkpoint};
use squisher::methods::per_sample::PerSample;
use squisher::methods::step::{StepKind, StepOptions, StepReport, step};
use squisher::stream::Budget;
use squisher::{Backend, Result, Run};

use crate::support::capture_files::{Tensors, load};
use crate::support::tool;

fn open(paths: &[PathBuf]) -> Vec<Capture> {
    paths.iter().map(|path| Capture::open(path).expect("a sound capture")).collect()
}

fn gram_within(backend: &Backend, paths: &[PathBuf], budget: Budget) -> Vec<f64> {
    let captures = open(paths);
    let run = Run { budget, ..Run::new(backend) };
    PerSample::new(&captures, &run).expect("one network").gram().expect("sound captures")
}

fn gram(backend: &Backend, paths: &[PathBuf]) -> Vec<f64> {
    gram_within(backend, paths, Budget::default())
}

fn norms(backend: &Backend, paths: &[PathBuf]) -> Vec<f64> {
    let captures = open(paths);
    let run = Run::new(backend);
    PerSample::new(&captures, &run).expect("one network").norms().expect("sound captures")
}

/// J Δ of the direction in a file.
fn along(backend: &Backend, paths: &[PathBuf], direction: &Path) -> Result<Vec<f64>> {
    let captures = open(paths);
    let run = Run::new(backend);
    PerSample::new(&captures, &run)?.inner_products(&Checkpoint::open(direction)?)
}

fn options(kind: StepKind, damping: f64) -> StepOptions {
    StepOptions { kind, damping, gram: None, indicator: Vec::new(), overwrite: false }
}

fn run(
    backend: &Backend,
    paths: &[PathBuf],
    options: &StepOptions,
    folder: &Path,
) -> Result<(Tensors, StepReport)> {
    let out = folder.join(format!("{}-step.safetensors", options.kind));
    let report = step(paths, options, &out, &Run::new(backend))?;
    Ok((load(&out), report))
}

/// The largest difference as a share of the largest magnitude.
fn share(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0_f64, |most, w| most.max(w.abs()));
    got.iter().zip(want).fold(0.0_f64, |most, (g, w)| most.max((g - w).abs())) / largest
}

fn step_tool(words: &[&str], captures: &[PathBuf], out: &Path) -> Output {
    let mut step = tool::squisher(["step"]);
    step.args(captures).args(words).arg("-o").arg(out).output().expect("the tool can be started")
}

fn noise(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}
