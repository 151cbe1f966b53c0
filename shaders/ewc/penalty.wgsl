// Σ F (θ − θ*)² for each share of the parameters, in units of a power of two.
// LANES invocations (a power of two) have a share, of OCTETS groups of eight elements each (a multiple of two, at most
// 64); a workgroup has WORKGROUP / LANES shares, and no barrier where LANES is 1.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/record.wgsl, lib/join.wgsl.

override WORKGROUP: u32 = 256u;
override LANES: u32 = 256u;
override OCTETS: u32 = 16u;
override THETA: u32 = 0u;
override ANCHOR: u32 = 0u;
override FISHER: u32 = 0u;

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> anchor: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> records: array<f32>;

const TURN: u32 = 2u;

/// A sum over some elements. Indices count from the share's first element.
struct Part {
    sum: f32, // in units of 2^exponent
    exponent: i32,
    bad_theta: u32,
    bad_anchor: u32,
    bad_fisher: u32,
}

/// The same of plain values, in fours. Turns whose values need care are left for later, a bit for each.
struct Running {
    sums: vec4<f32>,
    exponent: i32,
    left: u32,
}

fn load_theta(octet: u32) -> Octet {
    if THETA == F32 {
        return Octet(theta[2u * octet], theta[2u * octet + 1u]);
    }
    return widen(theta[octet], THETA);
}

fn load_anchor(octet: u32) -> Octet {
    if ANCHOR == F32 {
        return Octet(anchor[2u * octet], anchor[2u * octet + 1u]);
    }
    return widen(anchor[octet], ANCHOR);
}

fn load_fisher(octet: u32) -> Octet {
    if FISHER == F32 {
        return Octet(fisher[2u * octet], fisher[2u * octet + 1u]);
    }
    return widen(fisher[octet], FISHER);
}

fn join(p: Part, q: Part) -> Part {
    let exponent = max(p.exponent, q.exponent);
    let down = pow2(vec4<i32>(p.exponent - exponent, q.exponent - exponent, 0, 0));
    return Part(
        p.sum * down.x + q.sum * down.y,
        exponent,
        min(p.bad_theta, q.bad_theta),
        min(p.bad_anchor, q.bad_anchor),
        min(p.bad_fisher, q.bad_fisher),
    );
}

/// Halved, so that the difference of two finite numbers is one; a shift of the exponent keeps every bit but a
/// subnormal's last.
fn half_apart(t: vec4<u32>, a: vec4<u32>) -> vec4<f32> {
    return 0.5 * floats(t) - 0.5 * floats(a);
}

/// Four parameters from index `index` of the share, which has `len`, whatever they are; those past the end count as
/// nothing.
fn part_of(t: vec4<u32>, a: vec4<u32>, f: vec4<u32>, index: u32, len: u32) -> Part {
    let at = four_indices(index);
    let inside = at < vec4<u32>(len);
    let bad_theta = inside & not_finite(t);
    let bad_anchor = inside & not_finite(a);
    let bad_fisher = inside & (f >= vec4<u32>(0x7f800000u)) & (f != vec4<u32>(0x80000000u));
    let good = inside & !(bad_theta | bad_anchor | bad_fisher);
    let delta = patterns(half_apart(select(vec4<u32>(0u), t, good), select(vec4<u32>(0u), a, good)));
    let weight = wide(select(vec4<u32>(0u), f & vec4<u32>(0x7fffffffu), good));
    let distance = wide(delta & vec4<u32>(0x7fffffffu));
    let some = (weight.m > vec4<f32>(0.0)) & (distance.m > vec4<f32>(0.0));
    let term = Wide(
        weight.m * (distance.m * distance.m),
        select(vec4<i32>(NOTHING), weight.e + 2 * distance.e + 2, some),
    );
    let exponent = max(max(term.e.x, term.e.y), max(term.e.z, term.e.w));
    let scaled = mantissa_at(term, vec4<i32>(exponent));
    return Part(
        sum_of_four(scaled),
        exponent,
        first_index(bad_theta, at),
        first_index(bad_anchor, at),
        first_index(bad_fisher, at),
    );
}

/// Four weights and halves of distances as they are.
struct Four {
    fisher: vec4<u32>,
    distance: vec4<f32>,
}

fn size_of(v: Four) -> vec4<u32> {
    return patterns(v.distance) & vec4<u32>(0x7fffffffu);
}

/// The exponents of F and twice that of the distance, both with f32's bias, where neither is zero.
fn exponents_of(v: Four) -> vec4<i32> {
    let size = size_of(v);
    let e = vec4<i32>(v.fisher >> vec4<u32>(23u)) + 2 * vec4<i32>(size >> vec4<u32>(23u));
    return select(e, vec4<i32>(NOTHING), min(v.fisher, size) == vec4<u32>());
}

/// Below 0x7fffff where one is subnormal: a zero wraps around.
fn smallest(v: Four) -> vec4<u32> {
    return min(v.fisher - vec4<u32>(1u), size_of(v) - vec4<u32>(1u));
}

fn terms_of(v: Four, fisher_unit: f32, unit: f32) -> vec4<f32> {
    let distance = v.distance * unit;
    return (floats(v.fisher) * fisher_unit) * (distance * distance);
}

/// Two octets, LANES apart, in units of the largest term so far.
fn add_turn(before: Running, octet: u32, turn: u32) -> Running {
    let t0 = load_theta(octet);
    let t1 = load_theta(octet + LANES);
    let a0 = load_anchor(octet);
    let a1 = load_anchor(octet + LANES);
    let f0 = load_fisher(octet);
    let f1 = load_fisher(octet + LANES);
    let a = Four(f0.lo, half_apart(t0.lo, a0.lo));
    let b = Four(f0.hi, half_apart(t0.hi, a0.hi));
    let c = Four(f1.lo, half_apart(t1.lo, a1.lo));
    let d = Four(f1.hi, half_apart(t1.hi, a1.hi));
    let top_fisher = most_of_four(max(max(a.fisher, b.fisher), max(c.fisher, d.fisher)));
    // What is not finite in θ or θ* is not in their difference.
    let top_distance = most_of_four(max(max(size_of(a), size_of(b)), max(size_of(c), size_of(d))));
    let normal = least_of_four(min(min(smallest(a), smallest(b)), min(smallest(c), smallest(d)))) >= 0x7fffffu;
    let fours = max(max(exponents_of(a), exponents_of(b)), max(exponents_of(c), exponents_of(d)));
    let biased = max(max(fours.x, fours.y), max(fours.z, fours.w));
    let own = select(biased - 3 * 127 + 2, NOTHING, biased < 0);
    // In units of both maxima, a term that counts must not be lost.
    let product = plain_exponent(top_fisher) + 2 * plain_exponent(top_distance) + 2;
    let plain = is_plain(top_fisher) && is_plain(top_distance) && normal
        && (own == NOTHING || own + 60 > product) && 8u * (octet + LANES + 1u) <= params.len;
    let exponent = max(before.exponent, select(NOTHING, own, plain));
    let unit = pow2(vec4<i32>(-plain_exponent(top_fisher), -plain_exponent(top_distance), 0, 0));
    let scale = pow2(vec4<i32>(before.exponent - exponent, product - exponent, 0, 0));
    let sums = (terms_of(a, unit.x, unit.y) + terms_of(b, unit.x, unit.y))
        + (terms_of(c, unit.x, unit.y) + terms_of(d, unit.x, unit.y));
    return Running(
        before.sums * scale.x + select(vec4<f32>(), sums * scale.y, plain && own != NOTHING),
        exponent,
        before.left | select(1u << turn, 0u, plain),
    );
}

/// The sum over an invocation's octets, of which the first is the `lane`-th of the share.
fn part_from(start: u32, lane: u32) -> Part {
    var running = Running(vec4<f32>(), NOTHING, 0u);
    for (var turn = 0u; turn < OCTETS / TURN; turn++) {
        running = add_turn(running, start + lane + turn * TURN * LANES, turn);
    }
    var part = Part(sum_of_four(running.sums), running.exponent, NO_INDEX, NO_INDEX, NO_INDEX);
    for (var left = running.left; left != 0u; left &= left - 1u) {
        for (var i = 0u; i < TURN; i++) {
            let octet = lane + (firstTrailingBit(left) * TURN + i) * LANES;
            if (start + octet) * 8u < params.len {
                let len = params.len - start * 8u;
                let t = load_theta(start + octet);
                let a = load_anchor(start + octet);
                let f = load_fisher(start + octet);
                let lo = part_of(t.lo, a.lo, f.lo, octet * 8u, len);
                let hi = part_of(t.hi, a.hi, f.hi, octet * 8u + 4u, len);
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
        let record = 5u * share;
        records[record] = whole.sum;
        records[record + 1u] = exponent_word(whole.exponent);
        records[record + 2u] = index_word(whole.bad_theta);
        records[record + 3u] = index_word(whole.bad_anchor);
        records[record + 4u] = index_word(whole.bad_fisher);
    }
}
