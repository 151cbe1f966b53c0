//! The jobs: each composes reading, sweeps and writing into one result.

mod captured;
pub mod ewc;
pub mod fisher;
mod globs;
mod histogram;
pub mod mask;
pub mod merge;
pub mod per_sample;
pub mod prune;
pub mod select;
mod source;
#[cfg(feature = "pytorch")]
pub mod squisher;
pub mod step;
pub mod task2vec;

pub use globs::Globs;
pub use histogram::{Histogram, Place, Window};
pub use source::NonFinite;
