//! The cases, and what the definition says of them.

use super::{FOUR_COUNT_WORDS, FisherFour, FisherFourParams};
use crate::gpu::Caps;
use crate::kernel::{Bench, Case, CaseBuffer, Checked, Fill, Want, noise};
use crate::kernels::merge::{COUNT_STRIDE, Factor, Fisher, FisherParams, state_words};
use crate::kernels::{BENCHED, Owner};
use crate::memory::Element;
use crate::reference;
use crate::shape::DType;

impl Checked for FisherFour {
    fn cases() -> Vec<Case<Self>> {
        let mut cases = Vec::new();
        for dtype in DType::ALL {
            let merged = DType::F32;
            cases.push(Setup { theta: dtype, fisher: Some(dtype), merged, ..Setup::plain(1003) }.case());
            cases.push(Setup { theta: dtype, fisher: None, merged: dtype, ..Setup::plain(1003) }.case());
        }
        for len in [0, 1, 7, 8, 9, 2047, 2048, 2049, 8193] {
            cases.push(Setup::plain(len).case());
        }
        for pair in [true, false] {
            cases.push(Setup { pair, ..Setup::plain(517) }.case());
            cases.push(Setup { pair, first: false, ..Setup::plain(1021) }.case());
        }
        cases.push(Setup { lambda: [1e-60, 3e-60, 2e-60, 5e-61], ..Setup::plain(1021) }.case());
        cases.push(Setup { lambda: [2.0, 1e60, 0.5, 3e59], ..Setup::plain(1021) }.case());
        cases.push(Setup { magnitude: 38, ..Setup::plain(4099) }.case());
        // Models that weigh nothing, however large their Fishers.
        cases.push(Setup { lambda: [0.0, 1.5, 0.0, 1.25], magnitude: 38, ..Setup::plain(1021) }.case());
        cases.push(Setup { floor: [0.25, 0.125, 0.5, 0.375], ..Setup::plain(1021) }.case());
        let alone = |case: Case<Self>| {
            let own = |step| Fisher { owner: Owner::Invocation, ..step };
            let kernel = Self { first: own(case.kernel.first), second: own(case.kernel.second) };
            Case { name: format!("{} alone", case.name), kernel, ..case }
        };
        let alone: Vec<_> = cases.iter().cloned().map(alone).collect();
        cases.extend(alone);
        cases
    }

    fn bench(elements: u64) -> Bench<Self> {
        let len = u32::try_from(elements).unwrap_or(u32::MAX);
        let Case { kernel, params, .. } = Setup::plain(0).case();
        let stream = |fill| (DType::F32.into(), u64::from(len), fill);
        let mut buffers: Vec<_> =
            (0..4).flat_map(|_| [stream(Fill::Noise), stream(Fill::Positive)]).collect();
        buffers.extend([
            stream(Fill::Same(0)),
            (Element::U32, state_words(0), Fill::Zero),
            stream(Fill::Zero),
            (Element::U32, FOUR_COUNT_WORDS, Fill::Zero),
        ]);
        Bench {
            name: format!("4 models, {len} f32"),
            kernel,
            params: FisherFourParams { len, ..params },
            buffers,
        }
    }

    fn layers(caps: &Caps) -> Vec<Bench<Self>> {
        let own = |step| Fisher { owner: Owner::of(caps), ..step };
        BENCHED
            .map(|elements| {
                let bench = Self::bench(elements);
                let kernel = Self { first: own(bench.kernel.first), second: own(bench.kernel.second) };
                Bench { kernel, ..bench }
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
    lambda: [f64; 4],
    floor: [f32; 4],
    /// Fishers reach from 10^-magnitude to 10^magnitude.
    magnitude: i32,
}

/// The state of the cases that are not a first step: a mean, the weight it stands for, and the largest single one.
const OLD: [f64; 3] = [0.5, 1.5 / 8.0, 1.0 / 8.0];

impl Setup {
    fn plain(len: usize) -> Self {
        Self {
            len,
            theta: DType::F32,
            fisher: Some(DType::F32),
            merged: DType::F32,
            first: true,
            pair: true,
            lambda: [0.75, 1.5, 0.5, 1.25],
            floor: [0.0; 4],
            magnitude: 3,
        }
    }

    fn models(&self) -> usize {
        if self.pair { 4 } else { 3 }
    }

    /// Powers of ten over the whole magnitude, a fifth of them zero; all models' are zero at some places.
    fn fishers(&self, seed: u64) -> Vec<f64> {
        let (powers, zeros, all) =
            (noise(seed + 1, self.len), noise(seed + 2, self.len), noise(99, self.len));
        let one = |p: usize| {
            let value = 10.0_f64.powf(f64::from(self.magnitude) * powers[p]);
            if zeros[p] < -0.6 || all[p] < -0.9 { 0.0 } else { value }
        };
        (0..self.len).map(one).collect()
    }

    fn kernel(&self) -> FisherFour {
        let step = Fisher {
            theta: [self.theta; 2],
            fisher: [self.fisher; 2],
            reference: self.theta,
            merged: self.merged,
            first: false,
            last: false,
            pair: true,
            floored: self.floor != [0.0; 4],
            owner: Owner::Workgroup,
        };
        FisherFour {
            first: Fisher { first: self.first, ..step },
            second: Fisher { last: true, pair: self.pair, ..step },
        }
    }

    fn params(&self) -> FisherFourParams {
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is wanted")]
        let share = |m: usize| (self.lambda[m] / self.lambda[..=m].iter().sum::<f64>().max(1e-300)) as f32;
        let step = |[a, b]: [usize; 2]| {
            let lambda = [a, b].map(|m| Factor::of(self.lambda[m]));
            FisherParams {
                len: u32::try_from(self.len).expect("cases are small"),
                lambda_a: lambda[0].mantissa,
                exponent_a: lambda[0].exponent,
                share_a: share(a),
                floor_a: self.floor[a].to_bits(),
                lambda_b: lambda[1].mantissa,
                exponent_b: lambda[1].exponent,
                share_b: share(b),
                floor_b: self.floor[b].to_bits(),
            }
        };
        FisherFourParams::of(step([0, 1]), step([2, 3]))
    }

    fn case(self) -> Case<FisherFour> {
        let fisher = self.fisher.unwrap_or(DType::F32);
        let thetas = [1, 2, 3, 4].map(|seed| CaseBuffer::floats(self.theta, &noise(seed, self.len)));
        let fishers = [10, 20, 30, 40].map(|seed| CaseBuffer::floats(fisher, &self.fishers(seed)));
        let other = CaseBuffer::floats(self.theta, &noise(5, self.len));
        let reference = if self.first { thetas[0].clone() } else { other };
        let values = |buffers: &[CaseBuffer]| buffers.iter().map(CaseBuffer::values).collect::<Vec<_>>();
        let (theta, fisher, origin) = (values(&thetas), values(&fishers), reference.values());
        let outcomes: Vec<Outcome> =
            (0..self.len).map(|p| self.outcome(&theta, &fisher, origin[p], p)).collect();
        let mut buffers: Vec<_> =
            thetas.into_iter().zip(fishers).flat_map(|(theta, fisher)| [theta, fisher]).collect();
        buffers.extend([
            reference,
            self.state(),
            CaseBuffer::sentinel(self.merged, self.len),
            CaseBuffer::words(&[0; FOUR_COUNT_WORDS as usize]),
        ]);
        Case {
            name: format!("{self:?}"),
            kernel: self.kernel(),
            params: self.params(),
            buffers,
            want: vec![
                (10, outcomes.iter().map(|o| o.merged).collect()),
                (11, Self::counts(&outcomes).into_iter().map(Want::exact).collect()),
            ],
        }
    }

    /// What is raised is counted by the step that raises it, what only the end shows by the second.
    fn counts(outcomes: &[Outcome]) -> Vec<f64> {
        let count = |flag: fn(&Outcome) -> bool| outcomes.iter().filter(|&o| flag(o)).count() as f64;
        let mut counts = vec![0.0; FOUR_COUNT_WORDS as usize];
        let second = COUNT_STRIDE as usize;
        counts[second] = count(|o| o.fallback);
        counts[second + 1] = count(|o| o.floored);
        counts[second + 2] = count(|o| o.dominated);
        for step in 0..2 {
            counts[second * step + 3] = outcomes.iter().map(|o| f64::from(o.raised[step])).sum();
        }
        counts
    }

    /// The state [`OLD`] of each parameter.
    fn state(&self) -> CaseBuffer {
        let words = [0.5_f32.to_bits(), 1.5_f32.to_bits(), 1.0_f32.to_bits(), (-3_i32 << 1).cast_unsigned()];
        let len = if self.first { 0 } else { self.len };
        let words: Vec<u32> = words.into_iter().cycle().take(4 * len.next_multiple_of(8).max(8)).collect();
        CaseBuffer::words(&words)
    }

    fn outcome(&self, theta: &[Vec<f64>], fisher: &[Vec<f64>], origin: f64, p: usize) -> Outcome {
        let models = self.models();
        let is_raised = |m: usize| self.fisher.is_some() && fisher[m][p] < self.floor[m].into();
        let mut theta: Vec<f64> = theta[..models].iter().map(|t| t[p]).collect();
        let mut weight: Vec<f64> = (0..models)
            .map(|m| self.fisher.map_or(1.0, |_| fisher[m][p].max(self.floor[m].into())))
            .collect();
        let mut lambda = self.lambda[..models].to_vec();
        let mut largest = (0..models).map(|m| lambda[m] * weight[m]).fold(0.0, f64::max);
        let mut spread: f64 = theta.iter().map(|t| (t - origin).abs()).sum();
        let mut sum: f64 = (0..models).map(|m| lambda[m] * weight[m]).sum();
        if !self.first {
            let [mean, old, one] = OLD;
            theta.push(origin + mean);
            weight.push(1.0);
            lambda.push(old);
            sum += old;
            largest = largest.max(one);
            spread += mean.abs();
        }
        let value = reference::merge::fisher(&theta, &weight, &lambda);
        // Per model: factor, sum, two quotients, difference, two products, sum; and the last sum with the reference.
        let depth = 8.0 * theta.len() as f64 + 1.0;
        let raised = [0..2, 2..models].map(|step| step.filter(|&m| is_raised(m)).count() as u32);
        Outcome {
            merged: Want::computed(value, origin.abs() + spread, depth, self.merged),
            fallback: sum == 0.0,
            floored: (raised[0] + raised[1]) as usize == models,
            dominated: largest > 0.99 * sum && sum > 0.0,
            raised,
        }
    }
}

/// What one parameter should become, and how it counts.
struct Outcome {
    merged: Want,
    fallback: bool,
    floored: bool,
    dominated: bool,
    raised: [u32; 2],
}
