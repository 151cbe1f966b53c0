// Non-negative numbers with their own exponent, m · 2^e: sums of weights over the whole range of f32 and
// far beyond neither overflow nor vanish, and subnormals count on devices that flush them. Expects no part.

struct Wide {
    m: vec4<f32>,
    e: vec4<i32>,
}

/// The exponent of nothing: below that of every product that can occur.
const NOTHING: i32 = -100000;

/// From the bit patterns of non-negative finite f32.
fn wide(bits: vec4<u32>) -> Wide {
    let exponent = vec4<i32>(bits >> vec4<u32>(23u));
    // A subnormal's fraction as a number: exact, and its own exponent says where its first bit is.
    let fraction = bitcast<vec4<u32>>(vec4<f32>(bitcast<vec4<i32>>(bits & vec4<u32>(0x7fffffu))));
    let subnormal = exponent == vec4<i32>(0);
    let digits = select(bits, fraction, subnormal) & vec4<u32>(0x7fffffu);
    let mantissa = bitcast<vec4<f32>>(digits | vec4<u32>(0x3f800000u));
    let power = select(exponent - 127, vec4<i32>(fraction >> vec4<u32>(23u)) - (127 + 149), subnormal);
    let zero = bits == vec4<u32>(0u);
    return Wide(select(mantissa, vec4<f32>(0.0), zero), select(power, vec4<i32>(NOTHING), zero));
}

fn wide_times(a: Wide, m: f32, e: i32) -> Wide {
    return Wide(a.m * m, a.e + e);
}

/// a's mantissa where the exponent is e (at least a's own, or a little less).
fn mantissa_at(a: Wide, e: vec4<i32>) -> vec4<f32> {
    return a.m * pow2(a.e - e);
}

/// 2^e, zero below 2^-126.
fn pow2(e: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(clamp(e + 127, vec4<i32>(0), vec4<i32>(254))) << vec4<u32>(23u));
}

/// Whether some patterns, of which `top` is the largest as a word, are zeros or numbers up to between 2^-64 and 2^126:
/// none is negative, infinite or NaN, their unit has a reciprocal, and beside the largest a subnormal is nothing.
fn is_plain(top: u32) -> bool {
    return top == 0u || top - 0x1f800000u < 0x7e800000u - 0x1f800000u;
}

/// The exponent of the largest of patterns that are plain.
fn plain_exponent(top: u32) -> i32 {
    return select(i32(top >> 23u) - 127, NOTHING, top == 0u);
}
