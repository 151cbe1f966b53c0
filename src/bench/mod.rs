//! Measured times, held against what the same device can do in the same run.
//!
//! First the **ceilings** ([`Ceilings`]): how fast the device copies, how fast it multiplies and adds, how fast bytes go to it and
//! come back, how long the smallest step takes. Then every kernel of the registry, over sizes from those that a launch
//! dominates to those that memory or arithmetic limit. Its **roof** at one size is the time that its fewest bytes take at
//! the copy's rate, or its fewest operations at the arithmetic's, whichever is longer; the **share** of the roof that it reaches is
//! the one number that means the same on every device:
//!
//! ```text
//! share = max(bytes / copy, flops / arithmetic) / seconds
//! ```
//!
//! A kernel's cases are checked before it is timed: a wrong result has no speed. Times are medians, by the device's own clock
//! where it has timestamps ([`Clock`] says which): the host's adds submission and waiting. A share above 1 says
//! something about the ceiling: small sizes stay in a cache, and the copy's do not.

mod ceilings;
mod clock;
mod fill;
mod job;
mod models;
mod record;
mod walk;

pub use ceilings::Ceilings;
pub use job::{Clock, Job, Timing};
pub use record::{Bound, Record, Row, Skipped};
pub use walk::{Options, run, steps};
