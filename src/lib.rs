//! squisher computes the diagonal Fisher information of a network from captured gradients, or recycles it
//! from Adam's state, and merges, prunes and masks models with it.
//!
//! For each parameter, the Fisher diagonal F says how much the network's outputs depend on it. Merging weights
//! parameters by F; pruning removes those with the least effect. Everything runs on wgpu and on the host
//! ([`Backend`]), and is checked against a definition in f64 ([`mod@reference`]).
//!
//! ```no_run
//! use std::path::{Path, PathBuf};
//!
//! use squisher::methods::fisher::{FisherOptions, fisher};
//! use squisher::methods::mask::{MaskOptions, mask};
//! use squisher::methods::select::Keep;
//! use squisher::{Backend, Run};
//!
//! // The best hardware adapter, or the host where there is none.
//! let backend = Backend::detect();
//! let run = Run::new(&backend);
//!
//! // From what hooks captured of a few batches (examples/pytorch/capture.py) to the Fisher …
//! let captures = [PathBuf::from("capture-0.safetensors"), PathBuf::from("capture-1.safetensors")];
//! let out = Path::new("fisher.safetensors");
//! let report = fisher(&captures, &FisherOptions::default(), out, &run)?;
//! println!("{} samples on {}", report.samples, backend.name());
//!
//! // … and to a mask of the 0.5 % of parameters that matter most.
//! let report = mask(out, &MaskOptions::new(Keep::Fraction(0.005)), Path::new("mask.safetensors"), &run)?;
//! println!("{} of {} kept", report.kept, report.elements);
//! # Ok::<(), squisher::Error>(())
//! ```
//!
//! | I want to … | look at |
//! |---|---|
//! | compute a Fisher from captured gradients | [`methods::fisher`] |
//! | read a Fisher out of Adam's state | [`methods::squisher`] |
//! | merge models | [`methods::merge`] |
//! | prune a model: elements, N:M patterns, filters | [`methods::prune`] |
//! | mask what matters most, reset the rest of a model | [`methods::mask`], [`methods::reset`] |
//! | train on without forgetting (elastic weight consolidation) | [`methods::ewc`] |
//! | compare tasks (Task2Vec) | [`methods::task2vec`] |
//! | take a natural-gradient step, or use per-sample gradients | [`methods::step`], [`methods::per_sample`] |
//! | run kernels in my application's own encoder | [`Gpu::from_wgpu`], [`Recording`], [`kernels`] |
//! | maintain a running Fisher while training on the device | [`record::fisher`], [`record::likelihood`] |
//! | find the k best of a buffer | [`record::top_k`] |
//! | stream files larger than memory through kernels | [`stream`] |
//! | read and write checkpoints, captures, optimizer states | [`checkpoint`] |
//! | see a quantity's definition | [`mod@reference`] |
//! | check or time a device | [`verify`], [`mod@bench`] |
//!
//! # Features
//!
//! - `wgpu_default` (on): wgpu's native backends. An application with its own wgpu dependency turns it off
//!   and chooses there; the types are those of [`wgpu`], exported again here.
//! - `pytorch` (on): reads optimizer states and state dicts that PyTorch wrote; nothing in them is executed.
//! - `cli` (on): the command-line tool. A library user needs none of it:
//!   `default-features = false, features = ["wgpu_default", "pytorch"]`.
//!
//! # Index letters
//!
//! Used everywhere: **n** sample, **t** position (token, pixel), **o** output, **i** input, **c** class or
//! channel, **p** parameter, **m** model, **k** selected.

#![forbid(unsafe_code)]

pub mod backend;
pub mod bench;
pub mod checkpoint;
pub mod error;
pub mod gpu;
pub mod interrupt;
pub mod kernel;
pub mod kernels;
pub mod memory;
pub mod methods;
pub mod paths;
pub mod progress;
pub mod record;
pub mod reference;
pub mod shape;
pub mod stream;
pub mod verify;

pub use backend::Backend;
pub use error::{Error, Result};
pub use gpu::Gpu;
pub use interrupt::Interrupt;
pub use memory::{Element, View};
pub use progress::Progress;
pub use record::Recording;
pub use shape::DType;
pub use stream::Run;
pub use wgpu;

/// The README's examples, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct ReadmeExamples;
