// One element of a buffer of storage words. Expects lib/dtype.wgsl.

/// The word that holds an element.
fn word_of(index: u32, dtype: u32) -> u32 {
    return select(index >> 1u, index, dtype == F32);
}

/// The element out of its word.
fn element(word: u32, index: u32, dtype: u32) -> f32 {
    if dtype == F32 {
        return bitcast<f32>(word);
    }
    let half = (word >> (16u * (index & 1u))) & 0xffffu;
    if dtype == BF16 {
        return bitcast<f32>(half << 16u);
    }
    return bitcast<f32>(f16_to_f32(half));
}
