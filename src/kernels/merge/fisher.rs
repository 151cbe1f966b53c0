//! Fisher merging and plain averaging.

mod cases;

use super::host::{self, Block};
use super::plain::{self, BlockStep, PlainFactor};
use super::{COUNT, COUNT_WORDS, Factor, MODELS, STEP, TALLY, code, state_words};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{BLOCK, Cost, Floats, Kernel, Slice};
use crate::kernels::{DTYPE, Owner, WIDE, shader};
use crate::memory::{Element, View};
use crate::shape::DType;

/// One step of Fisher merging, two models at a time:
///
/// ```text
/// θ[p] = θ_ref[p] + Σ_m w_m[p] (θ_m[p] − θ_ref[p]) / Σ_m w_m[p],   w_m[p] = λ_m max(F_m[p], floor_m)
/// ```
///
/// where the sum of the weights is 0, the plain average Σ λ_m θ_m / Σ λ_m. A model without a Fisher weighs 1
/// everywhere, which makes this the kernel of `linear` merging too.
///
/// - `theta_a`, `theta_b`    θ of two models `[p]`, f32, f16 or bf16
/// - `fisher_a`, `fisher_b`  their Fishers `[p]`, any of the types (any view, unread, if there is none)
/// - `reference`   θ_ref `[p]`: the first model, the same in every step; a first step takes `theta_a` for it
/// - `state`       [`state_words`]`(p)` words between steps (unread by a step that is first and last)
/// - `merged`      `[p]`, written by the last step, round to nearest even
/// - `counts`      16 words, zeroed before the first step; see [`Counts`](super::Counts)
///
/// M models take ⌈M/2⌉ steps. Two models move each input and the output once. Bitwise repeatable: no element depends on
/// another. NaN, infinite and negative Fishers weigh 0 and are counted, for the caller to refuse.
/// Source: Matena & Raffel, *Merging Models with Fisher-Weighted Averaging* (2022), equation 3; definition:
/// [`reference::merge::fisher`](crate::reference::merge::fisher).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fisher {
    /// Storage of the two models.
    pub theta: [DType; 2],
    /// Storage of their Fishers, or none.
    pub fisher: [Option<DType>; 2],
    /// Storage of the reference.
    pub reference: DType,
    /// Storage of the result.
    pub merged: DType,
    /// This step starts from nothing.
    pub first: bool,
    /// This step writes the result.
    pub last: bool,
    /// There is a second model.
    pub pair: bool,
    /// Some model of the merge has a floor above zero.
    pub floored: bool,
    /// Who adds up what is counted.
    pub owner: Owner,
}

crate::params! {
    /// The numbers of one [`Fisher`] step.
    pub struct FisherParams {
        /// Parameters.
        len: u32,
        /// λ of the first model over its Fisher's normaliser: mantissa.
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
    }
}

crate::args! {
    /// The buffers of one [`Fisher`] step.
    pub struct FisherArgs / FisherSlices {
        /// θ_a `[p]`.
        read theta_a,
        /// F_a `[p]`.
        read fisher_a,
        /// θ_b `[p]`.
        read theta_b,
        /// F_b `[p]`.
        read fisher_b,
        /// θ_ref `[p]`.
        read reference,
        /// Four words a parameter.
        write state,
        /// θ `[p]`.
        write merged,
        /// 16 words.
        write counts,
    }
}

impl Kernel for Fisher {
    const NAME: &'static str = "merge.fisher";
    type Params = FisherParams;
    type Args = FisherArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("merge/fisher.wgsl"), DTYPE, WIDE, TALLY, COUNT, STEP, MODELS]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let mut overrides = super::overrides(self.owner).to_vec();
        overrides.extend([
            ("THETA_A", self.theta[0].code().into()),
            ("THETA_B", self.theta[1].code().into()),
            ("FISHER_A", code(self.fisher[0])),
            ("FISHER_B", code(self.fisher[1])),
            ("REFERENCE", self.reference.code().into()),
            ("MERGED", self.merged.code().into()),
            ("FIRST", f64::from(u8::from(self.first))),
            ("LAST", f64::from(u8::from(self.last))),
            ("PAIR", f64::from(u8::from(self.pair))),
            ("FLOORED", f64::from(u8::from(self.floored))),
        ]);
        overrides
    }

    fn launch(&self, params: &FisherParams, args: &FisherArgs, caps: &Caps) -> Result<[u32; 3]> {
        let len = params.len.into();
        let expect =
            |view: &View, what: &str, element: Element| view.check(Self::NAME, what, len, Some(element));
        self.check_models(Self::NAME, params, args)?;
        expect(&args.reference, "reference", self.reference.into())?;
        if !(self.first && self.last) {
            args.state.check(Self::NAME, "state", state_words(len), Some(Element::U32))?;
        }
        if self.last {
            expect(&args.merged, "merged", self.merged.into())?;
        }
        args.counts.check(Self::NAME, "counts", COUNT_WORDS, Some(Element::U32))?;
        super::grid(Self::NAME, len, self.owner, caps)
    }

    fn host(&self, params: &FisherParams, args: FisherSlices<'_>) {
        let uses_state = !(self.first && self.last);
        let state = uses_state.then_some(args.state);
        let merged = self.last.then_some(args.merged);
        let step = HostStep::new(
            *self,
            params,
            [args.theta_a, args.fisher_a, args.theta_b, args.fisher_b, args.reference],
        );
        host::for_blocks(
            params.len as usize,
            state,
            merged,
            args.counts,
            #[inline(always)]
            |scratch, counts, block| step.block(scratch, counts, block),
        );
    }

    fn cost(&self, params: &FisherParams, _: &FisherArgs) -> Cost {
        let models = if self.pair { 2 } else { 1 };
        let mut bytes = 0;
        for m in 0..models {
            bytes += self.theta[m].size() + self.fisher[m].map_or(0, DType::size);
        }
        // The reference of a first step is its own first model.
        bytes += if self.first { 0 } else { self.reference.size() + 16 };
        bytes += if self.last { self.merged.size() } else { 16 };
        Cost { bytes: bytes * u64::from(params.len), flops: 8 * models as u64 * u64::from(params.len) }
    }
}

/// What a model without a Fisher weighs.
static ONES: [f32; BLOCK] = [1.0; BLOCK];

/// θ, F and the numbers of one model.
pub(super) type HostModel<'a> = (Slice<'a>, Option<Slice<'a>>, Model);

/// A step and what it reads.
#[derive(Clone, Copy)]
pub(crate) struct HostStep<'a> {
    pub(super) kernel: Fisher,
    /// The second one is nothing where the step has one model.
    models: [HostModel<'a>; 2],
    pub(super) reference: Slice<'a>,
}

/// One model's numbers.
#[derive(Clone, Copy)]
pub(super) struct Model {
    pub(super) factor: Factor,
    share: f32,
    floor: u32,
}

impl Model {
    /// In plain f32, with `shift` added to the exponents of weights.
    #[inline(always)]
    pub(super) fn plain<'a>(
        self,
        shift: i32,
        theta: &'a [f32],
        fisher: &'a [f32],
        counted: bool,
    ) -> Option<plain::Model<'a>> {
        let Self { factor, share, floor: least } = self;
        Some(plain::Model { theta, fisher, factor: PlainFactor::new(factor, shift)?, share, least, counted })
    }
}

impl FisherParams {
    fn model_a(&self) -> Model {
        let factor = Factor { mantissa: self.lambda_a, exponent: self.exponent_a };
        Model { factor, share: self.share_a, floor: self.floor_a }
    }

    fn model_b(&self) -> Model {
        let factor = Factor { mantissa: self.lambda_b, exponent: self.exponent_b };
        Model { factor, share: self.share_b, floor: self.floor_b }
    }
}

impl Fisher {
    /// Checks the buffers of the models, and that floors are expected where there are some.
    pub(super) fn check_models(&self, op: &str, params: &FisherParams, args: &FisherArgs) -> Result<()> {
        let models = [
            (&args.theta_a, &args.fisher_a, ["theta", "fisher"]),
            (&args.theta_b, &args.fisher_b, ["second theta", "second fisher"]),
        ];
        let wanted = if self.pair { 2 } else { 1 };
        for (m, (theta, fisher, [of_theta, of_fisher])) in models.into_iter().take(wanted).enumerate() {
            theta.check(op, of_theta, params.len.into(), Some(self.theta[m].into()))?;
            if let Some(dtype) = self.fisher[m] {
                fisher.check(op, of_fisher, params.len.into(), Some(dtype.into()))?;
            }
        }
        if !self.floored && (params.floor_a, params.floor_b) != (0, 0) {
            return Err(Error::argument(op, "a floor above zero in a step that expects none (`floored`)"));
        }
        Ok(())
    }
}

impl<'a> HostStep<'a> {
    /// With θ_a, F_a, θ_b, F_b and θ_ref.
    pub(crate) fn new(kernel: Fisher, params: &FisherParams, inputs: [Slice<'a>; 5]) -> Self {
        let [theta_a, fisher_a, theta_b, fisher_b, reference] = inputs;
        let reference = if kernel.first { theta_a } else { reference };
        let models = [
            (theta_a, kernel.fisher[0].map(|_| fisher_a), params.model_a()),
            (theta_b, kernel.fisher[1].map(|_| fisher_b), params.model_b()),
        ];
        Self { kernel, models, reference }
    }

    pub(super) fn models(&self) -> &[HostModel<'a>] {
        &self.models[..if self.kernel.pair { 2 } else { 1 }]
    }

    #[inline(always)]
    pub(super) fn block(&self, scratch: &mut host::Scratch, counts: &mut host::Words, mut block: Block<'_>) {
        let (kernel, models, reference) = (self.kernel, self.models(), self.reference);
        if self.plain_block(scratch, counts, &mut block) {
            return;
        }
        let Block { start, len, state, merged } = block;
        let host::Scratch { general, theta, fisher, origin, base_fisher: out, .. } = scratch;
        let host::General { tallies, weights, .. } = &mut **general.get_or_insert_default();
        let origin = origin.load(reference.range(start, len));
        let mut state = state.map(|state| state.cast::<u32>());
        match &state {
            Some(state) if !kernel.first => tallies.load(&state[..4 * len]),
            _ => tallies.start(),
        }
        for (m, (t, f, model)) in models.iter().enumerate() {
            let theta = theta.load(t.range(start, len));
            let values = load_fisher(fisher, *f, start, len);
            host::count_model(counts, m, start, theta, f.map(|_| values), model.floor);
            weights.load(values, model.floor, model.factor);
            tallies.floors(values, model.floor);
            tallies.add(weights, None, theta, origin, model.share);
        }
        if let Some(merged) = merged {
            host::count_outcome(counts, tallies, len);
            out.store(merged, |merged| {
                tallies.finish(origin, merged);
                host::count_unrepresentable(counts, start, merged, kernel.merged);
            });
        } else if let Some(state) = &mut state {
            tallies.save(&mut state[..4 * len]);
        }
    }

    /// The block in plain f32, if that can be.
    #[inline(always)]
    fn plain_block(
        &self,
        scratch: &mut host::Scratch,
        counts: &mut host::Words,
        block: &mut Block<'_>,
    ) -> bool {
        let (kernel, models, reference) = (self.kernel, self.models(), self.reference);
        let Block { start, len, .. } = *block;
        let host::Scratch { theta, fisher, origin, second, plain: scratch, .. } = scratch;
        let a = models[0];
        let [theta_a, reference] = [a.0, reference].map(|slice| slice.range(start, len));
        let theta = theta.load(theta_a);
        let origin = host::load_origin(origin, reference, theta_a, theta);
        let fisher = load_fisher(fisher, a.1, start, len);
        // No `map`: its closure would be a separate function, without the wide vectors.
        let mut b = None;
        if let Some(&model) = models.get(1) {
            let theta = second.0.load(model.0.range(start, len));
            b = Some((model, theta, load_fisher(&mut second.1, model.1, start, len)));
        }
        let step =
            BlockStep { first: kernel.first, origin, exponent: a.2.factor.exponent, merged: kernel.merged };
        step.merge(
            scratch,
            counts,
            block,
            #[inline(always)]
            |step| {
                let b = match b {
                    Some(((_, f, model), theta, fisher)) => {
                        Some(model.plain(step.shift, theta, fisher, f.is_some())?)
                    }
                    None => None,
                };
                Some(plain::fisher(a.2.plain(step.shift, theta, fisher, a.1.is_some())?, b, step))
            },
        )
    }
}

/// A block of Fishers, or of ones where there are none.
#[inline(always)]
pub(super) fn load_fisher<'a>(
    scratch: &'a mut Floats,
    fisher: Option<Slice<'a>>,
    start: usize,
    len: usize,
) -> &'a [f32] {
    match fisher {
        Some(fisher) => scratch.load(fisher.range(start, len)),
        None => &ONES[..len],
    }
}
