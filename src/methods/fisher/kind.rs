//! The kinds of Fishers, and what sums are divided by.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};

/// What is squared, and how squares are summed. See the table of [`fisher`](crate::methods::fisher).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Σ_n w_n g_n².
    Empirical,
    /// Σ_batches (Σ_n g_n)².
    MinibatchJoint,
    /// (Σ_n g_n)².
    Joint,
    /// Σ_n w_n g_n² / ‖∂ℓ_n/∂z_n‖².
    Ief,
    /// A moving average of Σ_n w_n g_n² of each batch.
    Ema,
    /// A moving average of squared batch means, as optimizers keep it.
    Accumulator,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Empirical, Self::MinibatchJoint, Self::Joint, Self::Ief, Self::Ema, Self::Accumulator];

    /// Whether sums over samples are squared.
    pub(super) fn joins_samples(self) -> bool {
        self.folds_samples() || self == Self::Joint
    }

    /// Whether a whole batch is one square.
    pub(super) fn folds_samples(self) -> bool {
        matches!(self, Self::MinibatchJoint | Self::Accumulator)
    }

    /// Whether it is a moving average over batches.
    pub(super) fn averages(self) -> bool {
        matches!(self, Self::Ema | Self::Accumulator)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Empirical => "empirical",
            Self::MinibatchJoint => "minibatch-joint",
            Self::Joint => "joint",
            Self::Ief => "ief",
            Self::Ema => "ema",
            Self::Accumulator => "accumulator",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let names = Self::ALL.map(Self::name);
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| Error::argument("kind", format!("\"{text}\" is not one of {}", names.join(", "))))
    }
}

/// What the sum over samples is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reduction {
    /// Nothing.
    #[default]
    Sum,
    /// The number of samples.
    Mean,
}
