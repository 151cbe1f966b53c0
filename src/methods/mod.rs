//! The jobs: each composes reading, sweeps and writing into one result.

#[cfg(feature = "pytorch")]
pub mod squisher;
