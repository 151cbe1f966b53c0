//! The cases, and what the definition says of them.

use super::{Fisher, FisherParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::merge::{COUNT_WORDS, Factor, state_words};
use crate::kernels::{BENCHED, LENGTHS, Owner};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for Fisher {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for theta in DType::ALL {
            for merged in DType::ALL {
                for fisher in [None, Some(DType::F32), Some(DType::F16), Some(DType::BF16)] {
                    cases.push(Setup { theta, fisher, merged, ..Setup::plain(1003) }.case());
                }
            }
        }
        cases.extend(LENGTHS.map(|len| Setup::plain(len).case()));
        cases.push(Setup { pair: false, ..Setup::plain(517) }.case());
        // A step in the middle of many models, from a given state.
        cases.push(Setup { first: false, ..Setup::plain(1021) }.case());
        cases.push(Setup { first: false, pair: false, ..Setup::plain(1021) }.case());
        // Factors far outside of f32, Fishers from subnormal to the largest, and a floor.
        cases.push(Setup { lambda: [1e-60, 3e-60], ..Setup::plain(1021) }.case());
        cases.push(Setup { lambda: [2.0, 1e60], ..Setup::plain(1021) }.case());
        cases.push(Setup { magnitude: 38, ..Setup::plain(4099) }.case());
        // A model that weighs nothing, however large its Fisher.
        cases.push(Setup { lambda: [0.0, 1.5], magnitude: 38, ..Setup::plain(1021) }.case());
        cases.push(Setup { lambda: [1.5, 0.0], magnitude: 38, first: false, ..Setup::plain(1021) }.case());
        cases.push(Setup { floor: [0.25, 0.125], ..Setup::plain(1021) }.case());
        let alone = |case: Case<Self>| Case {
            name: format!("{} alone", case.name),
            kernel: Self { owner: Owner::Invocation, ..case.kernel },
            ..case
        };
        let alone: Vec<_> = cases.iter().cloned().map(alone).collect();
        cases.extend(alone);
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let Case { kernel, params, .. } = Setup::plain(0).case();
        let stream = |fill| (DType::F32.into(), u64::from(len), fill);
        Bench {
            name: format!("2 models, {len} f32"),
            kernel,
            params: FisherParams { len, ..params },
            buffers: vec![
                stream(Fill::Noise),
                stream(Fill::Positive),
                stream(Fill::Noise),
                stream(Fill::Positive),
                // The first model is the reference.
                stream(Fill::Same(0)),
                (Element::U32, state_words(0), Fill::Zero),
                stream(Fill::Zero),
                (Element::U32, COUNT_WORDS, Fill::Zero),
            ],
        }
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        let owner = Owner::of(caps);
        BENCHED
            .map(|elements| {
                let bench = Self::bench(elements);
                Bench { kernel: Self { owner, ..bench.kernel }, ..bench }
            })
            .into()
    }
}

/// What the cases vary.
#[derive(Clone, Copy, Debug)]
struct Setup {
    len: usize,
    theta: DType,
    fisher: Option<DType>,
    merged: DType,
    first: bool,
    pair: bool,
    lambda: [f64; 2],
    floor: [f32; 2],
    /// Fishers reach from 10^-magnitude to 10^magnitude.
    magnitude: i32,
}

impl Setup {
    fn plain(len: usize) -> Self {
        Self {
            len,
            theta: DType::F32,
            fisher: Some(DType::F32),
            merged: DType::F32,
            first: true,
            pair: true,
            lambda: [0.75, 1.5],
            floor: [0.0; 2],
            magnitude: 3,
        }
    }

    /// Squares over the whole magnitude, a fifth of them zero; both models' are zero at some places.
    fn fishers(&self, seed: u64) -> Vec<f64> {
        let powers = noise(seed + 1, self.len);
        let zeros = noise(seed + 2, self.len);
        let both = noise(99, self.len);
        (0..self.len)
            .map(|p| {
                let value = 10.0_f64.powf(f64::from(self.magnitude) * powers[p]);
                if zeros[p] < -0.6 || both[p] < -0.9 { 0.0 } else { value }
            })
            .collect()
    }

    fn kernel(&self) -> Fisher {
        Fisher {
            theta: [self.theta; 2],
            fisher: [self.fisher; 2],
            reference: self.theta,
            merged: self.merged,
            first: self.first,
            last: true,
            pair: self.pair,
            floored: self.floor != [0.0; 2],
            owner: Owner::Workgroup,
        }
    }

    fn params(&self) -> FisherParams {
        let lambda = self.lambda.map(Factor::of);
        let total = self.lambda[0] + self.lambda[1];
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is wanted")]
        let share_b = (self.lambda[1] / total) as f32;
        FisherParams {
            len: u32::try_from(self.len).expect("cases are small"),
            lambda_a: lambda[0].mantissa,
            exponent_a: lambda[0].exponent,
            share_a: 1.0,
            floor_a: self.floor[0].to_bits(),
            lambda_b: lambda[1].mantissa,
            exponent_b: lambda[1].exponent,
            share_b,
            floor_b: self.floor[1].to_bits(),
        }
    }

    fn case(self) -> Case<Fisher> {
        let theta = |seed| CaseBuffer::floats(self.theta, &noise(seed, self.len));
        let fisher = |seed| CaseBuffer::floats(self.fisher.unwrap_or(DType::F32), &self.fishers(seed));
        let (theta_a, theta_b) = (theta(1), theta(2));
        let (fisher_a, fisher_b) = (fisher(10), fisher(20));
        let reference = if self.first { theta_a.clone() } else { theta(3) };
        let inputs =
            [theta_a.values(), fisher_a.values(), theta_b.values(), fisher_b.values(), reference.values()];
        let (state, old) = self.state();
        let outcomes: Vec<Outcome> = (0..self.len).map(|p| self.outcome(&inputs, old, p)).collect();
        let counts = Self::counts(&outcomes).into_iter().map(Want::exact).collect();
        Case {
            name: format!("{self:?}"),
            kernel: self.kernel(),
            params: self.params(),
            buffers: vec![
                theta_a,
                fisher_a,
                theta_b,
                fisher_b,
                reference,
                state,
                CaseBuffer::sentinel(self.merged, self.len),
                CaseBuffer::words(&[0; COUNT_WORDS as usize]),
            ],
            want: vec![(6, outcomes.into_iter().map(|o| o.merged).collect()), (7, counts)],
        }
    }

    fn counts(outcomes: &[Outcome]) -> Vec<f64> {
        let count = |flag: fn(&Outcome) -> bool| outcomes.iter().filter(|&o| flag(o)).count() as f64;
        let mut counts = vec![0.0; COUNT_WORDS as usize];
        counts[0] = count(|o| o.fallback);
        counts[1] = count(|o| o.floored);
        counts[2] = count(|o| o.dominated);
        counts[3] = outcomes.iter().map(|o| f64::from(o.raised)).sum();
        counts
    }

    /// A state as after some models: mean 0.5 over a weight of 1.5/8, of which one model has 1/8.
    fn state(&self) -> (CaseBuffer, Option<[f64; 3]>) {
        if self.first {
            return (CaseBuffer::words(&[0; 8]), None);
        }
        let words = [0.5_f32.to_bits(), 1.5_f32.to_bits(), 1.0_f32.to_bits(), (-3_i32 << 1).cast_unsigned()];
        let words: Vec<u32> = words.into_iter().cycle().take(4 * self.len.next_multiple_of(8)).collect();
        (CaseBuffer::words(&words), Some([0.5, 1.5 / 8.0, 1.0 / 8.0]))
    }

    fn outcome(&self, inputs: &[Vec<f64>; 5], old: Option<[f64; 3]>, p: usize) -> Outcome {
        let models = if self.pair { 2 } else { 1 };
        let origin = inputs[4][p];
        let mut theta = vec![inputs[0][p], inputs[2][p]];
        let stored = [inputs[1][p], inputs[3][p]];
        let mut fisher: Vec<f64> = match self.fisher {
            None => vec![1.0; 2],
            Some(_) => (0..2).map(|m| stored[m].max(self.floor[m].into())).collect(),
        };
        let raised = |m: usize| self.fisher.is_some() && stored[m] < self.floor[m].into();
        let mut lambda: Vec<f64> = self.lambda.to_vec();
        theta.truncate(models);
        fisher.truncate(models);
        lambda.truncate(models);
        let raised_models = (0..models).filter(|&m| raised(m)).count();
        let mut largest = (0..models).map(|m| lambda[m] * fisher[m]).fold(0.0, f64::max);
        let mut sum: f64 = (0..models).map(|m| lambda[m] * fisher[m]).sum();
        let mut spread: f64 = theta.iter().map(|t| (t - origin).abs()).sum();
        if let Some([mean, weight, one]) = old {
            theta.push(origin + mean);
            fisher.push(1.0);
            lambda.push(weight);
            sum += weight;
            largest = largest.max(one);
            spread += mean.abs();
        }
        let value = reference::merge::fisher(&theta, &fisher, &lambda);
        // Per model: factor, sum, two quotients, difference, two products, sum; and the last sum with the reference.
        let depth = 8.0 * theta.len() as f64 + 1.0;
        Outcome {
            merged: Want::computed(value, origin.abs() + spread, depth, self.merged),
            fallback: sum == 0.0,
            floored: raised_models == models,
            dominated: largest > 0.99 * sum && sum > 0.0,
            raised: u32::try_from(raised_models).expect("at most two"),
        }
    }
}

/// What one parameter should become, and how it counts.
struct Outcome {
    merged: Want,
    fallback: bool,
    floored: bool,
    dominated: bool,
    raised: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::kernel::BLOCK;
    use crate::verify::run_case;

    /// One subnormal Fisher sends its whole block down the path with exponents. Every other element must keep its bits:
    /// else results would depend on where a chunk begins.
    #[test]
    fn plain_blocks_have_the_bits_of_blocks_with_exponents() {
        for setup in [
            Setup::plain(1000),
            Setup { magnitude: 9, ..Setup::plain(1000) },
            Setup { lambda: [3e-60, 1e-60], ..Setup::plain(1000) },
            Setup { floor: [0.25, 0.125], ..Setup::plain(1000) },
            Setup { fisher: None, ..Setup::plain(1000) },
        ] {
            let case = setup.case();
            let mut other = case.clone();
            other.buffers[1].bytes[..4].copy_from_slice(&f32::from_bits(1).to_le_bytes());
            let bits = |case: &Case<Fisher>| {
                run_case(&Backend::Host, case).expect("the case runs on the host")[6].bytes[4..].to_vec()
            };
            assert_eq!(bits(&case), bits(&other), "{}", case.name);
        }
    }

    /// Blocks whose Fishers lie far from those of the block before: what brought that one into plain f32 does not fit
    /// the next.
    #[test]
    fn blocks_of_other_magnitudes_have_the_bits_of_blocks_with_exponents() {
        let scaled = |buffer: &CaseBuffer| {
            let floats = bytemuck::pod_collect_to_vec::<u8, f32>(&buffer.bytes);
            let scale = |at: usize| 2.0_f64.powi([0, -80, 70, -100][at / BLOCK]);
            let floats: Vec<f64> =
                floats.iter().enumerate().map(|(at, &f)| f64::from(f) * scale(at)).collect();
            CaseBuffer::floats(DType::F32, &floats)
        };
        let mut case = Setup::plain(4 * BLOCK).case();
        for fisher in [1, 3] {
            case.buffers[fisher] = scaled(&case.buffers[fisher]);
        }
        let mut other = case.clone();
        for block in 0..4 {
            other.buffers[1].bytes[4 * block * BLOCK..][..4]
                .copy_from_slice(&f32::from_bits(1).to_le_bytes());
        }
        let bits = |case: &Case<Fisher>| {
            let buffers = run_case(&Backend::Host, case).expect("the case runs on the host");
            bytemuck::pod_collect_to_vec::<u8, u32>(&buffers[6].bytes)
        };
        let (plain, with_exponents) = (bits(&case), bits(&other));
        for at in (0..4 * BLOCK).filter(|at| at % BLOCK != 0) {
            assert_eq!(plain[at], with_exponents[at], "parameter {at}");
        }
    }
}
