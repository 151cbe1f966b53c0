//! What an extraction looks at to warn: headers, and the momentum against the accumulator.

use super::{ExtractOptions, Extracted, Warning};
use crate::checkpoint::{Accumulator, OptimizerState, ParamGroup, Scale, StateEntry, momentum_bound};
use crate::error::Result;
use crate::kernel::vectorised;
use crate::shape::DType;

/// What headers alone give rise to.
pub(super) fn warnings_of_headers(
    state: &OptimizerState,
    tensors: &[Extracted],
    options: &ExtractOptions,
) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if !state.foreign_imports().is_empty() {
        warnings.push(Warning::ForeignImports(state.foreign_imports().to_vec()));
    }
    let without = state.param_count() - state.entries().len();
    if without > 0 {
        warnings.push(Warning::WithoutState { params: without });
    }
    for dtype in ["bf16", "f16"] {
        match tensors.iter().filter(|t| t.dtype == dtype).count() {
            0 => {}
            tensors => warnings.push(Warning::HalfAccumulator { tensors, dtype }),
        }
    }
    warnings.extend(coupled_weight_decay(state, tensors));
    warnings.extend(few_steps(state, tensors));
    warnings.extend(notes_on_rules(tensors, options.scale));
    warnings
}

/// What the optimizer's own rules give rise to.
fn notes_on_rules(tensors: &[Extracted], scale: Scale) -> Vec<Warning> {
    use Accumulator as A;
    let count = |kinds: &[A]| tensors.iter().filter(|t| kinds.contains(&t.accumulator)).count();
    let mut notes = Vec::new();
    let corrected = matches!(scale, Scale::Unbiased | Scale::Mean | Scale::Sum);
    for kinds in [
        &[A::SquareAvgRmsprop][..],
        &[A::SquareAvgAdadelta],
        &[A::FactorsTorch, A::FactorsTransformers, A::WholeTorch, A::WholeTransformers],
    ] {
        if corrected && count(kinds) > 0 {
            notes.push(Warning::NoBiasCorrection(kinds[0]));
        }
    }
    if count(&[A::MaxExpAvgSq]) > 0 {
        notes.push(Warning::MaximumIsNoAverage);
    }
    match count(&[A::FactorsTorch, A::FactorsTransformers]) {
        0 => {}
        tensors => notes.push(Warning::Factored { tensors }),
    }
    match count(&[A::EightBit]) {
        0 => {}
        tensors => notes.push(Warning::EightBit { tensors }),
    }
    notes
}

/// Weight decay that is, or may be, part of the squared gradients.
fn coupled_weight_decay(state: &OptimizerState, tensors: &[Extracted]) -> Option<Warning> {
    use Accumulator as A;
    let all = |kinds: &[A]| tensors.iter().all(|t| kinds.contains(&t.accumulator));
    // Adafactor, in both forms, keeps its weight decay out of the gradient.
    if all(&[A::FactorsTorch, A::FactorsTransformers, A::WholeTorch, A::WholeTransformers]) {
        return None;
    }
    // RMSprop, Adadelta and Adagrad always add theirs to the gradient.
    let always = all(&[A::SquareAvgRmsprop, A::SquareAvgAdadelta, A::Sum]);
    let coupled = |g: &&ParamGroup| g.weight_decay != 0.0 && g.decoupled_weight_decay != Some(true);
    let groups: Vec<&ParamGroup> = state.groups().iter().filter(coupled).collect();
    let weight_decay = groups.iter().map(|g| g.weight_decay).reduce(f64::max)?;
    let certain = always || groups.iter().any(|g| g.decoupled_weight_decay == Some(false));
    Some(Warning::CoupledWeightDecay { weight_decay, certain })
}

/// The parameter whose average is furthest from having forgotten its start.
fn few_steps(state: &OptimizerState, tensors: &[Extracted]) -> Option<Warning> {
    let mut worst: Option<(f64, f64)> = None;
    for (entry, tensor) in state.entries().iter().zip(tensors) {
        let (Some(step), Some(decay)) = (entry.step, tensor.accumulator.decay(state.group(entry))) else {
            continue;
        };
        let share = step * (1.0 - decay);
        if share < 1.0 && worst.is_none_or(|(s, d)| share < s * (1.0 - d)) {
            worst = Some((step, decay));
        }
    }
    worst.map(|(step, decay)| Warning::FewSteps { step, decay })
}

/// |m| ≤ c·√v, with room for rounding: each moving average collects an error of at most u/(1−β) of itself, and no value is exact below the
/// smallest normal number of its type.
pub(super) fn compare_momentum(
    state: &OptimizerState,
    entry: &StateEntry,
    tensor: &Extracted,
    values: &[f32],
) -> Result<Option<Warning>> {
    let (Some((beta1, beta2)), Some(momentum)) = (state.group(entry).betas, entry.tensors.get("exp_avg"))
    else {
        return Ok(None);
    };
    let Some(bound) = momentum_bound(beta1, beta2) else { return Ok(None) };
    if tensor.accumulator != Accumulator::ExpAvgSq || momentum.shape != tensor.shape {
        return Ok(None);
    }
    let (u, smallest) = rounding(&[momentum.dtype(), tensor.dtype]);
    let room = 1.0 + 2.0 * u * (1.0 / (1.0 - beta1) + 1.0 / (1.0 - beta2));
    let momenta = state.read_floats(entry, "exp_avg")?;
    let allowed = |v: f32| bound * (f64::from(v) + smallest).sqrt() * room;
    if !any(&momenta, values, allowed) {
        return Ok(None);
    }
    let mut over =
        momenta.iter().zip(values).enumerate().filter(|(_, (m, v))| f64::from(m.abs()) > allowed(**v));
    let Some((index, (&m, &v))) = over.next() else { return Ok(None) };
    Ok(Some(Warning::MomentumTooLarge {
        name: tensor.name.clone(),
        count: 1 + over.count() as u64,
        index,
        momentum: m.abs(),
        accumulator: v,
        bound,
    }))
}

/// Whether some momentum is larger than `allowed`: a loop without an early end vectorises, and there seldom is one.
fn any(momenta: &[f32], values: &[f32], allowed: impl Fn(f32) -> f64) -> bool {
    vectorised(
        #[inline(always)]
        || {
            let mut over = 0;
            for (m, v) in momenta.iter().zip(values) {
                over |= u32::from(f64::from(m.abs()) > allowed(*v));
            }
            over > 0
        },
    )
}

/// The coarsest unit roundoff and largest smallest normal number of some storage types.
fn rounding(dtypes: &[&str]) -> (f64, f64) {
    let one = |dtype: &&str| match *dtype {
        "f16" => (DType::F16.unit_roundoff(), 6.103_515_625e-5),
        "bf16" => (DType::BF16.unit_roundoff(), f64::from(f32::MIN_POSITIVE)),
        _ => (DType::F32.unit_roundoff(), f64::from(f32::MIN_POSITIVE)),
    };
    dtypes.iter().map(one).fold((0.0, 0.0), |(u, s): (f64, f64), (v, t)| (u.max(v), s.max(t)))
}
