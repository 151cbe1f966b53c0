//! Fisher merging, four models in one dispatch.

use bytemuck::cast_slice_mut;

use super::{COUNT, COUNT_STRIDE, COUNT_WORDS, Fisher, FisherArgs, FisherParams, FisherSlices, TALLY};
use super::{Factor, code, state_words};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{Args, Bench, Case, CaseBuffer, Checked, Cost, Fill, Kernel, SliceMut, Want, noise};
use crate::kernels::{BENCHED, DTYPE, Owner, WIDE, shader};
use crate::memory::{Element, View};
use crate::reference;
use crate::shape::DType;

/// Words of the `counts` buffer of a [`FisherFour`] step: those of two [`Fisher`] steps, [`COUNT_STRIDE`] apart.
pub const FOUR_COUNT_WORDS: u64 = COUNT_STRIDE + COUNT_WORDS;

/// Two steps of [`Fisher`] merging in one dispatch: three or four models, and what lies between the steps stays in registers. Where
/// [`Fisher`] writes 16 bytes a parameter and reads them again between its steps, this moves none: four models are read once, the result is written once.
///
/// ```text
/// θ[p] = θ_ref[p] + Σ_m w_m[p] (θ_m[p] − θ_ref[p]) / Σ_m w_m[p],   w_m[p] = λ_m max(F_m[p], floor_m)
/// ```
///
/// - `theta_a` … `theta_d`    θ of the models `[p]`, f32, f16 or bf16
/// - `fisher_a` … `fisher_d`  their Fishers `[p]`, any of the types (any view, unread, if there is none)
/// - `reference`   θ_ref `[p]`: the first model; a first step takes `theta_a` for it
/// - `state`       [`state_words`]`(p)` words between steps (unread by a step that is first and last)
/// - `merged`      `[p]`, written by the last step, round to nearest even
/// - `counts`      [`FOUR_COUNT_WORDS`], zeroed before: those of the first step, and of the second [`COUNT_STRIDE`] words later
///
/// It binds twelve storage buffers, where WebGPU promises eight: [`FisherFour::suits`] says whether a device has them; others
/// take two [`Fisher`] steps. The values are the same up to what a compiler may contract. On the host, two [`Fisher`] steps
/// are the faster form: the host execution takes them one after the other, with its own state between them. Source and
/// definition: those of [`Fisher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FisherFour {
    /// The first step, of two models, which is not the last.
    pub first: Fisher,
    /// The second, of one or two models, which is not the first.
    pub second: Fisher,
}

crate::params! {
    /// The numbers of one [`FisherFour`] step: see [`FisherParams`].
    pub struct FisherFourParams {
        /// Parameters.
        len: u32,
        /// λ over the normaliser, first model: mantissa.
        lambda_a: f32,
        /// And its exponent.
        exponent_a: i32,
        /// λ_a / Σ λ of the models up to this one.
        share_a: f32,
        /// The least Fisher of the first model, as bits of an f32.
        floor_a: u32,
        /// The same of the second model.
        lambda_b: f32,
        /// And its exponent.
        exponent_b: i32,
        /// λ_b / Σ λ of the models up to this one.
        share_b: f32,
        /// The least Fisher of the second model, as bits of an f32.
        floor_b: u32,
        /// The same of the third model.
        lambda_c: f32,
        /// And its exponent.
        exponent_c: i32,
        /// λ_c / Σ λ of the models up to this one.
        share_c: f32,
        /// The least Fisher of the third model, as bits of an f32.
        floor_c: u32,
        /// The same of the fourth model.
        lambda_d: f32,
        /// And its exponent.
        exponent_d: i32,
        /// λ_d / Σ λ of the models up to this one.
        share_d: f32,
        /// The least Fisher of the fourth model, as bits of an f32.
        floor_d: u32,
    }
}

crate::args! {
    /// The buffers of one [`FisherFour`] step.
    pub struct FisherFourArgs / FisherFourSlices {
        /// θ_a `[p]`.
        read theta_a,
        /// F_a `[p]`.
        read fisher_a,
        /// θ_b `[p]`.
        read theta_b,
        /// F_b `[p]`.
        read fisher_b,
        /// θ_c `[p]`.
        read theta_c,
        /// F_c `[p]`.
        read fisher_c,
        /// θ_d `[p]`.
        read theta_d,
        /// F_d `[p]`.
        read fisher_d,
        /// θ_ref `[p]`.
        read reference,
        /// Four words a parameter.
        write state,
        /// θ `[p]`.
        write merged,
        /// 80 words.
        write counts,
    }
}

impl FisherFourParams {
    /// The numbers of two steps over the same parameters.
    #[must_use]
    pub fn of(first: FisherParams, second: FisherParams) -> Self {
        Self {
            len: first.len,
            lambda_a: first.lambda_a,
            exponent_a: first.exponent_a,
            share_a: first.share_a,
            floor_a: first.floor_a,
            lambda_b: first.lambda_b,
            exponent_b: first.exponent_b,
            share_b: first.share_b,
            floor_b: first.floor_b,
            lambda_c: second.lambda_a,
            exponent_c: second.exponent_a,
            share_c: second.share_a,
            floor_c: second.floor_a,
            lambda_d: second.lambda_b,
            exponent_d: second.exponent_b,
            share_d: second.share_b,
            floor_d: second.floor_b,
        }
    }

    fn steps(&self) -> [FisherParams; 2] {
        let first = FisherParams {
            len: self.len,
            lambda_a: self.lambda_a,
            exponent_a: self.exponent_a,
            share_a: self.share_a,
            floor_a: self.floor_a,
            lambda_b: self.lambda_b,
            exponent_b: self.exponent_b,
            share_b: self.share_b,
            floor_b: self.floor_b,
        };
        let second = FisherParams {
            len: self.len,
            lambda_a: self.lambda_c,
            exponent_a: self.exponent_c,
            share_a: self.share_c,
            floor_a: self.floor_c,
            lambda_b: self.lambda_d,
            exponent_b: self.exponent_d,
            share_b: self.share_d,
            floor_b: self.floor_d,
        };
        [first, second]
    }
}

impl FisherFourArgs {
    /// The buffers of two steps, and the counts of both. The second step's reference, state and result are taken.
    #[must_use]
    pub fn of(first: FisherArgs, second: FisherArgs, counts: View) -> Self {
        Self {
            theta_a: first.theta_a,
            fisher_a: first.fisher_a,
            theta_b: first.theta_b,
            fisher_b: first.fisher_b,
            theta_c: second.theta_a,
            fisher_c: second.fisher_a,
            theta_d: second.theta_b,
            fisher_d: second.fisher_b,
            reference: second.reference,
            state: second.state,
            merged: second.merged,
            counts,
        }
    }

    fn steps(&self) -> [FisherArgs; 2] {
        let [reference, state, merged, counts] =
            [&self.reference, &self.state, &self.merged, &self.counts].map(Clone::clone);
        let second = FisherArgs {
            theta_a: self.theta_c.clone(),
            fisher_a: self.fisher_c.clone(),
            theta_b: self.theta_d.clone(),
            fisher_b: self.fisher_d.clone(),
            reference,
            state,
            merged,
            counts,
        };
        let first = FisherArgs {
            theta_a: self.theta_a.clone(),
            fisher_a: self.fisher_a.clone(),
            theta_b: self.theta_b.clone(),
            fisher_b: self.fisher_b.clone(),
            ..second.clone()
        };
        [first, second]
    }
}

impl FisherFour {
    /// Whether a device binds enough buffers, and gains by it: on the host, steps of two models are merged in fast loops.
    #[must_use]
    pub fn suits(caps: &Caps) -> bool {
        !caps.is_host && caps.max_storage_buffers >= Self::buffers()
    }

    fn buffers() -> u32 {
        u32::try_from(FisherFourArgs::BINDINGS.len()).expect("twelve")
    }

    /// Whether no state is read or written.
    fn is_whole(&self) -> bool {
        self.first.first && self.second.last
    }
}

impl Kernel for FisherFour {
    const NAME: &'static str = "merge.fisher_four";
    type Params = FisherFourParams;
    type Args = FisherFourArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("merge/fisher_four.wgsl"), DTYPE, WIDE, TALLY, COUNT]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let (first, second) = (&self.first, &self.second);
        let mut overrides = super::overrides(second.owner).to_vec();
        overrides.extend([
            ("THETA_A", first.theta[0].code().into()),
            ("THETA_B", first.theta[1].code().into()),
            ("THETA_C", second.theta[0].code().into()),
            ("THETA_D", second.theta[1].code().into()),
            ("FISHER_A", code(first.fisher[0])),
            ("FISHER_B", code(first.fisher[1])),
            ("FISHER_C", code(second.fisher[0])),
            ("FISHER_D", code(second.fisher[1])),
            ("REFERENCE", second.reference.code().into()),
            ("MERGED", second.merged.code().into()),
            ("FIRST", f64::from(u8::from(first.first))),
            ("LAST", f64::from(u8::from(second.last))),
            ("PAIR", f64::from(u8::from(second.pair))),
            ("FLOORED", f64::from(u8::from(second.floored))),
            ("STEPS", 2.0),
        ]);
        overrides
    }

    fn launch(&self, params: &FisherFourParams, args: &FisherFourArgs, caps: &Caps) -> Result<[u32; 3]> {
        let (first, second) = (&self.first, &self.second);
        if !first.pair || first.last || second.first || first.floored != second.floored {
            let problem = "two steps, of which the first has two models and is not the last, and the second is not the first";
            return Err(Error::argument(Self::NAME, problem));
        }
        if caps.max_storage_buffers < Self::buffers() {
            return Err(Error::Limit {
                op: Self::NAME.into(),
                limit: "storage buffers of one step".into(),
                max: caps.max_storage_buffers.into(),
                asked: Self::buffers().into(),
            });
        }
        let (numbers, buffers) = (params.steps(), args.steps());
        first.expect_models(Self::NAME, &numbers[0], &buffers[0])?;
        second.expect_models(Self::NAME, &numbers[1], &buffers[1])?;
        let len = params.len.into();
        args.reference.expect(Self::NAME, "reference", len, Some(second.reference.into()))?;
        if !self.is_whole() {
            args.state.expect(Self::NAME, "state", state_words(len), Some(Element::U32))?;
        }
        if second.last {
            args.merged.expect(Self::NAME, "merged", len, Some(second.merged.into()))?;
        }
        args.counts.expect(Self::NAME, "counts", FOUR_COUNT_WORDS, Some(Element::U32))?;
        super::grid(Self::NAME, len, second.owner, caps)
    }

    fn host(&self, params: &FisherFourParams, args: FisherFourSlices<'_>) {
        let FisherFourSlices { mut state, mut merged, counts, reference, .. } = args;
        let words = usize::try_from(state_words(params.len.into())).expect("buffers lie in memory");
        let mut own = vec![0_u32; if self.is_whole() { words } else { 0 }];
        if self.is_whole() {
            state = SliceMut::new(cast_slice_mut(&mut own), Element::U32);
        }
        let (earlier, later) = counts.cast::<u32>().split_at_mut(COUNT_STRIDE as usize);
        let [numbers, second] = params.steps();
        let step = FisherSlices {
            theta_a: args.theta_a,
            fisher_a: args.fisher_a,
            theta_b: args.theta_b,
            fisher_b: args.fisher_b,
            reference: if self.first.first { args.theta_a } else { reference },
            state: state.reborrow(),
            merged: merged.reborrow(),
            counts: SliceMut::new(cast_slice_mut(&mut earlier[..COUNT_WORDS as usize]), Element::U32),
        };
        self.first.host(&numbers, step);
        let step = FisherSlices {
            theta_a: args.theta_c,
            fisher_a: args.fisher_c,
            theta_b: args.theta_d,
            fisher_b: args.fisher_d,
            reference: if self.first.first { args.theta_a } else { reference },
            state,
            merged,
            counts: SliceMut::new(cast_slice_mut(&mut later[..COUNT_WORDS as usize]), Element::U32),
        };
        self.second.host(&second, step);
    }

    fn cost(&self, params: &FisherFourParams, args: &FisherFourArgs) -> Cost {
        let ([a, b], [of_a, of_b]) = (params.steps(), args.steps());
        let costs = [self.first.cost(&a, &of_a), self.second.cost(&b, &of_b)];
        // Neither the state between the steps nor, in a first step, the reference once more.
        let between = 32 + if self.first.first { self.second.reference.size() } else { 0 };
        Cost {
            bytes: costs[0].bytes + costs[1].bytes - between * u64::from(params.len),
            flops: costs[0].flops + costs[1].flops,
        }
    }
}

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

/// The state of the cases that are no first step: a mean, the weight it stands for, and the largest single one.
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
