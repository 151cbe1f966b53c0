// gradient[r, n, c] <- output - target, a drawn noise, or one unit direction a round, with each row's weight and
// squared norm. One workgroup a row (r, n). Expects lib/dtype.wgsl, lib/element.wgsl, lib/likelihood/philox.wgsl.

override WORKGROUP: u32 = 64u;
override OUTPUT: u32 = 0u;
override GOAL: u32 = 0u;
override TARGETS: u32 = 0u;
override UNIT: bool = false;

/// What a row's target is.
const GIVEN: u32 = 0u;
const DRAWN: u32 = 1u;

struct Params {
    samples: u32,
    outputs: u32,
    rounds: u32,
    first_round: u32,
    first_sample_low: u32,
    first_sample_high: u32,
    seed_low: u32,
    seed_high: u32,
    weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> output: array<u32>;
@group(0) @binding(2) var<storage, read> goal: array<u32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<u32>;
@group(0) @binding(4) var<storage, read_write> weight: array<u32>;
@group(0) @binding(5) var<storage, read_write> norm_sq: array<u32>;
@group(0) @binding(6) var<storage, read_write> fault: array<atomic<u32>>;

const NAN: u32 = 0x7fc00000u;

/// Of each lane: the largest magnitude as a pattern, and which of output (1) and target (2) was not finite.
var<workgroup> largest: array<vec2<u32>, WORKGROUP>;
var<workgroup> sums: array<f32, WORKGROUP>;

/// A normal number to the eye: 64 coins, less their mean, over their deviation. A multiple of 1/4, without rounding.
fn noise(round: u32, sample: u32, index: u32) -> f32 {
    let id = add(vec2<u32>(params.first_sample_low, params.first_sample_high), vec2<u32>(sample, 0u));
    let random = philox(vec4<u32>(id, round, index >> 1u), vec2<u32>(params.seed_low, params.seed_high));
    let coins = countOneBits(select(random.xy, random.zw, (index & 1u) == 1u));
    return 0.25 * (f32(coins.x + coins.y) - 32.0);
}

/// ∂ℓ/∂z of one output, before any scale.
fn residual(round: u32, sample: u32, index: u32) -> f32 {
    if TARGETS == DRAWN {
        return noise(round, sample, index);
    }
    if TARGETS != GIVEN {
        return f32(index == round);
    }
    let at = sample * params.outputs + index;
    return element(output[word_of(at, OUTPUT)], at, OUTPUT) - element(goal[word_of(at, GOAL)], at, GOAL);
}

fn not_finite_one(word: u32, index: u32, dtype: u32) -> bool {
    return (bitcast<u32>(element(word, index, dtype)) & 0x7fffffffu) >= 0x7f800000u;
}

/// Which of output (1) and target (2) is not finite.
fn blame(sample: u32, index: u32) -> u32 {
    if TARGETS != GIVEN {
        return 0u;
    }
    let at = sample * params.outputs + index;
    return u32(not_finite_one(output[word_of(at, OUTPUT)], at, OUTPUT))
        | (2u * u32(not_finite_one(goal[word_of(at, GOAL)], at, GOAL)));
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rounds * params.samples {
        return;
    }
    let lane = local.x;
    let sample = row % params.samples;
    let round = params.first_round + row / params.samples;

    var mine = vec2<u32>();
    for (var i = lane; i < params.outputs; i += WORKGROUP) {
        let magnitude = bitcast<u32>(residual(round, sample, i)) & 0x7fffffffu;
        mine = vec2<u32>(max(mine.x, magnitude), mine.y | blame(sample, i));
    }
    largest[lane] = mine;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            let a = largest[lane];
            let b = largest[lane + half];
            largest[lane] = vec2<u32>(max(a.x, b.x), a.y | b.y);
        }
    }
    workgroupBarrier();
    let top = bitcast<f32>(largest[0].x);
    // A quotient keeps its digits for denominators between 2^-126, below which a device may flush, and 2^126.
    let none = largest[0].x < 0x00800000u;
    let bad = select(u32(largest[0].x > 0x7e800000u), largest[0].y, largest[0].y != 0u);

    // In units of the largest, so that no square is lost.
    var sum = 0.0;
    for (var i = lane; i < params.outputs; i += WORKGROUP) {
        let part = select(residual(round, sample, i) / top, 0.0, none);
        sum += part * part;
    }
    sums[lane] = sum;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();

    let norm = sqrt(sums[0]);
    for (var i = lane; i < params.outputs; i += WORKGROUP) {
        var value = residual(round, sample, i);
        if UNIT {
            value = select(value / top / norm, 0.0, none);
        }
        gradient[row * params.outputs + i] = select(bitcast<u32>(value), NAN, bad != 0u);
    }
    if lane == 0u {
        if bad != 0u {
            atomicMax(&fault[select(1u, 0u, (bad & 1u) == 1u)], ~sample);
        }
        let length = top * norm;
        let counted = select(params.weight, 0.0, UNIT && none);
        weight[row] = select(bitcast<u32>(counted), NAN, bad != 0u);
        norm_sq[row] = select(bitcast<u32>(length * length), NAN, bad != 0u);
    }
}
