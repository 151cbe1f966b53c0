//! Fisher diagonals from captures: against autograd's answers, and what must hold whatever the numbers.
//!
//! `tests/data/fisher` holds captures that PyTorch's hooks left of small networks, and the Fishers that one
//! autograd call a sample gave in f64.

mod autograd;
mod identities;
mod parts;
mod range;
mod refusals;
mod shared;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;

use squisher::kernel::noise;
use squisher::methods::fisher::{FisherOptions, FisherReport, Kind, fisher};
use squisher::{Backend, Result, Run, wgpu};

use crate::support::capture_files::{Draft, Tensors, load};
use crate::support::files::folder;

fn run(backend: &Backend, captures: &[PathBuf], options: FisherOptions) -> Result<(Tensors, FisherReport)> {
    with(&Run::new(backend), captures, options)
}

fn with(run: &Run<'_>, captures: &[PathBuf], options: FisherOptions) -> Result<(Tensors, FisherReport)> {
    let folder = folder();
    let out = folder.path().join("fisher.safetensors");
    let report = fisher(captures, &options, &out, run)?;
    Ok((load(&out), report))
}

fn host(captures: &[PathBuf], options: FisherOptions) -> Tensors {
    run(&Backend::Host, captures, options).expect("sound captures").0
}

fn of(kind: Kind) -> FisherOptions {
    FisherOptions { kind, beta: 0.9, ..FisherOptions::default() }
}

fn refused(captures: &[PathBuf], options: FisherOptions) -> String {
    run(&Backend::Host, captures, options).expect_err("must be refused").to_string()
}

fn refuses(draft: Draft, what: &str) {
    let folder = folder();
    let message = refused(&[draft.write(&folder, "bad.safetensors")], of(Kind::Empirical));
    assert!(message.contains(what) && message.contains("bad.safetensors"), "{message}");
}

fn values(seed: u64, len: usize) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "noise is exact in f32")]
    let narrow = |v: &f64| *v as f32;
    noise(seed, len).iter().map(narrow).collect()
}

/// A device whose bindings have so many bytes.
fn narrow_device(bytes: u64) -> Backend {
    let limits = wgpu::Limits { max_storage_buffer_binding_size: bytes, ..wgpu::Limits::default() };
    let backend = Backend::Gpu(support::device_with(limits));
    assert_eq!(backend.caps().max_binding_bytes, bytes);
    backend
}
