//! What benches are held against, where a plain copy cannot say it.

mod fma;

pub use fma::{Fma, FmaArgs, FmaParams, FmaSlices};
