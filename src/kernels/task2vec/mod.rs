//! Embeddings of tasks: means of a Fisher over groups of parameters, and what two Fishers have in common.
//!
//! Both kernels leave **records**: sums in units of a power of two that the record states, over shares short enough for
//! f32, which the host folds in f64. So values anywhere in f32's range, subnormals included, neither overflow
//! nor vanish, and a sum over any number of elements is as good as one over a share.

mod row_mean;
mod similarity;
mod terms;

pub use row_mean::{RowMean, RowMeanArgs, RowMeanParams, RowMeanSlices, RowPart};
pub use similarity::{Similarity, SimilarityArgs, SimilarityParams, SimilaritySlices, Sums};
pub use terms::Metric;

/// ⌊log₂⌋ of a non-negative finite f32 from its bits, subnormals too; nothing for zero.
pub(super) fn exponent_of(bits: u32) -> Option<i32> {
    let (power, fraction) = ((bits >> 23).cast_signed(), bits & 0x7f_ffff);
    match (power, fraction) {
        (0, 0) => None,
        (0, _) => Some(fraction.ilog2().cast_signed() - 149),
        _ => Some(power - 127),
    }
}

/// A Fisher's value: positive and finite, or a zero of either sign.
#[inline(always)]
pub(super) fn is_good(bits: u32) -> bool {
    (bits < 0x7f80_0000) | (bits == 0x8000_0000)
}
