//! The exact Fisher of a layer's parameters: which kernel in which form, in steps short enough for a device.
//!
//! One call records everything for one parameter of one layer from one pair of buffers. A dispatch that takes
//! seconds trips a driver's watchdog, so on a device squares (and, where one square is long, outputs) are cut into ranges that
//! follow each other in one recording; the first range applies the epilogue, the others add.

use super::Recording;
use crate::backend::Backend;
use crate::error::Result;
use crate::kernels::fisher::{
    Epilogue, Form, LinearSq, LinearSqArgs, LinearSqParams, LinearSqShared, LinearSqSharedArgs,
    LinearSqSharedParams,
};
use crate::memory::View;

/// How squares are formed and summed. See [`kernels::fisher`](crate::kernels::fisher).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squares {
    /// What becomes of the old value.
    pub epilogue: Epilogue,
    /// Consecutive samples whose gradients are added before squaring: 1 for the per-sample Fisher, B for the
    /// minibatch-joint one, the number of samples for the joint one.
    pub fold: u32,
    /// Factor of the result: 1/N for a mean, B² for captures of a mean loss, 1/`gradient_scale`² to undo a scale.
    pub factor: f32,
    /// Factor of the gradients before they are squared: a power of two where their squares are below f32.
    pub gradient_scale: f32,
}

impl Default for Squares {
    /// Overwrite with the plain per-sample sum.
    fn default() -> Self {
        Self { epilogue: Epilogue::Overwrite, fold: 1, factor: 1.0, gradient_scale: 1.0 }
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

/// A linear layer's sizes: input `[samples, positions, inputs]`, output gradient `[samples, positions, outputs]`, weight `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// n.
    pub samples: u32,
    /// t.
    pub positions: u32,
    /// i.
    pub inputs: u32,
    /// o.
    pub outputs: u32,
}

impl Linear {
    /// Records the Fisher diagonal of the layer's weight.
    ///
    /// # Errors
    /// What the kernels' `launch` and [`Recording::dispatch`] refuse.
    pub fn record(&self, recording: &mut Recording, squares: Squares, buffers: Buffers<'_>) -> Result<()> {
        if self.positions == 1 && squares.fold == 1 {
            return self.record_factorised(recording, squares, buffers);
        }
        let op = "fisher.linear";
        let kernel = LinearSqShared {
            form: Form::of(recording.caps(), 1, self.outputs.into(), self.inputs.into()),
            input: buffers.input.float(op, "input")?,
            grad_output: buffers.grad_output.float(op, "grad_output")?,
            overwrite: false,
        };
        let positions = u64::from(squares.fold.min(self.samples)) * u64::from(self.positions);
        let flops = 2 * positions * u64::from(self.inputs);
        let count = self.samples.div_ceil(squares.fold.max(1));
        for piece in pieces(recording, count, flops, self.outputs, 1) {
            let epilogue = piece.epilogue(squares.epilogue);
            let params = LinearSqSharedParams {
                samples: self.samples,
                fold: squares.fold,
                first: piece.first,
                count: piece.count,
                positions: self.positions,
                inputs: self.inputs,
                outputs: self.outputs,
                first_output: piece.first_output,
                output_count: piece.output_count,
                decay: epilogue.decay(),
                gain: squares.epilogue.gain(squares.factor),
                gradient_scale: squares.gradient_scale,
            };
            let args = LinearSqSharedArgs {
                input: buffers.input.clone(),
                grad_output: buffers.grad_output.clone(),
                weight: buffers.weight.clone(),
                out: buffers.out.clone(),
            };
            let kernel = LinearSqShared { overwrite: epilogue.overwrites(), ..kernel };
            recording.dispatch(&kernel, params, args)?;
        }
        Ok(())
    }

    fn record_factorised(
        &self,
        recording: &mut Recording,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let op = "fisher.linear";
        let kernel = LinearSq {
            form: Form::of(recording.caps(), 1, self.outputs.into(), self.inputs.into()),
            input: buffers.input.float(op, "input")?,
            grad_output: buffers.grad_output.float(op, "grad_output")?,
            overwrite: false,
        };
        for piece in pieces(recording, self.samples, 2 * u64::from(self.inputs), self.outputs, 1) {
            let epilogue = piece.epilogue(squares.epilogue);
            let params = LinearSqParams {
                samples: self.samples,
                first: piece.first,
                count: piece.count,
                inputs: self.inputs,
                outputs: self.outputs,
                first_output: piece.first_output,
                output_count: piece.output_count,
                decay: epilogue.decay(),
                gain: squares.epilogue.gain(squares.factor),
                gradient_scale: squares.gradient_scale,
            };
            let args = LinearSqArgs {
                input: buffers.input.clone(),
                grad_output: buffers.grad_output.clone(),
                weight: buffers.weight.clone(),
                out: buffers.out.clone(),
            };
            let kernel = LinearSq { overwrite: epilogue.overwrites(), ..kernel };
            recording.dispatch(&kernel, params, args)?;
        }
        Ok(())
    }
}

/// Operations of one dispatch: 50 ms of a device that reaches 200 GFLOP/s, the slowest that has a watchdog.
const FLOPS: u64 = 10_000_000_000;

/// Outputs are cut at multiples of this, the height of the largest tile.
const OUTPUTS: u64 = 128;

/// One dispatch's ranges of squares and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    first: u32,
    count: u32,
    first_output: u32,
    output_count: u32,
}

impl Piece {
    /// What this piece does with the old value, given what the whole shall do.
    fn epilogue(self, whole: Epilogue) -> Epilogue {
        if self.first == 0 { whole } else { Epilogue::Add }
    }
}

/// Cuts a step into dispatches of at most [`FLOPS`] operations, of which each square takes `flops` an output. Outputs
/// are cut at multiples of `multiple`. The host has no watchdog and gets one piece.
fn pieces(recording: &Recording, squares: u32, flops: u64, outputs: u32, multiple: u32) -> Vec<Piece> {
    let whole = Piece { first: 0, count: squares, first_output: 0, output_count: outputs };
    match recording.backend {
        Backend::Host => vec![whole],
        Backend::Gpu(_) => cut(whole, flops, multiple, FLOPS),
    }
}

fn cut(whole: Piece, flops: u64, multiple: u32, most: u64) -> Vec<Piece> {
    let step = u64::from(multiple).max(1) * OUTPUTS.div_ceil(u64::from(multiple).max(1));
    let outputs_at_once =
        (most / flops.max(1) / step * step).clamp(step, u64::from(whole.output_count).max(step));
    let work = flops.max(1) * outputs_at_once.min(u64::from(whole.output_count)).max(1);
    let squares_at_once = (most / work).max(1);
    let mut pieces = Vec::new();
    for (first, count) in ranges(whole.count, squares_at_once) {
        for (first_output, output_count) in ranges(whole.output_count, outputs_at_once) {
            pieces.push(Piece { first, count, first_output, output_count });
        }
    }
    pieces
}

/// Consecutive ranges of at most `most` that cover `all`; one empty range for nothing.
fn ranges(all: u32, most: u64) -> Vec<(u32, u32)> {
    let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
    (0..all.div_ceil(most).max(1)).map(|i| (i * most, most.min(all - i * most))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_output_of_every_square_once_and_are_short() {
        for (count, outputs, flops, multiple) in [
            (0, 5, 10, 1),
            (7, 300, 10, 1),
            (7, 300, 100, 1),
            (3, 300, 1_000_000, 1),
            (5, 90, 100, 30),
            (4, 0, 9, 1),
        ] {
            let whole = Piece { first: 0, count, first_output: 0, output_count: outputs };
            let most = 20_000;
            let pieces = cut(whole, flops, multiple, most);
            let mut seen = vec![0; count as usize * outputs as usize];
            for piece in &pieces {
                assert_eq!(piece.first_output % multiple, 0, "{piece:?}");
                let work = u64::from(piece.count) * u64::from(piece.output_count) * flops;
                let least = piece.count <= 1 && piece.output_count <= multiple * 128_u32.div_ceil(multiple);
                assert!(work <= most || least, "{piece:?} takes {work}");
                for s in piece.first..piece.first + piece.count {
                    for o in piece.first_output..piece.first_output + piece.output_count {
                        seen[(s * outputs + o) as usize] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{whole:?}");
            assert!(!pieces.is_empty(), "a step over nothing still applies its epilogue");
        }
    }
}
