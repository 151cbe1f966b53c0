//! Powers of two that keep values within f32, and the refusal of what leaves it nonetheless.

use super::OP;
use crate::error::{Error, Result};
use crate::methods::captured::Batch;

/// 1, or, where gradients are so small or large that their products leave f32, the power of two that brings
/// the largest of all sizes near 1.
pub(super) fn scale_of(batches: &[Batch]) -> f64 {
    let scale = batches.iter().map(Batch::gradient_scale).fold(f64::INFINITY, f64::min);
    if (2.0_f64.powi(-30)..=2.0_f64.powi(30)).contains(&scale) { 1.0 } else { scale }
}

/// The power of two that brings a magnitude near 1.
pub(super) fn power_of_two(largest: f64) -> f64 {
    if largest > 0.0 && largest.is_finite() {
        (-largest.log2().round()).clamp(-1000.0, 1000.0).exp2()
    } else {
        1.0
    }
}

/// The nearest f32.
#[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
pub(super) fn rounded(value: f64) -> f32 {
    value as f32
}

pub(super) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| rounded(value)).collect()
}

/// Refuses the first value that is not finite.
pub(super) fn finite<T: Copy + Into<f64>>(values: &[T], problem: &str) -> Result<()> {
    match values.iter().position(|&value| !value.into().is_finite()) {
        None => Ok(()),
        Some(at) => {
            let problem =
                format!("{problem} at flat index {at}; scale the loss by a power of two when capturing");
            Err(Error::argument(OP, problem))
        }
    }
}
