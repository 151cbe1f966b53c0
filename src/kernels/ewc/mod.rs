//! Elastic weight consolidation: the pull back to where an earlier task left the parameters.
//!
//!   penalty = ½ λ Σ F (θ − θ*)²,   gradient = λ F (θ − θ*)

mod gradient;
mod penalty;

pub use gradient::{Gradient, GradientArgs, GradientParams, GradientSlices};
pub use penalty::{Penalty, PenaltyArgs, PenaltyParams, PenaltySlices, PenaltySum};
