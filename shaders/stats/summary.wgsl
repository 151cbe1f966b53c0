// For each workgroup's share of the values: sum and sum of squares in units of the power of two of its maximum,
// maximum, minimum, zeros, and the values that are NaN, infinite or negative.
// One workgroup: WORKGROUP · OCTETS groups of eight elements; WORKGROUP is a power of two.
// Expects lib/dtype.wgsl and lib/wide.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 32u;
override VALUES: u32 = 0u;

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
@group(0) @binding(3) var<storage, read_write> counts: array<u32>;

/// What some values come to. Extremes are bit patterns, which order as the non-negative numbers they stand for.
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

var<workgroup> parts: array<Part, WORKGROUP>;

fn load_values(octet: u32) -> Octet {
    if VALUES == F32 {
        return Octet(values[2u * octet], values[2u * octet + 1u]);
    }
    return widen(values[octet], VALUES);
}

fn nothing() -> Part {
    return Part(0.0, 0.0, NOTHING, 0u, 0xffffffffu, 0u, 0u, 0xffffffffu);
}

/// Four values from flat index `index`; those past the end count as nothing.
fn part_of(bits: vec4<u32>, index: u32) -> Part {
    let position = vec4<u32>(index) + vec4<u32>(0u, 1u, 2u, 3u);
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
        total(scaled),
        total(scaled * scaled),
        exponent,
        max(max(kept.x, kept.y), max(kept.z, kept.w)),
        least(select(vec4<u32>(0xffffffffu), magnitude, good)),
        count(good & (magnitude == vec4<u32>(0u))),
        count(bad),
        least(select(vec4<u32>(0xffffffffu), position, bad)),
    );
}

fn total(values: vec4<f32>) -> f32 {
    return (values.x + values.y) + (values.z + values.w);
}

fn least(values: vec4<u32>) -> u32 {
    return min(min(values.x, values.y), min(values.z, values.w));
}

fn count(flags: vec4<bool>) -> u32 {
    let ones = select(vec4<u32>(0u), vec4<u32>(1u), flags);
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

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let lane = local.x;
    let share = group.y * groups.x + group.x;
    let start = share * WORKGROUP * OCTETS;
    var part = nothing();
    for (var i = 0u; i < OCTETS; i++) {
        let octet = start + i * WORKGROUP + lane;
        if octet * 8u < params.len {
            let value = load_values(octet);
            part = join(part, join(part_of(value.lo, octet * 8u), part_of(value.hi, octet * 8u + 4u)));
        }
    }
    parts[lane] = part;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            parts[lane] = join(parts[lane], parts[lane + half]);
        }
    }
    if lane == 0u && start * 8u < params.len {
        let whole = parts[0];
        sums[2u * share] = whole.sum;
        sums[2u * share + 1u] = whole.sum_sq;
        counts[5u * share] = whole.greatest;
        counts[5u * share + 1u] = whole.least;
        counts[5u * share + 2u] = whole.zeros;
        counts[5u * share + 3u] = whole.bad;
        counts[5u * share + 4u] = whole.first_bad;
    }
}
