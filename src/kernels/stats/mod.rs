//! What the values of a tensor come to.

mod summary;

pub use summary::{Stats, Summary, SummaryArgs, SummaryParams, SummarySlices};
