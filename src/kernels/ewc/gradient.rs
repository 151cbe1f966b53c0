//! The gradient of the penalty, for a training loop's own buffers.

use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Cost, Fill, Floats, Kernel, Want, for_blocks, noise};
use crate::kernels::merge::Factor;
use crate::kernels::{DTYPE, LENGTHS, OCTETS, WIDE, WORKGROUP, elementwise, shader};
use crate::reference;
use crate::shape::DType;

/// The gradient of the penalty ½ λ Σ F (θ − θ*)²:
///
///   gradient ← gradient + λ F (θ − θ*),   or without the old gradient where `add` is false
///
/// - `theta`     θ `[p]`, f32, f16 or bf16: the model
/// - `anchor`    θ* `[p]`, f32, f16 or bf16: where the earlier task left it
/// - `fisher`    F `[p]`, f32, f16 or bf16
/// - `gradient`  `[p]`, f32, f16 or bf16, updated in place
///
/// Several anchors add up: one step each. λ carries its own exponent and no product is formed before its exponents
/// are added, so λ F may leave f32's range where the gradient does not. NaN and infinity in any input stay in
/// the gradient. A loop that minimises a *mean* loss over N samples with a *sum* Fisher wants λ/N: both are
/// the caller's convention.
///
/// Moves each element of θ, θ*, F once and of the gradient twice (once where `add` is false); 4 operations an element.
/// Bitwise repeatable: no element depends on another. Source: Kirkpatrick et al. (2017), equation 3; definition:
/// [`reference::ewc::gradient`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gradient {
    /// Storage of θ.
    pub theta: DType,
    /// Storage of θ*.
    pub anchor: DType,
    /// Storage of F.
    pub fisher: DType,
    /// Storage of the gradient.
    pub gradient: DType,
    /// Whether the old gradient is added to, or overwritten.
    pub add: bool,
}

crate::params! {
    /// The numbers of one [`Gradient`] step; [`GradientParams::new`] makes them.
    pub struct GradientParams {
        /// Elements.
        len: u32,
        /// λ / 2^lambda_exponent, in [1, 2) or 0.
        lambda: f32,
        /// The power of two in λ.
        lambda_exponent: i32,
    }
}

impl GradientParams {
    /// The numbers for `len` elements and a finite λ of at least 0.
    #[must_use]
    pub fn new(len: u32, lambda: f64) -> Self {
        let factor = Factor::of(lambda);
        Self { len, lambda: factor.mantissa, lambda_exponent: factor.exponent }
    }
}

crate::args! {
    /// The buffers of one [`Gradient`] step.
    pub struct GradientArgs / GradientSlices {
        /// θ `[p]`.
        read theta,
        /// θ* `[p]`.
        read anchor,
        /// F `[p]`.
        read fisher,
        /// `[p]`, updated in place.
        write gradient,
    }
}

impl Kernel for Gradient {
    const NAME: &'static str = "ewc.gradient";
    type Params = GradientParams;
    type Args = GradientArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("ewc/gradient.wgsl"), DTYPE, WIDE]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", WORKGROUP.into()),
            ("OCTETS", OCTETS.into()),
            ("THETA", self.theta.code().into()),
            ("ANCHOR", self.anchor.code().into()),
            ("FISHER", self.fisher.code().into()),
            ("GRADIENT", self.gradient.code().into()),
            ("ADD", u8::from(self.add).into()),
        ]
    }

    fn launch(&self, params: &GradientParams, args: &GradientArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        args.theta.check(Self::NAME, "theta", len, Some(self.theta.into()))?;
        args.anchor.check(Self::NAME, "anchor", len, Some(self.anchor.into()))?;
        args.fisher.check(Self::NAME, "fisher", len, Some(self.fisher.into()))?;
        args.gradient.check(Self::NAME, "gradient", len, Some(self.gradient.into()))?;
        elementwise(Self::NAME, len, caps)
    }

    fn host(&self, params: &GradientParams, args: GradientSlices<'_>) {
        let lambda = f64::from(params.lambda) * 2.0_f64.powi(params.lambda_exponent);
        for_blocks(args.gradient, |(t, a, f, g): &mut (Floats, Floats, Floats, Floats), start, block| {
            let len = block.len();
            let (t, a) = (t.load(args.theta.range(start, len)), a.load(args.anchor.range(start, len)));
            let f = f.load(args.fisher.range(start, len));
            let inputs = t.iter().zip(a).zip(f);
            // In f64, where λ F fits for every λ and F.
            #[expect(clippy::cast_possible_truncation, reason = "the gradient is f32")]
            let pull = |((t, a), f): ((&f32, &f32), &f32)| (lambda * f64::from(*f) * f64::from(t - a)) as f32;
            if self.add {
                g.update(block, |g| g.iter_mut().zip(inputs).for_each(|(g, input)| *g += pull(input)));
            } else {
                g.store(block, |g| g.iter_mut().zip(inputs).for_each(|(g, input)| *g = pull(input)));
            }
        });
    }

    fn cost(&self, params: &GradientParams, _: &GradientArgs) -> Cost {
        let gradient = self.gradient.size() * if self.add { 2 } else { 1 };
        let bytes = self.theta.size() + self.anchor.size() + self.fisher.size() + gradient;
        let len = u64::from(params.len);
        Cost { bytes: len * bytes, flops: 4 * len }
    }
}

impl Checked for Gradient {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for add in [false, true] {
            let plain =
                Self { theta: DType::F32, anchor: DType::F32, fisher: DType::F32, gradient: DType::F32, add };
            cases.extend(LENGTHS.map(|len| case(plain, len, 3.5, 0)));
            for dtype in DType::ALL {
                for kernel in [
                    Self { theta: dtype, anchor: dtype, ..plain },
                    Self { anchor: dtype, ..plain },
                    Self { fisher: dtype, ..plain },
                    Self { gradient: dtype, ..plain },
                    Self { theta: dtype, anchor: dtype, fisher: dtype, gradient: dtype, add },
                ] {
                    cases.extend([9, 2049].map(|len| case(kernel, len, 1000.0, 0)));
                }
            }
            // λ F beyond f32 either way, the gradient within; and λ beyond f32 itself.
            for (lambda, magnitude) in [(1e-30, 38), (1e30, -38), (1e60, -44), (1e-60, 38), (0.0, 0)] {
                cases.push(case(plain, 1000, lambda, magnitude));
            }
        }
        cases.extend([true, false].map(impossible));
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let f32 = DType::F32;
        Bench {
            name: format!("{len} f32, add"),
            kernel: Self { theta: f32, anchor: f32, fisher: f32, gradient: f32, add: true },
            params: GradientParams::new(len, 100.0),
            buffers: vec![
                (f32.into(), len.into(), Fill::Noise),
                (f32.into(), len.into(), Fill::Noise),
                (f32.into(), len.into(), Fill::Positive),
                (f32.into(), len.into(), Fill::Noise),
            ],
        }
    }
}

/// F of about 10^magnitude.
fn case(kernel: Gradient, len: usize, lambda: f64, magnitude: i32) -> Case<Gradient> {
    let anchor = CaseBuffer::floats(kernel.anchor, &noise(1, len));
    let near: Vec<f64> = noise(2, len).iter().zip(noise(1, len)).map(|(d, a)| a + 0.05 * d).collect();
    let theta = CaseBuffer::floats(kernel.theta, &near);
    let size = 10.0_f64.powi(magnitude);
    let f: Vec<f64> = noise(3, len).iter().map(|v| v.abs() * size).collect();
    let fisher = CaseBuffer::floats(kernel.fisher, &f);
    let old: Vec<f64> = noise(4, len);
    let gradient = if kernel.add {
        CaseBuffer::floats(kernel.gradient, &old)
    } else {
        CaseBuffer::sentinel(kernel.gradient, len)
    };
    let (t, a, f, g) = (theta.values(), anchor.values(), fisher.values(), gradient.values());
    // The longest chain of roundings: λ to f32, the difference, three products, the sum.
    let want = |p: usize| {
        let pull = reference::ewc::gradient(lambda, f[p], t[p], a[p]);
        let old = if kernel.add { g[p] } else { 0.0 };
        Want::computed(old + pull, old.abs() + pull.abs(), 6.0, kernel.gradient)
    };
    let want = (0..len).map(want).collect();
    Case {
        name: format!("{kernel:?} p={len} lambda={lambda:e} F={size:e}"),
        kernel,
        params: GradientParams::new(u32::try_from(len).expect("cases are small"), lambda),
        buffers: vec![theta, anchor, fisher, gradient],
        want: vec![(3, want)],
    }
}

/// NaN and infinity come through; two equal parameters pull nothing; a negative F is the caller's, and counts
/// as it stands.
fn impossible(add: bool) -> Case<Gradient> {
    let f32 = DType::F32;
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    let theta = [nan, 1.0, 1.0, inf, 2.0, 1.0, 3.0, 1.0];
    let anchor = [1.0, nan, 2.0, 1.0, 2.0, 3.0, 1.0, 0.0];
    let fisher = [1.0, 1.0, nan, 1.0, 1.0, inf, -0.5, -0.0];
    let want = [nan, nan, nan, inf, 0.0, -inf, -2.0, 0.0];
    let want = want.map(Want::exact).to_vec();
    Case {
        name: format!("impossible values add={add}"),
        kernel: Gradient { theta: f32, anchor: f32, fisher: f32, gradient: f32, add },
        params: GradientParams::new(8, 2.0),
        buffers: vec![
            CaseBuffer::floats(f32, &theta),
            CaseBuffer::floats(f32, &anchor),
            CaseBuffer::floats(f32, &fisher),
            CaseBuffer::floats(f32, &[0.0; 8]),
        ],
        want: vec![(3, want)],
    }
}
