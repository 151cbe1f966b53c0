//! The jobs: each composes reading, sweeps and writing into one result.

pub mod merge;
mod source;
#[cfg(feature = "pytorch")]
pub mod squisher;
