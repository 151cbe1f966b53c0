//! The moving average of squared gradients with its running maximum.

use rayon::prelude::*;

use super::EmaParams;
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{BLOCK, Bench, Case, CaseBuffer, Checked, Cost, Fill, Floats, Kernel, Want, noise};
use crate::kernels::{DTYPE, LENGTHS, OCTETS, WORKGROUP, elementwise, shader};
use crate::reference;
use crate::shape::DType;

/// The accumulators of Adam with `amsgrad=True`, in one pass:
///
///   v ← decay · v + gain · (gradient_scale · g)²,   v_max ← max(v_max, v)
///
/// - `gradient`        g `[p]`, f32, f16 or bf16
/// - `exp_avg_sq`      v ≥ 0 `[p]`, f32, f16 or bf16, updated in place
/// - `max_exp_avg_sq`  v_max ≥ 0 `[p]`, of the same type, updated in place
///
/// The parameters are those of [`Ema`](super::Ema). v_max is what the optimizer divides by, another quantity than v: a
/// Fisher diagonal is estimated by v. As PyTorch does, the maximum is taken before bias correction; the paper's
/// algorithm 2 has none.
///
/// Moves each element of g once, of v and v_max twice; 5 operations an element. Bitwise repeatable: no element depends
/// on another. A NaN in g, v or v_max stays. Source: Reddi, Kale & Kumar, *On the Convergence of Adam and Beyond*
/// (2018), algorithm 2; definition: [`reference::optimizer::amsgrad`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amsgrad {
    /// Storage of the gradient.
    pub gradient: DType,
    /// Storage of both accumulators.
    pub accumulator: DType,
}

crate::args! {
    /// The buffers of one [`Amsgrad`] step.
    pub struct AmsgradArgs / AmsgradSlices {
        /// g `[p]`.
        read gradient,
        /// v `[p]`, updated in place.
        write exp_avg_sq,
        /// v_max `[p]`, updated in place.
        write max_exp_avg_sq,
    }
}

/// Elements that a task of the thread pool takes at once.
const TASK: usize = 16 * BLOCK;

impl Kernel for Amsgrad {
    const NAME: &'static str = "optimizer.amsgrad";
    type Params = EmaParams;
    type Args = AmsgradArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("optimizer/amsgrad.wgsl"), DTYPE]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", WORKGROUP.into()),
            ("OCTETS", OCTETS.into()),
            ("GRADIENT", self.gradient.code().into()),
            ("ACCUMULATOR", self.accumulator.code().into()),
        ]
    }

    fn launch(&self, params: &EmaParams, args: &AmsgradArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        args.gradient.check(Self::NAME, "gradient", len, Some(self.gradient.into()))?;
        args.exp_avg_sq.check(Self::NAME, "exp_avg_sq", len, Some(self.accumulator.into()))?;
        args.max_exp_avg_sq.check(Self::NAME, "max_exp_avg_sq", len, Some(self.accumulator.into()))?;
        elementwise(Self::NAME, len, caps)
    }

    fn host(&self, params: &EmaParams, args: AmsgradSlices<'_>) {
        let EmaParams { decay, gain, gradient_scale, .. } = *params;
        let gradient = args.gradient;
        let tasks: Vec<_> =
            args.exp_avg_sq.chunks(TASK).into_iter().zip(args.max_exp_avg_sq.chunks(TASK)).collect();
        tasks.into_par_iter().enumerate().for_each_init(
            <(Floats, Floats, Floats)>::default,
            |(g, v, most), (task, (vs, mosts))| {
                let blocks = vs.chunks(BLOCK).into_iter().zip(mosts.chunks(BLOCK));
                for (block, (v_block, most_block)) in blocks.enumerate() {
                    let g = g.load(gradient.range(task * TASK + block * BLOCK, v_block.len()));
                    v.update(v_block, |v| {
                        for (v, &g) in v.iter_mut().zip(g) {
                            let scaled = gradient_scale * g;
                            *v = decay * *v + gain * (scaled * scaled);
                        }
                        most.update(most_block, |most| raise(most, v));
                    });
                }
            },
        );
    }

    fn cost(&self, params: &EmaParams, _: &AmsgradArgs) -> Cost {
        let len = u64::from(params.len);
        Cost { bytes: len * (self.gradient.size() + 4 * self.accumulator.size()), flops: 5 * len }
    }
}

/// The larger of two non-negative numbers by their bit patterns, in which NaN is above all. (Rounding to the storage
/// type keeps order, so the maximum may be taken before it.)
fn raise(most: &mut [f32], v: &[f32]) {
    for (most, &v) in most.iter_mut().zip(v) {
        *most = f32::from_bits(most.to_bits().max(v.to_bits()));
    }
}

impl Checked for Amsgrad {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for gradient in DType::ALL {
            for accumulator in DType::ALL {
                let kernel = Self { gradient, accumulator };
                cases.extend(LENGTHS.map(|len| case(kernel, len, noise(3, len))));
            }
        }
        let plain = Self { gradient: DType::F32, accumulator: DType::F32 };
        cases.push(case(plain, 3, vec![f64::NAN, 0.0, f64::INFINITY]));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let stream = |fill| (DType::F32.into(), u64::from(len), fill);
        Bench {
            name: format!("{len} f32"),
            kernel: Self { gradient: DType::F32, accumulator: DType::F32 },
            params: EmaParams { len, decay: 0.999, gain: 0.001, gradient_scale: 1.0 },
            buffers: vec![stream(Fill::Noise), stream(Fill::Positive), stream(Fill::Positive)],
        }
    }
}

fn case(kernel: Amsgrad, len: usize, most: Vec<f64>) -> Case<Amsgrad> {
    let params = EmaParams {
        len: u32::try_from(len).expect("cases are small"),
        decay: 0.9,
        gain: 0.1,
        gradient_scale: 1.5,
    };
    let magnitudes = |values: Vec<f64>| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
    let gradient = CaseBuffer::floats(kernel.gradient, &noise(1, len));
    let exp_avg_sq = CaseBuffer::floats(kernel.accumulator, &magnitudes(noise(2, len)));
    let max_exp_avg_sq = CaseBuffer::floats(kernel.accumulator, &magnitudes(most));
    let (g, v, most) = (gradient.values(), exp_avg_sq.values(), max_exp_avg_sq.values());
    let factors = (params.decay.into(), params.gain.into(), params.gradient_scale.into());
    let (mut want_v, mut want_most) = (Vec::new(), Vec::new());
    for p in 0..len {
        let (value, greatest) = reference::optimizer::amsgrad(v[p], most[p], g[p], factors);
        // As for the EMA; the maximum of two numbers is off by no more than either of them.
        let want = Want::computed(value, value, 5.0, kernel.accumulator);
        want_v.push(want);
        want_most.push(Want { value: greatest, ..want });
    }
    Case {
        name: format!("{kernel:?} p={len} max={:?}", most.first()),
        kernel,
        params,
        buffers: vec![gradient, exp_avg_sq, max_exp_avg_sq],
        want: vec![(1, want_v), (2, want_most)],
    }
}
