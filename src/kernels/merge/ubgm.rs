//! Uncertainty-based gradient matching.

mod cases;

use super::host::{self, Block};
use super::plain::{self, BlockStep, PlainFactor};
use super::{COUNT, COUNT_WORDS, Factor, STEP, TALLY, state_words};
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::{Cost, Kernel, Slice};
use crate::kernels::{DTYPE, Owner, WIDE, shader};
use crate::memory::Element;
use crate::shape::DType;

/// One step of uncertainty-based gradient matching, one model at a time:
///
/// ```text
/// θ[p] = θ_0[p] + Σ_m λ_m (F_0[p] + F_m[p]) (θ_m[p] − θ_0[p]) / (F_0[p] + Σ_m λ_m F_m[p])
/// ```
///
/// and θ_0 where that denominator is 0. F_m is raised to a floor, then scaled; F_0 is scaled, then δ is added.
///
/// - `theta`        θ_m `[p]`, f32, f16 or bf16
/// - `fisher`       F_m `[p]`
/// - `base`         θ_0 `[p]`, the same in every step
/// - `base_fisher`  F_0 `[p]`, the same in every step
/// - `state`        [`state_words`]`(p)` words between steps (unread by a step that is first and last)
/// - `merged`       `[p]`, written by the last step, round to nearest even
/// - `counts`       16 words, zeroed before the first step; see [`Counts`](super::Counts)
///
/// Bitwise repeatable: no element depends on another. With F_0 = 0 the result is Fisher merging's.
/// Source: Daheim et al., *Model Merging by Uncertainty-Based Gradient Matching* (2024), equation 12; definition:
/// [`reference::merge::ubgm`](crate::reference::merge::ubgm).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ubgm {
    /// Storage of the model.
    pub theta: DType,
    /// Storage of its Fisher.
    pub fisher: DType,
    /// Storage of the base.
    pub base: DType,
    /// Storage of the base's Fisher.
    pub base_fisher: DType,
    /// Storage of the result.
    pub merged: DType,
    /// This step starts from the base.
    pub first: bool,
    /// This step writes the result.
    pub last: bool,
    /// Who adds up what is counted.
    pub owner: Owner,
}

crate::params! {
    /// The numbers of one [`Ubgm`] step. Pairs of mantissa and exponent are [`Factor`]s.
    pub struct UbgmParams {
        /// Parameters.
        len: u32,
        /// λ_m: mantissa.
        lambda: f32,
        /// λ_m: exponent.
        lambda_exponent: i32,
        /// One over the normaliser of F_m: mantissa.
        scale: f32,
        /// One over the normaliser of F_m: exponent.
        scale_exponent: i32,
        /// The least F_m before scaling, as bits of an f32.
        floor: u32,
        /// One over the normaliser of F_0: mantissa.
        base_scale: f32,
        /// One over the normaliser of F_0: exponent.
        base_scale_exponent: i32,
        /// δ: mantissa, 0 for none.
        delta: f32,
        /// δ: exponent.
        delta_exponent: i32,
    }
}

crate::args! {
    /// The buffers of one [`Ubgm`] step.
    pub struct UbgmArgs / UbgmSlices {
        /// θ_m `[p]`.
        read theta,
        /// F_m `[p]`.
        read fisher,
        /// θ_0 `[p]`.
        read base,
        /// F_0 `[p]`.
        read base_fisher,
        /// Four words a parameter.
        write state,
        /// θ `[p]`.
        write merged,
        /// 16 words.
        write counts,
    }
}

impl Kernel for Ubgm {
    const NAME: &'static str = "merge.ubgm";
    type Params = UbgmParams;
    type Args = UbgmArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("merge/ubgm.wgsl"), DTYPE, WIDE, TALLY, COUNT, STEP]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = super::overrides(self.owner).to_vec();
        overrides.extend([
            ("THETA", self.theta.code().into()),
            ("FISHER", self.fisher.code().into()),
            ("BASE", self.base.code().into()),
            ("BASE_FISHER", self.base_fisher.code().into()),
            ("MERGED", self.merged.code().into()),
            ("FIRST", f64::from(u8::from(self.first))),
            ("LAST", f64::from(u8::from(self.last))),
        ]);
        overrides
    }

    fn launch(&self, params: &UbgmParams, args: &UbgmArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        let inputs = [
            (&args.theta, "theta", self.theta),
            (&args.fisher, "fisher", self.fisher),
            (&args.base, "base", self.base),
            (&args.base_fisher, "base_fisher", self.base_fisher),
        ];
        for (view, what, dtype) in inputs {
            view.check(Self::NAME, what, len, Some(dtype.into()))?;
        }
        if !(self.first && self.last) {
            args.state.check(Self::NAME, "state", state_words(len), Some(Element::U32))?;
        }
        if self.last {
            args.merged.check(Self::NAME, "merged", len, Some(self.merged.into()))?;
        }
        args.counts.check(Self::NAME, "counts", COUNT_WORDS, Some(Element::U32))?;
        super::grid(Self::NAME, len, self.owner, caps)
    }

    fn host(&self, params: &UbgmParams, args: UbgmSlices<'_>) {
        let len = params.len as usize;
        let state = (!(self.first && self.last)).then_some(args.state);
        let merged = self.last.then_some(args.merged);
        let inputs = [args.theta, args.fisher, args.base, args.base_fisher];
        host::for_blocks(
            len,
            state,
            merged,
            args.counts,
            #[inline(always)]
            |scratch, counts, block| self.block(params, inputs, scratch, counts, block),
        );
    }

    fn cost(&self, params: &UbgmParams, _: &UbgmArgs) -> Cost {
        let inputs = [self.theta, self.fisher, self.base, self.base_fisher];
        let mut bytes: u64 = inputs.iter().map(|dtype| dtype.size()).sum();
        bytes += if self.first { 0 } else { 16 };
        bytes += if self.last { self.merged.size() } else { 16 };
        Cost { bytes: bytes * u64::from(params.len), flops: 12 * u64::from(params.len) }
    }
}

impl UbgmParams {
    /// λ, what scales F_m and F_0, and δ if there is one.
    fn factors(&self) -> (Factor, Factor, Factor, Option<Factor>) {
        let delta = Factor { mantissa: self.delta, exponent: self.delta_exponent };
        (
            Factor { mantissa: self.lambda, exponent: self.lambda_exponent },
            Factor { mantissa: self.scale, exponent: self.scale_exponent },
            Factor { mantissa: self.base_scale, exponent: self.base_scale_exponent },
            (self.delta > 0.0).then_some(delta),
        )
    }
}

impl Ubgm {
    #[inline(always)]
    fn block(
        &self,
        params: &UbgmParams,
        inputs: [Slice<'_>; 4],
        scratch: &mut host::Scratch,
        counts: &mut host::Words,
        mut block: Block<'_>,
    ) {
        if self.plain_block(params, inputs, scratch, counts, &mut block) {
            return;
        }
        let Block { start, len, state, merged } = block;
        let [theta, fisher, base, base_fisher] = inputs.map(|input| input.range(start, len));
        let (lambda, scale, base_scale, delta) = params.factors();
        let theta = scratch.theta.load(theta);
        let fisher = scratch.fisher.load(fisher);
        let origin = scratch.origin.load(base);
        let base_fisher = scratch.base_fisher.load(base_fisher);
        let host::General { tallies, weights, pulls, prior } = &mut **scratch.general.get_or_insert_default();
        host::count_model(counts, 0, start, theta, Some(fisher), params.floor);
        if self.first {
            host::count_model(counts, 1, start, origin, Some(base_fisher), 0);
        }
        prior.load(base_fisher, 0, base_scale);
        if let Some(delta) = delta {
            prior.add(delta);
        }
        let mut state = state.map(|state| state.cast::<u32>());
        match &state {
            Some(state) if !self.first => tallies.load(&state[..4 * len]),
            _ => tallies.start_from(prior),
        }
        pulls.load(fisher, params.floor, scale);
        weights.scaled(pulls, lambda);
        pulls.scaled(prior, lambda);
        tallies.floors(fisher, params.floor);
        tallies.add(weights, Some(pulls), theta, origin, 0.0);
        if let Some(merged) = merged {
            host::count_outcome(counts, tallies, len);
            scratch.second.0.store(merged, |merged| {
                tallies.finish(origin, merged);
                host::count_unrepresentable(counts, start, merged, self.merged);
            });
        } else if let Some(state) = &mut state {
            tallies.save(&mut state[..4 * len]);
        }
    }

    /// The block in plain f32, if that can be.
    #[inline(always)]
    fn plain_block(
        &self,
        params: &UbgmParams,
        inputs: [Slice<'_>; 4],
        scratch: &mut host::Scratch,
        counts: &mut host::Words,
        block: &mut Block<'_>,
    ) -> bool {
        let [theta, fisher, base, base_fisher] = inputs.map(|input| input.range(block.start, block.len));
        let (lambda, scale, base_scale, delta) = params.factors();
        let theta = scratch.theta.load(theta);
        let fisher = scratch.fisher.load(fisher);
        let origin = scratch.origin.load(base);
        let base_fisher = scratch.base_fisher.load(base_fisher);
        // Products of weights and λ stay inside of f32's range then.
        let Some(lambda) = (lambda.exponent.abs() <= 50).then(|| PlainFactor::new(lambda, 0)).flatten()
        else {
            return false;
        };
        let step = BlockStep { first: self.first, origin, exponent: scale.exponent, merged: self.merged };
        step.merge(
            &mut scratch.plain,
            counts,
            block,
            #[inline(always)]
            |step| {
                let delta = match delta {
                    Some(delta) => Some(PlainFactor::new(delta, step.shift)?),
                    None => None,
                };
                let model = plain::OneModel {
                    theta,
                    fisher,
                    factor: PlainFactor::new(scale, step.shift)?,
                    least: params.floor,
                    lambda,
                    base_fisher,
                    base_factor: PlainFactor::new(base_scale, step.shift)?,
                    delta,
                };
                Some(plain::ubgm(model, step))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::cases::case;
    use super::*;
    use crate::backend::Backend;
    use crate::kernel::Case;
    use crate::verify::run_case;

    /// One subnormal Fisher sends its whole block down the path with exponents. Every other element must keep its bits.
    #[test]
    fn plain_blocks_have_the_bits_of_blocks_with_exponents() {
        let f32s = |numbers| case(DType::F32, DType::F32, DType::F32, 1000, numbers);
        for numbers in
            [(1.5, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.125, 0.0), (2.0, 0.0, 0.25), (1e-9, 0.5, 1e9)]
        {
            let case = f32s(numbers);
            let mut other = case.clone();
            other.buffers[1].bytes[..4].copy_from_slice(&f32::from_bits(1).to_le_bytes());
            let bits = |case: &Case<Ubgm>| {
                run_case(&Backend::Host, case).expect("the case runs on the host")[5].bytes[4..].to_vec()
            };
            assert_eq!(bits(&case), bits(&other), "{}", case.name);
        }
    }
}
