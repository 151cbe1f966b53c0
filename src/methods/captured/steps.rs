//! The steps of a layer's parameters: which kernel takes a batch, and with which sizes.

use std::ops::Range;

use super::{Batch, Held, Input, OP, Role, small};
use crate::backend::Backend;
use crate::checkpoint::{CaptureLayer, LayerKind, Window};
use crate::error::Result;
use crate::kernels::fisher::{
    EmbeddingIndex, EmbeddingSq, EmbeddingSqArgs, EmbeddingSqParams, Epilogue, Listed, Mode,
};
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::record::fisher::{Bias, Buffers, Conv, Linear, Squares};
use crate::shape::elements;

/// The buffers of one step beside the layer's data: weights, one a square, and the result.
#[derive(Clone, Copy)]
pub(crate) struct Sides<'a> {
    pub(crate) weight: &'a View,
    pub(crate) out: &'a View,
}

impl Batch {
    /// Records the step of the layer's weight or bias into the buffers that hold it. `squares.fold` counts samples.
    pub(crate) fn record(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        role: Role,
        squares: Squares,
        weight: &View,
        held: &[Held],
    ) -> Result<()> {
        match role {
            Role::Weight => held.iter().try_for_each(|Held { rows, view: out }| {
                self.record_rows(backend, recording, rows.clone(), squares, Sides { weight, out })
            }),
            Role::Bias => self.record_bias(recording, squares, Sides { weight, out: &held[0].view }),
        }
    }

    /// As [`Batch::record`], for some rows of the weight; `out` has these rows alone, or with [`Mode::Each`]
    /// those of every sample.
    pub(crate) fn record_rows(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        rows: Range<u32>,
        squares: Squares,
        Sides { weight, out }: Sides<'_>,
    ) -> Result<()> {
        let input = match &self.input {
            Input::Floats(input) => input,
            Input::Ids(ids) => {
                return self.record_ids(backend, recording, (ids, rows), squares, Sides { weight, out });
            }
        };
        let (samples, positions) = (small(self.samples * self.parts)?, small(self.positions)?);
        let squares = self.in_parts(squares)?;
        let buffers = Buffers { input, grad_output: &self.gradient, weight, out };
        match &self.layer.kind {
            LayerKind::Linear => {
                let (outputs, inputs) = (small(self.layer.weight[0])?, small(self.layer.weight[1])?);
                let layer = Linear { samples, positions, inputs, outputs };
                if self.factors_square(squares.gradient_scale.into()) {
                    layer.record_outputs(recording, rows, squares, buffers)
                } else {
                    layer.record_products(recording, rows, squares, buffers)
                }
            }
            LayerKind::Conv(window) => {
                conv(&self.layer, window, samples, false)?.record_rows(recording, rows, squares, buffers)
            }
            LayerKind::ConvTranspose(window) => {
                conv(&self.layer, window, samples, true)?.record_rows(recording, rows, squares, buffers)
            }
            _ => self.record_norm(backend, recording, (samples, positions), squares, buffers),
        }
    }

    /// Some rows of an embedding. Those of every sample are the rows of a table that has as many for each.
    fn record_ids(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        (ids, rows): (&[u32], Range<u32>),
        squares: Squares,
        sides: Sides<'_>,
    ) -> Result<()> {
        let listed = if squares.epilogue == Epilogue::Add { Listed::Touched } else { Listed::All };
        let positions = small(self.positions)? as usize * squares.fold as usize;
        let count = small(rows.len() as u64)?;
        if squares.mode != Mode::Each {
            let index = EmbeddingIndex::new(ids, positions, (rows.start, count), listed)?;
            return self.record_embedding(backend, recording, &index, squares, sides);
        }
        let all = small(self.samples * u64::from(count))?;
        let of_sample = |(at, &id): (usize, &u32)| match id.wrapping_sub(rows.start) {
            row if row < count => (at / positions) as u32 * count + row,
            _ => u32::MAX,
        };
        let ids: Vec<u32> = ids.iter().enumerate().map(of_sample).collect();
        let index = EmbeddingIndex::new(&ids, positions, (0, all), listed)?;
        let squares = Squares { mode: Mode::Gradients, ..squares };
        self.record_embedding(backend, recording, &index, squares, sides)
    }

    /// Records the step of the layer's bias. `squares.fold` counts samples.
    pub(crate) fn record_bias(
        &self,
        recording: &mut Recording,
        squares: Squares,
        Sides { weight, out }: Sides<'_>,
    ) -> Result<()> {
        let last_axis = matches!(
            self.layer.kind,
            LayerKind::Linear | LayerKind::LayerNorm { .. } | LayerKind::RmsNorm { .. }
        );
        let outputs = small(elements(&self.layer.bias_shape).unwrap_or(u64::MAX))?;
        let samples = small(self.samples * self.parts)?;
        let all = u64::from(samples) * u64::from(outputs);
        let positions = small(self.gradient.len().checked_div(all).unwrap_or(0))?;
        let bias = Bias { samples, positions, outputs, channels_first: !last_axis };
        bias.record(recording, self.in_parts(squares)?, &self.gradient, weight, out)
    }

    /// Records the step of an embedding's rows that `index` lists.
    pub(crate) fn record_embedding(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        index: &EmbeddingIndex,
        squares: Squares,
        Sides { weight, out }: Sides<'_>,
    ) -> Result<()> {
        let Squares { mode, epilogue, factor, gradient_scale, .. } = squares;
        let words = |words: &[u32]| backend.buffer(words, Element::U32);
        let params = EmbeddingSqParams {
            owners: small(index.owner_row.len() as u64)?,
            dim: small(self.layer.weight[1])?,
            gradient_scale,
            decay: epilogue.decay(),
            gain: epilogue.gain(factor),
        };
        let args = EmbeddingSqArgs {
            grad_output: self.gradient.clone(),
            positions: words(&index.positions)?,
            run_start: words(&index.run_start)?,
            run_sample: words(&index.run_sample)?,
            owner_run: words(&index.owner_run)?,
            owner_row: words(&index.owner_row)?,
            weight: weight.clone(),
            out: out.clone(),
        };
        let together = EmbeddingSq::together(recording.caps(), params.dim);
        let kernel = EmbeddingSq { mode, gradient: self.gradient.float(OP, "grad_output")?, together };
        recording.dispatch(&kernel, params, args).map(|_| ())
    }

    /// The same squares, counted in parts of samples.
    fn in_parts(&self, squares: Squares) -> Result<Squares> {
        Ok(Squares { fold: small(u64::from(squares.fold) * self.parts)?, ..squares })
    }
}

/// A convolution over three axes, the first of which may be of one element.
fn conv(layer: &CaptureLayer, window: &Window, samples: u32, transposed: bool) -> Result<Conv> {
    let three = |sizes: &[u64], fill: u32| -> Result<[u32; 3]> {
        let mut out = [fill; 3];
        for (out, &size) in out[3 - sizes.len()..].iter_mut().zip(sizes) {
            *out = small(size)?;
        }
        Ok(out)
    };
    let (input, output) = (&layer.uses[0].input.shape, &layer.uses[0].grad_output.shape);
    Ok(Conv {
        samples,
        inputs: small(input[1])?,
        outputs: small(output[1])?,
        groups: small(window.groups)?,
        input: three(&input[2..], 1)?,
        output: three(&output[2..], 1)?,
        kernel: three(&window.kernel, 1)?,
        stride: three(&window.stride, 1)?,
        padding: three(&window.padding, 0)?,
        dilation: three(&window.dilation, 1)?,
        transposed,
    })
}
