// drawn[r, n] <- a class from softmax(logits[n]), by integers alone: the first whose running weight passes the random
// number. One workgroup a sample, its classes cut into one share a lane. Expects lib/dtype.wgsl,
// lib/likelihood/logits.wgsl, lib/likelihood/philox.wgsl.

override WORKGROUP: u32 = 64u;
override LOGITS: u32 = 0u;
override MASKED: bool = false;

struct Params {
    samples: u32,
    classes: u32,
    draws: u32,
    first_draw: u32,
    first_sample_low: u32,
    first_sample_high: u32,
    seed_low: u32,
    seed_high: u32,
    ignored: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> drawn: array<u32>;
@group(0) @binding(4) var<storage, read_write> fault: array<atomic<u32>>;

/// log2(e) in units of 2^-30.
const LOG2_E: u32 = 1549082005u;

/// The largest key of each lane, and whether it saw a bad logit.
var<workgroup> largest: array<vec2<i32>, WORKGROUP>;
/// The weight of each lane's share; then that of the shares before it.
var<workgroup> below: array<vec2<u32>, WORKGROUP>;
var<workgroup> total: vec2<u32>;

/// A logit in units of 2^-16, rounded to nearest, two's complement; -2^31 for all from -2^15 down.
fn fixed(bits: u32) -> u32 {
    let exponent = (bits >> 23u) & 0xffu;
    let significand = (bits & 0x7fffffu) | 0x800000u;
    var magnitude = 0u;
    if exponent >= 142u {
        magnitude = 0x80000000u;
    } else if exponent >= 134u {
        magnitude = significand << (exponent - 134u);
    } else if exponent >= 110u {
        magnitude = ((significand >> (133u - exponent)) + 1u) >> 1u;
    }
    return select(magnitude, 0u - magnitude, (bits >> 31u) == 1u);
}

/// 2^-f in units of 2^-31, f in units of 2^-32: nine terms of the Taylor series, its coefficients ln(2)^j / j! in units
/// of 2^-32.
fn exp2_minus(f: u32) -> u32 {
    var inner = 5676u - multiply(f, 437u).y;
    inner = 65510u - multiply(f, inner).y;
    inner = 661577u - multiply(f, inner).y;
    inner = 5726720u - multiply(f, inner).y;
    inner = 41309550u - multiply(f, inner).y;
    inner = 238388332u - multiply(f, inner).y;
    inner = 1031764991u - multiply(f, inner).y;
    inner = 2977044472u - multiply(f, inner).y;
    return 0x80000000u - (multiply(f, inner).y >> 1u);
}

/// exp(logit - largest logit) in units of 2^-31, rounded to nearest.
fn weight_of(bits: u32, top: u32) -> u32 {
    if bits == 0xff800000u {
        return 0u;
    }
    let power = multiply(top - fixed(bits), LOG2_E);
    let halvings = power.y >> 14u;
    if halvings > 31u {
        return 0u;
    }
    let fraction = exp2_minus((power.y << 18u) | (power.x >> 14u));
    if halvings == 0u {
        return fraction;
    }
    return ((fraction >> (halvings - 1u)) + 1u) >> 1u;
}

/// ⌊a · b / 2^64⌋.
fn scale(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let cross = add(multiply(a.x, b.y), vec2<u32>(multiply(a.x, b.x).y, 0u));
    let other = add(multiply(a.y, b.x), vec2<u32>(cross.x, 0u));
    return add(multiply(a.y, b.y), add(vec2<u32>(cross.y, 0u), vec2<u32>(other.y, 0u)));
}

fn at_most(a: vec2<u32>, b: vec2<u32>) -> bool {
    return a.y < b.y || (a.y == b.y && a.x <= b.x);
}

/// The class in whose range of the running weight `place` lies.
fn class_at(place: vec2<u32>, first: u32, share: u32, top: u32) -> u32 {
    var lane = 0u;
    for (var i = 1u; i < WORKGROUP; i++) {
        if at_most(below[i], place) {
            lane = i;
        }
    }
    var running = below[lane];
    let end = min((lane + 1u) * share, params.classes);
    for (var class_index = lane * share; class_index < end; class_index++) {
        running = add(running, vec2<u32>(weight_of(logit(first + class_index), top), 0u));
        if !at_most(running, place) {
            return class_index;
        }
    }
    return end - 1u;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let sample = group.y * groups.x + group.x;
    if sample >= params.samples {
        return;
    }
    let lane = local.x;
    let first = sample * params.classes;
    var mine = vec2<i32>(IMPOSSIBLE, 0);
    for (var i = lane; i < params.classes; i += WORKGROUP) {
        let bits = logit(first + i);
        mine = max(mine, vec2<i32>(select(key_of(bits), IMPOSSIBLE, is_bad(bits)), i32(is_bad(bits))));
    }
    largest[lane] = mine;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
    }
    workgroupBarrier();
    let top_key = largest[0].x;
    let bad = largest[0].y > 0 || top_key == IMPOSSIBLE;
    let top_bits = bitcast<u32>(key_of(bitcast<u32>(top_key)));
    let far = (top_bits & 0x7fffffffu) > 0x46800000u;
    let top = fixed(top_bits);

    let share = (params.classes + WORKGROUP - 1u) / WORKGROUP;
    var sum = vec2<u32>();
    for (var i = lane * share; i < min((lane + 1u) * share, params.classes); i++) {
        sum = add(sum, vec2<u32>(weight_of(logit(first + i), top), 0u));
    }
    below[lane] = sum;
    workgroupBarrier();
    if lane == 0u {
        var running = vec2<u32>();
        for (var i = 0u; i < WORKGROUP; i++) {
            let before = running;
            running = add(running, below[i]);
            below[i] = before;
        }
        total = running;
    }
    workgroupBarrier();

    let skipped = MASKED && labels[select(0u, sample, MASKED)] == params.ignored;
    if (bad || far) && !skipped && lane == 0u {
        atomicMax(&fault[select(2u, 0u, bad)], ~sample);
    }
    let id = add(vec2<u32>(params.first_sample_low, params.first_sample_high), vec2<u32>(sample, 0u));
    for (var i = lane; i < params.draws; i += WORKGROUP) {
        var label = params.ignored;
        if !skipped && !bad && !far {
            let random = philox(vec4<u32>(id, params.first_draw + i, 0u), vec2<u32>(params.seed_low, params.seed_high));
            label = class_at(scale(random.xy, total), first, share, top);
        }
        drawn[i * params.samples + sample] = label;
    }
}
