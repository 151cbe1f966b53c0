// out[o, i] <- decay · out[o, i] + gain · sum over squares of weight · (sum over positions of gradient_scale · b · a)²
// (without SQUARED, of the sum itself; with EACH, out[square, o - first, i] of every square). A workgroup owns one tile
// of out.
// Expects lib/dtype.wgsl, lib/element.wgsl, lib/product/base.wgsl, lib/product/rows.wgsl and a form.

override WORKGROUP_X: u32 = 16u;
override WORKGROUP_Y: u32 = 16u;
override INPUT: u32 = 0u;
override GRAD_OUTPUT: u32 = 0u;
override OVERWRITE: bool = false;

struct Params {
    samples: u32,
    fold: u32,
    first: u32,
    count: u32,
    positions: u32,
    inputs: u32,
    outputs: u32,
    first_output: u32,
    output_count: u32,
    out_first: u32,
    decay: f32,
    gain: f32,
    gradient_scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> grad_output: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

fn extent() -> Extent {
    return Extent(1u, params.output_count, params.inputs, params.count);
}

/// The samples of one square lie one after the other, so their positions do; the last square may have fewer.
fn positions_of(square: u32) -> u32 {
    let first = (params.first + square) * params.fold;
    return min(params.fold, params.samples - first) * params.positions;
}

fn weight_of(square: u32) -> f32 {
    return weight[params.first + square];
}

/// Counted over all samples.
struct Position {
    row: u32,
}

fn position_of(square: u32, t: u32) -> Position {
    return Position((params.first + square) * params.fold * params.positions + t);
}

struct Column {
    input: u32,
}

fn column_of(block: u32, column: u32) -> Column {
    return Column(column);
}

fn left(position: Position, block: u32, row: u32) -> f32 {
    return params.gradient_scale * grad_at(position.row * params.outputs + params.first_output + row);
}

fn right(position: Position, column: Column) -> f32 {
    return input_at(position.row * params.inputs + column.input);
}

fn left_eight(position: Position, block: u32, row: u32) -> Strip {
    let b = grad_eight(position.row * params.outputs + params.first_output + row);
    return Strip(params.gradient_scale * b.lo, params.gradient_scale * b.hi);
}

fn right_eight(position: Position, columns: Columns) -> Strip {
    return input_eight(position.row * params.inputs + columns.first.input);
}

fn fold(sum: vec4<f32>, p: vec4<f32>, weight: f32) -> vec4<f32> {
    return sum + weight * select(p, p * p, SQUARED);
}

fn store(result: u32, block: u32, row: u32, column: u32, sum: f32) {
    let own = (params.first + result) * params.output_count + row;
    let index = select(params.first_output - params.out_first + row, own, EACH) * params.inputs + column;
    if OVERWRITE {
        out[index] = params.gain * sum;
    } else {
        out[index] = params.decay * out[index] + params.gain * sum;
    }
}

@compute @workgroup_size(WORKGROUP_X, WORKGROUP_Y)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    product(group.y * groups.x + group.x, local.xy);
}
