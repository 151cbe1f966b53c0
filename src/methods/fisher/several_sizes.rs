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

use super::{Job, Kind};
use crate::error::Result;
use crate::kernels::fisher::{Epilogue, Mode};
use crate::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use crate::memory::View;
use crate::methods::captured::{Batch, Sides, small};
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::DType;

/// Weight or bias.
#[derive(Clone, Copy)]
enum Parameter {
    Weight,
    Bias,
}

impl Job<'_> {
    /// Records and runs one file's step for weight and bias of a layer that [`by_size`](crate::methods::captured::by_size) took apart.
    pub(super) fn add_sizes(
        &self,
        sizes: &[Batch<'_>],
        step: usize,
        weight_out: &View,
        bias_out: Option<&View>,
    ) -> Result<()> {
        self.add_parameter(sizes, step, Parameter::Weight, weight_out)?;
        bias_out.map_or(Ok(()), |out| self.add_parameter(sizes, step, Parameter::Bias, out))
    }

    fn add_parameter(
        &self,
        sizes: &[Batch<'_>],
        step: usize,
        parameter: Parameter,
        out: &View,
    ) -> Result<()> {
        // The largest gradient of any size decides.
        let scale = sizes.iter().map(Batch::gradient_scale).fold(f64::INFINITY, f64::min);
        let squares = self.squares(sizes[0].samples(), scale, step)?;
        let weights = self.weights(step);
        if self.options.kind == Kind::Joint {
            // Sums are squared at the end.
            return self.add_gradients(sizes, squares, parameter, &weights, out);
        }
        let sum = self.backend.alloc(out.len(), DType::F32)?;
        let gain = squares.epilogue.gain(squares.factor);
        for (s, weight) in weights.iter().enumerate() {
            let mut only = vec![0.0; weights.len()];
            only[s] = 1.0;
            let gradients =
                Squares { mode: Mode::Gradients, epilogue: Epilogue::Overwrite, factor: 1.0, ..squares };
            self.add_gradients(sizes, gradients, parameter, &only, &sum)?;
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

    /// Adds up the weighted gradients of all sizes.
    fn add_gradients(
        &self,
        sizes: &[Batch<'_>],
        squares: Squares,
        parameter: Parameter,
        weights: &[f32],
        out: &View,
    ) -> Result<()> {
        let weight = self.backend.buffer(weights, DType::F32)?;
        let mut recording = Recording::new(self.backend);
        for (i, batch) in sizes.iter().enumerate() {
            let epilogue = if i == 0 { squares.epilogue } else { Epilogue::Add };
            let (squares, sides) = (Squares { epilogue, ..squares }, Sides { weight: &weight, out });
            match parameter {
                Parameter::Weight => batch.record_weight(self.backend, &mut recording, squares, sides)?,
                Parameter::Bias => batch.record_bias(&mut recording, squares, sides)?,
            }
        }
        self.backend.run(&recording)
    }
}
