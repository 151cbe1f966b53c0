//! Squared per-sample gradients of a bias.

mod cases;

use std::ops::Range;

use rayon::prelude::*;

use super::Mode;
use super::product::{Scratch, Store, sum_of_runs};
use crate::error::{Error, Result};
use crate::gpu::{Caps, DeviceClass};
use crate::kernel::{Cost, Kernel, Slice, groups_of, widen_into};
use crate::kernels::{COLUMNS, DTYPE, ELEMENT, WORKGROUP, shader};
use crate::shape::DType;

/// Sum over squares of squared sums of the output's gradient: the Fisher of a bias.
///
/// ```text
/// out[o] ← decay · out[o] + gain · Σ_s weight[s] · (Σ_{n ∈ s} Σ_t gradient_scale · b[n, t, o])²
/// ```
///
/// - `grad_output`  b `[n, t, o]`, or `[n, o, t]` with `channels_first`, as convolutions have it; f32, f16 or bf16;
///   gradient of
///   the *summed* loss
/// - `weight`       `[s]`, f32, one for each `fold` consecutive samples
/// - `out`          `[o]`, f32
///
/// A [`Mode`] other than squares sums or stores the gradients themselves; `out` is then `[o]` or `[s, o]`.
///
/// Must move b and out once; one addition an element of b. Bitwise repeatable: each output has one owner and a fixed
/// order. No samples or no positions: the sums are zeros. Definition:
/// [`reference::fisher::bias`](crate::reference::fisher::bias).
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
    /// Groups of eight outputs for each invocation, up to eight, where positions are not the last axis and outputs come
    /// in eights; 0 for one output an invocation or several of them.
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
        args.grad_output.check(Self::NAME, "grad_output", grad_output, Some(self.grad_output.into()))?;
        args.weight.check(Self::NAME, "weight", squares, Some(DType::F32.into()))?;
        let out = super::len(Self::NAME, &[self.mode.results(squares), outputs])?;
        args.out.check(Self::NAME, "out", out, Some(DType::F32.into()))?;
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

/// Outputs of one task of the host: long runs of each position, which the processor fetches ahead, and sums
/// that stay in a first-level cache.
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
