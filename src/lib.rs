//! Which parameters of a neural network matter, and what to do with that.

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
pub use wgpu;
