//! Gradients of the squared error at a regression's outputs.

mod cases;

use rayon::prelude::*;

use super::philox::philox;
use super::{FAULTS, Faults, LANES, PHILOX, Rows, halves, joined, len};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{Cost, Kernel, groups_of, vectorised};
use crate::kernels::{DTYPE, ELEMENT, shader};
use crate::memory::Element;
use crate::shape::DType;

/// Gradient of ½‖z − y‖², the negative log-likelihood of y ~ N(z, I), at the outputs z, for one or more targets y of
/// each sample:
///
/// ```text
/// gradient[r, n, c] ← (z[n, c] − y[n, c]) / unit      given
///                     ε[r, n, c] / unit               drawn: y = z − ε
///                     [c = first_round + r]           each: one unit direction a round
/// norm_sq[r, n]     ← Σ_c of its squares, before `unit`
/// weight[r, n]      ← weight
/// ```
///
/// - `output`   z `[n, c]`, f32, f16 or bf16; only looked at where targets are given, as is
/// - `goal`     y `[n, c]`, f32, f16 or bf16
/// - `gradient` `[r, n, c]` f32, of the *summed* loss
/// - `weight`   `[r, n]` f32
/// - `norm_sq`  `[r, n]` f32
/// - `fault`    [`FAULTS`] words: 0 for an output that is not finite or beyond 2¹²⁶ from its target, 1 for such a
///   target; the row is NaN
///
/// The loss's Hessian at the outputs is I, so unit directions with weight 1 give the exact Fisher Σ_c (∂z_c/∂θ)². For a
/// variance σ², divide the Fisher by σ² (one factor at the end; the gradients of data need 1/σ⁴).
///
/// **Noise** is exact and the same everywhere: (heads of 64 coins − 32) / 4, a binomial number on a lattice of ¼. Its
/// mean is 0, its variance 1 and its skewness 0 without any error, so that a Monte Carlo Fisher, which is `E[(Jᵀε)²]`
/// and depends on nothing else, has no bias; its kurtosis is 3 − 1/32, and |ε| ≤ 8. Coins are two words of
/// Philox4x32-10 of (first_sample + n, first_round + r, ⌊c / 2⌋).
///
/// With `unit` the gradient is divided by its norm, as the improved empirical Fisher wants; a sample whose gradient is
/// 0 (below 2⁻¹²⁶) then has weight 0. Moves outputs and gradients once; 4 operations an element. Bitwise repeatable.
/// Definition: z − y, and [`reference::likelihood::noise`](crate::reference::likelihood::noise).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gaussian {
    /// Storage of the outputs.
    pub output: DType,
    /// Storage of the targets.
    pub goal: DType,
    /// Where targets come from.
    pub targets: Targets,
    /// Whether gradients are divided by their norm.
    pub unit: bool,
}

/// Which targets a step goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Those of a buffer; one round.
    Given,
    /// Drawn from the model, anew each round.
    Drawn,
    /// Every unit direction in turn, one a round.
    Each,
}

impl Targets {
    /// The number by which the shader knows it.
    const fn code(self) -> u32 {
        match self {
            Self::Given => 0,
            Self::Drawn => 1,
            Self::Each => 2,
        }
    }
}

crate::params! {
    /// The numbers of one [`Gaussian`] step.
    pub struct GaussianParams {
        /// Samples n.
        samples: u32,
        /// Outputs c of a sample.
        outputs: u32,
        /// Rounds r: targets of a sample.
        rounds: u32,
        /// The number of the first draw, or the first direction.
        first_round: u32,
        /// The number of the first sample in the whole data, its low word.
        first_sample_low: u32,
        /// And its high word.
        first_sample_high: u32,
        /// The seed's low word.
        seed_low: u32,
        /// The seed's high word.
        seed_high: u32,
        /// The weight of a row.
        weight: f32,
    }
}

crate::args! {
    /// The buffers of one [`Gaussian`] step.
    pub struct GaussianArgs / GaussianSlices {
        /// z `[n, c]`.
        read output,
        /// y `[n, c]`.
        read goal,
        /// `[r, n, c]`.
        write gradient,
        /// `[r, n]`.
        write weight,
        /// `[r, n]`.
        write norm_sq,
        /// Kept as the maximum: cleared before.
        write fault,
    }
}

impl Kernel for Gaussian {
    const NAME: &'static str = "likelihood.gaussian";
    type Params = GaussianParams;
    type Args = GaussianArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("likelihood/gaussian.wgsl"), DTYPE, ELEMENT, PHILOX]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        vec![
            ("WORKGROUP", LANES.into()),
            ("OUTPUT", self.output.code().into()),
            ("GOAL", self.goal.code().into()),
            ("TARGETS", self.targets.code().into()),
            ("UNIT", self.unit.into()),
        ]
    }

    fn launch(&self, params: &GaussianParams, args: &GaussianArgs, caps: &Caps) -> Result<[u32; 3]> {
        let &GaussianParams { samples, outputs, rounds, first_round, .. } = params;
        let rows = len(Self::NAME, [rounds, samples, 1])?;
        let elements = len(Self::NAME, [rounds, samples, outputs])?;
        let end = u64::from(first_round) + u64::from(rounds);
        let most = match self.targets {
            Targets::Given => 1,
            Targets::Drawn => 1 << 32,
            Targets::Each => u64::from(outputs),
        };
        if end > most {
            let problem = format!("rounds {first_round}..{end} of {most} that these targets have");
            return Err(Error::argument(Self::NAME, problem));
        }
        if self.targets == Targets::Given {
            let len = len(Self::NAME, [samples, outputs, 1])?;
            args.output.check(Self::NAME, "output", len, Some(self.output.into()))?;
            args.goal.check(Self::NAME, "goal", len, Some(self.goal.into()))?;
        }
        args.gradient.check(Self::NAME, "gradient", elements, Some(Element::F32))?;
        args.weight.check(Self::NAME, "weight", rows, Some(Element::F32))?;
        args.norm_sq.check(Self::NAME, "norm_sq", rows, Some(Element::F32))?;
        args.fault.check(Self::NAME, "fault", FAULTS, Some(Element::U32))?;
        if outputs == 0 && rows > 0 {
            return Err(Error::argument(Self::NAME, "0 outputs: there is no loss"));
        }
        groups_of(Self::NAME, rows, caps)
    }

    fn host(&self, params: &GaussianParams, args: GaussianSlices<'_>) {
        let (samples, outputs) = (params.samples as usize, params.outputs as usize);
        let (output, goal) =
            (Rows { slice: args.output, len: outputs }, Rows { slice: args.goal, len: outputs });
        let faults = Faults::default();
        let gradients = args.gradient.cast::<f32>().par_chunks_exact_mut(outputs.max(1));
        let (weights, norms): (&mut [f32], &mut [f32]) = (args.weight.cast(), args.norm_sq.cast());
        let out = gradients.zip(weights).zip(norms).enumerate();
        let scratch = || (Vec::new(), Vec::new());
        out.for_each_init(scratch, |scratch, (row, ((gradient, weight), norm_sq))| {
            let (round, sample) = (row / samples, row % samples);
            let round = params.first_round + u32::try_from(round).expect("rounds are a u32");
            let bad = match self.targets {
                Targets::Given => {
                    let (z, y) = (output.get(sample, &mut scratch.0), goal.get(sample, &mut scratch.1));
                    vectorised(
                        #[inline(always)]
                        || subtract(z, y, gradient),
                    )
                }
                Targets::Drawn => {
                    vectorised(
                        #[inline(always)]
                        || draw(params, sample, round, gradient),
                    );
                    None
                }
                Targets::Each => {
                    gradient.fill(0.0);
                    gradient[round as usize] = 1.0;
                    None
                }
            };
            if let Some(word) = bad {
                faults.note(word, sample);
                gradient.fill(f32::NAN);
                (*weight, *norm_sq) = (f32::NAN, f32::NAN);
                return;
            }
            let length = vectorised(
                #[inline(always)]
                || normalise(gradient, self.unit),
            );
            *norm_sq = length * length;
            *weight = if self.unit && length == 0.0 { 0.0 } else { params.weight };
        });
        faults.store(args.fault.cast());
    }

    fn cost(&self, params: &GaussianParams, _: &GaussianArgs) -> Cost {
        let [samples, outputs, rounds] = [params.samples, params.outputs, params.rounds].map(u64::from);
        let read = match self.targets {
            Targets::Given => samples * outputs * (self.output.size() + self.goal.size()),
            Targets::Drawn | Targets::Each => 0,
        };
        let elements = rounds * samples * outputs;
        Cost { bytes: read + 4 * elements + 8 * rounds * samples, flops: 4 * elements }
    }
}

/// The largest residual whose inverse every device computes.
const FARTHEST: f32 = 8.507_059e37; // 2^126

/// z − y; the word of the fault where that is nothing to compute with.
#[inline(always)]
fn subtract(z: &[f32], y: &[f32], gradient: &mut [f32]) -> Option<usize> {
    for ((gradient, z), y) in gradient.iter_mut().zip(z).zip(y) {
        *gradient = z - y;
    }
    let finite = |values: &[f32]| magnitude(values) < f32::INFINITY.to_bits();
    let near = magnitude(gradient) <= FARTHEST.to_bits();
    match (finite(z), finite(y), near) {
        (true, true, true) => None,
        (true, false, _) => Some(1),
        _ => Some(0),
    }
}

/// The bits of the largest magnitude; those of NaN and infinity lie above all others.
#[inline(always)]
fn magnitude(values: &[f32]) -> u32 {
    let mut top = 0;
    for value in values {
        top = top.max(value.to_bits() & 0x7fff_ffff);
    }
    top
}

#[inline(always)]
fn draw(params: &GaussianParams, sample: usize, round: u32, noise: &mut [f32]) {
    let first = joined(params.first_sample_low, params.first_sample_high);
    let (low, high) = halves(first.wrapping_add(sample as u64));
    let key = [params.seed_low, params.seed_high];
    let (pairs, rest) = noise.as_chunks_mut::<2>();
    let blocks = u32::try_from(pairs.len()).expect("outputs are a u32");
    for (block, noise) in (0..blocks).zip(pairs) {
        *noise = heads([low, high, round, block], key);
    }
    if let [noise] = rest {
        *noise = heads([low, high, round, blocks], key)[0];
    }
}

/// Two sums of 64 coins each, as normal deviates.
#[inline(always)]
fn heads(counter: [u32; 4], key: [u32; 2]) -> [f32; 2] {
    let [a, b, c, d] = philox(counter, key);
    let (first, second) = (a.count_ones() + b.count_ones(), c.count_ones() + d.count_ones());
    [0.25 * (first as f32 - 32.0), 0.25 * (second as f32 - 32.0)]
}

/// The norm, in units of the largest element so that no square is lost; with `unit`, the gradient is divided by it.
#[inline(always)]
fn normalise(gradient: &mut [f32], unit: bool) -> f32 {
    let top = f32::from_bits(magnitude(gradient));
    if top < f32::MIN_POSITIVE {
        if unit {
            gradient.fill(0.0);
        }
        return 0.0;
    }
    #[expect(clippy::cast_possible_truncation, reason = "summed in f64, used in f32")]
    let norm = squares(gradient, top).sqrt() as f32;
    if unit {
        for g in gradient {
            *g = *g / top / norm;
        }
    }
    top * norm
}

/// Σ (g / top)², in f64, eight at a time.
#[inline(always)]
fn squares(gradient: &[f32], top: f32) -> f64 {
    let mut sums = [0.0; 8];
    let (blocks, rest) = gradient.as_chunks::<8>();
    for block in blocks {
        for i in 0..8 {
            let ratio = f64::from(block[i] / top);
            sums[i] += ratio * ratio;
        }
    }
    let rest: f64 = rest.iter().map(|g| f64::from(g / top).powi(2)).sum();
    sums.iter().sum::<f64>() + rest
}
