//! Embeddings of tasks: means of a Fisher over groups of parameters, and what two Fishers have in common.
//!
//! Both kernels leave **records**: sums in units of a power of two that the record states, over shares short enough for
//! f32, which the host folds in f64. So values anywhere in f32's range, subnormals included, neither overflow nor vanish,
//! and a sum over any number of elements is as good as one over a share.

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

/// An index as records hold it: exact in f32, since shares are short; −1 for none.
pub(super) fn index_word(index: Option<usize>) -> f32 {
    index.map_or(-1.0, |i| u16::try_from(i).map_or(f32::NAN, f32::from))
}

/// An index out of a record.
pub(super) fn index_of(word: f32) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "records hold whole numbers")]
    (word >= 0.0).then_some(word as u64)
}

/// 2^e for the exponent of a record.
pub(super) fn power(exponent: f32) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "records hold whole numbers")]
    2.0_f64.powi(exponent as i32)
}
