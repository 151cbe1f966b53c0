//! An accumulator on another scale.

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Floats, Kernel, Want, for_blocks, noise};
use crate::kernels::{DTYPE, LENGTHS, OCTETS, WORKGROUP, elementwise, shader};
use crate::reference;
use crate::shape::DType;

/// Bias correction, and every other scale of an accumulator:
///
///   scaled = factor · v
///
/// | scale | `factor` |
/// |---|---|
/// | `unbiased` | 1 / (1 − β₂^step), see [`Scale::bias_correction`] |
/// | `mean` | B / (1 − β₂^step) |
/// | `sum` | N · B / (1 − β₂^step) |
/// | `paper` | N |
///
/// It is named for the scale and not for the bias, because all of them are one multiplication by a number that the
/// host computes in f64 and rounds once.
///
/// - `values`  v `[p]`, f32, f16 or bf16
/// - `scaled`  `[p]`, f32, f16 or bf16, round to nearest even
///
/// Moves each element of both once; 1 operation an element. Bitwise repeatable: no element depends on another. NaN and
/// infinity stay; products beyond the storage type become infinite, and a device may take a subnormal v for 0.
/// Source: Kingma & Ba, *Adam* (2015), section 3; definition: [`reference::optimizer::scale`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Storage of the accumulator.
    pub values: DType,
    /// Storage of the result.
    pub scaled: DType,
}

impl Scale {
    /// 1 / (1 − β^step), which makes an average that began at zero unbiased. Accurate also where β^step is
    /// near 1. Infinite for step 0, when nothing was averaged.
    #[must_use]
    pub fn bias_correction(beta: f64, step: f64) -> f64 {
        -1.0 / (step * beta.ln()).exp_m1()
    }
}

crate::params! {
    /// The numbers of one [`Scale`] step.
    pub struct ScaleParams {
        /// Elements.
        len: u32,
        /// Factor of each.
        factor: f32,
    }
}

crate::args! {
    /// The buffers of one [`Scale`] step.
    pub struct ScaleArgs / ScaleSlices {
        /// v `[p]`.
        read values,
        /// `[p]`.
        write scaled,
    }
}

impl Kernel for Scale {
    const NAME: &'static str = "optimizer.scale";
    type Params = ScaleParams;
    type Args = ScaleArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("optimizer/scale.wgsl"), DTYPE]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", WORKGROUP.into()),
            ("OCTETS", OCTETS.into()),
            ("VALUES", self.values.code().into()),
            ("SCALED", self.scaled.code().into()),
        ]
    }

    fn launch(&self, params: &ScaleParams, args: &ScaleArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        args.values.check(Self::NAME, "values", len, Some(self.values.into()))?;
        args.scaled.check(Self::NAME, "scaled", len, Some(self.scaled.into()))?;
        elementwise(Self::NAME, len, caps)
    }

    fn host(&self, params: &ScaleParams, args: ScaleSlices<'_>) {
        for_blocks(args.scaled, |(v, out): &mut (Floats, Floats), start, block| {
            let v = v.load(args.values.range(start, block.len()));
            out.store(block, |out| {
                for (out, &v) in out.iter_mut().zip(v) {
                    *out = params.factor * v;
                }
            });
        });
    }

    fn cost(&self, params: &ScaleParams, _: &ScaleArgs) -> Cost {
        let len = u64::from(params.len);
        Cost { bytes: len * (self.values.size() + self.scaled.size()), flops: len }
    }
}

impl Checked for Scale {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for values in DType::ALL {
            for scaled in DType::ALL {
                cases.extend(LENGTHS.map(|len| case(Self { values, scaled }, len, 1.25)));
            }
        }
        let plain = Self { values: DType::F32, scaled: DType::F32 };
        cases.push(case(plain, 1000, 1e12));
        cases.push(case(plain, 1000, 1e-12));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let stream = |fill| (DType::F32.into(), u64::from(len), fill);
        Bench {
            name: format!("{len} f32"),
            kernel: Self { values: DType::F32, scaled: DType::F32 },
            params: ScaleParams { len, factor: 1.25 },
            buffers: vec![stream(Fill::Positive), stream(Fill::Zero)],
        }
    }
}

fn case(kernel: Scale, len: usize, factor: f32) -> Case<Scale> {
    let values = CaseBuffer::floats(kernel.values, &noise(1, len));
    let want = |v: f64| {
        let value = reference::optimizer::scale(v, factor.into());
        Want::computed(value, value.abs(), 1.0, kernel.scaled)
    };
    let want = values.values().into_iter().map(want).collect();
    Case {
        name: format!("{kernel:?} p={len} factor={factor:e}"),
        kernel,
        params: ScaleParams { len: u32::try_from(len).expect("cases are small"), factor },
        buffers: vec![values, CaseBuffer::sentinel(kernel.scaled, len)],
        want: vec![(1, want)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bias_correction_is_its_formula_where_that_is_exact() {
        assert!((Scale::bias_correction(0.5, 1.0) - 2.0).abs() < 1e-15);
        assert!((Scale::bias_correction(0.5, 2.0) - 4.0 / 3.0).abs() < 1e-15);
        assert!((Scale::bias_correction(0.999, 1.0) - 1000.0).abs() < 1e-9);
        // 1 − 0.999^1e6 is 1 to the last place.
        assert_eq!(Scale::bias_correction(0.999, 1e6), 1.0);
        assert_eq!(Scale::bias_correction(0.999, 0.0), f64::INFINITY);
    }
}
