//! The definitions, in f64: what every quantity means, written as the formula and nothing else.
//!
//! Plain loops over slices, no tiling, no identity, no helper shared with the kernels, so that a mistake
//! can't be made twice in the same way. Only the kernels' cases call this; no result comes from here.

pub mod ceiling;
pub mod embedding;
pub mod ewc;
pub mod fisher;
pub mod likelihood;
pub mod merge;
pub mod norm;
pub mod optimizer;
pub mod select;
pub mod stats;
pub mod task2vec;
