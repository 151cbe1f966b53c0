// What two Fishers have in common, for each workgroup's share: Σ x y, Σ x², Σ y² of the cosine, or the sum of a divergence.
// One workgroup: WORKGROUP · OCTETS groups of eight elements; WORKGROUP is a power of two.
// Expects lib/dtype.wgsl and lib/wide.wgsl.

const COSINE: u32 = 0u;
const NORMALIZED: u32 = 1u;
const KL: u32 = 2u;
const JSD: u32 = 3u;

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 16u;
override METRIC: u32 = 0u;
override A: u32 = 0u;
override B: u32 = 0u;

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> records: array<f32>;

const NO_INDEX: u32 = 0xffffffffu;

/// From this power of two on a ratio of values is its own excess over 1, to the last bit.
const FAR: i32 = 30;
const LN_2: f32 = 0.6931471805599453;

/// Sums over some elements. Indices count from the share's first element.
struct Part {
    xy: f32, // in units of 2^(x + y)
    xx: f32, // in units of 4^x
    yy: f32, // in units of 4^y
    x: i32,
    y: i32,
    bad_a: u32,
    bad_b: u32,
    one_zero: u32, // the first element that is 0 in one alone
}

var<workgroup> parts: array<Part, WORKGROUP>;

fn load_a(octet: u32) -> Octet {
    if A == F32 {
        return Octet(a[2u * octet], a[2u * octet + 1u]);
    }
    return widen(a[octet], A);
}

fn load_b(octet: u32) -> Octet {
    if B == F32 {
        return Octet(b[2u * octet], b[2u * octet + 1u]);
    }
    return widen(b[octet], B);
}

fn total(values: vec4<f32>) -> f32 {
    return (values.x + values.y) + (values.z + values.w);
}

fn greatest(values: vec4<i32>) -> i32 {
    return max(max(values.x, values.y), max(values.z, values.w));
}

fn first(flags: vec4<bool>, index: vec4<u32>) -> u32 {
    let at = select(vec4<u32>(NO_INDEX), index, flags);
    return min(min(at.x, at.y), min(at.z, at.w));
}

fn join(p: Part, q: Part) -> Part {
    let x = max(p.x, q.x);
    let y = max(p.y, q.y);
    let down = pow2(vec4<i32>(p.x - x + p.y - y, q.x - x + q.y - y, 2 * (p.x - x), 2 * (q.x - x)));
    let down_y = pow2(vec4<i32>(2 * (p.y - y), 2 * (q.y - y), 0, 0));
    return Part(
        p.xy * down.x + q.xy * down.y,
        p.xx * down.z + q.xx * down.w,
        p.yy * down_y.x + q.yy * down_y.y,
        x,
        y,
        min(p.bad_a, q.bad_a),
        min(p.bad_b, q.bad_b),
        min(p.one_zero, q.one_zero),
    );
}

/// One of two numbers' share of their sum, 0/0 = 0. The exponent is exact, the mantissa in (1/4, 1].
fn share_of(one: Wide, other: Wide) -> Wide {
    let e = max(one.e, other.e);
    let sum = mantissa_at(one, e) + mantissa_at(other, e);
    let some = one.m > vec4<f32>(0.0);
    let mantissa = one.m / select(vec4<f32>(1.0), sum, sum > vec4<f32>(0.0));
    return Wide(mantissa, select(vec4<i32>(NOTHING), one.e - e, some));
}

/// (s³/3 + s⁵/5 + …)/s³ for s² of at most 1/9: the rest of the series is below 2^-29 of it.
fn atanh_tail(s: vec4<f32>) -> vec4<f32> {
    let t = s * s;
    return 1.0 / 3.0 + t * (0.2 + t * (1.0 / 7.0 + t * (1.0 / 9.0 + t * (1.0 / 11.0 + t * (1.0 / 13.0 + t / 15.0)))));
}

/// ln(1 + f) for f in [0, 1]: the built-in `log` is off by hundreds of units near 1.
fn ln_1p_small(f: vec4<f32>) -> vec4<f32> {
    let s = f / (2.0 + f);
    return 2.0 * (s + s * s * s * atanh_tail(s));
}

/// ln(1 + f) for f in [0, 2^31].
fn ln_1p(f: vec4<f32>) -> vec4<f32> {
    let bits = patterns(1.0 + f);
    let small = f < vec4<f32>(1.0);
    let power = vec4<f32>(vec4<i32>(bits >> vec4<u32>(23u)) - 127);
    let mantissa = floats((bits & vec4<u32>(0x7fffffu)) | vec4<u32>(0x3f800000u));
    let rest = ln_1p_small(select(mantissa - 1.0, f, small));
    return select(power * LN_2 + rest, rest, small);
}

/// ½ (d − ln(1 + d)) for d in [0, 2^31], without cancellation where d is small.
fn half_excess(d: vec4<f32>) -> vec4<f32> {
    let s = d / (2.0 + d);
    let small = s * s * (1.0 / (1.0 - s) - s * atanh_tail(s));
    return select(0.5 * (d - ln_1p(d)), small, d < vec4<f32>(1.0));
}

/// The divergence of two positive numbers, which depends on their ratio alone; 0 where one is 0.
fn divergence(one: Wide, other: Wide) -> Wide {
    let above = (one.e > other.e) | ((one.e == other.e) & (one.m > other.m));
    let both = (one.m > vec4<f32>(0.0)) & (other.m > vec4<f32>(0.0));
    let high = select(vec4<f32>(1.0), select(other.m, one.m, above), both);
    let low = select(vec4<f32>(1.0), select(one.m, other.m, above), both);
    let power = select(vec4<i32>(0), max(one.e, other.e) - min(one.e, other.e), both);
    let far = power >= vec4<i32>(FAR);
    let near = select(power, vec4<i32>(0), far);
    let raised = high * pow2(near);
    let excess = (raised - low) / low;
    if METRIC == KL {
        return Wide(select(half_excess(excess), 0.5 * high / low, far), power - near);
    }
    let ln_ratio = vec4<f32>(power) * LN_2 + (ln_1p_small(high - 1.0) - ln_1p_small(low - 1.0));
    let ln_near = ln_1p(excess / (raised / low) * (0.25 * excess));
    return Wide(0.25 * select(ln_near, ln_ratio - 2.0 * LN_2, far), vec4<i32>(0));
}

/// Four pairs from index `index` of the share, which has `len`; those past the end count as nothing.
fn part_of(a_bits: vec4<u32>, b_bits: vec4<u32>, index: u32, len: u32) -> Part {
    let at = vec4<u32>(index) + vec4<u32>(0u, 1u, 2u, 3u);
    let inside = at < vec4<u32>(len);
    let good_a = (a_bits < vec4<u32>(0x7f800000u)) | (a_bits == vec4<u32>(0x80000000u));
    let good_b = (b_bits < vec4<u32>(0x7f800000u)) | (b_bits == vec4<u32>(0x80000000u));
    let kept_a = select(vec4<u32>(0u), a_bits & vec4<u32>(0x7fffffffu), inside & good_a);
    let kept_b = select(vec4<u32>(0u), b_bits & vec4<u32>(0x7fffffffu), inside & good_b);
    let one = wide(kept_a);
    let other = wide(kept_b);
    let bad_a = first(inside & !good_a, at);
    let bad_b = first(inside & !good_b, at);
    let one_zero = first(inside & good_a & good_b & ((kept_a == vec4<u32>(0u)) != (kept_b == vec4<u32>(0u))), at);
    if METRIC == KL || METRIC == JSD {
        let term = divergence(one, other);
        let e = greatest(term.e);
        return Part(total(mantissa_at(term, vec4<i32>(e))), 0.0, 0.0, e, 0, bad_a, bad_b, one_zero);
    }
    var x = one;
    var y = other;
    if METRIC == NORMALIZED {
        x = share_of(one, other);
        y = share_of(other, one);
    }
    let ex = greatest(x.e);
    let ey = greatest(y.e);
    let mx = mantissa_at(x, vec4<i32>(ex));
    let my = mantissa_at(y, vec4<i32>(ey));
    return Part(total(mx * my), total(mx * mx), total(my * my), ex, ey, bad_a, bad_b, one_zero);
}

fn exponent_word(e: i32) -> f32 {
    return select(f32(e), 0.0, e == NOTHING);
}

fn index_word(index: u32) -> f32 {
    return select(f32(index), -1.0, index == NO_INDEX);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let lane = local.x;
    let share = group.y * groups.x + group.x;
    let start = share * WORKGROUP * OCTETS;
    let there = start * 8u < params.len;
    var part = Part(0.0, 0.0, 0.0, NOTHING, NOTHING, NO_INDEX, NO_INDEX, NO_INDEX);
    for (var i = 0u; i < OCTETS; i++) {
        let octet = i * WORKGROUP + lane;
        if there && (start + octet) * 8u < params.len {
            let len = params.len - start * 8u;
            let va = load_a(start + octet);
            let vb = load_b(start + octet);
            let lo = part_of(va.lo, vb.lo, octet * 8u, len);
            let hi = part_of(va.hi, vb.hi, octet * 8u + 4u, len);
            part = join(part, join(lo, hi));
        }
    }
    parts[lane] = part;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            parts[lane] = join(parts[lane], parts[lane + half]);
        }
    }
    if lane == 0u && there {
        let whole = parts[0];
        let record = 8u * share;
        records[record] = whole.xy;
        records[record + 1u] = whole.xx;
        records[record + 2u] = whole.yy;
        records[record + 3u] = exponent_word(whole.x);
        records[record + 4u] = exponent_word(whole.y);
        records[record + 5u] = index_word(whole.bad_a);
        records[record + 6u] = index_word(whole.bad_b);
        records[record + 7u] = index_word(whole.one_zero);
    }
}
