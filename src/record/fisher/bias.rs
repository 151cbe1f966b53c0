//! Records the Fisher diagonal of a layer's bias.

use super::Squares;
use super::pieces::{Work, pieces};
use crate::error::Result;
use crate::kernels::fisher::{SumSq, SumSqArgs, SumSqParams};
use crate::memory::View;
use crate::record::Recording;

/// The sizes of a layer's output gradient, whose sum over positions is the gradient of the layer's bias:
/// `[samples, positions, outputs]`, or `[samples, outputs, positions]` with `channels_first`, as convolutions
/// have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bias {
    /// Number of samples n.
    pub samples: u32,
    /// Positions of a sample, t.
    pub positions: u32,
    /// Number of outputs o.
    pub outputs: u32,
    /// Whether positions are the last axis.
    pub channels_first: bool,
}

impl Bias {
    /// Records the Fisher diagonal of the layer's bias. `weight` and `out` are as in [`Buffers`](super::Buffers).
    ///
    /// # Errors
    /// What [`SumSq`]'s `launch` and [`Recording::dispatch`] refuse.
    pub fn record(
        &self,
        recording: &mut Recording,
        squares: Squares,
        grad_output: &View,
        weight: &View,
        out: &View,
    ) -> Result<()> {
        let positions = u64::from(squares.fold.min(self.samples)) * u64::from(self.positions);
        let kernel = SumSq {
            mode: squares.mode,
            lanes: SumSq::lanes(recording.caps(), self.channels_first, positions),
            grad_output: grad_output.float("fisher.bias", "grad_output")?,
            channels_first: self.channels_first,
            overwrite: false,
            octets: SumSq::octets(recording.caps(), self.channels_first, self.outputs, positions),
        };
        let work = Work {
            squares: self.samples.div_ceil(squares.fold.max(1)),
            // An addition for every element loaded: as long as this many operations of a product.
            flops: positions.saturating_mul(40).saturating_mul(self.outputs.into()),
            iterations: SumSq::iterations_of(kernel.lanes, positions),
        };
        for piece in pieces(recording, squares.mode, work, 0..1, 1) {
            let epilogue = piece.epilogue(squares);
            let params = SumSqParams {
                samples: self.samples,
                fold: squares.fold,
                first: piece.first,
                count: piece.count,
                positions: self.positions,
                outputs: self.outputs,
                decay: epilogue.decay(),
                gain: squares.epilogue.gain(squares.factor),
                gradient_scale: squares.gradient_scale,
            };
            let args =
                SumSqArgs { grad_output: grad_output.clone(), weight: weight.clone(), out: out.clone() };
            recording.dispatch(&SumSq { overwrite: epilogue.overwrites(), ..kernel }, params, args)?;
        }
        Ok(())
    }
}
