// The form for GPUs: a workgroup of X × Y invocations owns a tile of 8Y rows × 8X columns, an invocation 8 × 8 of
// them, as two halves of four so that neighbours read neighbouring words of workgroup memory.
// Expects lib/product/base.wgsl and a product kernel with WORKGROUP_X and WORKGROUP_Y (even).

/// Positions in workgroup memory at a time.
const DEPTH: u32 = 8u;

override ROW_QUADS: u32 = 2u * WORKGROUP_Y;
override COLUMN_QUADS: u32 = 2u * WORKGROUP_X;
override LEFT_QUADS: u32 = DEPTH * ROW_QUADS;
override RIGHT_QUADS: u32 = DEPTH * COLUMN_QUADS;
override LEFT_STEP: u32 = WORKGROUP_X * WORKGROUP_Y / ROW_QUADS;
override RIGHT_STEP: u32 = WORKGROUP_X * WORKGROUP_Y / COLUMN_QUADS;

var<workgroup> left_tile: array<vec4<f32>, LEFT_QUADS>;
var<workgroup> right_tile: array<vec4<f32>, RIGHT_QUADS>;

/// The index in a tile of an invocation's i-th of eight rows or columns.
fn in_tile(lane: u32, lanes: u32, i: u32) -> u32 {
    return 4u * (lane + select(0u, lanes, i >= 4u)) + (i & 3u);
}

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let column_tiles = (extent.columns + 4u * COLUMN_QUADS - 1u) / (4u * COLUMN_QUADS);
    let row_tiles = (extent.rows + 4u * ROW_QUADS - 1u) / (4u * ROW_QUADS);
    let place = tile_of(group, row_tiles * column_tiles, extent.blocks);
    let block = place.block;
    let tile = place.index;
    if place.result >= results(extent.squares) {
        return;
    }
    let first_row = tile / column_tiles * (4u * ROW_QUADS);
    let first_column = tile % column_tiles * (4u * COLUMN_QUADS);

    // Each invocation fetches the same four rows and four columns for every position.
    let invocation = lane.y * WORKGROUP_X + lane.x;
    let row = first_row + 4u * (invocation % ROW_QUADS);
    let column = first_column + 4u * (invocation % COLUMN_QUADS);
    let column_0 = column_of(block, column);
    let column_1 = column_of(block, column + 1u);
    let column_2 = column_of(block, column + 2u);
    let column_3 = column_of(block, column + 3u);

    var s0: Strip;
    var s1: Strip;
    var s2: Strip;
    var s3: Strip;
    var s4: Strip;
    var s5: Strip;
    var s6: Strip;
    var s7: Strip;
    for (var square = place.result; square < end_of(place.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let positions = positions_of(square);
        // Eight names and no loop over them: what is indexed at run time does not stay in registers.
        var p0 = Strip();
        var p1 = Strip();
        var p2 = Strip();
        var p3 = Strip();
        var p4 = Strip();
        var p5 = Strip();
        var p6 = Strip();
        var p7 = Strip();
        for (var start = 0u; start < positions; start += DEPTH) {
            workgroupBarrier();
            for (var k = invocation / ROW_QUADS; k < DEPTH; k += LEFT_STEP) {
                let there = start + k < positions;
                let position = position_of(square, min(start + k, positions - 1u));
                left_tile[k * ROW_QUADS + invocation % ROW_QUADS] = vec4<f32>(
                    left_or_zero(position, block, row, there && row < extent.rows),
                    left_or_zero(position, block, row + 1u, there && row + 1u < extent.rows),
                    left_or_zero(position, block, row + 2u, there && row + 2u < extent.rows),
                    left_or_zero(position, block, row + 3u, there && row + 3u < extent.rows),
                );
            }
            for (var k = invocation / COLUMN_QUADS; k < DEPTH; k += RIGHT_STEP) {
                let there = start + k < positions;
                let position = position_of(square, min(start + k, positions - 1u));
                right_tile[k * COLUMN_QUADS + invocation % COLUMN_QUADS] = vec4<f32>(
                    right_or_zero(position, column_0, there && column < extent.columns),
                    right_or_zero(position, column_1, there && column + 1u < extent.columns),
                    right_or_zero(position, column_2, there && column + 2u < extent.columns),
                    right_or_zero(position, column_3, there && column + 3u < extent.columns),
                );
            }
            workgroupBarrier();
            for (var k = 0u; k < DEPTH; k++) {
                let a_lo = left_tile[k * ROW_QUADS + lane.y];
                let a_hi = left_tile[k * ROW_QUADS + WORKGROUP_Y + lane.y];
                let b = Strip(
                    right_tile[k * COLUMN_QUADS + lane.x],
                    right_tile[k * COLUMN_QUADS + WORKGROUP_X + lane.x],
                );
                p0 = multiply_add(p0, a_lo.x, b);
                p1 = multiply_add(p1, a_lo.y, b);
                p2 = multiply_add(p2, a_lo.z, b);
                p3 = multiply_add(p3, a_lo.w, b);
                p4 = multiply_add(p4, a_hi.x, b);
                p5 = multiply_add(p5, a_hi.y, b);
                p6 = multiply_add(p6, a_hi.z, b);
                p7 = multiply_add(p7, a_hi.w, b);
            }
        }
        s0 = fold_strip(s0, p0, weight);
        s1 = fold_strip(s1, p1, weight);
        s2 = fold_strip(s2, p2, weight);
        s3 = fold_strip(s3, p3, weight);
        s4 = fold_strip(s4, p4, weight);
        s5 = fold_strip(s5, p5, weight);
        s6 = fold_strip(s6, p6, weight);
        s7 = fold_strip(s7, p7, weight);
    }
    // A loop with a choice, not an array: one access site, where 64 would compile slowly, and nothing that is indexed
    // at run time.
    for (var i = 0u; i < 8u; i++) {
        let out_row = first_row + in_tile(lane.y, WORKGROUP_Y, i);
        var sum = s0;
        switch i {
            case 1u: { sum = s1; }
            case 2u: { sum = s2; }
            case 3u: { sum = s3; }
            case 4u: { sum = s4; }
            case 5u: { sum = s5; }
            case 6u: { sum = s6; }
            case 7u: { sum = s7; }
            default: {}
        }
        for (var j = 0u; j < 8u; j++) {
            let out_column = first_column + in_tile(lane.x, WORKGROUP_X, j);
            if out_row < extent.rows && out_column < extent.columns {
                store(place.result, block, out_row, out_column, sum.lo.x);
            }
            sum = Strip(vec4<f32>(sum.lo.yzw, sum.hi.x), vec4<f32>(sum.hi.yzw, 0.0));
        }
    }
}
