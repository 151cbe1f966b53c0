//! Which parameters of a neural network matter, and what to do with that.
//!
//! The Fisher information of a network, its diagonal, computed from captured gradients or recycled from what Adam left in the
//! optimizer's state; and models merged, pruned and masked by it. [`methods`] are the whole jobs, from files to files.
//! [`kernels`], recorded by [`Recording`] into an application's own encoder, are the parts to embed. Each runs on
//! wgpu and on the host ([`Backend`]), and is held to its f64 definition in [`mod@reference`].
//!
//! Index letters, used everywhere: **n** sample, **t** position (token, pixel), **o** output, **i** input, **c** class or channel,
//! **p** parameter, **m** model, **k** selected.

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
pub struct ReadmeExamples;
