//! The steps of norms: statistics of each run, fixed ones for batch norm, then squares.

use super::{Batch, InFile, OP, small};
use crate::backend::Backend;
use crate::checkpoint::{Capture, CaptureLayer, LayerKind};
use crate::error::{Error, Result};
use crate::kernels::fisher::{
    NormLayout, NormSq, NormSqArgs, NormSqParams, NormStats, NormStatsArgs, NormStatsParams,
};
use crate::memory::View;
use crate::record::Recording;
use crate::record::fisher::{Buffers, Squares};
use crate::shape::{DType, elements};

impl Batch {
    /// Records the step of a norm's weight.
    pub(super) fn record_norm(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        (samples, positions): (u32, u32),
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let (layout, eps) = self.norm_layout(positions)?;
        let stats = match &self.fixed {
            Some(fixed) => fixed.clone(),
            None => {
                self.record_stats(backend, recording, layout.stats(samples.into()), eps, buffers.input)?
            }
        };
        let Squares { mode, epilogue, fold, factor, gradient_scale } = squares;
        let params = NormSqParams {
            gradient_scale,
            decay: epilogue.decay(),
            gain: epilogue.gain(factor),
            ..layout.params(samples, fold)
        };
        let args = NormSqArgs {
            input: buffers.input.clone(),
            grad_output: self.gradient.clone(),
            stats,
            weight: buffers.weight.clone(),
            out: buffers.out.clone(),
        };
        let (input, gradient) = (args.input.float(OP, "input")?, args.grad_output.float(OP, "grad_output")?);
        let kernel = NormSq::new(&layout, mode, input, gradient).for_device(recording.caps(), &layout, fold);
        recording.dispatch(&kernel, params, args).map(|_| ())
    }

    /// How the norm's channels lie, and its eps.
    fn norm_layout(&self, positions: u32) -> Result<(NormLayout, f64)> {
        let channels = small(elements(&self.layer.weight).unwrap_or(u64::MAX))?;
        Ok(match self.layer.kind {
            LayerKind::GroupNorm { eps, groups } => {
                (NormLayout::Group { channels, positions, groups: small(groups)? }, eps)
            }
            LayerKind::BatchNorm { eps } => (NormLayout::Batch { channels, positions }, eps),
            LayerKind::LayerNorm { eps, .. } | LayerKind::RmsNorm { eps, .. } => {
                (NormLayout::Last { positions, channels }, eps)
            }
            _ => unreachable!("products and embeddings are recorded elsewhere"),
        })
    }

    /// Records the statistics of so many runs of the input.
    fn record_stats(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        runs: u64,
        eps: f64,
        input: &View,
    ) -> Result<View> {
        let stats = backend.alloc(2 * runs, DType::F32)?;
        let len = small(input.len().checked_div(runs).unwrap_or(0))?;
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let params = NormStatsParams { runs: small(runs)?, len, eps: eps as f32 };
        let args = NormStatsArgs { input: input.clone(), stats: stats.clone() };
        let centered = !matches!(self.layer.kind, LayerKind::RmsNorm { .. });
        let dtype = input.float(OP, "input")?;
        let kernel = NormStats::for_len(dtype, centered, len.into(), recording.caps());
        recording.dispatch(&kernel, params, args)?;
        Ok(stats)
    }
}

/// Refuses inputs whose variance leaves f32: their scale would be 0, and so would the Fisher.
pub(super) fn check_range(of: InFile<'_>, elements_of_sample: u64, largest: f32) -> Result<()> {
    let InFile { capture, layer } = of;
    let run = match layer.kind {
        LayerKind::LayerNorm { .. } | LayerKind::RmsNorm { .. } => {
            elements(&layer.weight).unwrap_or(u64::MAX)
        }
        LayerKind::GroupNorm { groups, .. } => elements_of_sample / groups.max(1),
        _ => return Ok(()),
    };
    // Distances from a mean are at most twice the largest magnitude. What is not finite shows in the result.
    let squares = 4.0 * f64::from(largest).powi(2) * run as f64;
    if !largest.is_finite() || squares <= f64::from(f32::MAX) {
        return Ok(());
    }
    let problem = format!(
        "has magnitudes up to {largest:e}, and the sum of {run} of their squares leaves f32; a norm's output hardly depends on \
         the scale of its input, so divide that by a power of two"
    );
    Err(Error::tensor(capture.path(), &layer.uses[0].input.name, problem))
}

/// Batch norm's fixed (mean, 1/√(variance + eps)).
pub(super) fn fixed_stats(
    backend: &Backend,
    capture: &Capture,
    layer: &CaptureLayer,
) -> Result<Option<View>> {
    let (LayerKind::BatchNorm { eps }, Some(running)) = (&layer.kind, &layer.running) else {
        return Ok(None);
    };
    let (mean, variance) = (capture.floats(&running.0)?, capture.floats(&running.1)?);
    if let Some(index) = variance.iter().position(|&variance| variance < 0.0) {
        let problem = format!("{:e} at index {index}; a variance is at least 0", variance[index]);
        return Err(Error::tensor(capture.path(), &running.1.name, problem));
    }
    #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
    let pair = |(&mean, &variance): (&f32, &f32)| [mean, (f64::from(variance) + eps).sqrt().recip() as f32];
    let stats: Vec<f32> = mean.iter().zip(&variance).flat_map(pair).collect();
    backend.buffer(&stats, DType::F32).map(Some)
}
