//! What happens to values that no Fisher can have, wherever Fishers are read.

use clap::ValueEnum;
use squisher::methods;

/// What happens to Fishers that are NaN, infinite or negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NonFinite {
    /// They are refused, naming tensor and index
    Error,
    /// They count as 0, and the report says how many there were
    Zero,
}

impl From<NonFinite> for methods::NonFinite {
    fn from(flag: NonFinite) -> Self {
        match flag {
            NonFinite::Error => Self::Error,
            NonFinite::Zero => Self::Zero,
        }
    }
}
