// Logits as integers that order as they do. Expects lib/dtype.wgsl, the kernel's `logits` and its override LOGITS.

/// The key of minus infinity: a class that cannot be.
const IMPOSSIBLE: i32 = -2139095041;

/// The f32 pattern of an element.
fn logit(index: u32) -> u32 {
    if LOGITS == F32 {
        return logits[index / 4u][index % 4u];
    }
    let pair = widen_pair(logits[index / 8u][index / 2u % 4u], LOGITS);
    return select(pair.x, pair.y, (index & 1u) == 1u);
}

/// The f32 patterns of elements 8 · octet to 8 · octet + 7.
fn logits_of(octet: u32) -> Octet {
    if LOGITS == F32 {
        return Octet(logits[2u * octet], logits[2u * octet + 1u]);
    }
    return widen(logits[octet], LOGITS);
}

/// A pattern's place in the order of numbers. Its own inverse, on words.
fn key_of(bits: u32) -> i32 {
    return bitcast<i32>(bits ^ ((bits >> 31u) * 0x7fffffffu));
}

fn keys_of(bits: vec4<u32>) -> vec4<i32> {
    return bitcast<vec4<i32>>(bits ^ ((bits >> vec4<u32>(31u)) * 0x7fffffffu));
}

fn value_of(key: i32) -> f32 {
    return bitcast<f32>(bitcast<u32>(key_of(bitcast<u32>(key))));
}

/// NaN or plus infinity. Minus infinity is a class of probability zero.
fn is_bad(bits: u32) -> bool {
    return (bits & 0x7fffffffu) >= 0x7f800000u && bits != 0xff800000u;
}

fn are_bad(bits: vec4<u32>) -> vec4<bool> {
    return not_finite(bits) & (bits != vec4<u32>(0xff800000u));
}
