//! The loops, each compiled for what a step starts from, what it leaves, and what else is known before it runs.

use super::bounds::{Exponents, Extremes, span};
use super::running::{Running, Tally, exponent_of};
use super::{End, Model, OneModel, Seen, State, Step, StepOfMany, Sums};
use crate::kernel::{BLOCK, vectorised};

/// Calls a loop that knows at compile time which of the flags are set.
macro_rules! with_flags {
    ($function:ident::<$($known:ident),*>($($arg:expr),*);) => { $function::<$($known),*>($($arg),*) };
    ($function:ident::<$($known:ident),*>($($arg:expr),*); $flag:expr $(, $rest:expr)*) => {
        if $flag {
            with_flags!($function::<$($known,)* YES>($($arg),*); $($rest),*)
        } else {
            with_flags!($function::<$($known,)* NO>($($arg),*); $($rest),*)
        }
    };
}

const YES: bool = true;
const NO: bool = false;

/// A loop over Fisher merges starts from the state that a step before left.
const FROM_STATE: u8 = 0;
/// It starts from nothing.
const FROM_NOTHING: u8 = 1;
/// It starts from nothing, and the first model is the reference itself, as in every merge of files: there is one stream
/// less to read, and one division less.
const FROM_REFERENCE: u8 = 2;
/// It starts from the sums of the step straight before.
const FROM_SUMS: u8 = 3;

/// It leaves a state.
const TO_STATE: u8 = 0;
/// It leaves the result.
const TO_MERGED: u8 = 1;
/// It leaves sums for the step straight after.
const TO_SUMS: u8 = 2;

/// What the loop of a first step starts from, whose first model is `a`.
fn first_start(a: Model<'_>, origin: &[f32]) -> u8 {
    if std::ptr::eq(a.theta, origin) { FROM_REFERENCE } else { FROM_NOTHING }
}

/// One step of a Fisher merge, of one model or two.
pub(in crate::kernels::merge) fn fisher(a: Model<'_>, b: Option<Model<'_>>, step: Step<'_>) -> Seen {
    let pair = b.is_some();
    let b = b.unwrap_or(a);
    let floor = a.least | b.least > 0;
    let Step { origin, before, end, shift } = step;
    let (ends, after, merged, limit): (u8, &mut State, &mut [f32], f32) = match end {
        End::State(after) => (TO_STATE, after, &mut [], f32::INFINITY),
        End::Merged(merged, limit) => (TO_MERGED, &mut [], merged, limit),
    };
    let begins = if before.is_some() { FROM_STATE } else { first_start(a, origin) };
    let (before, rest) = (before.unwrap_or_default(), (shift, limit));
    macro_rules! from_to {
        ($start:ident, $end:ident) => {
            with_flags!(fisher_loop::<$start, $end>(
                a, b, origin, before, after, &mut [], &mut [], &mut [], &mut [], merged, rest
            ); pair, floor)
        };
    }
    vectorised(
        #[inline(always)]
        || match (begins, ends) {
            (FROM_STATE, TO_STATE) => from_to!(FROM_STATE, TO_STATE),
            (FROM_STATE, _) => from_to!(FROM_STATE, TO_MERGED),
            (FROM_REFERENCE, TO_STATE) => from_to!(FROM_REFERENCE, TO_STATE),
            (FROM_REFERENCE, _) => from_to!(FROM_REFERENCE, TO_MERGED),
            (_, TO_STATE) => from_to!(FROM_NOTHING, TO_STATE),
            _ => from_to!(FROM_NOTHING, TO_MERGED),
        },
    )
}

/// The same of a step that is followed by others over the same block, or follows them.
pub(in crate::kernels::merge) fn fisher_of_many(
    a: Model<'_>,
    b: Option<Model<'_>>,
    step: StepOfMany<'_>,
) -> Seen {
    let pair = b.is_some();
    let b = b.unwrap_or(a);
    let floor = a.least | b.least > 0;
    let StepOfMany { origin, first, merged, shift, sums } = step;
    let last = merged.is_some();
    let (merged, limit): (&mut [f32], f32) = merged.unwrap_or((&mut [], f32::INFINITY));
    let Sums { mean, sum, largest, unfloored } = sums;
    let (begins, rest) = (if first { first_start(a, origin) } else { FROM_SUMS }, (shift, limit));
    macro_rules! from_to {
        ($start:ident, $end:ident) => {
            with_flags!(fisher_loop::<$start, $end>(
                a, b, origin, &[], &mut [], mean, sum, largest, unfloored, merged, rest
            ); pair, floor)
        };
    }
    vectorised(
        #[inline(always)]
        || match (begins, last) {
            (FROM_SUMS, true) => from_to!(FROM_SUMS, TO_MERGED),
            (FROM_SUMS, false) => from_to!(FROM_SUMS, TO_SUMS),
            (FROM_REFERENCE, _) => from_to!(FROM_REFERENCE, TO_SUMS),
            _ => from_to!(FROM_NOTHING, TO_SUMS),
        },
    )
}

/// One or two models of a Fisher merge, parameter by parameter.
///
/// Every array is a separate argument: only then does the compiler know that no two overlap, and vectorises
/// the loop. For the same reason it is one loop, and one function.
#[expect(clippy::too_many_arguments, reason = "see above")]
#[inline(always)]
fn fisher_loop<const START: u8, const END: u8, const PAIR: bool, const FLOOR: bool>(
    a: Model<'_>,
    b: Model<'_>,
    origin: &[f32],
    before: &State,
    after: &mut State,
    mean: &mut [f32],
    sum: &mut [f32],
    largest: &mut [f32],
    unfloored: &mut [u32],
    merged: &mut [f32],
    (shift, limit): (i32, f32),
) -> Seen {
    // Slices of the lengths that are used: no index is checked in the loop.
    let n = origin.len().min(BLOCK);
    let (theta_a, fisher_a) = (&a.theta[..n], &a.fisher[..n]);
    let (theta_b, fisher_b, origin) = (&b.theta[..n], &b.fisher[..n], &origin[..n]);
    let used = |by: bool| if by { n } else { 0 };
    let (before, after) = (&before[..used(START == FROM_STATE)], &mut after[..used(END == TO_STATE)]);
    let sums = used(START == FROM_SUMS || END == TO_SUMS);
    let (mean, sum, largest) = (&mut mean[..sums], &mut sum[..sums], &mut largest[..sums]);
    let (unfloored, merged) = (&mut unfloored[..sums], &mut merged[..used(END == TO_MERGED)]);
    let mut tally = Tally::default();
    let (mut extremes_a, mut extremes_b) = (Extremes::NONE, Extremes::NONE);
    let mut exponents = Exponents::NONE;
    let counted = (u32::from(a.counted), u32::from(b.counted));
    for i in 0..n {
        // Fishers, raised to their floors.
        let (mut bits_a, mut bits_b) = (fisher_a[i].to_bits(), fisher_b[i].to_bits());
        let mut above = 1;
        if FLOOR {
            let (below_a, below_b) = (u32::from(bits_a < a.least), u32::from(bits_b < b.least));
            above = 1 - if PAIR { below_a & below_b } else { below_a };
            tally.raised += (below_a & counted.0) + if PAIR { below_b & counted.1 } else { 0 };
            (bits_a, bits_b) = (bits_a.max(a.least), bits_b.max(b.least));
        }
        // The first model, which joins those before it, if there are some.
        extremes_a.add(bits_a);
        let weight = f32::from_bits(bits_a) * a.factor.value;
        let exponent = exponent_of(bits_a, a.factor);
        let distance = if START == FROM_REFERENCE { 0.0 } else { theta_a[i] - origin[i] };
        let mut running = match START {
            FROM_STATE => Running::load(&before[i], shift, &mut exponents),
            FROM_SUMS => Running::of(mean[i], sum[i], largest[i], if FLOOR { unfloored[i] } else { 1 }),
            _ => Running::first(weight, exponent, distance, a.share),
        };
        if matches!(START, FROM_STATE | FROM_SUMS) {
            running.add(weight, weight, exponent, distance, a.share);
        }
        running.unfloored |= above;
        // The second.
        if PAIR {
            extremes_b.add(bits_b);
            let weight = f32::from_bits(bits_b) * b.factor.value;
            let (exponent, distance) = (exponent_of(bits_b, b.factor), theta_b[i] - origin[i]);
            if START == FROM_REFERENCE {
                running.add_to_reference(weight, exponent, distance, b.share);
            } else {
                running.add(weight, weight, exponent, distance, b.share);
            }
        }
        // The result, or what the next step starts from.
        if END == TO_MERGED {
            let value = running.result(origin[i]);
            merged[i] = value;
            tally.end(running, value);
            continue;
        }
        tally.check(running.mean);
        if START == FROM_REFERENCE {
            tally.check(origin[i]);
        }
        if END == TO_STATE {
            running.save(&mut after[i], shift);
        } else {
            (mean[i], sum[i], largest[i]) = (running.mean, running.sum, running.largest);
            if FLOOR {
                unfloored[i] = running.unfloored;
            }
        }
    }
    let ranges = [extremes_a.range(a.factor), extremes_b.range(b.factor), exponents.range()];
    let unfit = extremes_a.unfit() || extremes_b.unfit();
    tally.seen(unfit, limit, span(ranges.into_iter().flatten()))
}

/// One step of UBGM.
pub(in crate::kernels::merge) fn ubgm(model: OneModel<'_>, step: Step<'_>) -> Seen {
    let Step { origin, before, end, shift } = step;
    let (after, merged, limit): (&mut State, &mut [f32], f32) = match end {
        End::State(after) => (after, &mut [], f32::INFINITY),
        End::Merged(merged, limit) => (&mut [], merged, limit),
    };
    let (first, last, floor) = (before.is_none(), !merged.is_empty(), model.least > 0);
    let before = before.unwrap_or_default();
    vectorised(
        #[inline(always)]
        || with_flags!(ubgm_loop::<>(model, origin, before, after, merged, (shift, limit)); first, last, floor),
    )
}

#[inline(always)]
fn ubgm_loop<const FIRST: bool, const LAST: bool, const FLOOR: bool>(
    model: OneModel<'_>,
    base: &[f32],
    before: &State,
    after: &mut State,
    merged: &mut [f32],
    (shift, limit): (i32, f32),
) -> Seen {
    let n = base.len().min(BLOCK);
    let (theta, fisher) = (&model.theta[..n], &model.fisher[..n]);
    let (base, base_fisher) = (&base[..n], &model.base_fisher[..n]);
    let (before, after) = (&before[..if FIRST { 0 } else { n }], &mut after[..if LAST { 0 } else { n }]);
    let merged = &mut merged[..if LAST { n } else { 0 }];
    let (factor, base_factor, lambda) = (model.factor, model.base_factor, model.lambda);
    let delta = model.delta.map_or(0.0, |delta| delta.value);
    let delta_exponent = model.delta.map_or(i32::MIN, |delta| delta.exponent);
    let mut tally = Tally::default();
    let (mut extremes, mut base_extremes) = (Extremes::NONE, Extremes::NONE);
    let mut exponents = Exponents::NONE;
    for i in 0..n {
        let (mut bits, base_bits) = (fisher[i].to_bits(), base_fisher[i].to_bits());
        let mut below = 0;
        if FLOOR {
            below = u32::from(bits < model.least);
            tally.raised += below;
            bits = bits.max(model.least);
        }
        extremes.add(bits);
        base_extremes.add(base_bits);
        let prior = f32::from_bits(base_bits) * base_factor.value + delta;
        let prior_exponent = exponent_of(base_bits, base_factor).max(delta_exponent);
        let weight = f32::from_bits(bits) * factor.value * lambda.value;
        let pull = weight + prior * lambda.value;
        let exponent = exponent_of(bits, factor).max(prior_exponent) + lambda.exponent;
        let distance = theta[i] - base[i];
        let mut running = if FIRST {
            Running::drawn(prior, weight, pull, exponent.max(prior_exponent), distance)
        } else {
            let mut running = Running::load(&before[i], shift, &mut exponents);
            running.add(weight, pull, exponent, distance, 0.0);
            running
        };
        running.unfloored |= 1 - below;
        if LAST {
            let value = running.result(base[i]);
            merged[i] = value;
            tally.end(running, value);
        } else {
            running.save(&mut after[i], shift);
            tally.check(running.mean);
        }
    }
    let delta = model.delta.map(|delta| (delta.exponent, delta.exponent));
    let of_base = span([base_extremes.range(base_factor), delta].into_iter().flatten());
    // Times λ too: what is held against the weights so far.
    let ranges = [extremes.range(factor), of_base].into_iter().flatten();
    let scaled = ranges.clone().map(|(low, high)| (low + lambda.exponent, high + lambda.exponent));
    let range = span(ranges.chain(scaled).chain(exponents.range()));
    tally.seen(extremes.unfit() || base_extremes.unfit(), limit, range)
}
