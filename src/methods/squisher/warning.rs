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
        /// How many.
        tensors: usize,
        /// As stored.
        dtype: &'static str,
    },
    /// Weight decay that is, or may be, part of the squared gradients.
    CoupledWeightDecay {
        /// The largest.
        weight_decay: f64,
        /// Whether the state says so, or merely does not say otherwise.
        certain: bool,
    },
    /// Fewer steps than the average reaches back.
    FewSteps {
        /// The fewest.
        step: f64,
        /// The decay.
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
        /// The parameter.
        name: String,
    },
    /// |m| > c·√v beyond rounding, which Adam's recursions do not allow: buffers of different parameters, or damaged ones.
    MomentumTooLarge {
        /// The parameter.
        name: String,
        /// How many elements.
        count: u64,
        /// The first.
        index: usize,
        /// |m| there.
        momentum: f32,
        /// v there.
        accumulator: f32,
        /// c.
        bound: f64,
    },
    /// Parameters that the groups list and that have no state.
    WithoutState {
        /// How many.
        params: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForeignImports(names) => {
                let names: Vec<String> = names.iter().map(|name| printable(name)).collect();
                write!(f, "the file imports {}, which no optimizer state needs; nothing of it was executed or used", names.join(", "))
            }
            Self::HalfAccumulator { tensors, dtype } => write!(
                f,
                "{tensors} accumulators are {dtype}: a moving average of so few bits stalls, its values are rough at best"
            ),
            Self::CoupledWeightDecay { weight_decay, certain: true } => {
                write!(f, "weight decay {weight_decay} is coupled: the squares are those of gradient plus decay")
            }
            Self::CoupledWeightDecay { weight_decay, certain: false } => write!(
                f,
                "weight decay {weight_decay}, and the state does not say whether it is decoupled: \
                 harmless with AdamW, with Adam the squares are those of gradient plus decay"
            ),
            Self::FewSteps { step, decay } => write!(
                f,
                "{step} steps, while the average with decay {decay} reaches back {:.0}: it still holds its start",
                1.0 / (1.0 - decay)
            ),
            Self::NoBiasCorrection(Accumulator::SquareAvgRmsprop) => {
                f.write_str("RMSprop has no bias correction: unbiased is the stored average itself")
            }
            Self::NoBiasCorrection(Accumulator::SquareAvgAdadelta) => {
                f.write_str("Adadelta has no bias correction: unbiased is the stored average itself")
            }
            Self::NoBiasCorrection(_) => {
                f.write_str("Adafactor's decay grows with the step and needs no bias correction: unbiased is the stored average itself")
            }
            Self::MaximumIsNoAverage => {
                f.write_str("max_exp_avg_sq is the largest average of the run, not one at any time")
            }
            Self::Factored { tensors } => {
                write!(f, "{tensors} accumulators are rebuilt from row and column means (Adafactor): an approximation of rank one")
            }
            Self::EightBit { tensors } => write!(
                f,
                "{tensors} accumulators have 8-bit codes: small values are rough, and the smallest are 0"
            ),
            Self::AllZero { name } => {
                write!(f, "the accumulator of {} is 0 everywhere (a state from before the first step?)", printable(name))
            }
            Self::MomentumTooLarge { name, count, index, momentum, accumulator, bound } => write!(
                f,
                "{}: |m| > {bound:.2}·√v at {count} of its elements, which the optimizer cannot have made; first at flat index {index}: \
                 |m| = {momentum:e}, v = {accumulator:e} (are its buffers another parameter's?)",
                printable(name)
            ),
            Self::WithoutState { params } => {
                write!(f, "no state, as after no gradient, for {params} of the optimizer's parameters: absent from the output")
            }
        }
    }
}

impl Serialize for Warning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
