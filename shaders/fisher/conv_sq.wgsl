// out[o, c, kd, kh, kw] <- decay · out + gain · sum over squares of weight · (sum over output positions of
// gradient_scale · b[n, o, position] · a[n, c, position · stride + k · dilation - padding])²
// (without SQUARED, of the sum itself; with EACH, out[square, o - first, …] of every square). Each group is one matrix,
// outputs × (channels · kernel); patches are read where they lie.
// Expects lib/dtype.wgsl, lib/element.wgsl, lib/product/base.wgsl, lib/product/gather.wgsl and a form.

override WORKGROUP_X: u32 = 16u;
override WORKGROUP_Y: u32 = 16u;
override INPUT: u32 = 0u;
override GRAD_OUTPUT: u32 = 0u;
override OVERWRITE: bool = false;
/// Whether each position meets the input at its own place, and no other.
override POINTWISE: bool = false;

struct Params {
    samples: u32,
    fold: u32,
    first: u32,
    count: u32,
    channels: u32,
    outputs: u32,
    groups: u32,
    first_output: u32,
    output_count: u32,
    out_first: u32,
    input_d: u32,
    input_h: u32,
    input_w: u32,
    grad_d: u32,
    grad_h: u32,
    grad_w: u32,
    kernel_d: u32,
    kernel_h: u32,
    kernel_w: u32,
    stride_d: u32,
    stride_h: u32,
    stride_w: u32,
    padding_d: u32,
    padding_h: u32,
    padding_w: u32,
    dilation_d: u32,
    dilation_h: u32,
    dilation_w: u32,
    decay: f32,
    gain: f32,
    gradient_scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> grad_output: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> weight: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

fn positions() -> u32 {
    return params.grad_d * params.grad_h * params.grad_w;
}

fn columns() -> u32 {
    return params.channels / params.groups * params.kernel_d * params.kernel_h * params.kernel_w;
}

/// Outputs of one block: a group's, or those of a range inside one group.
fn rows() -> u32 {
    return min(params.outputs / params.groups, params.output_count);
}

fn extent() -> Extent {
    return Extent(params.output_count / rows(), rows(), columns(), params.count);
}

fn positions_of(square: u32) -> u32 {
    let first = (params.first + square) * params.fold;
    return min(params.fold, params.samples - first) * positions();
}

fn weight_of(square: u32) -> f32 {
    return weight[params.first + square];
}

/// An output position of a sample, and the input position of its patch's first corner (may lie in the padding).
struct Position {
    sample: u32,
    grad: u32,
    d: i32,
    h: i32,
    w: i32,
}

fn position_of(square: u32, t: u32) -> Position {
    let sample = (params.first + square) * params.fold + t / positions();
    let grad = t % positions();
    let w = grad % params.grad_w;
    let h = grad / params.grad_w % params.grad_h;
    let d = grad / params.grad_w / params.grad_h;
    return Position(
        sample,
        grad,
        i32(d * params.stride_d) - i32(params.padding_d),
        i32(h * params.stride_h) - i32(params.padding_h),
        i32(w * params.stride_w) - i32(params.padding_w),
    );
}

/// The position after it, without the divisions that take longer than everything else.
fn following(position: Position) -> Position {
    let stride = vec3<i32>(vec3<u32>(params.stride_d, params.stride_h, params.stride_w));
    let first = -vec3<i32>(vec3<u32>(params.padding_d, params.padding_h, params.padding_w));
    let end = first + stride * vec3<i32>(vec3<u32>(params.grad_d, params.grad_h, params.grad_w));
    let w = position.w + stride.z;
    let next_row = w == end.z;
    let h = position.h + select(0, stride.y, next_row);
    let next_plane = h == end.y;
    let d = position.d + select(0, stride.x, next_plane);
    let next_sample = d == end.x;
    return Position(
        position.sample + select(0u, 1u, next_sample),
        select(position.grad + 1u, 0u, next_sample),
        select(d, first.x, next_sample),
        select(h, first.y, next_plane),
        select(w, first.z, next_row),
    );
}

/// An input channel and an offset in its patches.
struct Column {
    channel: u32,
    d: i32,
    h: i32,
    w: i32,
}

fn column_of(block: u32, column: u32) -> Column {
    let group = params.first_output / (params.outputs / params.groups) + block;
    let w = column % params.kernel_w;
    let h = column / params.kernel_w % params.kernel_h;
    let d = column / params.kernel_w / params.kernel_h % params.kernel_d;
    let channel = column / (params.kernel_w * params.kernel_h * params.kernel_d);
    return Column(
        group * (params.channels / params.groups) + channel,
        i32(d * params.dilation_d),
        i32(h * params.dilation_h),
        i32(w * params.dilation_w),
    );
}

/// One element of the input, and four from a multiple of four on.
fn input_at(index: u32) -> f32 {
    let word = word_of(index, INPUT);
    return element(input[word / 4u][word % 4u], index, INPUT);
}

fn input_quad(index: u32) -> vec4<f32> {
    return quad_of(input[word_of(index, INPUT) / 4u], index, INPUT);
}

/// The same of the output's gradient.
fn grad_at(index: u32) -> f32 {
    let word = word_of(index, GRAD_OUTPUT);
    return element(grad_output[word / 4u][word % 4u], index, GRAD_OUTPUT);
}

fn grad_quad(index: u32) -> vec4<f32> {
    return quad_of(grad_output[word_of(index, GRAD_OUTPUT) / 4u], index, GRAD_OUTPUT);
}

fn left(position: Position, block: u32, row: u32) -> f32 {
    let output = params.first_output + block * rows() + row;
    return params.gradient_scale * grad_at((position.sample * params.outputs + output) * positions() + position.grad);
}

fn left_four(four: Four, block: u32, row: u32) -> vec4<f32> {
    let output = params.first_output + block * rows() + row;
    let index = (four.p0.sample * params.outputs + output) * positions() + four.p0.grad;
    return params.gradient_scale * grad_quad(index);
}

fn right_four(four: Four, column: Column) -> vec4<f32> {
    if POINTWISE {
        return input_quad((four.p0.sample * params.channels + column.channel) * positions() + four.p0.grad);
    }
    return vec4<f32>(right(four.p0, column), right(four.p1, column), right(four.p2, column), right(four.p3, column));
}

fn right(position: Position, column: Column) -> f32 {
    let d = position.d + column.d;
    let h = position.h + column.h;
    let w = position.w + column.w;
    // As u32, what lies before the start lies past the end.
    if u32(d) >= params.input_d || u32(h) >= params.input_h || u32(w) >= params.input_w {
        return 0.0;
    }
    let plane = (position.sample * params.channels + column.channel) * params.input_d + u32(d);
    return input_at((plane * params.input_h + u32(h)) * params.input_w + u32(w));
}

fn fold(sum: vec4<f32>, p: vec4<f32>, weight: f32) -> vec4<f32> {
    return sum + weight * select(p, p * p, SQUARED);
}

fn store(result: u32, block: u32, row: u32, column: u32, sum: f32) {
    let output = block * rows() + row;
    let own = (params.first + result) * params.output_count + output;
    let index = select(params.first_output - params.out_first + output, own, EACH) * columns() + column;
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
