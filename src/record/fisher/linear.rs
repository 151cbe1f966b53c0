//! Records the Fisher diagonal of a linear layer's weight.

use std::ops::Range;

use super::pieces::{Work, pieces};
use super::{Buffers, Squares, first_held};
use crate::error::Result;
use crate::kernels::fisher::{
    Form, LinearSq, LinearSqArgs, LinearSqParams, LinearSqShared, LinearSqSharedArgs, LinearSqSharedParams,
    Mode,
};
use crate::record::Recording;

/// A linear layer's sizes: input `[samples, positions, inputs]`, output gradient
/// `[samples, positions, outputs]`, weight `[outputs, inputs]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Number of samples n.
    pub samples: u32,
    /// Positions of a sample, t.
    pub positions: u32,
    /// Number of inputs i.
    pub inputs: u32,
    /// Number of outputs o.
    pub outputs: u32,
}

impl Linear {
    /// Records the Fisher diagonal of the layer's weight.
    ///
    /// # Errors
    /// What the kernels' `launch` and [`Recording::dispatch`] refuse.
    pub fn record(&self, recording: &mut Recording, squares: Squares, buffers: Buffers<'_>) -> Result<()> {
        self.record_outputs(recording, 0..self.outputs, squares, buffers)
    }

    /// As [`Linear::record`], for a range of outputs alone. `out` is `[outputs of the range, inputs]` (with
    /// [`Mode::Each`], `[squares, outputs of the range, inputs]`), or of the whole weight, whose other
    /// outputs stay as they were.
    ///
    /// # Errors
    /// As [`Linear::record`].
    pub fn record_outputs(
        &self,
        recording: &mut Recording,
        outputs: Range<u32>,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        if self.positions == 1 && squares.fold == 1 && squares.mode == Mode::Squares {
            return self.record_factorised(recording, outputs, squares, buffers);
        }
        self.record_products(recording, outputs, squares, buffers)
    }

    /// As [`Linear::record_outputs`], but never as b² · a², which leaves f32 before (b · a)² does.
    pub(crate) fn record_products(
        &self,
        recording: &mut Recording,
        outputs: Range<u32>,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let op = "fisher.linear";
        let kernel = LinearSqShared {
            form: self.form(recording, &outputs).for_matrix_units(recording.caps()),
            mode: squares.mode,
            input: buffers.input.float(op, "input")?,
            grad_output: buffers.grad_output.float(op, "grad_output")?,
            overwrite: false,
        };
        let positions = u64::from(squares.fold.min(self.samples)) * u64::from(self.positions);
        let work = Work {
            squares: self.samples.div_ceil(squares.fold.max(1)),
            flops: positions.saturating_mul(2 * u64::from(self.inputs)),
            iterations: kernel.form.iterations(1, positions),
        };
        let out_first = first_held(buffers.out, &outputs, self.inputs.into());
        for piece in pieces(recording, squares.mode, work, outputs, 1) {
            let epilogue = piece.epilogue(squares);
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
                out_first,
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

    fn form(&self, recording: &Recording, outputs: &Range<u32>) -> Form {
        let form = Form::of(recording.caps(), 1, outputs.len() as u64, self.inputs.into());
        form.for_widths(&[outputs.start, self.outputs, self.inputs])
    }

    /// (b · a)² as b² · a²: half the multiplications.
    fn record_factorised(
        &self,
        recording: &mut Recording,
        outputs: Range<u32>,
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let op = "fisher.linear";
        let kernel = LinearSq {
            form: self.form(recording, &outputs),
            input: buffers.input.float(op, "input")?,
            grad_output: buffers.grad_output.float(op, "grad_output")?,
            overwrite: false,
        };
        // The samples are the positions of one square.
        let work = Work { squares: self.samples, flops: 2 * u64::from(self.inputs), iterations: 3 };
        let out_first = first_held(buffers.out, &outputs, self.inputs.into());
        for piece in pieces(recording, squares.mode, work, outputs, 1) {
            let epilogue = piece.epilogue(squares);
            let params = LinearSqParams {
                samples: self.samples,
                first: piece.first,
                count: piece.count,
                inputs: self.inputs,
                outputs: self.outputs,
                first_output: piece.first_output,
                output_count: piece.output_count,
                out_first,
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
