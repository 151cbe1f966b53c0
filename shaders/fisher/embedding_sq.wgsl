// out[row, d] <- decay · out[row, d] + gain · Σ over samples of weight · (gradient_scale · Σ over its positions of grad_output)²
// (without SQUARED, of the sum itself). One invocation: one element of a listed row, which it alone writes. Expects lib/dtype.wgsl, lib/element.wgsl.

override WORKGROUP: u32 = 256u;
override GRADIENT: u32 = 0u;
override SQUARED: bool = true;

struct Params {
    owners: u32,
    dim: u32,
    gradient_scale: f32,
    decay: f32,
    gain: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad_output: array<u32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> run_start: array<u32>;
@group(0) @binding(4) var<storage, read> run_sample: array<u32>;
@group(0) @binding(5) var<storage, read> owner_run: array<u32>;
@group(0) @binding(6) var<storage, read> owner_row: array<u32>;
@group(0) @binding(7) var<storage, read> weight: array<f32>;
@group(0) @binding(8) var<storage, read_write> out: array<f32>;

fn gradient(index: u32) -> f32 {
    return element(grad_output[word_of(index, GRADIENT)], index, GRADIENT);
}

/// One sample's gradient of one element: the positions of a run, added before anything is squared.
fn sample_gradient(run: u32, column: u32) -> f32 {
    var sum = 0.0;
    for (var i = run_start[run]; i < run_start[run + 1u]; i++) {
        sum += gradient(positions[i] * params.dim + column);
    }
    return params.gradient_scale * sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let item = (group.y * groups.x + group.x) * WORKGROUP + local.x;
    if item >= params.owners * params.dim {
        return;
    }
    let owner = item / params.dim;
    let column = item % params.dim;
    var sum = 0.0;
    for (var run = owner_run[owner]; run < owner_run[owner + 1u]; run++) {
        let g = sample_gradient(run, column);
        let w = weight[run_sample[run]];
        if w != 0.0 {
            sum += w * select(g, g * g, SQUARED);
        }
    }
    let at = owner_row[owner] * params.dim + column;
    if params.decay == 0.0 {
        out[at] = params.gain * sum;
    } else {
        out[at] = params.decay * out[at] + params.gain * sum;
    }
}
