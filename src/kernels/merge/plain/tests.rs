use super::super::{
    COUNT_WORDS, Counts, Fisher, FisherArgs, FisherParams, Ubgm, UbgmArgs, UbgmParams, state_words,
};
use super::bounds::Exponents;
use super::*;
use crate::backend::Backend;
use crate::kernel::BLOCK;
use crate::kernel::noise;
use crate::kernels::Owner;
use crate::kernels::merge::host::NOTHING;
use crate::memory::{Element, View};
use crate::record::{MergeStep, Recording};

/// Models that are merged in several steps.
#[derive(Clone)]
struct Models {
    thetas: Vec<Vec<f32>>,
    fishers: Vec<Vec<f32>>,
    factors: Vec<Factor>,
    floor: f32,
    /// The reference is a copy of the first model, of which the loops don't know that it is the same.
    copied: bool,
    len: usize,
}

/// What each step leaves: the state or, at the end, the result; and what it counted.
type Left = Vec<(Vec<u32>, Counts)>;

impl Models {
    /// Blocks of several magnitudes, a few Fishers zero in one model or in all.
    fn new(count: usize, len: usize) -> Self {
        let floats = |values: Vec<f64>| -> Vec<f32> { values.iter().map(|&value| value as f32).collect() };
        let fishers = |m: u64| {
            let (own, all) = (noise(100 + m, len), noise(7, len));
            let value = |p: usize| {
                let zero = own[p] < -0.8 || all[p] < -0.9;
                let scale = 2.0_f64.powi([0, -70, 60, -20][p / BLOCK % 4]);
                if zero { 0.0 } else { 10.0_f64.powf(2.0 * own[p]) * scale }
            };
            floats((0..len).map(value).collect())
        };
        Self {
            thetas: (0..count as u64).map(|m| floats(noise(m, len))).collect(),
            fishers: (0..count as u64).map(fishers).collect(),
            factors: (0..count).map(|m| Factor::of(0.5 + m as f64)).collect(),
            floor: 0.0,
            copied: false,
            len,
        }
    }

    /// One subnormal Fisher of `model` a block sends the block down the general way in the step that reads it.
    fn with_subnormals(mut self, model: usize) -> Self {
        self.fishers[model].iter_mut().step_by(BLOCK).for_each(|fisher| *fisher = f32::from_bits(1));
        self
    }

    fn views(&self) -> (Vec<View>, Vec<View>) {
        let view = |values: &Vec<f32>| Backend::Host.buffer(values, Element::F32).expect("a small buffer");
        (self.thetas.iter().map(view).collect(), self.fishers.iter().map(view).collect())
    }

    /// Runs `steps` steps that `record` appends.
    fn run(&self, steps: usize, record: impl Fn(&mut Recording, usize, [View; 3])) -> Left {
        let host = Backend::Host;
        let state = host.alloc(state_words(self.len as u64), Element::U32).expect("a small buffer");
        let merged = host.alloc(self.len as u64, Element::F32).expect("a small buffer");
        (0..steps)
            .map(|step| {
                let counts = host.alloc(COUNT_WORDS, Element::U32).expect("a small buffer");
                let mut recording = Recording::new(&host);
                record(&mut recording, step, [state.clone(), merged.clone(), counts.clone()]);
                host.run(&recording).expect("the step runs on the host");
                let left = if step + 1 == steps { &merged } else { &state };
                let words = |view: &View| host.download::<u32>(view).expect("the host's memory");
                (words(left), Counts::of(&words(&counts)))
            })
            .collect()
    }

    fn fisher(&self) -> Left {
        let inputs = self.inputs();
        self.run(self.steps(), |recording, step, left| {
            let MergeStep { kernel, params, args } = self.fisher_step(&inputs, step, left);
            recording.dispatch(&kernel, params, args).expect("views fit");
        })
    }

    /// The result of all steps block by block, and what each counted.
    fn fisher_at_once(&self) -> (Vec<u32>, Vec<Counts>) {
        let host = Backend::Host;
        // The first model itself is the reference of a merge.
        let (thetas, fishers, _) = self.inputs();
        let inputs = (thetas.clone(), fishers, thetas[0].clone());
        let alloc = |len: u64, element| host.alloc(len, element).expect("a small buffer");
        let state = alloc(state_words(self.len as u64), Element::U32);
        let merged = alloc(self.len as u64, Element::F32);
        let counts: Vec<View> = (0..self.steps()).map(|_| alloc(COUNT_WORDS, Element::U32)).collect();
        let step = |step: usize| {
            self.fisher_step(&inputs, step, [state.clone(), merged.clone(), counts[step].clone()])
        };
        let mut recording = Recording::new(&host);
        recording.merge((0..self.steps()).map(step).collect()).expect("views fit");
        host.run(&recording).expect("the steps run on the host");
        let words = |view: &View| host.download::<u32>(view).expect("the host's memory");
        (words(&merged), counts.iter().map(|view| Counts::of(&words(view))).collect())
    }

    fn steps(&self) -> usize {
        self.thetas.len().div_ceil(2)
    }

    /// Models, Fishers and the reference.
    fn inputs(&self) -> (Vec<View>, Vec<View>, View) {
        let (thetas, fishers) = self.views();
        let reference = if self.copied { self.views().0.swap_remove(0) } else { thetas[0].clone() };
        (thetas, fishers, reference)
    }

    fn fisher_step(
        &self,
        (thetas, fishers, reference): &(Vec<View>, Vec<View>, View),
        step: usize,
        [state, merged, counts]: [View; 3],
    ) -> MergeStep {
        let count = thetas.len();
        let (a, pair) = (2 * step, 2 * step + 1 < count);
        let b = if pair { a + 1 } else { a };
        let f32s = DType::F32;
        let kernel = Fisher {
            theta: [f32s; 2],
            fisher: [Some(f32s); 2],
            reference: f32s,
            merged: f32s,
            first: step == 0,
            last: b + 1 == count,
            pair,
            floored: self.floor > 0.0,
            owner: Owner::Workgroup,
        };
        let share = |m: usize| 1.0 / (m as f32 + 1.0);
        let params = FisherParams {
            len: u32::try_from(self.len).expect("tests are small"),
            lambda_a: self.factors[a].mantissa,
            exponent_a: self.factors[a].exponent,
            share_a: share(a),
            floor_a: self.floor.to_bits(),
            lambda_b: self.factors[b].mantissa,
            exponent_b: self.factors[b].exponent,
            share_b: share(b),
            floor_b: self.floor.to_bits(),
        };
        let args = FisherArgs {
            theta_a: thetas[a].clone(),
            fisher_a: fishers[a].clone(),
            theta_b: thetas[b].clone(),
            fisher_b: fishers[b].clone(),
            reference: reference.clone(),
            state,
            merged,
            counts,
        };
        MergeStep { kernel, params, args }
    }

    /// The last model is the base.
    fn ubgm(&self, lambda: f64, delta: f64) -> Left {
        let (thetas, fishers) = self.views();
        let count = thetas.len() - 1;
        self.run(count, |recording, step, [state, merged, counts]| {
            let f32s = DType::F32;
            let (first, last) = (step == 0, step + 1 == count);
            let kernel = Ubgm {
                theta: f32s,
                fisher: f32s,
                base: f32s,
                base_fisher: f32s,
                merged: f32s,
                first,
                last,
                owner: Owner::Workgroup,
            };
            let [lambda, delta] = [lambda, delta].map(Factor::of);
            let params = UbgmParams {
                len: u32::try_from(self.len).expect("tests are small"),
                lambda: lambda.mantissa,
                lambda_exponent: lambda.exponent,
                scale: self.factors[step].mantissa,
                scale_exponent: self.factors[step].exponent,
                floor: self.floor.to_bits(),
                base_scale: self.factors[count].mantissa,
                base_scale_exponent: self.factors[count].exponent,
                delta: delta.mantissa,
                delta_exponent: delta.exponent,
            };
            let args = UbgmArgs {
                theta: thetas[step].clone(),
                fisher: fishers[step].clone(),
                base: thetas[count].clone(),
                base_fisher: fishers[count].clone(),
                state,
                merged,
                counts,
            };
            recording.dispatch(&kernel, params, args).expect("views fit");
        })
    }
}

/// Both ways leave the same bits after each step, but at the parameters that sent a block the general way. A zero mean
/// may have either sign, and the exponent of no weight is any that is low enough.
fn assert_same(plain: &Left, other: &Left, what: &str) {
    let zero = |word: u32| if word == 0x8000_0000 { 0 } else { word };
    let exponent = |word: u32| ((word.cast_signed() >> 1).max(Exponents::NOTHING), word & 1);
    for (step, ((left, _), (other, _))) in plain.iter().zip(other).enumerate() {
        let words = if step + 1 == plain.len() { 1 } else { 4 };
        for (at, (&left, &other)) in left.iter().zip(other).enumerate() {
            if at / words % BLOCK == 0 {
                continue;
            }
            let same =
                if at % words == 3 { exponent(left) == exponent(other) } else { zero(left) == zero(other) };
            assert!(same, "{what}: step {step}, word {at}: {left:#x} is not {other:#x}");
        }
    }
}

/// Those whose blocks one of the models sends the general way, and all.
fn general(models: &Models) -> impl Iterator<Item = Models> {
    let count = models.thetas.len();
    let all = (0..count).fold(models.clone(), Models::with_subnormals);
    let one = models.clone();
    (0..count).map(move |m| one.clone().with_subnormals(m)).chain([all])
}

/// Lengths that end in a part of a block, factors far outside of f32, floors.
fn settings(count: usize) -> [Models; 5] {
    let models = Models::new(count, 4 * BLOCK + 77);
    let floor = Models { floor: 0.25, ..models.clone() };
    let copied = Models { copied: true, ..models.clone() };
    let mut far = models.clone();
    far.factors.iter_mut().for_each(|factor| factor.exponent -= 300);
    let mut apart = models.clone();
    apart.factors.iter_mut().enumerate().for_each(|(m, factor)| factor.exponent += 9 * (m as i32 % 3));
    [models, floor, copied, far, apart]
}

#[test]
fn steps_of_many_models_leave_the_bits_of_steps_with_exponents() {
    for count in 1..=5 {
        for (setting, models) in settings(count).iter().enumerate() {
            let plain = models.fisher();
            for other in general(models) {
                assert_same(&plain, &other.fisher(), &format!("{count} models, setting {setting}"));
            }
        }
    }
}

/// Blocks that one power of two fits, that none fits, and that have something to be reported.
#[test]
fn steps_block_by_block_have_the_bits_and_counts_of_steps_one_by_one() {
    for count in 1..=7 {
        for (setting, models) in settings(count).iter().enumerate() {
            for (case, models) in [models.clone()].into_iter().chain(general(models)).enumerate() {
                let mut models = models;
                models.thetas[count - 1][BLOCK + 3] = f32::INFINITY;
                models.fishers[count / 2][2 * BLOCK + 5] = f32::NAN;
                let one_by_one = models.fisher();
                let (merged, counts) = models.fisher_at_once();
                let what = format!("{count} models, setting {setting}, case {case}");
                assert_eq!(merged, one_by_one[models.steps() - 1].0, "{what}");
                let expected: Vec<Counts> = one_by_one.iter().map(|(_, counts)| *counts).collect();
                assert_eq!(counts, expected, "{what}");
            }
        }
    }
}

#[test]
fn steps_of_many_models_by_a_base_leave_the_bits_of_steps_with_exponents() {
    for count in 2..=4 {
        for (setting, models) in settings(count).iter().enumerate() {
            for (lambda, delta) in [(1.5, 0.0), (0.0, 0.0), (2e-9, 0.25), (3e9, 0.0)] {
                let plain = models.ubgm(lambda, delta);
                for other in general(models) {
                    let what = format!("{count} models, setting {setting}, lambda {lambda}, delta {delta}");
                    assert_same(&plain, &other.ubgm(lambda, delta), &what);
                }
            }
        }
    }
}

/// Exponents of weights that are kept between steps reach as far as f64's, and none is no exponent.
#[test]
fn exponents_are_those_of_values_and_of_what_they_are_stored_with() {
    let range = |weights: &[(f32, i32)]| {
        let mut exponents = Exponents::NONE;
        weights.iter().for_each(|&(mantissa, exponent)| exponents.add(mantissa.to_bits(), exponent));
        exponents.range()
    };
    assert_eq!(range(&[]), None);
    assert_eq!(range(&[(0.0, NOTHING), (0.0, NOTHING - 300)]), None);
    assert_eq!(range(&[(1.5, -900), (0.0, NOTHING)]), Some((-900, -900)));
    assert_eq!(range(&[(1.5, -900), (6.0, 800)]), Some((-900, 802)));
    assert_eq!(range(&[(0.25, 4)]), Some((2, 4)));
    // A weight of zero with its own exponent is no case for plain f32.
    assert_eq!(range(&[(0.0, 3)]), Some((-124, 3)));
}
