//! A layer that is used at several sizes: one convolution on an image and on its half, with one parameter.
//!
//! A kernel goes through the uses of a sample as through more positions, which needs them to be of one size. Where channels come before positions
//! and sizes differ, each size is a batch of its own, and their gradients are added sample by sample before they are squared:
//!
//! ```text
//! f ← decay · f + Σ_n gain · weight_n · (Σ_size g_n,size)²
//! ```
//!
//! That takes one more buffer of the parameter's size and a few steps a sample; a sample is chosen by a weight of 1 among zeros, whose work
//! the kernels leave out.

use super::{Job, Parameter};
use crate::error::Result;
use crate::kernels::fisher::{Epilogue, Mode};
use crate::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use crate::memory::View;
use crate::methods::captured::{Batch, small};
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::DType;

impl Job<'_> {
    /// Adds the squares of the gradients that `sizes` have in common to `out`.
    pub(super) fn add_squares(
        &self,
        sizes: &[Batch<'_>],
        squares: Squares,
        parameter: Parameter,
        weights: &[f32],
        out: &View,
    ) -> Result<()> {
        let sum = self.backend.alloc(out.len(), DType::F32)?;
        let gain = squares.epilogue.gain(squares.factor);
        for (s, weight) in weights.iter().enumerate() {
            let mut only = vec![0.0; weights.len()];
            only[s] = 1.0;
            let gradients =
                Squares { mode: Mode::Gradients, epilogue: Epilogue::Overwrite, factor: 1.0, ..squares };
            self.record(sizes, gradients, parameter, &only, &sum)?;
            let kernel = Ema { gradient: DType::F32, accumulator: DType::F32 };
            let decay = if s == 0 { squares.epilogue.decay() } else { 1.0 };
            let params =
                EmaParams { len: small(out.len())?, decay, gain: gain * weight, gradient_scale: 1.0 };
            let args = EmaArgs { gradient: sum.clone(), exp_avg_sq: out.clone() };
            let mut recording = Recording::new(self.backend);
            recording.dispatch(&kernel, params, args)?;
            self.backend.run(&recording)?;
        }
        Ok(())
    }
}
