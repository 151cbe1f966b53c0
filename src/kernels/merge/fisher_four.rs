//! Fisher merging, four models in one dispatch.

mod cases;

use bytemuck::cast_slice_mut;

use super::{
    COUNT, COUNT_STRIDE, COUNT_WORDS, Fisher, FisherArgs, FisherParams, FisherSlices, MODELS, STEP, TALLY,
    code, state_words,
};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{Args, Cost, Kernel, SliceMut};
use crate::kernels::{DTYPE, WIDE, shader};
use crate::memory::{Element, View};

/// Words of the `counts` buffer of a [`FisherFour`] step: those of two [`Fisher`] steps, [`COUNT_STRIDE`] apart.
pub const FOUR_COUNT_WORDS: u64 = COUNT_STRIDE + COUNT_WORDS;

/// Two steps of [`Fisher`] merging in one dispatch: three or four models, and what lies between the steps stays in
/// registers. Where [`Fisher`] writes 16 bytes a parameter and reads them again between its steps, this moves none:
/// four models are read once, the result is written once.
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
/// - `counts`      [`FOUR_COUNT_WORDS`], zeroed before: those of the first step, and of the second [`COUNT_STRIDE`]
///   words later
///
/// It binds twelve storage buffers, where WebGPU promises eight: [`FisherFour::suits`] says whether a device has them;
/// others take two [`Fisher`] steps. The values are the same up to what a compiler may contract. On the host, two
/// [`Fisher`] steps are the faster form: the host execution takes them one after the other, with its own state between
/// them. Source and definition: those of [`Fisher`].
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
    /// Whether a device binds enough buffers, and gains by it: on the host, steps of two models are merged in
    /// fast loops.
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
        vec![shader!("merge/fisher_four.wgsl"), DTYPE, WIDE, TALLY, COUNT, STEP, MODELS]
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
                limit: "max_storage_buffers_per_shader_stage".into(),
                max: caps.max_storage_buffers.into(),
                asked: Self::buffers().into(),
            });
        }
        let (numbers, buffers) = (params.steps(), args.steps());
        first.check_models(Self::NAME, &numbers[0], &buffers[0])?;
        second.check_models(Self::NAME, &numbers[1], &buffers[1])?;
        let len = params.len.into();
        args.reference.check(Self::NAME, "reference", len, Some(second.reference.into()))?;
        if !self.is_whole() {
            args.state.check(Self::NAME, "state", state_words(len), Some(Element::U32))?;
        }
        if second.last {
            args.merged.check(Self::NAME, "merged", len, Some(second.merged.into()))?;
        }
        args.counts.check(Self::NAME, "counts", FOUR_COUNT_WORDS, Some(Element::U32))?;
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
