//! What records hold besides sums: the power of two that is a sum's unit, and places. Both are whole numbers in an f32.

/// The records of `len` values in shares of `size`, each with the index of its share's first value.
pub(super) fn shares<const WORDS: usize>(
    len: u64,
    size: u64,
    records: &[f32],
) -> impl Iterator<Item = (u64, &[f32; WORDS])> {
    (0..len.div_ceil(size)).map(move |share| share * size).zip(records.as_chunks().0)
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
