//! The moving average of squared gradients.

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Floats, Kernel, Want, for_blocks, noise};
use crate::kernels::{DTYPE, LENGTHS, OCTETS, WORKGROUP, elementwise, shader};
use crate::reference;
use crate::shape::DType;

/// The squared-gradient accumulator of the Adam family:
///
///   v ← decay · v + gain · (gradient_scale · g)²
///
/// | optimizer | `decay` | `gain` |
/// |---|---|---|
/// | Adam, AdamW, NAdam, RAdam, AMSGrad | β₂ | 1 − β₂ |
/// | RMSprop | α | 1 − α |
/// | Adadelta | ρ | 1 − ρ |
/// | Adagrad | 1 | 1 |
///
/// - `gradient`    g `[p]`, f32, f16 or bf16
/// - `exp_avg_sq`  v `[p]`, f32, f16 or bf16 (16 bits stall at β₂ = 0.999: one step is below half a unit),
///   updated in place
///
/// `gradient_scale` multiplies g before it is squared: 1/S undoes a loss scale S, and a power of two keeps the squares
/// of gradients below 1e-19 from vanishing (the accumulator is then in units of its square).
///
/// Moves each element of g once and of v twice; 4 operations an element. Bitwise repeatable: no element
/// depends on another. NaN and infinity in g or v stay in v. Source: Kingma & Ba, *Adam* (2015), algorithm 1;
/// definition: [`reference::optimizer::ema`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ema {
    /// Storage of the gradient.
    pub gradient: DType,
    /// Storage of the accumulator.
    pub accumulator: DType,
}

crate::params! {
    /// The numbers of one [`Ema`] step.
    pub struct EmaParams {
        /// Elements.
        len: u32,
        /// Factor of the old value.
        decay: f32,
        /// Factor of the squared gradient.
        gain: f32,
        /// Factor of the gradient before squaring.
        gradient_scale: f32,
    }
}

crate::args! {
    /// The buffers of one [`Ema`] step.
    pub struct EmaArgs / EmaSlices {
        /// g `[p]`.
        read gradient,
        /// v `[p]`, updated in place.
        write exp_avg_sq,
    }
}

impl Kernel for Ema {
    const NAME: &'static str = "optimizer.ema";
    type Params = EmaParams;
    type Args = EmaArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("optimizer/ema.wgsl"), DTYPE]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", WORKGROUP.into()),
            ("OCTETS", OCTETS.into()),
            ("GRADIENT", self.gradient.code().into()),
            ("ACCUMULATOR", self.accumulator.code().into()),
        ]
    }

    fn launch(&self, params: &EmaParams, args: &EmaArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        args.gradient.check(Self::NAME, "gradient", len, Some(self.gradient.into()))?;
        args.exp_avg_sq.check(Self::NAME, "exp_avg_sq", len, Some(self.accumulator.into()))?;
        elementwise(Self::NAME, len, caps)
    }

    fn host(&self, params: &EmaParams, args: EmaSlices<'_>) {
        let EmaParams { decay, gain, gradient_scale, .. } = *params;
        for_blocks(args.exp_avg_sq, |(g, v): &mut (Floats, Floats), start, block| {
            let g = g.load(args.gradient.range(start, block.len()));
            v.update(block, |v| {
                for (v, &g) in v.iter_mut().zip(g) {
                    let scaled = gradient_scale * g;
                    *v = decay * *v + gain * (scaled * scaled);
                }
            });
        });
    }

    fn cost(&self, params: &EmaParams, _: &EmaArgs) -> Cost {
        let len = u64::from(params.len);
        Cost { bytes: len * (self.gradient.size() + 2 * self.accumulator.size()), flops: 4 * len }
    }
}

impl Checked for Ema {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for gradient in DType::ALL {
            for accumulator in DType::ALL {
                let kernel = Self { gradient, accumulator };
                cases.extend(LENGTHS.map(|len| case(kernel, len, (0.999, 0.001, 1.0))));
            }
        }
        let plain = Self { gradient: DType::F32, accumulator: DType::F32 };
        // Adagrad's sum, and gradients whose squares f32 can't hold unscaled.
        cases.push(case(plain, 1000, (1.0, 1.0, 0.5)));
        cases.push(case(plain, 1000, (0.9, 0.1, 2.0_f32.powi(70))));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        Bench {
            name: format!("{len} f32"),
            kernel: Self { gradient: DType::F32, accumulator: DType::F32 },
            params: EmaParams { len, decay: 0.999, gain: 0.001, gradient_scale: 1.0 },
            buffers: vec![
                (DType::F32.into(), len.into(), Fill::Noise),
                (DType::F32.into(), len.into(), Fill::Positive),
            ],
        }
    }
}

fn case(kernel: Ema, len: usize, (decay, gain, gradient_scale): (f32, f32, f32)) -> Case<Ema> {
    let size = 1.0 / f64::from(gradient_scale);
    let g: Vec<f64> = noise(1, len).iter().map(|g| g * size).collect();
    let v: Vec<f64> = noise(2, len).iter().map(|v| v.abs()).collect();
    let gradient = CaseBuffer::floats(kernel.gradient, &g);
    let exp_avg_sq = CaseBuffer::floats(kernel.accumulator, &v);
    let scalars = (f64::from(decay), f64::from(gain), f64::from(gradient_scale));
    // Both terms are non-negative, so the value is the sum of their magnitudes; the longest chain of roundings is
    // scale (counted twice by the square), square, gain, sum.
    let want = |(g, v): (f64, f64)| {
        let value = reference::optimizer::ema(v, g, scalars.0, scalars.1, scalars.2);
        Want::computed(value, value, 5.0, kernel.accumulator)
    };
    let want = gradient.values().into_iter().zip(exp_avg_sq.values()).map(want).collect();
    Case {
        name: format!("{kernel:?} p={len} scale={gradient_scale:e}"),
        kernel,
        params: EmaParams { len: u32::try_from(len).expect("cases are small"), decay, gain, gradient_scale },
        buffers: vec![gradient, exp_avg_sq],
        want: vec![(1, want)],
    }
}
