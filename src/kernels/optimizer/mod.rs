//! Updates of an optimizer's squared-gradient accumulators.

mod amsgrad;
mod ema;
mod scale;

pub use amsgrad::{Amsgrad, AmsgradArgs, AmsgradSlices};
pub use ema::{Ema, EmaArgs, EmaParams, EmaSlices};
pub use scale::{Scale, ScaleArgs, ScaleParams, ScaleSlices};
