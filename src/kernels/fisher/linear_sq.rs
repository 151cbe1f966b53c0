//! Squared per-sample weight gradients of a linear layer with one position.

use std::ops::Range;

use super::Mode;
use super::cases::{self, Numbers};
use super::form::{Form, Loads};
use super::product::{Factors, Scratch, Store, products};
use super::registers::Left;
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Slice, Want, noise, widen_into};
use crate::kernels::shader;
use crate::reference;
use crate::shape::DType;

/// Sum over samples of squared weight gradients of a linear layer with one position a sample:
///
/// ```text
/// out[o, i] ← decay · out[o, i] + gain · Σ_n weight[n] · (gradient_scale · b[n, o])² · a[n, i]²
/// ```
///
/// - `input`        a `[n, i]`, f32, f16 or bf16
/// - `grad_output`  b `[n, o]`, f32, f16 or bf16; gradient of the *summed* loss
/// - `weight`       `[n]`, f32
/// - `out`          `[o, i]`, f32
///
/// The square of a single product factorises, so this is one matrix product of squares, (w ∘ B ∘ B)ᵀ (A ∘ A). With
/// positions it does not: [`LinearSqShared`](super::LinearSqShared).
///
/// Must move a, b and out once; 2·n·o·i operations. The factors are squared as they are fetched; there is no squared
/// copy. Squares of factors below 1e-19 vanish in f32 (`gradient_scale` serves b). Bitwise repeatable: each element has
/// one owner and a fixed order. No samples: the sums are zeros. Definition:
/// [`reference::fisher`](crate::reference::fisher).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearSq {
    /// The shader's form.
    pub form: Form,
    /// Storage of the input.
    pub input: DType,
    /// Storage of the output's gradient.
    pub grad_output: DType,
    /// Whether the old value is not read.
    pub overwrite: bool,
}

crate::params! {
    /// The numbers of one [`LinearSq`] step.
    pub struct LinearSqParams {
        /// Samples in the buffers.
        samples: u32,
        /// The first sample of this step.
        first: u32,
        /// Samples of this step.
        count: u32,
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
    /// The buffers of one [`LinearSq`] step.
    pub struct LinearSqArgs / LinearSqSlices {
        /// The layer's input `[n, i]`.
        read input,
        /// The gradient at the layer's output `[n, o]`.
        read grad_output,
        /// One weight a sample `[n]`.
        read weight,
        /// The result `[o, i]`.
        write out,
    }
}

impl Kernel for LinearSq {
    const NAME: &'static str = "fisher.linear_sq";
    type Params = LinearSqParams;
    type Args = LinearSqArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        self.form.parts(shader!("fisher/linear_sq.wgsl"), shader!("lib/product/rows.wgsl"))
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides =
            super::overrides(self.form, Mode::Squares, self.input, self.grad_output, self.overwrite);
        overrides.push(self.form.aligned());
        overrides
    }

    fn subgroup(&self) -> u32 {
        self.form.subgroup()
    }

    fn launch(&self, p: &LinearSqParams, args: &LinearSqArgs, caps: &Caps) -> Result<[u32; 3]> {
        let [samples, inputs, outputs] = [p.samples, p.inputs, p.outputs].map(u64::from);
        super::check_range(Self::NAME, "samples", (p.first, p.count), samples)?;
        super::check_range(Self::NAME, "outputs", (p.first_output, p.output_count), outputs)?;
        let len = |shape: &[u64]| super::len(Self::NAME, shape);
        args.input.check(Self::NAME, "input", len(&[samples, inputs])?, Some(self.input.into()))?;
        let grad_output = len(&[samples, outputs])?;
        args.grad_output.check(Self::NAME, "grad_output", grad_output, Some(self.grad_output.into()))?;
        args.weight.check(Self::NAME, "weight", samples, Some(DType::F32.into()))?;
        let range = (p.out_first, p.first_output, p.output_count);
        super::check_out(Self::NAME, Mode::Squares, &args.out, range, [1, outputs, inputs])?;
        if matches!(self.form, Form::Matrix(_)) {
            // Squared factors have twice the exponents, and halves of f16 are not made for that.
            return Err(Error::argument(Self::NAME, "form Matrix is for sums over positions"));
        }
        self.form.check_widths(Self::NAME, &[p.first_output, p.outputs, p.inputs])?;
        self.form.grid(Self::NAME, 1, p.output_count.into(), inputs, caps)
    }

    fn iterations(&self, p: &LinearSqParams, _: &LinearSqArgs) -> u64 {
        self.form.iterations(1, p.count.into())
    }

    fn host(&self, p: &LinearSqParams, args: LinearSqSlices<'_>) {
        let [rows, columns] = [p.output_count, p.inputs].map(|x| x as usize);
        let samples = p.first as usize..p.first as usize + p.count as usize;
        let factors = Squares {
            input: args.input,
            inputs: columns,
            grad_output: args.grad_output,
            outputs: p.outputs as usize,
            first_output: p.first_output as usize,
            weight: args.weight.cast(),
            gradient_scale: p.gradient_scale,
            samples: samples.clone(),
        };
        let squares = 0..1;
        let written =
            super::written(Mode::Squares, &squares, (p.first_output - p.out_first, p.output_count), columns);
        let out = &mut args.out.cast()[written];
        let store = Store { overwrite: self.overwrite, decay: p.decay, gain: p.gain };
        products(&factors, (rows, columns), 0..samples.len().div_ceil(SAMPLES), out, store);
    }

    fn cost(&self, p: &LinearSqParams, _: &LinearSqArgs) -> Cost {
        let [samples, inputs, rows] = [p.count, p.inputs, p.output_count].map(u64::from);
        let factors = samples * (inputs * self.input.size() + rows * self.grad_output.size());
        let elements = rows * inputs;
        Cost { bytes: factors + elements * if self.overwrite { 4 } else { 8 }, flops: elements * 2 * samples }
    }
}

/// Samples of a block of the host's: where a result is small, its blocks are shared out to the cores.
const SAMPLES: usize = 128;

/// Blocks of squared factors, taken as products whose sums are not squared again.
struct Squares<'a> {
    input: Slice<'a>,
    inputs: usize,
    grad_output: Slice<'a>,
    outputs: usize,
    first_output: usize,
    weight: &'a [f32],
    gradient_scale: f32,
    samples: Range<usize>,
}

impl Squares<'_> {
    fn all(&self, block: usize) -> Range<usize> {
        let start = self.samples.start + block * SAMPLES;
        start..self.samples.end.min(start + SAMPLES)
    }

    /// The samples that some positions of a block are.
    fn samples_of(&self, block: usize, positions: &Range<usize>) -> Range<usize> {
        let first = self.all(block).start;
        first + positions.start..first + positions.end
    }
}

impl Factors for Squares<'_> {
    const TILE: (usize, usize) = (132, 1024);

    fn squared(&self) -> bool {
        false
    }

    fn positions(&self, square: usize) -> usize {
        self.all(square).len()
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
        square: usize,
        positions: &Range<usize>,
        rows: &Range<usize>,
        scratch: &'a mut Scratch,
    ) -> Left<'a> {
        let step = rows.len();
        let out = scratch.take(positions.len() * step);
        for (sample, out) in self.samples_of(square, positions).zip(out.chunks_exact_mut(step)) {
            let start = sample * self.outputs + self.first_output + rows.start;
            let values = self.grad_output.range(start, step);
            square_into(values, self.weight[sample], self.gradient_scale, out);
        }
        Left { values: out, run: positions.len(), pitch: 0, step }
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
        for (sample, out) in self.samples_of(square, positions).zip(out.chunks_exact_mut(stride)) {
            let present = if self.weight[sample] == 0.0 { 0.0 } else { 1.0 };
            let (out, beyond) = out.split_at_mut(columns.len());
            let start = sample * self.inputs + columns.start;
            square_into(self.input.range(start, columns.len()), present, 1.0, out);
            beyond.fill(0.0);
        }
    }
}

/// weight · (scale · values)², zeros for a weight of 0 whatever the values are.
#[inline(always)]
fn square_into(values: Slice<'_>, weight: f32, scale: f32, out: &mut [f32]) {
    if weight == 0.0 {
        return out.fill(0.0);
    }
    let square = |value: f32| {
        let scaled = scale * value;
        weight * (scaled * scaled)
    };
    if values.element() == DType::F32.into() {
        for (out, &value) in out.iter_mut().zip(values.cast::<f32>()) {
            *out = square(value);
        }
        return;
    }
    widen_into(values, out);
    out.iter_mut().for_each(|value| *value = square(*value));
}

/// Samples, inputs, outputs.
type Shape = (usize, usize, usize);

/// Around the edges of tiles (8, 64, 128), of the depth in workgroup memory (8), of the host's tiles (258 × 512) and
/// blocks (128 samples), of one and none.
const SHAPES: [Shape; 14] = [
    (0, 5, 4),
    (1, 1, 1),
    (3, 10, 5),
    (3, 1, 9),
    (7, 7, 1),
    (8, 63, 8),
    (9, 64, 7),
    (17, 65, 63),
    (3, 127, 65),
    (2, 257, 129),
    (300, 9, 5),
    (5, 31, 128),
    (2, 513, 259),
    (129, 17, 7),
];

impl Checked for LinearSq {
    fn cases() -> Vec<Case<Self>> {
        let mut out = Vec::new();
        for form in cases::FORMS {
            let kernel = Self { form, input: DType::F32, grad_output: DType::F32, overwrite: false };
            out.extend(SHAPES.map(|shape| case(kernel, shape, Numbers::OVERWRITE, None)));
            for numbers in [Numbers::ADD, Numbers::EMA, Numbers::SCALED] {
                out.push(case(kernel, (5, 13, 11), numbers, None));
            }
            let range = case(kernel, (9, 13, 21), Numbers::ADD, Some([2, 5, 8, 9]));
            let mut held = cases::held(range.clone(), 7 * 13..19 * 13);
            held.params.out_first = 7;
            out.extend([range, held]);
            for input in DType::ALL {
                for grad_output in DType::ALL {
                    out.push(case(Self { input, grad_output, ..kernel }, (4, 67, 9), Numbers::ADD, None));
                }
            }
        }
        for loads in [Loads::Own, Loads::Shared] {
            let octets = Self {
                form: Form::Octets(loads),
                input: DType::F32,
                grad_output: DType::F32,
                overwrite: false,
            };
            let whole = [(3, 8, 8), (9, 64, 16), (5, 72, 24), (7, 136, 40), (0, 8, 8)];
            out.extend(whole.map(|shape| case(octets, shape, Numbers::OVERWRITE, None)));
            out.push(case(octets, (9, 24, 32), Numbers::ADD, Some([2, 5, 8, 16])));
            for input in DType::ALL {
                for grad_output in DType::ALL {
                    out.push(case(Self { input, grad_output, ..octets }, (4, 72, 24), Numbers::SCALED, None));
                }
            }
        }
        // More than one row of workgroups.
        let kernel =
            Self { form: Form::Direct, input: DType::F32, grad_output: DType::F32, overwrite: false };
        out.push(case(kernel, (1, 2048, 2050), Numbers::OVERWRITE, None));
        out
    }

    fn bench(elements: u64) -> Bench<Self> {
        let width = usize::try_from(elements.isqrt()).unwrap_or(usize::MAX).clamp(16, 2048);
        layer(&Caps::host(), (1024, width, width))
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        [(64, 256, 256), (1024, 1024, 1024), (1024, 2048, 2048)].map(|shape| layer(caps, shape)).into()
    }
}

fn layer(caps: &Caps, (samples, inputs, outputs): Shape) -> Bench<LinearSq> {
    let form = cases::form(caps, outputs, inputs);
    let floats = |len: usize, fill| (DType::F32.into(), len as u64, fill);
    Bench {
        name: format!("n={samples} {outputs}x{inputs} f32"),
        kernel: LinearSq { form, input: DType::F32, grad_output: DType::F32, overwrite: true },
        params: whole((samples, inputs, outputs), Numbers::OVERWRITE),
        buffers: vec![
            floats(samples * inputs, Fill::Noise),
            floats(samples * outputs, Fill::Noise),
            floats(samples, Fill::Positive),
            floats(outputs * inputs, Fill::Zero),
        ],
    }
}

fn whole((samples, inputs, outputs): Shape, numbers: Numbers) -> LinearSqParams {
    let [samples, inputs, outputs] =
        [samples, inputs, outputs].map(|x| u32::try_from(x).expect("cases are small"));
    LinearSqParams {
        samples,
        first: 0,
        count: samples,
        inputs,
        outputs,
        first_output: 0,
        output_count: outputs,
        out_first: 0,
        decay: numbers.decay,
        gain: numbers.gain,
        gradient_scale: numbers.gradient_scale,
    }
}

/// `range`: the first sample, their number, the first output, their number.
fn case(kernel: LinearSq, shape: Shape, numbers: Numbers, range: Option<[u32; 4]>) -> Case<LinearSq> {
    let (samples, inputs, outputs) = shape;
    let kernel = LinearSq { overwrite: numbers.overwrite, ..kernel };
    let mut params = whole(shape, numbers);
    if let Some([first, count, first_output, output_count]) = range {
        params = LinearSqParams { first, count, first_output, output_count, ..params };
    }
    let input = CaseBuffer::floats(kernel.input, &noise(1, samples * inputs));
    let grad_output = CaseBuffer::floats(kernel.grad_output, &numbers.grad_output(samples * outputs));
    let weight = CaseBuffer::floats(DType::F32, &cases::weights(samples, Mode::Squares));
    let out = numbers.out(outputs * inputs);
    let (a, b, old) = (input.values(), grad_output.values(), out.values());
    let range_of_samples = params.first as usize..(params.first + params.count) as usize;
    let gradients: Vec<Vec<f64>> = range_of_samples
        .clone()
        .map(|n| {
            let (a, b) = (&a[n * inputs..][..inputs], &b[n * outputs..][..outputs]);
            reference::fisher::linear(a, b, 1, inputs, outputs)
        })
        .collect();
    let want = cases::want_factorised(numbers, &gradients, &weight.values()[range_of_samples], &old);
    let first = params.first_output as usize * inputs;
    let want: Vec<Want> = cases::only(first..first + params.output_count as usize * inputs, want, &old);
    Case {
        name: format!("{kernel:?} n,i,o={shape:?} range={range:?} scale={:e}", numbers.gradient_scale),
        kernel,
        params,
        buffers: vec![input, grad_output, weight, out],
        want: vec![(3, want)],
    }
}
