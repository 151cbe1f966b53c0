// Σ F (θ − θ*)² for each workgroup's share, in units of a power of two.
// One workgroup: WORKGROUP · OCTETS groups of eight elements; WORKGROUP is a power of two.
// Expects lib/dtype.wgsl and lib/wide.wgsl.

override WORKGROUP: u32 = 256u;
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

const NO_INDEX: u32 = 0xffffffffu;

/// A sum over some elements. Indices count from the share's first element.
struct Part {
    sum: f32, // in units of 2^exponent
    exponent: i32,
    bad_theta: u32,
    bad_anchor: u32,
    bad_fisher: u32,
}

var<workgroup> parts: array<Part, WORKGROUP>;

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

fn first(flags: vec4<bool>, index: vec4<u32>) -> u32 {
    let at = select(vec4<u32>(NO_INDEX), index, flags);
    return min(min(at.x, at.y), min(at.z, at.w));
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

/// Four parameters from index `index` of the share, which has `len`; those past the end count as nothing.
fn part_of(t: vec4<u32>, a: vec4<u32>, f: vec4<u32>, index: u32, len: u32) -> Part {
    let at = vec4<u32>(index) + vec4<u32>(0u, 1u, 2u, 3u);
    let inside = at < vec4<u32>(len);
    let bad_theta = inside & not_finite(t);
    let bad_anchor = inside & not_finite(a);
    let bad_fisher = inside & (f >= vec4<u32>(0x7f800000u)) & (f != vec4<u32>(0x80000000u));
    let good = inside & !(bad_theta | bad_anchor | bad_fisher);
    // Halved, so that the difference of two finite numbers is one; a shift of the exponent keeps every bit but a subnormal's last.
    let delta = patterns(0.5 * floats(select(vec4<u32>(0u), t, good)) - 0.5 * floats(select(vec4<u32>(0u), a, good)));
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
        (scaled.x + scaled.y) + (scaled.z + scaled.w),
        exponent,
        first(bad_theta, at),
        first(bad_anchor, at),
        first(bad_fisher, at),
    );
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
    var part = Part(0.0, NOTHING, NO_INDEX, NO_INDEX, NO_INDEX);
    for (var i = 0u; i < OCTETS; i++) {
        let octet = i * WORKGROUP + lane;
        if there && (start + octet) * 8u < params.len {
            let len = params.len - start * 8u;
            let t = load_theta(start + octet);
            let a = load_anchor(start + octet);
            let f = load_fisher(start + octet);
            let lo = part_of(t.lo, a.lo, f.lo, octet * 8u, len);
            let hi = part_of(t.hi, a.hi, f.hi, octet * 8u + 4u, len);
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
        let record = 5u * share;
        records[record] = whole.sum;
        records[record + 1u] = select(f32(whole.exponent), 0.0, whole.exponent == NOTHING);
        records[record + 2u] = index_word(whole.bad_theta);
        records[record + 3u] = index_word(whole.bad_anchor);
        records[record + 4u] = index_word(whole.bad_fisher);
    }
}
