//! Selection: scores, their histogram, the threshold, and what is done with it.
//!
//! Nothing is sorted. A score that is not negative orders as its bits do, so the k-th largest is found by counting:
//! [`Histogram`] counts scores per bin of a window, [`Narrow`] takes the bin that holds the k-th, and the next window
//! is that bin. Then [`Count`] and [`Scan`] number the ties, and [`Mask`] or [`Gather`] write the result.
//! All sums are of integers, so that no order of execution shows in them.
//!
//! These steps pass a small `state` along, two words: the lower end of the window, at last the threshold; and how
//! many of the scores in the window are kept, at last of those equal to the threshold.

mod choose;
mod count;
mod gather;
mod histogram;
mod mask;
mod narrow;
mod nm;
mod scan;
mod score;
mod spend;

pub use choose::{Choose, ChooseArgs, ChooseParams, ChooseSlices};
pub use count::{Count, CountArgs, CountParams, CountSlices};
pub use gather::{Gather, GatherArgs, GatherParams, GatherSlices};
pub use histogram::{Histogram, HistogramArgs, HistogramParams, HistogramSlices, LOCAL_BINS};
pub use mask::{Mask, MaskArgs, MaskParams, MaskSlices};
pub use narrow::{Narrow, NarrowArgs, NarrowParams, NarrowSlices};
pub use nm::{MAX_GROUP, Nm, NmArgs, NmParams, NmSlices};
pub use scan::{Scan, ScanArgs, ScanParams, ScanSlices};
pub use score::{Score, Scores, score_bits};
pub use spend::{Spend, SpendArgs, SpendParams, SpendSlices};

use super::shader;

/// The shaders' common parts.
const SCORE: &str = shader!("lib/select/score.wgsl");
const SCAN: &str = shader!("lib/select/scan.wgsl");
const KEEP: &str = shader!("lib/select/keep.wgsl");

/// Invocations of a workgroup that has a block where they run in step: as many as one vector of software Vulkan has.
const FEW: u32 = 8;

/// Elements of a block, whose ties and kept elements are counted together.
pub const BLOCK_LEN: u64 = 4096;

/// Words of the state that the steps of a selection pass along.
pub const STATE_WORDS: u64 = 2;

/// Words of a mask of `len` bytes.
#[must_use]
pub fn mask_words(len: u64) -> u64 {
    len.div_ceil(4)
}
