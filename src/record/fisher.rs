//! The exact Fisher of a layer's parameters, and sums of their gradients: which kernel in which form, in
//! steps short enough for a device.
//!
//! One call records everything for one parameter of one layer from one pair of buffers. A dispatch that takes
//! seconds trips a driver's watchdog, so on a device squares (and, where one square is long, outputs) are cut
//! into ranges that follow each other in one recording; the first range applies the epilogue, the others add.

mod bias;
mod conv;
mod linear;
mod pieces;

use std::ops::Range;

pub use bias::Bias;
pub use conv::Conv;
pub use linear::Linear;

use crate::kernels::fisher::{Epilogue, Mode};
use crate::memory::View;

/// How squares are formed and summed, or what else becomes of their gradients. See
/// [`kernels::fisher`](crate::kernels::fisher).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squares {
    /// What becomes of the gradients: summed as squares, summed, or stored.
    pub mode: Mode,
    /// What becomes of the old value.
    pub epilogue: Epilogue,
    /// Consecutive samples whose gradients are added before squaring: 1 for the per-sample Fisher, B for the
    /// minibatch-joint one, the number of samples for the joint one.
    pub fold: u32,
    /// Factor of the result (of [`Mode::Squares`] here): 1/N for a mean, B² for captures of a mean loss,
    /// 1/`gradient_scale`² to undo a scale.
    pub factor: f32,
    /// Factor of the gradients before they are squared: a power of two where their squares are below f32.
    pub gradient_scale: f32,
}

impl Default for Squares {
    /// Overwrite with the plain per-sample sum.
    fn default() -> Self {
        Self { mode: Mode::Squares, epilogue: Epilogue::Overwrite, fold: 1, factor: 1.0, gradient_scale: 1.0 }
    }
}

/// The buffers of one parameter: its layer's input and output gradient, weights `[squares]`, and the result.
#[derive(Clone, Copy, Debug)]
pub struct Buffers<'a> {
    /// The layer's input.
    pub input: &'a View,
    /// The gradient at the layer's output.
    pub grad_output: &'a View,
    /// One f32 weight for each square.
    pub weight: &'a View,
    /// The result, f32.
    pub out: &'a View,
}

/// The first output that `out` holds: the range's, where it is as long as that alone, else 0.
fn first_held(out: &View, range: &Range<u32>, width: u64) -> u32 {
    if out.len() == range.len() as u64 * width { range.start } else { 0 }
}
