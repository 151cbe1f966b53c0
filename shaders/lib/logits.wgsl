// Logits as integers that order as they do. Expects lib/dtype.wgsl, the kernel's `logits` and its override LOGITS.

/// The key of minus infinity: a class that cannot be.
const IMPOSSIBLE: i32 = -2139095041;

/// The f32 pattern of an element.
fn logit(index: u32) -> u32 {
    if LOGITS == F32 {
        return logits[index];
    }
    let pair = widen_pair(logits[index >> 1u], LOGITS);
    return select(pair.x, pair.y, (index & 1u) == 1u);
}

/// A pattern's place in the order of numbers. Its own inverse, on words.
fn key_of(bits: u32) -> i32 {
    return bitcast<i32>(bits ^ ((bits >> 31u) * 0x7fffffffu));
}

fn value_of(key: i32) -> f32 {
    return bitcast<f32>(bitcast<u32>(key_of(bitcast<u32>(key))));
}

/// NaN or plus infinity. Minus infinity is a class of probability zero.
fn is_bad(bits: u32) -> bool {
    return (bits & 0x7fffffffu) >= 0x7f800000u && bits != 0xff800000u;
}
