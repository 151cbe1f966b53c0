// What two Fishers have in common, for each share: Σ x y, Σ x², Σ y² of the cosine, or the sum of a divergence.
// LANES invocations (a power of two) have a share, of OCTETS groups of eight elements each (a multiple of two, at most
// 64); a workgroup has WORKGROUP / LANES shares, and no barrier where LANES is 1.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/record.wgsl, lib/join.wgsl.

const COSINE: u32 = 0u;
const NORMALIZED: u32 = 1u;
const KL: u32 = 2u;
const JSD: u32 = 3u;

override WORKGROUP: u32 = 256u;
override LANES: u32 = 256u;
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

const TURN: u32 = 2u;

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

/// The same sums of values that need no care, in fours. Turns whose values need care are left for later, a
/// bit for each.
struct Running {
    xy: vec4<f32>,
    xx: vec4<f32>,
    yy: vec4<f32>,
    x: i32,
    y: i32,
    left: u32,
}

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

fn greatest(values: vec4<i32>) -> i32 {
    return max(max(values.x, values.y), max(values.z, values.w));
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
    let at = four_indices(index);
    let inside = at < vec4<u32>(len);
    let good_a = (a_bits < vec4<u32>(0x7f800000u)) | (a_bits == vec4<u32>(0x80000000u));
    let good_b = (b_bits < vec4<u32>(0x7f800000u)) | (b_bits == vec4<u32>(0x80000000u));
    let kept_a = select(vec4<u32>(0u), a_bits & vec4<u32>(0x7fffffffu), inside & good_a);
    let kept_b = select(vec4<u32>(0u), b_bits & vec4<u32>(0x7fffffffu), inside & good_b);
    let one = wide(kept_a);
    let other = wide(kept_b);
    let bad_a = first_index(inside & !good_a, at);
    let bad_b = first_index(inside & !good_b, at);
    let one_zero = first_index(inside & good_a & good_b & ((kept_a == vec4<u32>(0u)) != (kept_b == vec4<u32>(0u))), at);
    if METRIC == KL || METRIC == JSD {
        let term = divergence(one, other);
        let e = greatest(term.e);
        return Part(sum_of_four(mantissa_at(term, vec4<i32>(e))), 0.0, 0.0, e, 0, bad_a, bad_b, one_zero);
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
    return Part(sum_of_four(mx * my), sum_of_four(mx * mx), sum_of_four(my * my), ex, ey, bad_a, bad_b, one_zero);
}

/// Four pairs as they are.
struct Four {
    a: vec4<u32>,
    b: vec4<u32>,
}

/// Least where a value is small; a zero wraps around.
fn smallest(v: Four) -> vec4<u32> {
    return min(v.a - vec4<u32>(1u), v.b - vec4<u32>(1u));
}

fn one_zero_of(v: Four) -> vec4<bool> {
    return (v.a == vec4<u32>()) != (v.b == vec4<u32>());
}

/// Exponents with f32's bias, or how far below the pair's greater one; where a value is zero, so is the other.
fn exponent_of(one: vec4<u32>, other: vec4<u32>) -> vec4<i32> {
    let e = vec4<i32>(one >> vec4<u32>(23u));
    if METRIC == NORMALIZED {
        let greater = max(e, vec4<i32>(other >> vec4<u32>(23u)));
        return select(e - greater, vec4<i32>(NOTHING), one == vec4<u32>());
    }
    return e;
}

/// x and y of four pairs: sums and quotients of these cannot overflow or vanish.
struct Terms {
    x: vec4<f32>,
    y: vec4<f32>,
}

fn terms_of(v: Four, unit_x: f32, unit_y: f32) -> Terms {
    var x = floats(v.a);
    var y = floats(v.b);
    if METRIC == NORMALIZED {
        let sum = max(x + y, vec4<f32>(0x1p-126f));
        x /= sum;
        y /= sum;
    }
    return Terms(x * unit_x, y * unit_y);
}

/// Two octets, LANES apart, in units of the greatest so far, if none of their values is lost in these or zero
/// in one alone.
fn add_turn(before: Running, octet: u32, turn: u32) -> Running {
    let a0 = load_a(octet);
    let a1 = load_a(octet + LANES);
    let b0 = load_b(octet);
    let b1 = load_b(octet + LANES);
    let p = Four(a0.lo, b0.lo);
    let q = Four(a0.hi, b0.hi);
    let r = Four(a1.lo, b1.lo);
    let s = Four(a1.hi, b1.hi);
    let top = most_of_four(max(max(max(p.a, q.a), max(r.a, s.a)), max(max(p.b, q.b), max(r.b, s.b))));
    let low = least_of_four(min(min(smallest(p), smallest(q)), min(smallest(r), smallest(s))));
    let apart = any(one_zero_of(p) | one_zero_of(q) | one_zero_of(r) | one_zero_of(s));
    // From 2^-125 to 2^125, as sums of two are divided by, and 2^120 between two of them.
    let near = top < 0x7e000000u && low >= 0x00ffffffu && (top >> 23u) <= (low >> 23u) + 120u;
    let plain = (top == 0u || (near && !apart)) && 8u * (octet + LANES + 1u) <= params.len;
    let ex = greatest(max(
        max(exponent_of(p.a, p.b), exponent_of(q.a, q.b)),
        max(exponent_of(r.a, r.b), exponent_of(s.a, s.b)),
    ));
    let ey = greatest(max(
        max(exponent_of(p.b, p.a), exponent_of(q.b, q.a)),
        max(exponent_of(r.b, r.a), exponent_of(s.b, s.a)),
    ));
    let bias = select(127, 0, METRIC == NORMALIZED);
    let some = plain && top != 0u;
    let x = max(before.x, select(NOTHING, ex - bias, some));
    let y = max(before.y, select(NOTHING, ey - bias, some));
    let down = vec2<i32>(before.x - x, before.y - y);
    let scale = pow2(vec4<i32>(down.x + down.y, 2 * down.x, 2 * down.y, 0));
    let unit = pow2(vec4<i32>(-x, -y, 0, 0));
    let tp = terms_of(p, unit.x, unit.y);
    let tq = terms_of(q, unit.x, unit.y);
    let tr = terms_of(r, unit.x, unit.y);
    let ts = terms_of(s, unit.x, unit.y);
    let xy = (tp.x * tp.y + tq.x * tq.y) + (tr.x * tr.y + ts.x * ts.y);
    let xx = (tp.x * tp.x + tq.x * tq.x) + (tr.x * tr.x + ts.x * ts.x);
    let yy = (tp.y * tp.y + tq.y * tq.y) + (tr.y * tr.y + ts.y * ts.y);
    return Running(
        before.xy * scale.x + select(vec4<f32>(), xy, some),
        before.xx * scale.y + select(vec4<f32>(), xx, some),
        before.yy * scale.z + select(vec4<f32>(), yy, some),
        x,
        y,
        before.left | select(1u << turn, 0u, plain),
    );
}

/// The sums over an invocation's octets, of which the first is the `lane`-th of the share.
fn part_from(start: u32, lane: u32) -> Part {
    var running = Running(vec4<f32>(), vec4<f32>(), vec4<f32>(), NOTHING, NOTHING, 0u);
    if METRIC == KL || METRIC == JSD {
        running.left = 0xffffffffu >> (32u - OCTETS / TURN);
    } else {
        for (var turn = 0u; turn < OCTETS / TURN; turn++) {
            running = add_turn(running, start + lane + turn * TURN * LANES, turn);
        }
    }
    var part = Part(
        sum_of_four(running.xy), sum_of_four(running.xx), sum_of_four(running.yy), running.x, running.y,
        NO_INDEX, NO_INDEX, NO_INDEX,
    );
    for (var left = running.left; left != 0u; left &= left - 1u) {
        for (var i = 0u; i < TURN; i++) {
            let octet = lane + (firstTrailingBit(left) * TURN + i) * LANES;
            if (start + octet) * 8u < params.len {
                let len = params.len - start * 8u;
                let va = load_a(start + octet);
                let vb = load_b(start + octet);
                let lo = part_of(va.lo, vb.lo, octet * 8u, len);
                let hi = part_of(va.hi, vb.hi, octet * 8u + 4u, len);
                part = join(part, join(lo, hi));
            }
        }
    }
    return part;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let lane = local.x % LANES;
    let share = share_at(group, groups, local.x);
    let start = share * LANES * OCTETS;
    let whole = join_lanes(local.x, lane, part_from(start, lane));
    if lane == 0u && start * 8u < params.len {
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
