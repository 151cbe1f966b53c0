// out[m, n] <- out[m, n] (unless OVERWRITE) + sum over p of x[m, p] · y[n, p], over ranges of m, n and p.
// A workgroup owns one tile of out. Expects lib/dtype.wgsl, lib/element.wgsl, lib/product/base.wgsl,
// lib/product/gather.wgsl and a form.

override WORKGROUP_X: u32 = 16u;
override WORKGROUP_Y: u32 = 16u;
override X: u32 = 0u;
override Y: u32 = 0u;
override OVERWRITE: bool = false;

struct Params {
    len: u32,
    first: u32,
    count: u32,
    first_row: u32,
    rows: u32,
    first_column: u32,
    columns: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> y: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

fn extent() -> Extent {
    return Extent(1u, params.rows, params.columns, 1u);
}

fn positions_of(square: u32) -> u32 {
    return params.count;
}

fn weight_of(square: u32) -> f32 {
    return 1.0;
}

struct Position {
    p: u32,
}

fn position_of(square: u32, t: u32) -> Position {
    return Position(params.first + t);
}

fn following(position: Position) -> Position {
    return Position(position.p + 1u);
}

struct Column {
    start: u32,
}

fn column_of(block: u32, column: u32) -> Column {
    return Column((params.first_column + column) * params.len);
}

fn left(position: Position, block: u32, row: u32) -> f32 {
    let index = (params.first_row + row) * params.len + position.p;
    let word = word_of(index, X);
    return element(x[word / 4u][word % 4u], index, X);
}

fn right(position: Position, column: Column) -> f32 {
    let index = column.start + position.p;
    let word = word_of(index, Y);
    return element(y[word / 4u][word % 4u], index, Y);
}

fn left_four(four: Four, block: u32, row: u32) -> vec4<f32> {
    let index = (params.first_row + row) * params.len + four.p0.p;
    return quad_of(x[word_of(index, X) / 4u], index, X);
}

fn right_four(four: Four, column: Column) -> vec4<f32> {
    let index = column.start + four.p0.p;
    return quad_of(y[word_of(index, Y) / 4u], index, Y);
}

fn fold(sum: vec4<f32>, p: vec4<f32>, weight: f32) -> vec4<f32> {
    return sum + p;
}

fn store(result: u32, block: u32, row: u32, column: u32, sum: f32) {
    let index = row * params.columns + column;
    if OVERWRITE {
        out[index] = sum;
    } else {
        out[index] += sum;
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
