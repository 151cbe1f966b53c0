//! One layer's data of some files, where kernels can bind them, and the steps of its parameters.
//!
//! Files stream in pieces, so that what is in memory beside the layer's data is one piece. The uses of a sample (a layer that is used
//! several times has one parameter) lie one after the other: along the positions, or, where channels come before positions, as samples
//! of their own that are folded into one square.

mod ahead;
mod held;
mod portion;
mod unit;

use std::ops::Range;

use crate::backend::Backend;
use crate::checkpoint::{
    Capture, CaptureLayer, LayerKind, TensorInfo, Window, positions, same_shapes, widen_bytes,
};
use crate::error::{Error, Result, printable};
use crate::gpu::Caps;
use crate::kernels::fisher::{
    EmbeddingIndex, EmbeddingSq, EmbeddingSqArgs, EmbeddingSqParams, Epilogue, Listed, Mode, NormLayout,
    NormSq, NormSqArgs, NormSqParams, NormStats, NormStatsArgs, NormStatsParams,
};
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::record::fisher::{Bias, Buffers, Conv, Linear, Squares};
use crate::shape::{DType, GROUP_BYTES, elements};

pub(crate) use ahead::Ahead;
pub(crate) use held::{Held, Share, cut, hold, passes};
use portion::{Band, Span};
pub(crate) use portion::{Portion, ranges};
pub(crate) use unit::{Parameter, Role, Unit, units};

const OP: &str = "capture";

/// Bytes of an id.
const ID_BYTES: u64 = 8;

/// Bytes that are read at a time: whole groups of elements of every type.
const PIECE: usize = 4 << 20;

/// One layer in one file.
#[derive(Clone, Copy)]
pub(crate) struct InFile<'a> {
    pub(crate) capture: &'a Capture,
    pub(crate) layer: &'a CaptureLayer,
}

/// Bytes that one binding of one buffer can have, in whole groups.
fn room(caps: &Caps) -> u64 {
    caps.max_binding_bytes.min(caps.max_buffer_bytes) / GROUP_BYTES * GROUP_BYTES
}

/// Positions of a sample in one use's input.
fn positions_of(layer: &CaptureLayer, tensor: &TensorInfo) -> u64 {
    match layer.kind {
        LayerKind::Linear => positions(&tensor.shape, 1),
        LayerKind::LayerNorm { axes, .. } | LayerKind::RmsNorm { axes, .. } => positions(&tensor.shape, axes),
        _ if by_channels(layer) => elements(&tensor.shape[2..]).unwrap_or(u64::MAX),
        _ => positions(&tensor.shape, 0),
    }
}

/// One layer's data of one or more files.
pub(crate) struct Batch {
    layer: CaptureLayer,
    /// Samples of all its files.
    samples: u64,
    /// Uses that count as samples of their own (convolutions and norms over channels).
    parts: u64,
    /// Positions of a sample, or of a part.
    positions: u64,
    input: Input,
    gradient: View,
    /// The largest magnitude in `gradient`.
    largest: f32,
    /// Batch norm's fixed (mean, 1/√(variance + eps)).
    fixed: Option<View>,
    /// Whether it is a part of the gradients of weight and bias.
    adds: [bool; 2],
}

enum Input {
    Floats(View),
    Ids(Vec<u32>),
}

/// How a weight is cut: rows along its leading axis, at multiples of `unit`, of `len` elements each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightRows {
    pub(crate) count: u32,
    pub(crate) unit: u32,
    pub(crate) len: u64,
}

/// The buffers of one step beside the layer's data: weights, one a square, and the result.
#[derive(Clone, Copy)]
pub(crate) struct Sides<'a> {
    pub(crate) weight: &'a View,
    pub(crate) out: &'a View,
}

/// Whether channels come before positions, so that the uses of a sample count as samples of their own.
fn by_channels(layer: &CaptureLayer) -> bool {
    matches!(
        layer.kind,
        LayerKind::Conv(_)
            | LayerKind::ConvTranspose(_)
            | LayerKind::GroupNorm { .. }
            | LayerKind::BatchNorm { .. }
    )
}

/// Whether one [`Batch`] cannot hold all its uses.
pub(crate) fn has_several_sizes(layer: &CaptureLayer) -> bool {
    by_channels(layer) && layer.uses.iter().any(|one| one.input.shape != layer.uses[0].input.shape)
}

/// The layer as one or several of which a [`Batch`] can hold all uses, in the order in which sizes first occur.
pub(crate) fn by_size(layer: &CaptureLayer) -> Vec<CaptureLayer> {
    if !has_several_sizes(layer) {
        return vec![layer.clone()];
    }
    let mut parts: Vec<CaptureLayer> = Vec::new();
    for one in &layer.uses {
        match parts.iter_mut().find(|part| part.uses[0].input.shape == one.input.shape) {
            Some(part) => part.uses.push(one.clone()),
            None => parts.push(CaptureLayer { uses: vec![one.clone()], ..layer.clone() }),
        }
    }
    parts
}

/// Whether two files' data of one layer may lie in one buffer.
pub(crate) fn joinable(a: InFile<'_>, b: InFile<'_>) -> bool {
    // Batch norm's statistics are each file's own.
    a.layer.running.is_none() && same_shapes(a.layer, b.layer)
}

impl Batch {
    /// Reads one layer of files that are [`joinable`]. With `scale`, one factor a sample, gradients are multiplied by it and f32.
    pub(crate) fn load(backend: &Backend, files: &[InFile<'_>], scale: &[f64]) -> Result<Self> {
        let samples = files.iter().map(|file| file.capture.samples()).sum();
        let stream = Stream { files, samples: None, bands: None, gradient: false, scale: &[] };
        Self::read(backend, &stream, scale, samples)
    }

    /// Reads a portion of a file; `scale` is its samples'.
    pub(crate) fn load_portion(
        backend: &Backend,
        capture: &Capture,
        portion: &Portion,
        scale: &[f64],
    ) -> Result<Self> {
        let Portion { layer, bands, .. } = portion;
        let samples = portion.samples();
        let count = samples.end - samples.start;
        let files = [InFile { capture, layer }];
        let adds = [Role::Weight, Role::Bias].map(|role| portion.adds_to(role));
        let (samples, bands) =
            (Some(samples), bands.as_ref().map(|bands| [&bands.input, &bands.grad_output]));
        let batch = Self::read(
            backend,
            &Stream { files: &files, samples, bands, gradient: false, scale: &[] },
            scale,
            count,
        )?;
        Ok(Self { adds, ..batch })
    }

    fn read(backend: &Backend, inputs: &Stream<'_, '_>, scale: &[f64], samples: u64) -> Result<Self> {
        let InFile { capture, layer } = inputs.files[0];
        let by_channels = by_channels(layer);
        if has_several_sizes(layer) {
            let problem = "is used at several sizes, which is not supported for this kind of layer; capture each size in a file of its \
                           own network, or leave the layer out";
            return Err(Error::tensor(capture.path(), &layer.uses[0].input.name, problem));
        }
        for one in &layer.uses {
            let first = &layer.uses[0];
            if one.input.dtype != first.input.dtype || one.grad_output.dtype != first.grad_output.dtype {
                let problem = format!(
                    "is {}, another use of the layer is {}; store all uses as one type",
                    one.input.dtype, first.input.dtype
                );
                return Err(Error::tensor(capture.path(), &one.input.name, problem));
            }
        }
        let input = match layer.kind {
            LayerKind::Embedding { rows } => Input::Ids(inputs.ids(rows)?),
            _ => Input::Floats(inputs.load(backend)?.0),
        };
        let (gradient, largest) = Stream { gradient: true, scale, ..inputs.clone() }.load(backend)?;
        let counts = layer.uses.iter().map(|one| positions_of(layer, &one.input));
        let (parts, positions) = match by_channels {
            true => (layer.uses.len() as u64, positions_of(layer, &layer.uses[0].input)),
            false => (1, counts.sum()),
        };
        let fixed = fixed_stats(backend, capture, layer)?;
        Ok(Self {
            layer: layer.clone(),
            samples,
            parts,
            positions,
            input,
            gradient,
            largest,
            fixed,
            adds: [true; 2],
        })
    }

    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// Whether it adds to the gradient of the layer's weight, or bias.
    pub(crate) fn adds_to(&self, role: Role) -> bool {
        self.adds[match role {
            Role::Weight => 0,
            Role::Bias => 1,
        }]
    }

    /// Positions of a sample, over all its uses.
    pub(crate) fn positions(&self) -> u64 {
        self.positions * self.parts
    }

    /// The gradients at the layer's output.
    pub(crate) fn gradient(&self) -> &View {
        &self.gradient
    }

    /// The layer's input, where it is numbers.
    pub(crate) fn input(&self) -> Option<&View> {
        match &self.input {
            Input::Floats(view) => Some(view),
            Input::Ids(_) => None,
        }
    }

    /// An embedding's ids.
    pub(crate) fn ids(&self) -> Option<&[u32]> {
        match &self.input {
            Input::Floats(_) => None,
            Input::Ids(ids) => Some(ids),
        }
    }

    /// The power of two that brings the largest gradient near 1, so that squares neither vanish nor overflow; at most 2^±60, whose
    /// square f32 can undo.
    pub(crate) fn gradient_scale(&self) -> f64 {
        if self.largest == 0.0 {
            return 1.0;
        }
        (-f64::from(self.largest).log2().round()).clamp(-60.0, 60.0).exp2()
    }

    /// How the weight is cut.
    pub(crate) fn rows(&self) -> Result<WeightRows> {
        weight_rows(&self.layer)
    }

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
            Role::Weight => self.record_weight(backend, recording, squares, weight, held),
            Role::Bias => self.record_bias(recording, squares, Sides { weight, out: &held[0].view }),
        }
    }

    /// Records the step of the layer's weight into the buffers that hold its rows. `squares.fold` counts samples.
    fn record_weight(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        squares: Squares,
        weight: &View,
        held: &[Held],
    ) -> Result<()> {
        for Held { rows, view: out } in held {
            self.record_rows(backend, recording, rows.clone(), squares, Sides { weight, out })?;
        }
        Ok(())
    }

    /// As [`Batch::record`], for some rows of the weight; `out` has these rows alone, or with [`Mode::Each`] those of every sample.
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
                layer.record_outputs(recording, rows, squares, buffers)
            }
            LayerKind::Conv(window) => {
                conv(&self.layer, window, samples, false)?.record_rows(recording, rows, squares, buffers)
            }
            LayerKind::ConvTranspose(window) => {
                conv(&self.layer, window, samples, true)?.record_rows(recording, rows, squares, buffers)
            }
            kind => self.record_norm(backend, recording, kind, (samples, positions), squares, buffers),
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
        let kernel = EmbeddingSq { mode, gradient: self.gradient.float(OP, "grad_output")? };
        recording.dispatch(&kernel, params, args).map(|_| ())
    }

    fn record_norm(
        &self,
        backend: &Backend,
        recording: &mut Recording,
        kind: &LayerKind,
        (samples, positions): (u32, u32),
        squares: Squares,
        buffers: Buffers<'_>,
    ) -> Result<()> {
        let channels = small(elements(&self.layer.weight).unwrap_or(u64::MAX))?;
        let (layout, eps) = match *kind {
            LayerKind::GroupNorm { eps, groups } => {
                (NormLayout::Group { channels, positions, groups: small(groups)? }, eps)
            }
            LayerKind::BatchNorm { eps } => (NormLayout::Batch { channels, positions }, eps),
            LayerKind::LayerNorm { eps, .. } | LayerKind::RmsNorm { eps, .. } => {
                (NormLayout::Last { positions, channels }, eps)
            }
            _ => unreachable!("products and embeddings are recorded elsewhere"),
        };
        let dtype = buffers.input.float(OP, "input")?;
        let stats = match &self.fixed {
            Some(fixed) => fixed.clone(),
            None => {
                let runs = layout.stats(samples.into());
                let stats = backend.alloc(2 * runs, DType::F32)?;
                let len = small(buffers.input.len().checked_div(runs).unwrap_or(0))?;
                #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
                let params = NormStatsParams { runs: small(runs)?, len, eps: eps as f32 };
                let centered = !matches!(kind, LayerKind::RmsNorm { .. });
                let args = NormStatsArgs { input: buffers.input.clone(), stats: stats.clone() };
                let kernel = NormStats::for_len(dtype, centered, len.into(), recording.caps());
                recording.dispatch(&kernel, params, args)?;
                stats
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
        let kernel = NormSq::new(&layout, mode, dtype, self.gradient.float(OP, "grad_output")?);
        let kernel = kernel.for_device(recording.caps(), &layout, fold);
        recording.dispatch(&kernel, params, args).map(|_| ())
    }

    /// The same squares, counted in parts of samples.
    fn in_parts(&self, squares: Squares) -> Result<Squares> {
        Ok(Squares { fold: small(u64::from(squares.fold) * self.parts)?, ..squares })
    }
}

/// How a layer's weight is cut.
pub(crate) fn weight_rows(layer: &CaptureLayer) -> Result<WeightRows> {
    let shape = &layer.weight;
    let all = elements(shape).unwrap_or(u64::MAX);
    let (count, unit) = match &layer.kind {
        LayerKind::Linear | LayerKind::Embedding { .. } => (shape[0], 1),
        LayerKind::Conv(window) | LayerKind::ConvTranspose(window) if window.groups == 1 => (shape[0], 1),
        LayerKind::Conv(window) | LayerKind::ConvTranspose(window) => {
            (shape[0], shape[0] / window.groups.max(1))
        }
        _ => (1, 1),
    };
    Ok(WeightRows {
        count: small(count)?,
        unit: small(unit)?.max(1),
        len: all.checked_div(count).unwrap_or(0),
    })
}

/// A bias, which is not cut.
pub(crate) fn bias_rows(layer: &CaptureLayer) -> WeightRows {
    WeightRows { count: 1, unit: 1, len: elements(&layer.bias_shape).unwrap_or(u64::MAX) }
}

/// Batch norm's fixed (mean, 1/√(variance + eps)).
fn fixed_stats(backend: &Backend, capture: &Capture, layer: &CaptureLayer) -> Result<Option<View>> {
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

/// Shaders count in u32.
pub(crate) fn small(size: u64) -> Result<u32> {
    u32::try_from(size).map_err(|_| Error::Limit {
        op: OP.into(),
        limit: "elements of one step".into(),
        max: u32::MAX.into(),
        asked: size,
    })
}

/// Downloads an f32 view piece by piece: `each` gets the index of a piece's first element, and its elements.
pub(crate) fn in_pieces(
    backend: &Backend,
    view: &View,
    mut each: impl FnMut(u64, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let step = (PIECE / 4) as u64;
    for first in (0..view.len().div_ceil(step)).map(|piece| piece * step) {
        let len = step.min(view.len() - first);
        let piece = View::new(view.memory().clone(), view.offset() + 4 * first, len, Element::F32)?;
        let mut values: Vec<f32> = backend.download(&piece)?;
        each(first, &mut values)?;
    }
    Ok(())
}

/// What becomes one view: inputs or gradients of files, samples and uses, in this order.
#[derive(Clone)]
struct Stream<'s, 'a> {
    files: &'s [InFile<'a>],
    /// Samples of the only file; all of all files if there are none given.
    samples: Option<Range<u64>>,
    /// Of one sample: the positions of its inputs and of its gradients.
    bands: Option<[&'s Band; 2]>,
    gradient: bool,
    /// One factor a sample, or none.
    scale: &'s [f64],
}

/// Consecutive bytes of one tensor, or zeros.
struct Run<'a> {
    capture: &'a Capture,
    tensor: &'a TensorInfo,
    start: Option<u64>,
    len: u64,
}

impl<'a> Stream<'_, 'a> {
    fn tensors(&self, layer: &'a CaptureLayer) -> impl Iterator<Item = &'a TensorInfo> {
        let gradient = self.gradient;
        layer.uses.iter().map(move |one| if gradient { &one.grad_output } else { &one.input })
    }

    fn samples_of(&self, capture: &Capture) -> Range<u64> {
        self.samples.clone().unwrap_or(0..capture.samples())
    }

    fn band(&self) -> Option<&Band> {
        self.bands.map(|[input, gradient]| if self.gradient { gradient } else { input })
    }

    /// The runs of a band of one sample.
    fn of_band(&self, band: &Band) -> Vec<Run<'a>> {
        let InFile { capture, layer } = self.files[0];
        let tensor = if self.gradient { &layer.uses[0].grad_output } else { &layer.uses[0].input };
        let each = tensor.bytes.checked_div(capture.samples()).unwrap_or(0);
        let (sample, size) =
            (self.samples_of(capture).start * each, each.checked_div(band.of_sample()).unwrap_or(0));
        let run = |Span { start, len }: Span| Run {
            capture,
            tensor,
            start: start.map(|start| sample + start * size),
            len: len * size,
        };
        band.spans().into_iter().map(run).collect()
    }

    /// Every run of bytes: consecutive samples of a tensor, or, of several uses, sample by sample.
    fn runs(&self) -> Vec<Run<'a>> {
        if let Some(band) = self.band() {
            return self.of_band(band);
        }
        let mut runs = Vec::new();
        for &InFile { capture, layer } in self.files {
            let samples = self.samples_of(capture);
            let run = |tensor: &'a TensorInfo, samples: Range<u64>| {
                let each = tensor.bytes.checked_div(capture.samples()).unwrap_or(0);
                Run {
                    capture,
                    tensor,
                    start: Some(samples.start * each),
                    len: (samples.end - samples.start) * each,
                }
            };
            if let [only] = self.tensors(layer).collect::<Vec<_>>()[..] {
                runs.push(run(only, samples));
                continue;
            }
            for sample in samples {
                runs.extend(self.tensors(layer).map(|tensor| run(tensor, sample..sample + 1)));
            }
        }
        runs
    }

    /// The ids, the uses of a sample one after the other.
    fn ids(&self, rows: u32) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for Run { capture, tensor, start, len } in self.runs() {
            // No position of an embedding lies outside of its sample.
            let first = start.unwrap_or(0) / ID_BYTES;
            all.extend(capture.ids(tensor, first..first + len / ID_BYTES, rows)?);
        }
        Ok(all)
    }

    /// What cannot be divided further is refused by name.
    fn too_large(&self, error: Error) -> Error {
        let InFile { capture, layer } = self.files[0];
        match (error, self.tensors(layer).next()) {
            (Error::Limit { limit, max, asked, .. }, Some(tensor)) => {
                let op = format!(
                    "{}: what is taken of {} at a time",
                    capture.path().display(),
                    printable(&tensor.name)
                );
                Error::Limit {
                    op,
                    limit: format!("{limit} (the host backend has no such limit)"),
                    max,
                    asked,
                }
            }
            (other, _) => other,
        }
    }

    /// Reads everything; also gives the largest magnitude.
    fn load(&self, backend: &Backend) -> Result<(View, f32)> {
        let first = self.tensors(self.files[0].layer).next();
        let stored =
            first.and_then(TensorInfo::float).expect("a capture's types are checked when it is opened");
        let runs = self.runs();
        let bytes: u64 = runs.iter().map(|run| run.len).sum();
        let len = bytes / stored.size();
        let samples: u64 = self
            .files
            .iter()
            .map(|file| self.samples_of(file.capture))
            .map(|range| range.end - range.start)
            .sum();
        let target = if self.scale.is_empty() { stored } else { DType::F32 };
        let view = backend.alloc(len, target).map_err(|error| self.too_large(error))?;
        let mut pieces = Pieces {
            backend,
            view: &view,
            stored,
            scale: self.scale,
            of_sample: len.checked_div(samples).unwrap_or(0).max(1),
            measure: self.gradient,
            at: 0,
            largest: 0.0,
            values: Vec::new(),
        };
        let mut piece = vec![0; PIECE.min(usize::try_from(bytes).unwrap_or(PIECE))];
        let mut filled = 0;
        for Run { capture, tensor, start, len } in runs {
            let mut done = 0;
            while done < len {
                let take = usize::try_from(len - done).unwrap_or(PIECE).min(piece.len() - filled);
                let into = &mut piece[filled..filled + take];
                match start {
                    Some(start) => capture.read_range(tensor, start + done, into)?,
                    None => into.fill(0),
                }
                (filled, done) = (filled + take, done + take as u64);
                if filled == piece.len() {
                    pieces.store(&piece)?;
                    filled = 0;
                }
            }
        }
        pieces.store(&piece[..filled])?;
        let largest = pieces.largest;
        Ok((view, largest))
    }
}

/// Where pieces go, one after the other.
struct Pieces<'a> {
    backend: &'a Backend,
    view: &'a View,
    stored: DType,
    scale: &'a [f64],
    of_sample: u64,
    measure: bool,
    at: u64,
    largest: f32,
    values: Vec<f32>,
}

impl Pieces<'_> {
    fn store(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let len = bytes.len() as u64 / self.stored.size();
        let element = self.view.element();
        let offset = self.view.offset() + self.at * element.bytes() as u64;
        let target = View::new(self.view.memory().clone(), offset, len, element)?;
        if self.measure {
            self.values.resize(usize::try_from(len).unwrap_or(usize::MAX), 0.0);
            widen_bytes(bytes, self.stored, &mut self.values);
            self.scale_values();
            self.largest = self.values.iter().fold(self.largest, |most, value| most.max(value.abs()));
        }
        if self.scale.is_empty() {
            self.backend.upload(&target, bytes)?;
        } else {
            self.backend.upload(&target, bytemuck::cast_slice(&self.values))?;
        }
        self.at += len;
        Ok(())
    }

    /// Every value times its sample's factor.
    fn scale_values(&mut self) {
        if self.scale.is_empty() {
            return;
        }
        for (at, value) in (self.at..).zip(&mut self.values) {
            let sample = usize::try_from(at / self.of_sample).unwrap_or(usize::MAX);
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            let scaled = (f64::from(*value) * self.scale[sample]) as f32;
            *value = scaled;
        }
    }
}
