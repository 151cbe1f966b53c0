//! Multiply-adds in registers.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, Want, noise};
use crate::kernels::{LENGTHS, OCTETS, WORKGROUP, elementwise, shader};
use crate::reference;
use crate::shape::DType;

/// The arithmetic that a device can do, measured by doing nothing else:
///
/// ```text
/// v ← decay · v + gain        `steps` times
/// ```
///
/// - `values`  v `[p]`, f32, updated in place
///
/// Each element is loaded and stored once; 2 · `steps` operations an element, of which a thread has at least sixteen
/// independent ones under way. Bitwise repeatable: no element depends on another. NaN and infinity in v stay.
/// Definition: [`reference::ceiling::fma`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fma;

crate::params! {
    /// The numbers of one [`Fma`] step.
    pub struct FmaParams {
        /// Elements.
        len: u32,
        /// How often each element is updated.
        steps: u32,
        /// Factor of the old value.
        decay: f32,
        /// What is added.
        gain: f32,
    }
}

crate::args! {
    /// The buffers of one [`Fma`] step.
    pub struct FmaArgs / FmaSlices {
        /// v `[p]`, updated in place.
        write values,
    }
}

impl Kernel for Fma {
    const NAME: &'static str = "ceiling.fma";
    type Params = FmaParams;
    type Args = FmaArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("ceiling/fma.wgsl")]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![("WORKGROUP", WORKGROUP.into()), ("OCTETS", OCTETS.into())]
    }

    fn launch(&self, params: &FmaParams, args: &FmaArgs, caps: &Caps) -> Result<[u32; 3]> {
        args.values.check(Self::NAME, "values", params.len.into(), Some(DType::F32.into()))?;
        elementwise(Self::NAME, params.len.into(), caps)
    }

    fn host(&self, params: &FmaParams, args: FmaSlices<'_>) {
        args.values.cast::<f32>().par_chunks_mut(PIECE).for_each(|values| {
            pulp::Arch::new().dispatch(Chains { values, params });
        });
    }

    fn cost(&self, params: &FmaParams, _: &FmaArgs) -> Cost {
        let len = u64::from(params.len);
        Cost { bytes: 8 * len, flops: 2 * u64::from(params.steps) * len }
    }
}

/// Vectors on their way at a time: more than two multiply-add units of four cycles each can use up.
const CHAINS: usize = 12;

/// Elements that one thread updates at a time: whole chains of vectors of up to 64 elements.
const PIECE: usize = 2 * 64 * CHAINS;

/// One piece, in the widest vectors that the processor has, by its own multiply-add.
struct Chains<'a> {
    values: &'a mut [f32],
    params: &'a FmaParams,
}

impl WithSimd for Chains<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (decay, gain) = (simd.splat_f32s(self.params.decay), simd.splat_f32s(self.params.gain));
        let (vectors, rest) = S::as_mut_simd_f32s(self.values);
        let (chains, singles) = vectors.as_chunks_mut::<CHAINS>();
        for chain in chains {
            let mut v = *chain;
            for _ in 0..self.params.steps {
                v = v.map(|v| simd.mul_add_f32s(v, decay, gain));
            }
            *chain = v;
        }
        for vector in singles {
            for _ in 0..self.params.steps {
                *vector = simd.mul_add_f32s(*vector, decay, gain);
            }
        }
        let mut last = simd.partial_load_f32s(rest);
        for _ in 0..self.params.steps {
            last = simd.mul_add_f32s(last, decay, gain);
        }
        simd.partial_store_f32s(rest, last);
    }
}

impl Checked for Fma {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = LENGTHS.map(|len| case(len, (3, 0.75, 0.5))).to_vec();
        cases.extend([(0, 0.9, 0.5), (1, 0.9, 0.5), (2, -1.0, 0.25), (40, 1.0, 1e-3)].map(|n| case(300, n)));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        const STEPS: u32 = 4096;
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        Bench {
            name: format!("{len} f32 x {STEPS}"),
            kernel: Self,
            params: FmaParams { len, steps: STEPS, decay: 0.999, gain: 0.001 },
            buffers: vec![(DType::F32.into(), len.into(), Fill::Noise)],
        }
    }
}

/// Two roundings a step (WGSL's `fma` may have both), of values no larger than the sum of all terms' magnitudes.
fn case(len: usize, (steps, decay, gain): (u32, f32, f32)) -> Case<Fma> {
    let values = CaseBuffer::floats(DType::F32, &noise(1, len));
    let (wide_decay, wide_gain) = (f64::from(decay), f64::from(gain));
    let want = |v: f64| {
        let value = reference::ceiling::fma(v, wide_decay, wide_gain, steps);
        let sum = reference::ceiling::fma(v.abs(), wide_decay.abs(), wide_gain.abs(), steps);
        Want::computed(value, sum, 2.0 * f64::from(steps), DType::F32)
    };
    let want = values.values().into_iter().map(want).collect();
    Case {
        name: format!("p={len} {steps} steps of {decay} v + {gain}"),
        kernel: Fma,
        params: FmaParams { len: u32::try_from(len).expect("cases are small"), steps, decay, gain },
        buffers: vec![values],
        want: vec![(0, want)],
    }
}
