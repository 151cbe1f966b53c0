// out[o] <- decay · out[o] + gain · sum over squares of weight · (sum over positions of gradient_scale · b)²
// (without SQUARED, of the sum itself; with EACH, out[square, o] of every square).
// A workgroup is OUTPUTS outputs × LANES invocations that share the positions of each; or, with TOGETHER, its WORKGROUP
// invocations have 8 · OCTETS outputs each. Expects lib/dtype.wgsl, lib/element.wgsl, lib/columns.wgsl.

override OUTPUTS: u32 = 32u;
override LANES: u32 = 8u;
override GRAD_OUTPUT: u32 = 0u;
override CHANNELS_FIRST: bool = false;
override OVERWRITE: bool = false;
override SQUARED: bool = true;
override EACH: bool = false;
override TOGETHER: bool = false;

struct Params {
    samples: u32,
    fold: u32,
    first: u32,
    count: u32,
    positions: u32,
    outputs: u32,
    decay: f32,
    gain: f32,
    gradient_scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad_output: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

override WORKGROUP: u32 = OUTPUTS * LANES;

var<workgroup> parts: array<f32, WORKGROUP>;

fn at(sample: u32, position: u32, output: u32) -> f32 {
    let index = select(
        (sample * params.positions + position) * params.outputs + output,
        (sample * params.outputs + output) * params.positions + position,
        CHANNELS_FIRST,
    );
    let word = word_of(index, GRAD_OUTPUT);
    return params.gradient_scale * element(grad_output[word / 4u][word % 4u], index, GRAD_OUTPUT);
}

/// Eight outputs at one position.
fn term(row: u32, octet: u32) -> Eight {
    let at = row * (params.outputs / 8u) + octet;
    var b: Octet;
    if GRAD_OUTPUT == F32 {
        b = Octet(grad_output[2u * at], grad_output[2u * at + 1u]);
    } else {
        b = widen(grad_output[at], GRAD_OUTPUT);
    }
    return Eight(params.gradient_scale * floats(b.lo), params.gradient_scale * floats(b.hi));
}

fn gradient_of(sum: vec4<f32>) -> vec4<f32> {
    return sum;
}

/// Neighbours read neighbouring words: outputs of one position, or positions of one output.
fn slot_of(invocation: u32) -> vec2<u32> {
    if CHANNELS_FIRST {
        return vec2<u32>(invocation / LANES, invocation % LANES);
    }
    return vec2<u32>(invocation % OUTPUTS, invocation / OUTPUTS);
}

fn store(index: u32, sum: f32) {
    if OVERWRITE {
        out[index] = params.gain * sum;
    } else {
        out[index] = params.decay * out[index] + params.gain * sum;
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    // With EACH, a workgroup has one square, and there are so many for each.
    let workgroup = group.y * groups.x + group.x;
    if TOGETHER {
        let octets = params.outputs / 8u;
        let groups_of_one = (octets + WORKGROUP * OCTETS - 1u) / (WORKGROUP * OCTETS);
        let octet = select(workgroup, workgroup % groups_of_one, EACH) * WORKGROUP * OCTETS + local.x;
        let begin = params.first + select(0u, workgroup / groups_of_one, EACH);
        let last = params.first + params.count;
        if begin < last || !EACH {
            columns(begin, select(last, begin + 1u, EACH), octet, octets, select(0u, begin * params.outputs, EACH));
        }
        return;
    }
    let slot = slot_of(local.x);
    let lane = slot.y;
    let groups_of_one = (params.outputs + OUTPUTS - 1u) / OUTPUTS;
    let output = select(workgroup, workgroup % groups_of_one, EACH) * OUTPUTS + slot.x;
    let begin = params.first + select(0u, workgroup / groups_of_one, EACH);
    let end = min(params.first + params.count, select(params.first + params.count, begin + 1u, EACH));
    var sum = 0.0;
    for (var square = begin; square < end; square++) {
        let factor = weight[square];
        if factor == 0.0 {
            continue;
        }
        let first = square * params.fold;
        let positions = min(params.fold, params.samples - first) * params.positions;
        var part = 0.0;
        if output < params.outputs {
            for (var t = lane; t < positions; t += LANES) {
                part += at(first + t / params.positions, t % params.positions, output);
            }
        }
        let whole = add_lanes(slot, part);
        sum += factor * select(whole, whole * whole, SQUARED);
    }
    if lane == 0u && output < params.outputs && (begin < end || !EACH) {
        store(select(output, begin * params.outputs + output, EACH), sum);
    }
}

/// The sum of an output's lanes, in its lane 0.
fn add_lanes(slot: vec2<u32>, part: f32) -> f32 {
    if LANES == 1u {
        return part;
    }
    let mine = slot.y * OUTPUTS + slot.x;
    workgroupBarrier();
    parts[mine] = part;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if slot.y < half {
            parts[mine] += parts[mine + half * OUTPUTS];
        }
    }
    return parts[mine];
}
