// out[o, i] <- decay · out[o, i] + gain · sum over n of weight · (gradient_scale · b[n, o])² · a[n, i]²
// A workgroup owns one tile of out; the samples are the positions of one product of squares.
// Expects lib/dtype.wgsl, lib/element.wgsl, lib/product/base.wgsl, lib/product/rows.wgsl and a form.

override WORKGROUP_X: u32 = 16u;
override WORKGROUP_Y: u32 = 16u;
override INPUT: u32 = 0u;
override GRAD_OUTPUT: u32 = 0u;
override OVERWRITE: bool = false;

struct Params {
    samples: u32,
    first: u32,
    count: u32,
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
    return Extent(1u, params.output_count, params.inputs, 1u);
}

fn positions_of(square: u32) -> u32 {
    return params.count;
}

/// The samples' weights are in the left factor.
fn weight_of(square: u32) -> f32 {
    return 1.0;
}

struct Position {
    sample: u32,
    weight: f32,
}

fn position_of(square: u32, t: u32) -> Position {
    let sample = params.first + t;
    return Position(sample, weight[sample]);
}

struct Column {
    input: u32,
}

fn column_of(block: u32, column: u32) -> Column {
    return Column(column);
}

fn left(position: Position, block: u32, row: u32) -> f32 {
    let b = params.gradient_scale * grad_at(position.sample * params.outputs + params.first_output + row);
    return select(position.weight * (b * b), 0.0, position.weight == 0.0);
}

fn right(position: Position, column: Column) -> f32 {
    let a = input_at(position.sample * params.inputs + column.input);
    return select(a * a, 0.0, position.weight == 0.0);
}

/// Squares times `factor`, zeros in a sample that is left out.
fn squares(values: Strip, factor: f32, position: Position) -> Strip {
    let none = position.weight == 0.0;
    return Strip(
        select(factor * (values.lo * values.lo), vec4<f32>(), none),
        select(factor * (values.hi * values.hi), vec4<f32>(), none),
    );
}

fn left_eight(position: Position, block: u32, row: u32) -> Strip {
    let b = grad_eight(position.sample * params.outputs + params.first_output + row);
    let scaled = Strip(params.gradient_scale * b.lo, params.gradient_scale * b.hi);
    return squares(scaled, position.weight, position);
}

fn right_eight(position: Position, columns: Columns) -> Strip {
    return squares(input_eight(position.sample * params.inputs + columns.first.input), 1.0, position);
}

fn fold(sum: vec4<f32>, p: vec4<f32>, weight: f32) -> vec4<f32> {
    return sum + p;
}

fn store(result: u32, block: u32, row: u32, column: u32, sum: f32) {
    let index = (params.first_output - params.out_first + row) * params.inputs + column;
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
