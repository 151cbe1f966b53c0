// For each share of the values: sum and sum of squares in units of the power of two of its maximum,
// maximum, minimum, zeros, and the values that are NaN, infinite or negative.
// LANES invocations (a power of two) have a share, of OCTETS groups of eight elements each (a multiple of four, at most
// 128); a workgroup has WORKGROUP / LANES shares, and no barrier where LANES is 1.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/join.wgsl.

override WORKGROUP: u32 = 256u;
override LANES: u32 = 256u;
override OCTETS: u32 = 32u;
override VALUES: u32 = 0u;

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
@group(0) @binding(3) var<storage, read_write> counts: array<u32>;

const TURN: u32 = 4u;

/// Statistics of some values. Extremes are bit patterns, which order as the non-negative numbers they stand for.
struct Part {
    /// In units of 2^exponent.
    sum: f32,
    /// In units of 4^exponent.
    sum_sq: f32,
    exponent: i32,
    greatest: u32,
    least: u32,
    zeros: u32,
    bad: u32,
    first_bad: u32,
}

/// The same of plain values, in fours. Turns whose values need care are left for later, a bit for each.
struct Running {
    sums: vec4<f32>,
    squares: vec4<f32>,
    exponent: i32,
    greatest: vec4<u32>,
    least: vec4<u32>,
    zeros: vec4<u32>,
    left: u32,
}

fn load_values(octet: u32) -> Octet {
    if VALUES == F32 {
        return Octet(values[2u * octet], values[2u * octet + 1u]);
    }
    return widen(values[octet], VALUES);
}

/// Four values from flat index `index`, whatever they are; those past the end count as nothing.
fn part_of(bits: vec4<u32>, index: u32) -> Part {
    let position = four_indices(index);
    let inside = position < vec4<u32>(params.len);
    // The positive numbers and both zeros, told from the bits.
    let fine = (bits < vec4<u32>(0x7f800000u)) | (bits == vec4<u32>(0x80000000u));
    let good = inside & fine;
    let bad = inside & !fine;
    let magnitude = bits & vec4<u32>(0x7fffffffu);
    let kept = select(vec4<u32>(0u), magnitude, good);
    let apart = wide(kept);
    let exponent = max(max(apart.e.x, apart.e.y), max(apart.e.z, apart.e.w));
    let scaled = mantissa_at(apart, vec4<i32>(exponent));
    return Part(
        sum_of_four(scaled),
        sum_of_four(scaled * scaled),
        exponent,
        most_of_four(kept),
        least_of_four(select(vec4<u32>(0xffffffffu), magnitude, good)),
        count(ones(good & (magnitude == vec4<u32>(0u)))),
        count(ones(bad)),
        least_of_four(select(vec4<u32>(0xffffffffu), position, bad)),
    );
}

fn ones(flags: vec4<bool>) -> vec4<u32> {
    return select(vec4<u32>(0u), vec4<u32>(1u), flags);
}

fn count(ones: vec4<u32>) -> u32 {
    return (ones.x + ones.y) + (ones.z + ones.w);
}

fn join(a: Part, b: Part) -> Part {
    let exponent = max(a.exponent, b.exponent);
    let down = vec2<i32>(a.exponent - exponent, b.exponent - exponent);
    let scale = pow2(vec4<i32>(down, 2 * down));
    return Part(
        a.sum * scale.x + b.sum * scale.y,
        a.sum_sq * scale.z + b.sum_sq * scale.w,
        exponent,
        max(a.greatest, b.greatest),
        min(a.least, b.least),
        a.zeros + b.zeros,
        a.bad + b.bad,
        min(a.first_bad, b.first_bad),
    );
}

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

fn scaled(octet: Octet, unit: f32) -> Eight {
    return Eight(floats(octet.lo) * unit, floats(octet.hi) * unit);
}

fn sum_of(v: Eight) -> vec4<f32> {
    return v.lo + v.hi;
}

fn squares_of(v: Eight) -> vec4<f32> {
    return v.lo * v.lo + v.hi * v.hi;
}

fn zeros_of(v: Octet) -> vec4<u32> {
    return ones(v.lo == vec4<u32>()) + ones(v.hi == vec4<u32>());
}

/// Four octets, LANES apart, in units of the largest value so far.
fn add_turn(before: Running, octet: u32, turn: u32) -> Running {
    let a = load_values(octet);
    let b = load_values(octet + LANES);
    let c = load_values(octet + 2u * LANES);
    let d = load_values(octet + 3u * LANES);
    let greatest = max(max(max(a.lo, a.hi), max(b.lo, b.hi)), max(max(c.lo, c.hi), max(d.lo, d.hi)));
    let least = min(min(min(a.lo, a.hi), min(b.lo, b.hi)), min(min(c.lo, c.hi), min(d.lo, d.hi)));
    let top = most_of_four(greatest);
    let plain = is_plain(top) && 8u * (octet + 3u * LANES + 1u) <= params.len;
    let exponent = max(before.exponent, select(NOTHING, plain_exponent(top), plain));
    let down = before.exponent - exponent;
    let scale = pow2(vec4<i32>(down, 2 * down, -exponent, 0));
    let sa = scaled(a, scale.z);
    let sb = scaled(b, scale.z);
    let sc = scaled(c, scale.z);
    let sd = scaled(d, scale.z);
    let sums = (sum_of(sa) + sum_of(sb)) + (sum_of(sc) + sum_of(sd));
    let squares = (squares_of(sa) + squares_of(sb)) + (squares_of(sc) + squares_of(sd));
    let zeros = (zeros_of(a) + zeros_of(b)) + (zeros_of(c) + zeros_of(d));
    return Running(
        before.sums * scale.x + select(vec4<f32>(), sums, plain),
        before.squares * scale.y + select(vec4<f32>(), squares, plain),
        exponent,
        max(before.greatest, select(vec4<u32>(), greatest, plain)),
        min(before.least, select(vec4<u32>(0xffffffffu), least, plain)),
        before.zeros + select(vec4<u32>(), zeros, plain),
        before.left | select(1u << turn, 0u, plain),
    );
}

/// Statistics of an invocation's octets, of which the first is `begin`.
fn part_from(begin: u32) -> Part {
    var running = Running(
        vec4<f32>(), vec4<f32>(), NOTHING, vec4<u32>(), vec4<u32>(0xffffffffu), vec4<u32>(), 0u,
    );
    for (var turn = 0u; turn < OCTETS / TURN; turn++) {
        running = add_turn(running, begin + turn * TURN * LANES, turn);
    }
    var part = Part(
        sum_of_four(running.sums),
        sum_of_four(running.squares),
        running.exponent,
        most_of_four(running.greatest),
        least_of_four(running.least),
        count(running.zeros),
        0u,
        0xffffffffu,
    );
    for (var left = running.left; left != 0u; left &= left - 1u) {
        for (var i = 0u; i < TURN; i++) {
            let octet = begin + (firstTrailingBit(left) * TURN + i) * LANES;
            if octet * 8u < params.len {
                let value = load_values(octet);
                part = join(part, join(part_of(value.lo, octet * 8u), part_of(value.hi, octet * 8u + 4u)));
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
    let whole = join_lanes(local.x, lane, part_from(start + lane));
    if lane == 0u && start * 8u < params.len {
        sums[2u * share] = whole.sum;
        sums[2u * share + 1u] = whole.sum_sq;
        counts[5u * share] = whole.greatest;
        counts[5u * share + 1u] = whole.least;
        counts[5u * share + 2u] = whole.zeros;
        counts[5u * share + 3u] = whole.bad;
        counts[5u * share + 4u] = whole.first_bad;
    }
}
