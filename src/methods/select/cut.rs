//! How many are kept, among what, and where they end.

use super::histogram::{Histogram, Place};
use crate::error::{Error, Result};

/// How many are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// This share of the elements: k = fraction · elements, rounded to the nearest integer, halves to the even one.
    Fraction(f64),
    /// Exactly so many.
    Count(u64),
}

/// Among what the best are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Among the elements of all tensors.
    #[default]
    Global,
    /// In each tensor among its own.
    Tensor,
}

impl Keep {
    /// k for so many elements.
    ///
    /// # Errors
    /// [`Error::Argument`] for a fraction outside 0 to 1, or more than there are.
    pub fn of(self, op: &str, elements: u64) -> Result<u64> {
        match self {
            Self::Fraction(fraction) if (0.0..=1.0).contains(&fraction) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "between 0 and a u64"
                )]
                let k = (fraction * elements as f64).round_ties_even() as u64;
                Ok(k.min(elements))
            }
            Self::Fraction(fraction) => Err(Error::argument(
                op,
                format!("a share of {fraction} cannot be kept; give one from 0 to 1"),
            )),
            Self::Count(k) if k <= elements => Ok(k),
            Self::Count(k) => {
                let problem =
                    format!("{k} elements cannot be kept, there are {elements}; give at most that many");
                Err(Error::argument(op, problem))
            }
        }
    }
}

/// Where the kept ones end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The bits of the score of the last one kept; above every score where nothing is kept.
    pub(super) threshold: u32,
    /// How many of the scores equal to it are kept.
    pub(super) ties: u64,
    /// How many scores are equal to it.
    pub(super) equal: u64,
}

impl Cut {
    /// Nothing is kept.
    pub(super) const NOTHING: Self = Self { threshold: u32::MAX, ties: 0, equal: 0 };

    /// The cut after the `k` best, if `fine` has a bin for every score and the k-th best is in one.
    pub(super) fn after(k: u64, fine: &Histogram) -> Option<Self> {
        match fine.place(k) {
            Place::In { bin, better, count } if fine.window.shift == 0 => {
                Some(Self { threshold: fine.window.low + bin, ties: k - better, equal: count })
            }
            _ => None,
        }
    }

    /// The score of the last one kept, if any is.
    pub(crate) fn score(&self) -> Option<f32> {
        (self.threshold != u32::MAX).then(|| f32::from_bits(self.threshold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_is_rounded_half_to_even() {
        for (fraction, elements, k) in [
            (0.5, 1, 0),
            (0.5, 3, 2),
            (0.5, 5, 2),
            (0.25, 6, 2),
            (0.005, 5329, 27),
            (1.0, 7, 7),
            (0.0, 7, 0),
            (1.0, 0, 0),
        ] {
            assert_eq!(
                Keep::Fraction(fraction).of("t", elements).expect("a share"),
                k,
                "{fraction} of {elements}"
            );
        }
        assert_eq!(Keep::Fraction(1.0).of("t", u64::MAX).expect("a share"), u64::MAX);
    }

    #[test]
    fn shares_and_counts_that_cannot_be_kept_are_refused() {
        for keep in [Keep::Fraction(-0.1), Keep::Fraction(1.1), Keep::Fraction(f64::NAN), Keep::Count(8)] {
            let refused = keep.of("prune", 7).expect_err("it must be refused");
            assert_eq!(refused.exit_code(), 2, "{refused}");
        }
        let refused = Keep::Count(8).of("prune", 7).expect_err("it must be refused").to_string();
        assert!(refused.contains("8 elements cannot be kept, there are 7"), "{refused}");
    }
}
