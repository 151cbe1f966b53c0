//! Which parameters of a neural network matter, and what to do with that.

#![forbid(unsafe_code)]

pub mod error;
pub mod shape;

pub use error::{Error, Result};
pub use shape::DType;
pub use wgpu;
