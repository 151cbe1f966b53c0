//! Squared per-sample weight gradients of a convolution.

mod cases;
mod form;
mod group;
mod layer;
mod narrow;

use rayon::prelude::*;

use self::group::Group;
use self::layer::Layer;
use self::narrow::{Narrow, OUTPUTS};
use super::Mode;
use super::form::{Form, STORES};
use super::product::{Store, products, sum_of_runs};
use crate::error::{Error, Result};
use crate::gpu::{Caps, MatrixUnits};
use crate::kernel::{Cost, Kernel, vectorised};
use crate::kernels::shader;
use crate::shape::DType;

/// Sum over squares of squared weight gradients of a convolution in one, two or three dimensions:
///
/// ```text
/// out[o, c, k] ← decay · out[o, c, k]
///     + gain · Σ_s weight[s] · (Σ_{n ∈ s} Σ_p gradient_scale · b[n, o, p] · a[n, c, stride·p + dilation·k − padding])²
/// ```
///
/// with p over output positions, k over kernel offsets (both d, h, w), and a zero outside of the input. Lower ranks
/// have leading sizes of 1. With groups, c counts the channels of o's group alone.
///
/// - `input`        a `[n, c, d, h, w]`, f32, f16 or bf16
/// - `grad_output`  b `[n, o, d, h, w]`, f32, f16 or bf16; gradient of the *summed* loss
/// - `weight`       `[s]`, f32, one for each `fold` consecutive samples
/// - `out`          `[o, c / groups, kernel d, h, w]`, f32
///
/// **Transposed convolution.** Its output y[n, c, stride·p + dilation·k − padding] += x[n, o, p] · W[o, c, k] has the
/// weight gradient Σ_p x[n, o, p] · ∂ℓ/∂y[n, c, stride·p + dilation·k − padding]: the sum above with `grad_output`
/// bound to x and `input` to the gradient at y. That is exact, for groups too; the result is
/// `[in, out / groups, kernel…]`, as transposed convolutions store it. `output_padding` only makes y larger.
/// (`gradient_scale` then scales x, which is the same for the product.)
///
/// A [`Mode`] other than squares sums or stores the gradients themselves; `out` is then of the weight's shape, or
/// `[s, output_count, c / groups, kernel…]`.
///
/// Patches are read where they lie: nothing is unfolded; the host copies the input rows of one block of positions, with
/// their padding, for one tile at a time. `grad_output` may be smaller than input, kernel and stride allow: what no
/// position reaches adds nothing. Inputs are to be finite: where a group is too narrow for a matrix product, the host
/// multiplies some by zeros, as the shader does where inputs slide, and elements that do not see an infinite one become
/// NaN with those that do.
///
/// Must move a, b and out once; 2·n·p·o·c/groups·k operations and 3·s for each element. Bitwise repeatable: each
/// element has one owner and a fixed order. No samples or no positions: the sums are zeros. Definition:
/// [`reference::fisher::conv`](crate::reference::fisher::conv). Cf. Dangel et al., *BackPACK* (2020), `SumGradSquared`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSq {
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
    /// Whether each position meets one input, at its own place: a kernel of one element, strides of 1, no padding.
    /// [`Form::Quads`] then loads four together.
    pub pointwise: bool,
}

crate::params! {
    /// The numbers of one [`ConvSq`] step.
    pub struct ConvSqParams {
        /// Samples in the buffers.
        samples: u32,
        /// Samples a square, at least 1.
        fold: u32,
        /// The first square of this step.
        first: u32,
        /// Squares of this step.
        count: u32,
        /// Input channels.
        channels: u32,
        /// Output channels.
        outputs: u32,
        /// Groups, which divide both.
        groups: u32,
        /// The first output channel of this step.
        first_output: u32,
        /// Output channels of this step: inside one group, or whole groups.
        output_count: u32,
        /// The first output that `out` holds, where a step's result is not in a buffer of the whole weight.
        out_first: u32,
        /// Input depth.
        input_d: u32,
        /// Input height.
        input_h: u32,
        /// Input width.
        input_w: u32,
        /// Depth of the output's gradient.
        grad_d: u32,
        /// Height of the output's gradient.
        grad_h: u32,
        /// Width of the output's gradient.
        grad_w: u32,
        /// Kernel depth.
        kernel_d: u32,
        /// Kernel height.
        kernel_h: u32,
        /// Kernel width.
        kernel_w: u32,
        /// Stride along the depth.
        stride_d: u32,
        /// Stride along the height.
        stride_h: u32,
        /// Stride along the width.
        stride_w: u32,
        /// Zeros before and after the depth.
        padding_d: u32,
        /// Zeros before and after the height.
        padding_h: u32,
        /// Zeros before and after the width.
        padding_w: u32,
        /// Distance of kernel elements along the depth.
        dilation_d: u32,
        /// Distance of kernel elements along the height.
        dilation_h: u32,
        /// Distance of kernel elements along the width.
        dilation_w: u32,
        /// Factor of the old value.
        decay: f32,
        /// Factor of the sum.
        gain: f32,
        /// Factor of `grad_output`.
        gradient_scale: f32,
    }
}

crate::args! {
    /// The buffers of one [`ConvSq`] step.
    pub struct ConvSqArgs / ConvSqSlices {
        /// The layer's input `[n, c, d, h, w]`.
        read input,
        /// The gradient at the layer's output `[n, o, d, h, w]`.
        read grad_output,
        /// One weight a square `[s]`.
        read weight,
        /// The result `[o, c / groups, d, h, w]`.
        write out,
    }
}

/// The last output position plus one along one axis, for an input of `input`:
/// ⌊(input + 2·padding − dilation·(kernel − 1) − 1) / stride⌋ + 1, none where the kernel is larger than the
/// padded input.
fn reach(input: u64, kernel: u64, stride: u64, padding: u64, dilation: u64) -> u64 {
    (input + 2 * padding).checked_sub(dilation * (kernel - 1) + 1).map_or(0, |room| room / stride + 1)
}

impl ConvSqParams {
    fn input(&self) -> [u64; 3] {
        [self.input_d, self.input_h, self.input_w].map(u64::from)
    }

    fn grad(&self) -> [u64; 3] {
        [self.grad_d, self.grad_h, self.grad_w].map(u64::from)
    }

    fn kernel(&self) -> [u64; 3] {
        [self.kernel_d, self.kernel_h, self.kernel_w].map(u64::from)
    }

    fn stride(&self) -> [u64; 3] {
        [self.stride_d, self.stride_h, self.stride_w].map(u64::from)
    }

    fn padding(&self) -> [u64; 3] {
        [self.padding_d, self.padding_h, self.padding_w].map(u64::from)
    }

    fn dilation(&self) -> [u64; 3] {
        [self.dilation_d, self.dilation_h, self.dilation_w].map(u64::from)
    }

    /// Blocks, rows and columns of this step: groups, output channels of one, weight elements of an output channel.
    fn matrices(&self) -> (u64, u64, u64) {
        let [channels, outputs, groups, count] =
            [self.channels, self.outputs, self.groups, self.output_count].map(u64::from);
        let rows = (outputs / groups).min(count);
        let columns = channels / groups * self.kernel().iter().product::<u64>();
        (count.checked_div(rows).unwrap_or(0), rows, columns)
    }

    /// What has no meaning, or would leave u32 in the shader.
    fn check(&self) -> Result<()> {
        let op = ConvSq::NAME;
        let refuse = |problem: String| Err(Error::argument(op, problem));
        let Self { channels, outputs, groups, first_output, output_count, .. } = *self;
        if groups == 0 || !channels.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
            return refuse(format!(
                "{groups} groups do not divide {channels} input and {outputs} output channels"
            ));
        }
        let of_group = (outputs / groups).max(1);
        let inside = first_output % of_group + output_count <= of_group;
        let whole = first_output % of_group == 0 && output_count % of_group == 0;
        if !inside && !whole {
            return refuse(format!(
                "outputs {first_output}..{} are neither inside a group of {of_group} nor whole groups",
                u64::from(first_output) + u64::from(output_count)
            ));
        }
        for axis in 0..3 {
            let name = ["d", "h", "w"][axis];
            let [input, grad, kernel] = [self.input(), self.grad(), self.kernel()].map(|sizes| sizes[axis]);
            let [stride, padding, dilation] =
                [self.stride(), self.padding(), self.dilation()].map(|sizes| sizes[axis]);
            if kernel == 0 || stride == 0 || dilation == 0 {
                return refuse(format!("kernel, stride and dilation of axis {name} must be at least 1"));
            }
            let reach = reach(input, kernel, stride, padding, dilation);
            if grad > reach {
                return Err(Error::shape(
                    op,
                    format!("grad_output, axis {name},"),
                    format!(
                        "at most {reach} (input {input}, kernel {kernel}, stride {stride}, padding {padding}, dilation {dilation})"
                    ),
                    grad.to_string(),
                ));
            }
            // The shader places patches with i32.
            let max = i32::MAX as u64;
            let asked = input + 2 * padding;
            if asked > max {
                return Err(Error::Limit {
                    op: op.into(),
                    limit: "the longest padded input".into(),
                    max,
                    asked,
                });
            }
        }
        Ok(())
    }
}

impl Kernel for ConvSq {
    const NAME: &'static str = "fisher.conv_sq";
    type Params = ConvSqParams;
    type Args = ConvSqArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        self.form.parts(shader!("fisher/conv_sq.wgsl"), shader!("lib/product/gather.wgsl"))
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides =
            super::overrides(self.form, self.mode, self.input, self.grad_output, self.overwrite);
        overrides.push(("POINTWISE", f64::from(u8::from(self.pointwise))));
        overrides
    }

    fn subgroup(&self) -> u32 {
        self.form.subgroup()
    }

    fn matrix_units(&self) -> Option<MatrixUnits> {
        self.form.matrix_units()
    }

    fn launch(&self, p: &ConvSqParams, args: &ConvSqArgs, caps: &Caps) -> Result<[u32; 3]> {
        super::check_range(Self::NAME, "outputs", (p.first_output, p.output_count), p.outputs.into())?;
        p.check()?;
        let [samples, fold, channels, outputs] = [p.samples, p.fold, p.channels, p.outputs].map(u64::from);
        super::check_fold(Self::NAME, fold)?;
        let squares = samples.div_ceil(fold);
        super::check_range(Self::NAME, "squares", (p.first, p.count), squares)?;
        let len = |first: [u64; 2], sizes: [u64; 3]| {
            super::len(Self::NAME, &[first[0], first[1], sizes[0], sizes[1], sizes[2]])
        };
        let input = len([samples, channels], p.input())?;
        args.input.check(Self::NAME, "input", input, Some(self.input.into()))?;
        let grad_output = len([samples, outputs], p.grad())?;
        args.grad_output.check(Self::NAME, "grad_output", grad_output, Some(self.grad_output.into()))?;
        args.weight.check(Self::NAME, "weight", squares, Some(DType::F32.into()))?;
        let (blocks, rows, columns) = p.matrices();
        let range = (p.out_first, p.first_output, p.output_count);
        super::check_out(Self::NAME, self.mode, &args.out, range, [squares, outputs, columns])?;
        p.check_form(self.form)?;
        if self.pointwise && !p.is_pointwise() {
            let problem = "pointwise is for a kernel of one element, strides of 1, no padding and a position for each input";
            return Err(Error::argument(Self::NAME, problem));
        }
        let columns = p.windows(self.form).unwrap_or(columns);
        self.form.grid(Self::NAME, self.mode.results(p.count.into()) * blocks, rows, columns, caps)
    }

    fn iterations(&self, p: &ConvSqParams, _: &ConvSqArgs) -> u64 {
        self.mode.squares_of_one(p.count).saturating_mul(p.turns(self.form)).saturating_add(STORES)
    }

    fn host(&self, p: &ConvSqParams, args: ConvSqSlices<'_>) {
        let (_, rows, columns) = p.matrices();
        let (rows, columns) = (rows as usize, columns as usize);
        let layer = Layer::new(p, args.input, args.grad_output, args.weight.cast(), self.mode.squared());
        let squares = p.first as usize..p.first as usize + p.count as usize;
        let store = Store { overwrite: self.overwrite, decay: p.decay, gain: p.gain };
        let written =
            super::written(self.mode, &squares, (p.first_output - p.out_first, p.output_count), columns);
        let first = p.first_output as usize;
        super::for_results(self.mode, squares, &mut args.out.cast()[written], |squares, out| {
            if layer.is_narrow() {
                let tasks = (p.output_count as usize).div_ceil(OUTPUTS);
                out.par_chunks_mut(OUTPUTS * columns).enumerate().for_each(|(task, out)| {
                    let start = first + task * OUTPUTS;
                    let outputs = start..start + out.len() / columns;
                    let sums = sum_of_runs(&squares, tasks, &mut Narrow::default(), |scratch, run| {
                        vectorised(
                            #[inline(always)]
                            || layer.narrow(&outputs, run, scratch),
                        )
                    });
                    store.apply(out, &sums);
                });
                return;
            }
            out.par_chunks_mut(rows * columns).enumerate().for_each(|(block, out)| {
                let group = Group { layer: &layer, first_output: first + block * rows };
                products(&group, (rows, columns), squares.clone(), out, store);
            });
        });
    }

    fn cost(&self, p: &ConvSqParams, _: &ConvSqArgs) -> Cost {
        let samples = super::samples_of(p.samples, p.fold, p.first, p.count);
        let (blocks, rows, columns) = p.matrices();
        let [channels, groups] = [p.channels, p.groups].map(u64::from);
        let input: u64 = blocks * (channels / groups.max(1)) * p.input().iter().product::<u64>();
        let positions: u64 = p.grad().iter().product();
        let elements = blocks * rows * columns;
        let results = self.mode.results(p.count.into()) * elements;
        let factors =
            samples * (input * self.input.size() + blocks * rows * positions * self.grad_output.size());
        Cost {
            bytes: factors + results * if self.overwrite { 4 } else { 8 },
            flops: elements * (2 * samples * positions + 3 * u64::from(p.count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::cases::Shape;
    use super::*;
    use crate::kernels::fisher::cases::Numbers;

    fn refusal(change: impl FnOnce(&mut ConvSqParams)) -> String {
        let shape = Shape::new((4, [7, 6]), (6, 3, 1, 1, 1), 2);
        let mut params = shape.params(Numbers::OVERWRITE);
        change(&mut params);
        params.check().expect_err("the change has no meaning").to_string()
    }

    #[test]
    fn every_small_geometry_is_right_on_the_host() {
        let verdict = crate::verify::kernel(&crate::Backend::Host, cases::small_geometries());
        assert!(verdict.cases > 500 && verdict.elements > 2000, "{verdict:?}");
        assert!(verdict.failures.is_empty(), "{:?}", verdict.failures);
    }

    #[test]
    fn what_has_no_meaning_is_refused_by_name() {
        assert!(refusal(|p| p.groups = 4).contains("4 groups do not divide 4 input and 6 output channels"));
        assert!(refusal(|p| p.groups = 0).contains("0 groups"));
        assert!(refusal(|p| p.stride_h = 0).contains("axis h must be at least 1"));
        assert!(refusal(|p| p.grad_w = 7).contains("grad_output, axis w, has 7, expected at most 6"));
        assert!(refusal(|p| p.kernel_h = 20).contains("expected at most 0"));
        assert!(
            refusal(|p| (p.first_output, p.output_count) = (2, 2)).contains("neither inside a group of 3")
        );
        assert!(refusal(|p| p.input_w = u32::MAX).contains("padded input is 2147483647"));
    }
}
