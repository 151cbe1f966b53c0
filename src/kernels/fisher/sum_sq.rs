//! Squared per-sample gradients of a bias.

use std::ops::Range;

use rayon::prelude::*;

use super::Mode;
use super::cases::{self, Numbers};
use super::product::{Scratch, Store, sum_of_runs};
use crate::error::{Error, Result};
use crate::gpu::{Caps, DeviceClass};
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Slice, groups_of, widen_into};
use crate::kernels::{COLUMNS, DTYPE, ELEMENT, WORKGROUP, shader};
use crate::reference;
use crate::shape::DType;

/// Sum over squares of squared sums of the output's gradient: the Fisher of a bias.
///
/// ```text
/// out[o] ← decay · out[o] + gain · Σ_s weight[s] · (Σ_{n ∈ s} Σ_t gradient_scale · b[n, t, o])²
/// ```
///
/// - `grad_output`  b `[n, t, o]`, or `[n, o, t]` with `channels_first`, as convolutions have it; f32, f16 or bf16; gradient of
///   the *summed* loss
/// - `weight`       `[s]`, f32, one for each `fold` consecutive samples
/// - `out`          `[o]`, f32
///
/// A [`Mode`] other than squares sums or stores the gradients themselves; `out` is then `[o]` or `[s, o]`.
///
/// Must move b and out once; one addition an element of b. Bitwise repeatable: each output has one owner and a fixed order. No samples
/// or no positions: the sums are zeros. Definition: [`reference::fisher::bias`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumSq {
    /// What becomes of the gradients.
    pub mode: Mode,
    /// Invocations that share the positions of one output: a power of two up to the workgroup's size.
    pub lanes: u32,
    /// Storage of the output's gradient.
    pub grad_output: DType,
    /// Whether positions are the last axis.
    pub channels_first: bool,
    /// Whether the old value is not read.
    pub overwrite: bool,
    /// Groups of eight outputs for each invocation, up to four, where positions are not the last axis and outputs come in eights; 0 for one
    /// output an invocation or several of them.
    pub octets: u32,
}

crate::params! {
    /// The numbers of one [`SumSq`] step.
    pub struct SumSqParams {
        /// Samples in the buffer.
        samples: u32,
        /// Samples a square, at least 1.
        fold: u32,
        /// The first square of this step.
        first: u32,
        /// Squares of this step.
        count: u32,
        /// Positions of a sample.
        positions: u32,
        /// Outputs.
        outputs: u32,
        /// Factor of the old value.
        decay: f32,
        /// Factor of the sum.
        gain: f32,
        /// Factor of `grad_output`.
        gradient_scale: f32,
    }
}

crate::args! {
    /// The buffers of one [`SumSq`] step.
    pub struct SumSqArgs / SumSqSlices {
        /// The gradient at the layer's output.
        read grad_output,
        /// One weight a square `[s]`.
        read weight,
        /// The result `[o]`.
        write out,
    }
}

impl SumSq {
    /// Lanes that suit a device, a layout and squares of so many positions.
    #[must_use]
    pub fn lanes(caps: &Caps, channels_first: bool, positions: u64) -> u32 {
        match (caps.class, channels_first) {
            // A barrier costs more there than it saves, but for squares so long that they meet `Caps::max_iterations`.
            (DeviceClass::Software, _) if positions < 4096 => 1,
            (DeviceClass::Software, _) => 64,
            (DeviceClass::Gpu, true) => 64,
            (DeviceClass::Gpu, false) => 8,
        }
    }

    /// Octets that suit a device, a layout, so many outputs and squares of so many positions.
    #[must_use]
    pub fn octets(caps: &Caps, channels_first: bool, outputs: u32, positions: u64) -> u32 {
        if channels_first { 0 } else { super::octets_for(caps, outputs, positions) }
    }

    /// Loop iterations of an invocation for a square of so many positions.
    pub(crate) fn iterations_of(lanes: u32, positions: u64) -> u64 {
        let lanes = lanes.max(1);
        3 + positions.div_ceil(lanes.into()) + u64::from(lanes.ilog2())
    }
}

impl Kernel for SumSq {
    const NAME: &'static str = "fisher.sum_sq";
    type Params = SumSqParams;
    type Args = SumSqArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("fisher/sum_sq.wgsl"), DTYPE, ELEMENT, COLUMNS]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = self.mode.overrides().to_vec();
        if self.octets == 0 {
            overrides.extend([("OUTPUTS", (WORKGROUP / self.lanes).into()), ("LANES", self.lanes.into())]);
        }
        overrides.extend(super::octet_overrides(self.octets));
        overrides.extend([
            ("GRAD_OUTPUT", self.grad_output.code().into()),
            ("CHANNELS_FIRST", f64::from(u8::from(self.channels_first))),
            ("OVERWRITE", f64::from(u8::from(self.overwrite))),
        ]);
        overrides
    }

    fn launch(&self, p: &SumSqParams, args: &SumSqArgs, caps: &Caps) -> Result<[u32; 3]> {
        if !self.lanes.is_power_of_two() || self.lanes > WORKGROUP {
            let problem = format!("{} lanes are no power of two up to {WORKGROUP}", self.lanes);
            return Err(Error::argument(Self::NAME, problem));
        }
        let [samples, fold, positions, outputs] = [p.samples, p.fold, p.positions, p.outputs].map(u64::from);
        super::check_fold(Self::NAME, fold)?;
        let squares = samples.div_ceil(fold);
        super::check_range(Self::NAME, "squares", (p.first, p.count), squares)?;
        let grad_output = super::len(Self::NAME, &[samples, positions, outputs])?;
        args.grad_output.expect(Self::NAME, "grad_output", grad_output, Some(self.grad_output.into()))?;
        args.weight.expect(Self::NAME, "weight", squares, Some(DType::F32.into()))?;
        let out = super::len(Self::NAME, &[self.mode.results(squares), outputs])?;
        args.out.expect(Self::NAME, "out", out, Some(DType::F32.into()))?;
        super::check_octets(Self::NAME, self.octets, p.outputs, !self.channels_first)?;
        let groups = match self.octets {
            0 => outputs.div_ceil(u64::from(WORKGROUP / self.lanes)),
            octets => super::octet_groups(octets, p.outputs),
        };
        groups_of(Self::NAME, self.mode.results(p.count.into()) * groups, caps)
    }

    fn iterations(&self, p: &SumSqParams, _: &SumSqArgs) -> u64 {
        let positions = u64::from(p.fold.min(p.samples)) * u64::from(p.positions);
        self.mode.squares_of_one(p.count).saturating_mul(Self::iterations_of(self.lanes, positions))
    }

    fn host(&self, p: &SumSqParams, args: SumSqSlices<'_>) {
        let layer = Layer {
            squared: self.mode.squared(),
            grad_output: args.grad_output,
            weight: args.weight.cast(),
            samples: p.samples as usize,
            fold: p.fold as usize,
            positions: p.positions as usize,
            outputs: p.outputs as usize,
            gradient_scale: p.gradient_scale,
        };
        let squares = p.first as usize..p.first as usize + p.count as usize;
        let store = Store { overwrite: self.overwrite, decay: p.decay, gain: p.gain };
        let tasks = layer.outputs.div_ceil(OUTPUTS);
        let written = super::written(self.mode, &squares, (0, p.outputs), 1);
        super::for_results(self.mode, squares, &mut args.out.cast()[written], |squares, out| {
            out.par_chunks_mut(OUTPUTS).enumerate().for_each(|(task, out)| {
                let outputs = task * OUTPUTS..task * OUTPUTS + out.len();
                let sums = sum_of_runs(&squares, tasks, &mut Scratch::default(), |scratch, run| {
                    layer.sums(&outputs, run, self.channels_first, scratch)
                });
                store.apply(out, &sums);
            });
        });
    }

    fn cost(&self, p: &SumSqParams, _: &SumSqArgs) -> Cost {
        let samples = super::samples_of(p.samples, p.fold, p.first, p.count);
        let [positions, outputs, squares] = [p.positions, p.outputs, p.count].map(u64::from);
        let elements = samples * positions * outputs;
        let results = self.mode.results(squares) * outputs;
        Cost {
            bytes: elements * self.grad_output.size() + results * if self.overwrite { 4 } else { 8 },
            flops: elements + 3 * squares * outputs,
        }
    }
}

/// Outputs of one task of the host: long runs of each position, which the processor fetches ahead, and sums that stay in a
/// first-level cache.
const OUTPUTS: usize = 2048;

/// Positions of one output that are widened at a time where positions come last.
const POSITIONS: usize = 1024;

struct Layer<'a> {
    squared: bool,
    grad_output: Slice<'a>,
    weight: &'a [f32],
    samples: usize,
    fold: usize,
    positions: usize,
    outputs: usize,
    gradient_scale: f32,
}

impl Layer<'_> {
    /// The sums of some outputs over a run of squares.
    fn sums(
        &self,
        outputs: &Range<usize>,
        squares: Range<usize>,
        channels_first: bool,
        scratch: &mut Scratch,
    ) -> Vec<f32> {
        let mut sums = vec![0.0; outputs.len()];
        // In f64: positions come in any number, and their sum must not lose more digits with each.
        let mut gradient = vec![0.0_f64; outputs.len()];
        for square in squares {
            let weight = self.weight[square];
            if weight == 0.0 {
                continue;
            }
            gradient.fill(0.0);
            for sample in square * self.fold..self.samples.min((square + 1) * self.fold) {
                if channels_first {
                    self.add_columns(sample, outputs, scratch, &mut gradient);
                } else {
                    self.add_rows(sample, outputs, scratch, &mut gradient);
                }
            }
            for (sum, &g) in sums.iter_mut().zip(&gradient) {
                #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
                let g = g as f32;
                *sum += weight * if self.squared { g * g } else { g };
            }
        }
        sums
    }

    /// Adds a sample's `[t, o]`, row by row.
    fn add_rows(&self, sample: usize, outputs: &Range<usize>, scratch: &mut Scratch, gradient: &mut [f64]) {
        for t in 0..self.positions {
            let start = (sample * self.positions + t) * self.outputs + outputs.start;
            let row = self.floats(start, outputs.len(), scratch);
            for (g, &b) in gradient.iter_mut().zip(row) {
                *g += f64::from(self.gradient_scale * b);
            }
        }
    }

    /// Adds a sample's `[o, t]`, each output in sixteen interleaved sums a block, so that it vectorises.
    fn add_columns(
        &self,
        sample: usize,
        outputs: &Range<usize>,
        scratch: &mut Scratch,
        gradient: &mut [f64],
    ) {
        const LANES: usize = 16;
        for (output, g) in outputs.clone().zip(gradient) {
            let first = (sample * self.outputs + output) * self.positions;
            for start in (0..self.positions).step_by(POSITIONS) {
                let mut lanes = [0.0; LANES];
                let len = POSITIONS.min(self.positions - start);
                for chunk in self.floats(first + start, len, scratch).chunks(LANES) {
                    for (lane, &b) in lanes.iter_mut().zip(chunk) {
                        *lane += self.gradient_scale * b;
                    }
                }
                *g += f64::from(lanes.iter().sum::<f32>());
            }
        }
    }

    /// Elements as f32: where they lie if they are.
    fn floats<'a>(&'a self, start: usize, len: usize, scratch: &'a mut Scratch) -> &'a [f32] {
        let slice = self.grad_output.range(start, len);
        if slice.element() == DType::F32.into() {
            return slice.cast();
        }
        let out = scratch.take(len);
        widen_into(slice, out);
        out
    }
}

/// Samples, fold, positions, outputs.
type Shape = (usize, usize, usize, usize);

/// Around the edges of a workgroup's outputs (32, 256) and lanes (8, 64), of one and none.
const SHAPES: [Shape; 14] = [
    (0, 1, 3, 4),
    (2, 1, 0, 4),
    (1, 1, 1, 1),
    (3, 1, 1, 33),
    (3, 1, 7, 31),
    (2, 1, 8, 32),
    (3, 1, 9, 255),
    (2, 1, 63, 256),
    (2, 1, 65, 257),
    (40, 1, 3, 5),
    (7, 3, 5, 11),
    (5, 5, 2, 6),
    (2, 1, 2050, 3),
    (1, 1, 1, 2_200_003),
];

impl Checked for SumSq {
    fn cases() -> Vec<Case<Self>> {
        let mut out = Vec::new();
        for lanes in [1, 8, 64] {
            for channels_first in [false, true] {
                let kernel = plain(lanes, channels_first);
                let small = &SHAPES[..SHAPES.len() - 1];
                out.extend(small.iter().map(|&shape| case(kernel, shape, Numbers::OVERWRITE, None)));
                for numbers in [Numbers::ADD, Numbers::EMA, Numbers::SCALED] {
                    out.push(case(kernel, (4, 1, 5, 37), numbers, None));
                }
                out.push(case(kernel, (9, 2, 5, 37), Numbers::ADD, Some((1, 3))));
                for mode in [Mode::Gradients, Mode::Each] {
                    let kernel = Self { mode, ..kernel };
                    for shape in [SHAPES[0], SHAPES[1], SHAPES[6], SHAPES[8], SHAPES[10]] {
                        out.push(case(kernel, shape, Numbers::OVERWRITE, None));
                    }
                    out.push(case(kernel, (9, 2, 5, 37), Numbers::ADD, Some((1, 3))));
                    out.push(case(kernel, (4, 1, 5, 37), Numbers::SCALED, None));
                }
                for grad_output in [DType::F16, DType::BF16] {
                    out.push(case(Self { grad_output, ..kernel }, (3, 1, 19, 37), Numbers::ADD, None));
                }
            }
        }
        for octets in [1, 2, 4, 8] {
            let kernel = Self { octets, ..plain(1, false) };
            for outputs in [8, 56, 64, 72, 128, 200, 256, 264, 512, 520] {
                out.push(case(kernel, (3, 1, 5, outputs), Numbers::OVERWRITE, None));
                out.push(case(kernel, (9, 2, 3, outputs), Numbers::ADD, Some((1, 3))));
                for mode in [Mode::Gradients, Mode::Each] {
                    out.push(case(Self { mode, ..kernel }, (9, 2, 3, outputs), Numbers::EMA, Some((1, 3))));
                }
            }
            for grad_output in [DType::F16, DType::BF16] {
                out.push(case(Self { grad_output, ..kernel }, (3, 1, 19, 40), Numbers::SCALED, None));
            }
            for shape in [(0, 1, 3, 8), (2, 1, 0, 8)] {
                out.push(case(kernel, shape, Numbers::OVERWRITE, None));
            }
        }
        // More than one row of workgroups.
        let kernel = plain(8, false);
        out.push(case(kernel, SHAPES[SHAPES.len() - 1], Numbers::OVERWRITE, None));
        out
    }

    fn bench(elements: u64) -> Bench<Self> {
        let samples = elements / u64::from(LAYER_POSITIONS * LAYER_OUTPUTS);
        layer(&Caps::host(), u32::try_from(samples).unwrap_or(u32::MAX).max(1))
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [1, 16, 64, 256, 1024].map(|samples| layer(caps, samples)).into()
    }
}

/// Of a bench's samples.
const LAYER_POSITIONS: u32 = 64;
const LAYER_OUTPUTS: u32 = 1024;

fn layer(caps: &Caps, samples: u32) -> Bench<SumSq> {
    let lanes = SumSq::lanes(caps, false, LAYER_POSITIONS.into());
    let octets = SumSq::octets(caps, false, LAYER_OUTPUTS, LAYER_POSITIONS.into());
    let shape = (samples as usize, 1, LAYER_POSITIONS as usize, LAYER_OUTPUTS as usize);
    Bench {
        name: format!("n={samples} t={LAYER_POSITIONS} o={LAYER_OUTPUTS} f32"),
        kernel: SumSq { overwrite: true, octets, ..plain(lanes, false) },
        params: whole(shape, Numbers::OVERWRITE),
        buffers: vec![
            (DType::F32.into(), u64::from(samples) * u64::from(LAYER_POSITIONS * LAYER_OUTPUTS), Fill::Noise),
            (DType::F32.into(), samples.into(), Fill::Positive),
            (DType::F32.into(), LAYER_OUTPUTS.into(), Fill::Zero),
        ],
    }
}

fn plain(lanes: u32, channels_first: bool) -> SumSq {
    SumSq { mode: Mode::Squares, lanes, grad_output: DType::F32, channels_first, overwrite: false, octets: 0 }
}

fn whole((samples, fold, positions, outputs): Shape, numbers: Numbers) -> SumSqParams {
    let [samples, fold, positions, outputs] =
        [samples, fold, positions, outputs].map(|x| u32::try_from(x).expect("cases are small"));
    SumSqParams {
        samples,
        fold,
        first: 0,
        count: samples.div_ceil(fold),
        positions,
        outputs,
        decay: numbers.decay,
        gain: numbers.gain,
        gradient_scale: numbers.gradient_scale,
    }
}

/// `range`: the first square, their number.
fn case(kernel: SumSq, shape: Shape, numbers: Numbers, range: Option<(u32, u32)>) -> Case<SumSq> {
    let (samples, fold, positions, outputs) = shape;
    let kernel = SumSq { overwrite: numbers.overwrite, ..kernel };
    let mut params = whole(shape, numbers);
    if let Some((first, count)) = range {
        params = SumSqParams { first, count, ..params };
    }
    let of_sample = positions * outputs;
    let grad_output = CaseBuffer::floats(kernel.grad_output, &numbers.grad_output(samples * of_sample));
    let weight = CaseBuffer::floats(DType::F32, &cases::weights(samples.div_ceil(fold), kernel.mode));
    let out = match kernel.mode {
        Mode::Each => numbers.out(samples.div_ceil(fold) * outputs),
        _ => numbers.out(outputs),
    };
    let (b, old) = (grad_output.values(), out.values());
    let squares = params.first as usize..(params.first + params.count) as usize;
    let gradients = |b: &[f64]| {
        let all = cases::gradients(samples, fold, |n| {
            reference::fisher::bias(
                &b[n * of_sample..][..of_sample],
                positions,
                outputs,
                kernel.channels_first,
            )
        });
        all[squares.clone()].to_vec()
    };
    let weights = &weight.values()[squares.clone()];
    let magnitudes = gradients(&cases::abs(&b));
    let covered = cases::Covered { first: params.first as usize, elements: 0..outputs };
    let terms = (&gradients(&b)[..], &magnitudes[..], fold * positions);
    let want = cases::wanted(kernel.mode, numbers, &covered, terms, weights, &old);
    Case {
        name: format!("{kernel:?} n,fold,t,o={shape:?} range={range:?} scale={:e}", numbers.gradient_scale),
        kernel,
        params,
        buffers: vec![grad_output, weight, out],
        want: vec![(2, want)],
    }
}
