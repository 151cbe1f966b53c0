//! Measured times, held against what the same device can do in the same run.
//!
//! First the **ceilings** ([`Ceilings`]): how fast the device copies, how fast it multiplies and adds, how
//! fast bytes go to it and come back, how long the smallest step takes. Then every kernel of the registry,
//! over sizes from those that a launch dominates to those that memory or arithmetic limit. Its **roof**
//! ([`Roof`]) at one size is the ceiling that it meets first: the copy's rate for its fewest bytes or the
//! arithmetic's for its fewest operations, whichever takes longer. The **share** of the roof that it reaches
//! is the one number that means the same on every device:
//!
//! ```text
//! share = bytes / seconds / copy                 where bytes / copy ≥ flops / arithmetic
//!         flops / seconds / arithmetic           elsewhere
//! ```
//!
//! A machine's speed changes within seconds, so the kernel and its ceiling take turns, and each turn of the
//! kernel is held against the ceiling of the same turn.
//!
//! A kernel's cases are checked before it is timed: a wrong result has no speed. Times are medians, by the
//! device's own clock where it has timestamps ([`Clock`] says which): the host's adds submission and waiting.
//! A share above 1 says something about the ceiling: small sizes stay in a cache, and the copy's do not.

mod ceilings;
mod clock;
mod fill;
mod job;
mod models;
mod record;
mod turns;
mod walk;

pub use ceilings::Ceilings;
pub use job::{Clock, Job, Timing};
pub use record::{Bound, Record, Roof, Row, Skipped};
pub use walk::{Options, run, steps};
