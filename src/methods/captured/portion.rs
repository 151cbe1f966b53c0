//! What is read of a layer of a file at a time.
//!
//! That is some samples, as many as are small and as fit the bindings and the loops of a device. Where one
//! sample alone does not fit, it is some of its positions: a sample's gradient is a sum over positions, so
//! that they may come one after the other as long as it is their sum that is squared. Uses of the layer are
//! positions, too.
//!
//! ```text
//! linear, embedding, layer norm   [t, features]: positions p₀..p₁ of both tensors
//! convolution                     outputs p₀..p₁ of the first axis, and the inputs that their windows meet:
//!                                 stride·p₀ − padding .. stride·(p₁ − 1) + dilation·(kernel − 1) + 1 − padding, zeros beyond the edges
//! transposed convolution          the same with input and output in each other's place
//! group norm, batch norm          not divided
//! ```
//!
//! A part of a convolution is a convolution without padding along that axis. The gradient of a transposed
//! one's bias is a sum over its output, whose parts overlap there; it gets its own parts.

use std::ops::Range;

use super::uses::{by_size, positions_of};
use super::{InFile, Role, room};
use crate::checkpoint::{CaptureLayer, LayerKind, LayerUse, TensorInfo, Window};
use crate::gpu::Caps;
use crate::shape::elements;

/// Bytes that are read at a time, of which the next may be read while some are computed; and samples: squares
/// of more would lose digits in one sum.
const PART_BYTES: u64 = 32 << 20;
/// On the host: what a cache can keep from being read until it is computed.
const CACHED_BYTES: u64 = 8 << 20;
const PART_SAMPLES: u64 = 1 << 14;

/// Loop iterations of a step beside those over positions: more than any kernel makes.
const TURNS: u64 = 256;

/// Some samples of a layer, or some positions of one sample.
#[derive(Clone, Debug)]
pub(crate) struct Portion {
    /// The layer, with the uses and positions of the portion alone.
    pub(super) layer: CaptureLayer,
    samples: Range<u64>,
    /// Of some positions: where they lie in the sample.
    pub(super) bands: Option<Bands>,
    weight: bool,
    bias: bool,
}

/// Where positions lie in both tensors of a use.
#[derive(Clone, Debug)]
pub(super) struct Bands {
    pub(super) input: Band,
    pub(super) grad_output: Band,
}

/// Consecutive rows along one axis of a sample `[outer, axis, inner]`. Those before its first and behind its
/// last are zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Band {
    outer: u64,
    axis: u64,
    inner: u64,
    rows: Range<i64>,
}

/// Consecutive elements of a band: where they start in their sample, or zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: Option<u64>,
    pub(super) len: u64,
}

impl Portion {
    /// Some samples, whole.
    pub(crate) fn whole(layer: CaptureLayer, samples: Range<u64>) -> Self {
        Self { layer, samples, bands: None, weight: true, bias: true }
    }

    /// Its samples.
    pub(crate) fn samples(&self) -> Range<u64> {
        self.samples.clone()
    }

    /// Whether it adds to the gradient of the layer's weight, or bias.
    pub(crate) fn adds_to(&self, role: Role) -> bool {
        match role {
            Role::Weight => self.weight,
            Role::Bias => self.bias,
        }
    }
}

impl Band {
    /// Elements of the sample.
    pub(super) fn of_sample(&self) -> u64 {
        self.outer * self.axis * self.inner
    }

    /// The band's elements in order.
    pub(super) fn spans(&self) -> Vec<Span> {
        let axis = i64::try_from(self.axis).unwrap_or(i64::MAX);
        let Range { start, end } = self.rows;
        let inside = start.clamp(0, axis)..end.clamp(0, axis);
        let before = (end.min(0) - start).max(0);
        let behind = (end - start.max(axis)).max(0);
        let zeros = |rows: i64| Span { start: None, len: rows.unsigned_abs() * self.inner };
        let first = inside.start.unsigned_abs();
        let of_outer = |outer: u64| {
            let start = Some((outer * self.axis + first) * self.inner);
            let len = (inside.end - inside.start).unsigned_abs() * self.inner;
            [zeros(before), Span { start, len }, zeros(behind)]
        };
        (0..self.outer).flat_map(of_outer).filter(|span| span.len > 0).collect()
    }
}

impl InFile<'_> {
    /// Whether a step can take whole samples of all uses.
    pub(crate) fn takes_whole_samples(&self, caps: &Caps) -> bool {
        by_size(self.layer).iter().all(|layer| self.fitting(layer, caps) > 0)
    }

    /// Samples that bindings can take at once, at least one.
    pub(crate) fn samples_within_bindings(&self, caps: &Caps) -> u64 {
        let (inputs, gradients) = self.bytes_of_sample(self.layer);
        (room(caps) / inputs.max(gradients)).max(1)
    }

    /// Some samples, one portion or several: for each size of uses, and for each part that fits. Of no
    /// samples there is an empty portion for each size.
    pub(crate) fn portions(&self, caps: &Caps, samples: Range<u64>) -> Vec<Portion> {
        by_size(self.layer).into_iter().flat_map(|layer| self.of_size(layer, caps, samples.clone())).collect()
    }

    fn of_size(&self, layer: CaptureLayer, caps: &Caps, samples: Range<u64>) -> Vec<Portion> {
        let fitting = self.fitting(&layer, caps);
        if fitting == 0
            && !samples.is_empty()
            && let Some(parts) = divided(&layer, caps)
        {
            let of_sample = |sample: u64| {
                parts.iter().map(move |part| Portion { samples: sample..sample + 1, ..part.clone() })
            };
            return samples.flat_map(of_sample).collect();
        }
        let most = self.most(&layer, caps);
        let count = samples.end - samples.start;
        let range = |i: u64| samples.start + i * most..samples.end.min(samples.start + (i + 1) * most);
        (0..count.div_ceil(most).max(1)).map(|i| Portion::whole(layer.clone(), range(i))).collect()
    }

    /// How many samples one portion has of every size of uses.
    pub(crate) fn samples_at_once(&self, caps: &Caps) -> u64 {
        by_size(self.layer).iter().map(|layer| self.most(layer, caps)).min().unwrap_or(1)
    }

    /// How many samples one portion has, one where it has not even that.
    fn most(&self, layer: &CaptureLayer, caps: &Caps) -> u64 {
        let (inputs, gradients) = self.bytes_of_sample(layer);
        let small = (part_bytes(layer, caps) / (inputs + gradients)).clamp(1, PART_SAMPLES);
        small.min(self.fitting(layer, caps).max(1))
    }

    /// How many samples bindings and loops can take.
    fn fitting(&self, layer: &CaptureLayer, caps: &Caps) -> u64 {
        let (inputs, gradients) = self.bytes_of_sample(layer);
        (room(caps) / inputs.max(gradients)).min(loops(caps) / iterations(layer))
    }

    /// Bytes of inputs and gradients of a sample, at least 1. Gradients may be widened.
    fn bytes_of_sample(&self, layer: &CaptureLayer) -> (u64, u64) {
        let each = |bytes: u64| bytes.div_ceil(self.capture.samples().max(1)).max(1);
        let gradient = |shape: &[u64]| 4 * elements(shape).unwrap_or(u64::MAX / 8);
        (
            each(layer.uses.iter().map(|one| one.input.bytes).sum()),
            each(layer.uses.iter().map(|one| gradient(&one.grad_output.shape)).sum()),
        )
    }
}

/// Bytes of a portion of small samples. A portion's step reads and writes the whole result, so a portion
/// should not be much less than that.
fn part_bytes(layer: &CaptureLayer, caps: &Caps) -> u64 {
    let result = 4 * elements(&layer.weight).unwrap_or(0);
    if caps.is_host { result.clamp(CACHED_BYTES, PART_BYTES) } else { PART_BYTES }
}

/// Loop iterations for a position of a sample: an embedding may have one for its row and its run, too; eight
/// invocations or more share those of a norm over channels.
fn turns(kind: &LayerKind, positions: u64) -> u64 {
    match kind {
        LayerKind::Embedding { .. } => positions.saturating_mul(3),
        LayerKind::GroupNorm { .. } | LayerKind::BatchNorm { .. } => positions / 8 + 1,
        _ => positions,
    }
}

/// Loop iterations of a step where a position takes one. The form for matrix units goes through positions twice, and
/// takes less than two turns for each (`Form::turns`).
fn loops(caps: &Caps) -> u64 {
    if caps.matrix_units.is_some() { caps.max_iterations / 2 } else { caps.max_iterations }
}

/// No step makes more loop iterations for a sample.
fn iterations(layer: &CaptureLayer) -> u64 {
    let of_use = |one: &LayerUse| match layer.kind {
        LayerKind::Conv(_) => positions_of(layer, &one.grad_output),
        _ => positions_of(layer, &one.input),
    };
    layer.uses.iter().map(|one| turns(&layer.kind, of_use(one))).fold(TURNS, u64::saturating_add)
}

/// A sample of a layer in parts that fit, where its kind can be divided.
fn divided(layer: &CaptureLayer, caps: &Caps) -> Option<Vec<Portion>> {
    let of_use = |one: &LayerUse| {
        let layer = CaptureLayer { uses: vec![one.clone()], ..layer.clone() };
        match layer.kind.clone() {
            LayerKind::Linear => Some(by_positions(&layer, 1, 1, caps)),
            LayerKind::Embedding { .. } => Some(by_positions(&layer, 0, 1, caps)),
            LayerKind::LayerNorm { axes, .. } | LayerKind::RmsNorm { axes, .. } => {
                Some(by_positions(&layer, axes, axes, caps))
            }
            LayerKind::Conv(window) => Some(by_outputs(&layer, &window, caps)),
            LayerKind::ConvTranspose(window) => Some(by_inputs(&layer, &window, caps)),
            LayerKind::GroupNorm { .. } | LayerKind::BatchNorm { .. } => None,
        }
    };
    layer.uses.iter().map(of_use).collect::<Option<Vec<_>>>().map(|parts| parts.concat())
}

/// Ranges of positions, which are all axes but the first and the last `features`.
fn by_positions(layer: &CaptureLayer, of_input: usize, of_gradient: usize, caps: &Caps) -> Vec<Portion> {
    let one = &layer.uses[0];
    let features = |shape: &[u64], count: usize| shape[shape.len() - count..].to_vec();
    let (input, gradient) =
        (features(&one.input.shape, of_input), features(&one.grad_output.shape, of_gradient));
    let positions = positions_of(layer, &one.input);
    let width = |shape: &[u64]| elements(shape).unwrap_or(u64::MAX / 8);
    let input_bytes = width(&input).saturating_mul(size_of_element(&one.input)).max(1);
    let gradient_bytes = width(&gradient).saturating_mul(4).max(1);
    let loops = loops(caps).saturating_sub(TURNS) / turns(&layer.kind, 8) * 8;
    let most = loops
        .min(room(caps) / input_bytes.max(gradient_bytes))
        .min(PART_BYTES / (input_bytes + gradient_bytes))
        .max(1);
    let of_range = |rows: Range<u64>| {
        let band =
            |inner: &[u64]| Band { outer: 1, axis: positions, inner: width(inner), rows: signed(&rows) };
        let mut part = layer.clone();
        let count = rows.end - rows.start;
        part.uses[0].input.shape = [&[one.input.shape[0], count], &input[..]].concat();
        part.uses[0].grad_output.shape = [&[one.input.shape[0], count], &gradient[..]].concat();
        let bands = Bands { input: band(&input), grad_output: band(&gradient) };
        Portion { layer: part, samples: 0..0, bands: Some(bands), weight: true, bias: true }
    };
    ranges(positions, most).map(of_range).collect()
}

/// Ranges of a convolution's output along the first of its axes.
fn by_outputs(layer: &CaptureLayer, window: &Window, caps: &Caps) -> Vec<Portion> {
    let one = &layer.uses[0];
    let (outputs, inputs) = (&one.grad_output.shape, &one.input.shape);
    let of_range = |rows: Range<u64>| {
        let met = met(window, &rows);
        let mut part = layer.clone();
        part.kind = LayerKind::Conv(without_padding(window));
        part.uses[0].grad_output.shape[2] = rows.end - rows.start;
        part.uses[0].input.shape[2] = met.end.abs_diff(met.start);
        let bands = Bands { input: band(inputs, met), grad_output: band(outputs, signed(&rows)) };
        Portion { layer: part, samples: 0..0, bands: Some(bands), weight: true, bias: true }
    };
    let most = rows_within(window, (outputs, 4), (inputs, size_of_element(&one.input)), caps);
    ranges(outputs[2], most).map(of_range).collect()
}

/// Ranges of a transposed convolution's input along the first of its axes, then ranges of its output for the bias.
fn by_inputs(layer: &CaptureLayer, window: &Window, caps: &Caps) -> Vec<Portion> {
    let one = &layer.uses[0];
    let (outputs, inputs) = (&one.grad_output.shape, &one.input.shape);
    let part = |input: Range<i64>, output: Range<i64>, weight: bool| {
        let mut part = layer.clone();
        part.kind = LayerKind::ConvTranspose(without_padding(window));
        part.uses[0].input.shape[2] = input.end.abs_diff(input.start);
        part.uses[0].grad_output.shape[2] = output.end.abs_diff(output.start);
        let bands = Bands { input: band(inputs, input), grad_output: band(outputs, output) };
        Portion { layer: part, samples: 0..0, bands: Some(bands), weight, bias: !weight }
    };
    let most = rows_within(window, (inputs, size_of_element(&one.input)), (outputs, 4), caps);
    let weights = ranges(inputs[2], most).map(|rows| part(signed(&rows), met(window, &rows), true));
    let row = 4 * row_elements(outputs);
    let most = (room(caps).min(PART_BYTES) / row.max(1)).max(1);
    let biases = ranges(outputs[2], most).map(|rows| part(0..0, signed(&rows), false));
    weights.chain(biases.filter(|_| layer.bias)).collect()
}

/// How many rows along the first axis loops and bindings can take, given shapes and bytes of an element of
/// what has positions and of what their windows meet.
fn rows_within(
    window: &Window,
    (positions, bytes): (&[u64], u64),
    (met, met_bytes): (&[u64], u64),
    caps: &Caps,
) -> u64 {
    let of_row = elements(&positions[3..]).unwrap_or(u64::MAX).max(1);
    let (row, met_row) = ((bytes * row_elements(positions)).max(1), (met_bytes * row_elements(met)).max(1));
    let bytes = room(caps).min(PART_BYTES);
    let met_rows = (bytes / met_row).saturating_sub(window.dilation[0] * (window.kernel[0] - 1) + 1);
    (loops(caps).saturating_sub(TURNS) / of_row).min(bytes / row).min(met_rows / window.stride[0] + 1).max(1)
}

/// Bytes of an element as stored.
fn size_of_element(tensor: &TensorInfo) -> u64 {
    tensor.bytes.checked_div(tensor.elements()).unwrap_or(8)
}

/// Elements of one row of `[n, channels, axis, …]` over all channels.
fn row_elements(shape: &[u64]) -> u64 {
    shape[1].saturating_mul(elements(&shape[3..]).unwrap_or(u64::MAX))
}

fn band(shape: &[u64], rows: Range<i64>) -> Band {
    Band { outer: shape[1], axis: shape[2], inner: elements(&shape[3..]).unwrap_or(u64::MAX), rows }
}

/// What the windows of some positions along the first axis meet.
fn met(window: &Window, rows: &Range<u64>) -> Range<i64> {
    let place = |row: u64| signed_one(row * window.stride[0]) - signed_one(window.padding[0]);
    let reach = signed_one(window.dilation[0] * (window.kernel[0] - 1)) + 1;
    place(rows.start)..place(rows.end - 1) + reach
}

fn without_padding(window: &Window) -> Window {
    let mut window = window.clone();
    window.padding[0] = 0;
    window.output_padding.clear();
    window
}

/// Consecutive ranges of at most `most`.
pub(crate) fn ranges(all: u64, most: u64) -> impl Iterator<Item = Range<u64>> {
    (0..all.div_ceil(most)).map(move |i| i * most..all.min((i + 1) * most))
}

fn signed(rows: &Range<u64>) -> Range<i64> {
    signed_one(rows.start)..signed_one(rows.end)
}

fn signed_one(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::fisher::{Form, Loads};

    #[test]
    fn a_band_has_its_rows_of_every_channel_and_zeros_beyond_the_axis() {
        let spans = |rows| Band { outer: 2, axis: 3, inner: 5, rows }.spans();
        let at = |start, len| Span { start: Some(start), len };
        let zeros = |len| Span { start: None, len };
        assert_eq!(spans(1..3), [at(5, 10), at(20, 10)]);
        assert_eq!(spans(-1..5), [zeros(5), at(0, 15), zeros(10), zeros(5), at(15, 15), zeros(10)]);
        assert_eq!(spans(-4..-2), [zeros(10), zeros(10)]);
        assert_eq!(spans(4..5), [zeros(5), zeros(5)]);
        assert_eq!(spans(0..0), []);
    }

    #[test]
    fn what_fits_by_its_positions_fits_with_what_else_a_product_does() {
        let register = [Form::Register(Loads::Own), Form::Octets(Loads::Own), Form::Quads(Loads::Own)];
        for form in register.into_iter().chain([Form::Direct]) {
            assert!(form.iterations(1, 5000) <= turns(&LayerKind::Linear, 5000) + TURNS, "{form:?}");
        }
    }

    #[test]
    fn windows_of_neighbouring_outputs_meet_what_the_whole_meets() {
        let window = Window {
            kernel: vec![3],
            stride: vec![2],
            padding: vec![1],
            dilation: vec![2],
            groups: 1,
            output_padding: Vec::new(),
        };
        assert_eq!(met(&window, &(0..1)), -1..4);
        assert_eq!(met(&window, &(3..5)), 5..12);
    }
}
