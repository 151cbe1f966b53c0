// Storage types: eight elements at a time between f32 bit patterns and storage words, and what is done with
// four of them. Values stay bit patterns until arithmetic needs them, so that a copy keeps NaNs, subnormals
// and signed zeros. Expects no part.
//
// A kernel loads an octet by a function for each binding, since WGSL passes no pointer to storage: from two
// words of four if the binding holds f32, else from one by `widen`.

const F32: u32 = 0u;
const F16: u32 = 1u;
const BF16: u32 = 2u;

/// Eight f32 bit patterns in order: lo.x … lo.w, hi.x … hi.w.
struct Octet {
    lo: vec4<u32>,
    hi: vec4<u32>,
}

/// Of words a, b, c, the eight from word `at` on (below four).
fn eight_words(a: vec4<u32>, b: vec4<u32>, c: vec4<u32>, at: u32) -> Octet {
    let two = (at & 2u) != 0u;
    let lo = select(a, vec4<u32>(a.zw, b.xy), two);
    let hi = select(b, vec4<u32>(b.zw, c.xy), two);
    let next = select(c.x, c.z, two);
    let one = (at & 1u) != 0u;
    return Octet(
        select(lo, vec4<u32>(lo.yzw, hi.x), one),
        select(hi, vec4<u32>(hi.yzw, next), one),
    );
}

/// Eight 16-bit elements, two a word, the first in the lower half.
fn widen(words: vec4<u32>, dtype: u32) -> Octet {
    let a = widen_pair(words.x, dtype);
    let b = widen_pair(words.y, dtype);
    let c = widen_pair(words.z, dtype);
    let d = widen_pair(words.w, dtype);
    return Octet(vec4<u32>(a, b), vec4<u32>(c, d));
}

fn widen_pair(word: u32, dtype: u32) -> vec2<u32> {
    if dtype == BF16 {
        return vec2<u32>(word << 16u, word & 0xffff0000u);
    }
    return vec2<u32>(f16_to_f32(word & 0xffffu), f16_to_f32(word >> 16u));
}

/// By integers: `unpack2x16float` may flush subnormals.
fn f16_to_f32(half: u32) -> u32 {
    let sign = (half & 0x8000u) << 16u;
    let magnitude = half & 0x7fffu;
    if magnitude >= 0x7c00u {
        return sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13u);
    }
    if magnitude >= 0x400u {
        return sign | ((magnitude << 13u) + 0x38000000u);
    }
    if magnitude == 0u {
        return sign;
    }
    let lead = firstLeadingBit(magnitude);
    return sign | ((lead + 103u) << 23u) | ((magnitude << (23u - lead)) & 0x7fffffu);
}

fn narrow(octet: Octet, dtype: u32) -> vec4<u32> {
    return vec4<u32>(
        narrow_pair(octet.lo.xy, dtype),
        narrow_pair(octet.lo.zw, dtype),
        narrow_pair(octet.hi.xy, dtype),
        narrow_pair(octet.hi.zw, dtype),
    );
}

fn narrow_pair(bits: vec2<u32>, dtype: u32) -> u32 {
    if dtype == BF16 {
        return f32_to_bf16(bits.x) | (f32_to_bf16(bits.y) << 16u);
    }
    return f32_to_f16(bits.x) | (f32_to_f16(bits.y) << 16u);
}

/// Round to nearest, ties to even; a NaN stays one.
fn f32_to_bf16(bits: u32) -> u32 {
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, (bits & 0x7fffffffu) > 0x7f800000u);
}

/// Round to nearest, ties to even, by integers: the rounding of `pack2x16float` is left open.
fn f32_to_f16(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if magnitude >= 0x477ff000u {
        return sign | 0x7c00u;
    }
    if magnitude >= 0x38800000u {
        let rounded = magnitude + 0xfffu + ((magnitude >> 13u) & 1u);
        return sign | ((rounded - 0x38000000u) >> 13u);
    }
    // A subnormal counts units of 2^-24: the significand shifted right by 126 - exponent, rounded.
    let shift = 126u - (magnitude >> 23u);
    if shift > 24u {
        return sign;
    }
    let significand = (magnitude & 0x7fffffu) | 0x800000u;
    let kept = significand >> shift;
    let rest = significand & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    let up = rest > half || (rest == half && (kept & 1u) == 1u);
    return sign | (kept + u32(up));
}

fn floats(bits: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(bits);
}

fn patterns(values: vec4<f32>) -> vec4<u32> {
    return bitcast<vec4<u32>>(values);
}

/// NaN or infinite, told from the bits: `x != x` is false for a NaN on some drivers.
fn not_finite(bits: vec4<u32>) -> vec4<bool> {
    return (bits & vec4<u32>(0x7fffffffu)) >= vec4<u32>(0x7f800000u);
}

/// The values as they come back from storage.
fn stored(bits: vec4<u32>, dtype: u32) -> vec4<u32> {
    if dtype == F32 {
        return bits;
    }
    let words = vec2<u32>(narrow_pair(bits.xy, dtype), narrow_pair(bits.zw, dtype));
    return vec4<u32>(widen_pair(words.x, dtype), widen_pair(words.y, dtype));
}

/// The indices of four elements in a row.
fn four_indices(first: u32) -> vec4<u32> {
    return vec4<u32>(first) + vec4<u32>(0u, 1u, 2u, 3u);
}

fn sum_of_four(values: vec4<f32>) -> f32 {
    return (values.x + values.y) + (values.z + values.w);
}

/// How many of four there are.
fn count_of_four(flags: vec4<bool>) -> u32 {
    let ones = vec4<u32>(flags);
    return (ones.x + ones.y) + (ones.z + ones.w);
}

fn least_of_four(values: vec4<u32>) -> u32 {
    return min(min(values.x, values.y), min(values.z, values.w));
}

fn most_of_four(values: vec4<u32>) -> u32 {
    return max(max(values.x, values.y), max(values.z, values.w));
}
