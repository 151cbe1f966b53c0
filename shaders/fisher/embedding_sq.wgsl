// out[row, d] <- decay · out[row, d]
//     + gain · Σ over samples of weight · (gradient_scale · Σ over its positions of grad_output)²
// (without SQUARED, of the sum itself). One invocation: one element of a listed row or, with TOGETHER, eight
// neighbours, which it alone writes.
// Expects lib/dtype.wgsl, lib/element.wgsl.

override WORKGROUP: u32 = 256u;
override GRADIENT: u32 = 0u;
override SQUARED: bool = true;
override TOGETHER: bool = false;

override ELEMENTS: u32 = select(1u, 8u, TOGETHER);

struct Params {
    owners: u32,
    dim: u32,
    gradient_scale: f32,
    decay: f32,
    gain: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad_output: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> run_start: array<u32>;
@group(0) @binding(4) var<storage, read> run_sample: array<u32>;
@group(0) @binding(5) var<storage, read> owner_run: array<u32>;
@group(0) @binding(6) var<storage, read> owner_row: array<u32>;
@group(0) @binding(7) var<storage, read> weight: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

/// The values of an invocation's elements: eight, or the first alone.
struct Values {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

/// The gradient from an element on, which is the first of eight with TOGETHER.
fn gradient(index: u32) -> Values {
    let word = word_of(index, GRADIENT);
    let words = grad_output[word / 4u];
    if !TOGETHER {
        return Values(vec4<f32>(element(words[word % 4u], index, GRADIENT), 0.0, 0.0, 0.0), vec4<f32>());
    }
    if GRADIENT == F32 {
        return Values(floats(words), floats(grad_output[word / 4u + 1u]));
    }
    let octet = widen(words, GRADIENT);
    return Values(floats(octet.lo), floats(octet.hi));
}

/// One sample's gradient: the positions of a run, added before anything is squared.
fn sample_gradient(run: u32, column: u32) -> Values {
    var sum: Values;
    let end = run_start[run + 1u];
    for (var i = run_start[run]; i < end; i++) {
        let b = gradient(positions[i] * params.dim + column);
        sum = Values(sum.lo + b.lo, sum.hi + b.hi);
    }
    return Values(params.gradient_scale * sum.lo, params.gradient_scale * sum.hi);
}

/// With a sample's gradient more.
fn with_sample(sum: vec4<f32>, w: f32, g: vec4<f32>) -> vec4<f32> {
    return select(sum + w * select(g, g * g, SQUARED), sum, w == 0.0);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let item = ELEMENTS * ((group.y * groups.x + group.x) * WORKGROUP + local.x);
    if item >= params.owners * params.dim {
        return;
    }
    let owner = item / params.dim;
    let column = item % params.dim;
    var sum: Values;
    let end = owner_run[owner + 1u];
    for (var run = owner_run[owner]; run < end; run++) {
        let g = sample_gradient(run, column);
        let w = weight[run_sample[run]];
        sum = Values(with_sample(sum.lo, w, g.lo), with_sample(sum.hi, w, g.hi));
    }
    let first = owner_row[owner] * params.dim + column;
    for (var at = first; at < first + ELEMENTS; at++) {
        store(at, sum.lo.x);
        sum = Values(vec4<f32>(sum.lo.yzw, sum.hi.x), vec4<f32>(sum.hi.yzw, 0.0));
    }
}

fn store(at: u32, sum: f32) {
    var kept = 0.0;
    if params.decay != 0.0 {
        kept = params.decay * out[at];
    }
    out[at] = kept + params.gain * sum;
}
