//! The arithmetic ceiling that kernels are compared with.

mod fma;

pub use fma::{Fma, FmaArgs, FmaParams, FmaSlices};
