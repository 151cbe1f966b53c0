//! Squared per-sample weight gradients of a linear layer with positions.

mod cases;

use std::ops::Range;

use super::Mode;
use super::form::Form;
use super::product::{Factors, Scratch, Store, products};
use super::registers::Left;
use crate::error::Result;
use crate::gpu::{Caps, MatrixUnits};
use crate::kernel::{Cost, Kernel, Slice, widen_into};
use crate::kernels::shader;
use crate::shape::DType;

/// Sum over squares of squared weight gradients of a linear layer that is used at several positions:
///
/// ```text
/// out[o, i] ← decay · out[o, i] + gain · Σ_s weight[s] · (Σ_{n ∈ s} Σ_t gradient_scale · b[n, t, o] · a[n, t, i])²
/// ```
///
/// - `input`        a `[n, t, i]`, f32, f16 or bf16
/// - `grad_output`  b `[n, t, o]`, f32, f16 or bf16; gradient of the *summed* loss
/// - `weight`       `[s]`, f32, one for each `fold` consecutive samples
/// - `out`          `[o, i]`, f32
///
/// A [`Mode`] other than squares sums or stores the gradients themselves; `out` is then `[o, i]` or
/// `[s, output_count, i]`.
///
/// The square does not factorise here: each square's gradient is its own matrix product, which exists one tile at a
/// time. With `fold` = 1 a square is a sample. A parameter used several times is the same with its uses one after the
/// other along t. For one position and one sample a square, [`LinearSq`](super::LinearSq) gives the same at the price
/// of one product in all.
///
/// Must move a, b and out once; 2·n·t·o·i operations and 3·s·o·i for the squares. Bitwise repeatable: each element has
/// one owner and a fixed order. No samples or no positions: the sums are zeros. Definition:
/// [`reference::fisher`](crate::reference::fisher). Cf. Dangel et al., *BackPACK* (2020), `SumGradSquared`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearSqShared {
    /// The shader's form.
    pub form: Form,
    /// What becomes of the gradients.
    pub mode: Mode,
    /// Storage of the input.
    pub input: DType,
    /// Storage of the output's gradient.
    pub grad_output: DType,
    /// Whether the old value is not read.
    pub overwrite: bool,
}

crate::params! {
    /// The numbers of one [`LinearSqShared`] step.
    pub struct LinearSqSharedParams {
        /// Samples in the buffers.
        samples: u32,
        /// Samples a square, at least 1.
        fold: u32,
        /// The first square of this step.
        first: u32,
        /// Squares of this step.
        count: u32,
        /// Positions of a sample.
        positions: u32,
        /// Input features.
        inputs: u32,
        /// Output features.
        outputs: u32,
        /// The first output of this step.
        first_output: u32,
        /// Outputs of this step.
        output_count: u32,
        /// The first output that `out` holds, where a step's result is not in a buffer of the whole weight.
        out_first: u32,
        /// Factor of the old value.
        decay: f32,
        /// Factor of the sum.
        gain: f32,
        /// Factor of `grad_output`.
        gradient_scale: f32,
    }
}

crate::args! {
    /// The buffers of one [`LinearSqShared`] step.
    pub struct LinearSqSharedArgs / LinearSqSharedSlices {
        /// The layer's input `[n, t, i]`.
        read input,
        /// The gradient at the layer's output `[n, t, o]`.
        read grad_output,
        /// One weight a square `[s]`.
        read weight,
        /// The result `[o, i]`.
        write out,
    }
}

impl Kernel for LinearSqShared {
    const NAME: &'static str = "fisher.linear_sq_shared";
    type Params = LinearSqSharedParams;
    type Args = LinearSqSharedArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        self.form.parts(shader!("fisher/linear_sq_shared.wgsl"), shader!("lib/product/rows.wgsl"))
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides =
            super::overrides(self.form, self.mode, self.input, self.grad_output, self.overwrite);
        overrides.push(self.form.aligned());
        overrides
    }

    fn subgroup(&self) -> u32 {
        self.form.subgroup()
    }

    fn matrix_units(&self) -> Option<MatrixUnits> {
        self.form.matrix_units()
    }

    fn launch(&self, p: &LinearSqSharedParams, args: &LinearSqSharedArgs, caps: &Caps) -> Result<[u32; 3]> {
        let [samples, fold, positions] = [p.samples, p.fold, p.positions].map(u64::from);
        let [inputs, outputs] = [p.inputs, p.outputs].map(u64::from);
        super::check_fold(Self::NAME, fold)?;
        let squares = samples.div_ceil(fold);
        super::check_range(Self::NAME, "squares", (p.first, p.count), squares)?;
        super::check_range(Self::NAME, "outputs", (p.first_output, p.output_count), outputs)?;
        let input = super::len(Self::NAME, &[samples, positions, inputs])?;
        let grad_output = super::len(Self::NAME, &[samples, positions, outputs])?;
        args.input.check(Self::NAME, "input", input, Some(self.input.into()))?;
        args.grad_output.check(Self::NAME, "grad_output", grad_output, Some(self.grad_output.into()))?;
        args.weight.check(Self::NAME, "weight", squares, Some(DType::F32.into()))?;
        let rows = u64::from(p.output_count);
        let range = (p.out_first, p.first_output, p.output_count);
        super::check_out(Self::NAME, self.mode, &args.out, range, [squares, outputs, inputs])?;
        self.form.check_widths(Self::NAME, &[p.first_output, p.outputs, p.inputs])?;
        self.form.grid(Self::NAME, self.mode.results(p.count.into()), rows, inputs, caps)
    }

    fn iterations(&self, p: &LinearSqSharedParams, _: &LinearSqSharedArgs) -> u64 {
        let positions = u64::from(p.fold.min(p.samples)) * u64::from(p.positions);
        self.form.iterations(self.mode.squares_of_one(p.count), positions)
    }

    fn host(&self, p: &LinearSqSharedParams, args: LinearSqSharedSlices<'_>) {
        let [rows, columns] = [p.output_count, p.inputs].map(|x| x as usize);
        let factors = Shared {
            mode: self.mode,
            input: Rows { values: args.input, width: columns, scale: 1.0 },
            grad_output: Rows {
                values: args.grad_output,
                width: p.outputs as usize,
                scale: p.gradient_scale,
            },
            weight: args.weight.cast(),
            samples: p.samples as usize,
            fold: p.fold as usize,
            positions: p.positions as usize,
            first_output: p.first_output as usize,
        };
        let squares = p.first as usize..p.first as usize + p.count as usize;
        let written =
            super::written(self.mode, &squares, (p.first_output - p.out_first, p.output_count), columns);
        let store = Store { overwrite: self.overwrite, decay: p.decay, gain: p.gain };
        if self.mode == Mode::Gradients {
            let joined = Joined::new(factors, &squares);
            let blocks = joined.rows.len().div_ceil(BLOCK);
            return products(&joined, (rows, columns), 0..blocks, &mut args.out.cast()[written], store);
        }
        super::for_results(self.mode, squares, &mut args.out.cast()[written], |squares, out| {
            products(&factors, (rows, columns), squares, out, store);
        });
    }

    fn cost(&self, p: &LinearSqSharedParams, _: &LinearSqSharedArgs) -> Cost {
        let samples = super::samples_of(p.samples, p.fold, p.first, p.count);
        let [positions, inputs, rows] = [p.positions, p.inputs, p.output_count].map(u64::from);
        let factors = samples * positions * (inputs * self.input.size() + rows * self.grad_output.size());
        let elements = rows * inputs;
        let results = self.mode.results(p.count.into()) * elements;
        Cost {
            bytes: factors + results * if self.overwrite { 4 } else { 8 },
            flops: elements * (2 * samples * positions + 3 * u64::from(p.count)),
        }
    }
}

/// A matrix of storage elements, one row a position.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) values: Slice<'a>,
    pub(super) width: usize,
    pub(super) scale: f32,
}

impl Rows<'_> {
    /// Some columns as f32, a step apart from row to row: where they lie if nothing has to be done to them.
    #[inline(always)]
    fn get<'a>(
        &'a self,
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> (&'a [f32], usize) {
        let (height, wide) = (rows.len(), columns.len());
        // Rows further apart than this would share too few places in the caches.
        if self.values.element() == DType::F32.into() && self.scale == 1.0 && self.width <= 2048 {
            let values: &[f32] = self.values.cast();
            let end = (rows.end - 1) * self.width + columns.end;
            return (&values[rows.start * self.width + columns.start..end], self.width);
        }
        let out = scratch.take(height * wide);
        self.copy(rows, columns, out, wide);
        (out, wide)
    }

    /// Copies some columns, and zeros behind them up to `stride`.
    #[inline(always)]
    fn copy(&self, rows: Range<usize>, columns: Range<usize>, out: &mut [f32], stride: usize) {
        for (row, out) in rows.zip(out.chunks_exact_mut(stride)) {
            let (out, beyond) = out.split_at_mut(columns.len());
            widen_into(self.values.range(row * self.width + columns.start, columns.len()), out);
            beyond.fill(0.0);
            if self.scale != 1.0 {
                out.iter_mut().for_each(|value| *value *= self.scale);
            }
        }
    }
}

struct Shared<'a> {
    mode: Mode,
    input: Rows<'a>,
    grad_output: Rows<'a>,
    weight: &'a [f32],
    samples: usize,
    fold: usize,
    positions: usize,
    first_output: usize,
}

impl Shared<'_> {
    /// Positions of a square, counted over all samples.
    fn rows(&self, square: usize, positions: &Range<usize>) -> Range<usize> {
        let first = square * self.fold * self.positions;
        first + positions.start..first + positions.end
    }
}

impl Factors for Shared<'_> {
    const TILE: (usize, usize) = (132, 1024);

    fn squared(&self) -> bool {
        self.mode.squared()
    }

    fn positions(&self, square: usize) -> usize {
        self.fold.min(self.samples - square * self.fold) * self.positions
    }

    fn weight(&self, square: usize) -> f32 {
        self.weight[square]
    }

    fn start(&self, rows: &Range<usize>, row: usize) -> usize {
        row - rows.start
    }

    #[inline(always)]
    fn left<'a>(
        &'a self,
        square: usize,
        positions: &Range<usize>,
        rows: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Left<'a> {
        let outputs = self.first_output + rows.start..self.first_output + rows.end;
        let (values, step) = self.grad_output.get(self.rows(square, positions), outputs, scratch);
        Left { values, run: positions.len(), pitch: 0, step }
    }

    #[inline(always)]
    fn right(
        &self,
        square: usize,
        positions: &Range<usize>,
        columns: &Range<usize>,
        _: &mut Scratch,
        out: &mut [f32],
        stride: usize,
    ) {
        self.input.copy(self.rows(square, positions), columns.clone(), out, stride);
    }
}

/// Positions of a block of a weighted sum: where a result is small, its blocks are shared out to the cores.
const BLOCK: usize = 128;

/// All squares of a weighted sum of gradients as one product, each position of b times its square's weight. In blocks
/// of positions, whichever square they are of, so that squares of one position cost no more than their multiplications.
struct Joined<'a> {
    factors: Shared<'a>,
    /// Positions of the step, counted over all samples.
    rows: Range<usize>,
}

impl<'a> Joined<'a> {
    fn new(factors: Shared<'a>, squares: &Range<usize>) -> Self {
        let first = |square: usize| factors.samples.min(square * factors.fold) * factors.positions;
        let rows = first(squares.start)..first(squares.end);
        Self { factors, rows }
    }

    /// Some positions of a block, counted over all samples.
    fn rows(&self, block: usize, positions: &Range<usize>) -> Range<usize> {
        let first = self.rows.start + block * BLOCK;
        first + positions.start..first + positions.end
    }

    fn weight(&self, row: usize) -> f32 {
        self.factors.weight[row / (self.factors.fold * self.factors.positions)]
    }
}

impl Factors for Joined<'_> {
    const TILE: (usize, usize) = (132, 1024);

    fn squared(&self) -> bool {
        false
    }

    fn positions(&self, block: usize) -> usize {
        BLOCK.min(self.rows.len() - block * BLOCK)
    }

    fn weight(&self, _: usize) -> f32 {
        1.0
    }

    fn start(&self, rows: &Range<usize>, row: usize) -> usize {
        row - rows.start
    }

    #[inline(always)]
    fn left<'a>(
        &'a self,
        block: usize,
        positions: &Range<usize>,
        rows: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Left<'a> {
        let step = rows.len();
        let out = scratch.take(positions.len() * step);
        let outputs = self.factors.first_output + rows.start..self.factors.first_output + rows.end;
        let all = self.rows(block, positions);
        self.factors.grad_output.copy(all.clone(), outputs, out, step);
        for (row, out) in all.zip(out.chunks_exact_mut(step)) {
            match self.weight(row) {
                // Whatever the square holds.
                0.0 => out.fill(0.0),
                weight => out.iter_mut().for_each(|b| *b *= weight),
            }
        }
        Left { values: out, run: positions.len(), pitch: 0, step }
    }

    #[inline(always)]
    fn right(
        &self,
        block: usize,
        positions: &Range<usize>,
        columns: &Range<usize>,
        _: &mut Scratch,
        out: &mut [f32],
        stride: usize,
    ) {
        let all = self.rows(block, positions);
        self.factors.input.copy(all.clone(), columns.clone(), out, stride);
        for (row, out) in all.zip(out.chunks_exact_mut(stride)) {
            if self.weight(row) == 0.0 {
                out.fill(0.0);
            }
        }
    }
}
