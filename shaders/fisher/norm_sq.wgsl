// out[c] <- decay · out[c] + gain · Σ over squares of weight · (gradient_scale · Σ over positions of g · x̂)²
// (without SQUARED, of the sum itself; with EACH, out[square, c] of every square), the positions of a square's
// `fold` samples added before squaring; g is `grad_output`, and x̂ = (input - mean) · scale with the mean and scale
// that `stats` has for the element. One workgroup: CHANNELS channels, the positions of a sample shared by the
// rest of it; or, with TOGETHER, where channels lie beside each other and share mean and scale, 8 · OCTETS of
// them an invocation. Expects lib/dtype.wgsl, lib/element.wgsl, lib/columns.wgsl.

override WORKGROUP: u32 = 256u;
override CHANNELS: u32 = 32u;
override LANES: u32 = WORKGROUP / CHANNELS;
override INPUT: u32 = 0u;
override GRADIENT: u32 = 0u;
override SQUARED: bool = true;
override EACH: bool = false;
override TOGETHER: bool = false;

struct Params {
    samples: u32,
    fold: u32,
    squares: u32,
    positions: u32,
    channels: u32,
    position_stride: u32,
    channel_stride: u32,
    stats_per_sample: u32,
    stats_per_position: u32,
    channels_per_stat: u32,
    gradient_scale: f32,
    decay: f32,
    gain: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> grad_output: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> weight: array<f32>;
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

var<workgroup> partial: array<f32, WORKGROUP>;

/// grad_output · x̂ at one element.
fn term_of_one(sample: u32, position: u32, channel: u32) -> f32 {
    let index = (sample * params.positions * params.channels)
        + position * params.position_stride + channel * params.channel_stride;
    let stat = sample * params.stats_per_sample + position * params.stats_per_position
        + channel / params.channels_per_stat;
    let x_word = word_of(index, INPUT);
    let g_word = word_of(index, GRADIENT);
    let x = element(input[x_word / 4u][x_word % 4u], index, INPUT);
    let g = element(grad_output[g_word / 4u][g_word % 4u], index, GRADIENT);
    let run = stats[stat];
    return g * ((x - run.x) * run.y);
}

fn load_input(octet: u32) -> Octet {
    if INPUT == F32 {
        return Octet(input[2u * octet], input[2u * octet + 1u]);
    }
    return widen(input[octet], INPUT);
}

fn load_gradient(octet: u32) -> Octet {
    if GRADIENT == F32 {
        return Octet(grad_output[2u * octet], grad_output[2u * octet + 1u]);
    }
    return widen(grad_output[octet], GRADIENT);
}

/// grad_output · x̂ of eight channels at one position.
fn term(row: u32, octet: u32) -> Eight {
    let x = load_input(row * (params.channels / 8u) + octet);
    let g = load_gradient(row * (params.channels / 8u) + octet);
    let run = stats[row];
    return Eight(
        floats(g.lo) * ((floats(x.lo) - run.x) * run.y),
        floats(g.hi) * ((floats(x.hi) - run.x) * run.y),
    );
}

fn gradient_of(sum: vec4<f32>) -> vec4<f32> {
    return params.gradient_scale * sum;
}

fn store(index: u32, total: f32) {
    if params.decay == 0.0 {
        out[index] = params.gain * total;
    } else {
        out[index] = params.decay * out[index] + params.gain * total;
    }
}

/// The sum of a channel's lanes, in its lane 0.
fn add_lanes(invocation: u32, lane: u32, sum: f32) -> f32 {
    if LANES == 1u {
        return sum;
    }
    // Lane 0 alone reads its own slot, and writes it again: no barrier is needed before the next square.
    partial[invocation] = sum;
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step >>= 1u) {
        if lane < step {
            partial[invocation] += partial[invocation + step * CHANNELS];
        }
        workgroupBarrier();
    }
    return partial[invocation];
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
        let octets = params.channels / 8u;
        let groups_of_one = (octets + WORKGROUP * OCTETS - 1u) / (WORKGROUP * OCTETS);
        let octet = select(workgroup, workgroup % groups_of_one, EACH) * WORKGROUP * OCTETS + local.x;
        let begin = select(0u, workgroup / groups_of_one, EACH);
        if begin < params.squares || !EACH {
            let end = select(params.squares, begin + 1u, EACH);
            columns(begin, end, octet, octets, select(0u, begin * params.channels, EACH));
        }
        return;
    }
    let groups_of_one = (params.channels + CHANNELS - 1u) / CHANNELS;
    let channel = select(workgroup, workgroup % groups_of_one, EACH) * CHANNELS + local.x % CHANNELS;
    let begin = select(0u, workgroup / groups_of_one, EACH);
    let end_square = min(params.squares, select(params.squares, begin + 1u, EACH));
    let lane = local.x / CHANNELS;
    var total = 0.0;
    for (var square = begin; square < end_square; square++) {
        var sum = 0.0;
        if channel < params.channels {
            let end = min((square + 1u) * params.fold, params.samples);
            for (var sample = square * params.fold; sample < end; sample++) {
                for (var position = lane; position < params.positions; position += LANES) {
                    sum += term_of_one(sample, position, channel);
                }
            }
        }
        let g = params.gradient_scale * add_lanes(local.x, lane, sum);
        if weight[square] != 0.0 {
            total += weight[square] * select(g, g * g, SQUARED);
        }
    }
    if lane == 0u && channel < params.channels && (begin < end_square || !EACH) {
        let index = select(channel, begin * params.channels + channel, EACH);
        store(index, total);
    }
}
