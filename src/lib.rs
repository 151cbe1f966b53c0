//! Which parameters of a neural network matter, and what to do with that.

#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod error;
pub mod interrupt;
pub mod progress;
pub mod shape;

pub use error::{Error, Result};
pub use interrupt::Interrupt;
pub use progress::Progress;
pub use shape::DType;
pub use wgpu;
