//! What looks suspicious and may be right, in words.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::checkpoint::Accumulator;
use crate::error::printable;

/// What looks suspicious and may be right. Displayed as a sentence; serialized as that sentence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// The file imports what no optimizer state needs.
    ForeignImports(Vec<String>),
    /// Accumulators in bf16 or f16: with β near 1 an average of so few bits stops moving.
    HalfAccumulator {
        /// How many accumulators.
        tensors: usize,
        /// Their type as stored.
        dtype: &'static str,
    },
    /// Weight decay that is, or may be, part of the squared gradients.
    CoupledWeightDecay {
        /// The largest weight decay of the groups.
        weight_decay: f64,
        /// Whether the state says so, or merely does not say otherwise.
        certain: bool,
    },
    /// Fewer steps than the average reaches back.
    FewSteps {
        /// The fewest steps of a parameter.
        step: f64,
        /// β, the decay of the average.
        decay: f64,
    },
    /// The optimizer's own rule has no bias correction, so `unbiased` is v itself.
    NoBiasCorrection(Accumulator),
    /// AMSGrad's maximum is not an average.
    MaximumIsNoAverage,
    /// Adafactor's factors approximate v by one outer product a matrix.
    Factored {
        /// How many parameters.
        tensors: usize,
    },
    /// Codes of 8 bits: small values have errors of tens of percent, the smallest are 0.
    EightBit {
        /// How many parameters.
        tensors: usize,
    },
    /// An accumulator that is 0 everywhere.
    AllZero {
        /// The parameter's name.
        name: String,
    },
    /// |m| > c·√v beyond rounding, which Adam's recursions do not allow: buffers of different parameters, or damaged ones.
    MomentumTooLarge {
        /// The parameter's name.
        name: String,
        /// How many of its elements break the bound.
        count: u64,
        /// The flat index of the first one.
        index: usize,
        /// |m| at that index.
        momentum: f32,
        /// v at that index.
        accumulator: f32,
        /// The factor c.
        bound: f64,
    },
    /// Parameters that the groups list and that have no state.
    WithoutState {
        /// How many parameters.
        params: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignImports(names) => foreign_imports(names, f),
            Self::HalfAccumulator { tensors, dtype } => half_accumulator(*tensors, dtype, f),
            Self::CoupledWeightDecay { weight_decay, certain } => coupled(*weight_decay, *certain, f),
            Self::FewSteps { step, decay } => few_steps(*step, *decay, f),
            Self::NoBiasCorrection(accumulator) => f.write_str(no_bias_correction(*accumulator)),
            Self::MaximumIsNoAverage => {
                f.write_str("max_exp_avg_sq is the largest average of the run, not one at any time")
            }
            Self::Factored { tensors } => factored(*tensors, f),
            Self::EightBit { tensors } => eight_bit(*tensors, f),
            Self::AllZero { name } => all_zero(name, f),
            Self::MomentumTooLarge { name, count, index, momentum, accumulator, bound } => write!(
                f,
                "{}: |m| > {bound:.2}·√v at {count} of its elements, which the optimizer cannot have made; \
                 first at flat index {index}: |m| = {momentum:e}, v = {accumulator:e} \
                 (are its buffers another parameter's?)",
                printable(name)
            ),
            Self::WithoutState { params } => without_state(*params, f),
        }
    }
}

fn foreign_imports(names: &[String], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
    let names = names.join(", ");
    write!(f, "the file imports {names}, which no optimizer state needs; nothing of it was executed or used")
}

/// `1 accumulator is`, `3 accumulators are`
fn accumulators(tensors: usize) -> String {
    if tensors == 1 { "1 accumulator is".to_owned() } else { format!("{tensors} accumulators are") }
}

fn half_accumulator(tensors: usize, dtype: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let accumulators = accumulators(tensors);
    write!(f, "{accumulators} {dtype}: a moving average of so few bits stalls, its values are rough at best")
}

fn coupled(weight_decay: f64, certain: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if certain {
        return write!(
            f,
            "weight decay {weight_decay} is coupled: the squares are those of gradient plus decay"
        );
    }
    write!(
        f,
        "weight decay {weight_decay}, and the state does not say whether it is decoupled: \
         harmless with AdamW, with Adam the squares are those of gradient plus decay"
    )
}

fn few_steps(step: f64, decay: f64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let reach = 1.0 / (1.0 - decay);
    let steps = if step == 1.0 { "step" } else { "steps" };
    write!(
        f,
        "{step} {steps}, while the average with decay {decay} reaches back {reach:.0}: it still holds its start"
    )
}

fn no_bias_correction(accumulator: Accumulator) -> &'static str {
    match accumulator {
        Accumulator::SquareAvgRmsprop => {
            "RMSprop has no bias correction: unbiased is the stored average itself"
        }
        Accumulator::SquareAvgAdadelta => {
            "Adadelta has no bias correction: unbiased is the stored average itself"
        }
        _ => {
            "Adafactor's decay grows with the step and needs no bias correction: \
             unbiased is the stored average itself"
        }
    }
}

fn factored(tensors: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let accumulators = accumulators(tensors);
    write!(f, "{accumulators} rebuilt from row and column means (Adafactor): an approximation of rank one")
}

fn eight_bit(tensors: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let accumulators = accumulators(tensors);
    write!(f, "{accumulators} stored as 8-bit codes: small values are rough, and the smallest are 0")
}

fn all_zero(name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let name = printable(name);
    write!(f, "the accumulator of {name} is 0 everywhere (a state from before the first step?)")
}

fn without_state(params: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        f,
        "no state, as after no gradient, for {params} of the optimizer's parameters: absent from the output"
    )
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
