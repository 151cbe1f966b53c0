//! Summary statistics of a tensor.

mod summary;

pub use summary::{Stats, Summary, SummaryArgs, SummaryParams, SummarySlices};
