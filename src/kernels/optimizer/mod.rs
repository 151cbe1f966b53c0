//! Updates of an optimizer's squared-gradient accumulators.

mod ema;

pub use ema::{Ema, EmaArgs, EmaParams, EmaSlices};
