// The form for processors behind a graphics interface: no workgroup memory and no barrier (each would cost more than it
// saves). An invocation owns 8 rows × 4 columns in registers; a workgroup is one row of invocations along the
// columns, so that the left factors have one address for all lanes.
// Expects lib/product.wgsl and a product kernel with WORKGROUP_X; WORKGROUP_Y is 1.

const REGISTER_ROWS: u32 = 8u;

override REGISTER_COLUMNS: u32 = 4u * WORKGROUP_X;

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let column_tiles = (extent.columns + REGISTER_COLUMNS - 1u) / REGISTER_COLUMNS;
    let row_tiles = (extent.rows + REGISTER_ROWS - 1u) / REGISTER_ROWS;
    let place = tile_of(group, row_tiles * column_tiles, extent.blocks);
    let block = place.block;
    let tile = place.index;
    if place.result >= results(extent.squares) {
        return;
    }
    let row = tile / column_tiles * REGISTER_ROWS;
    let column = tile % column_tiles * REGISTER_COLUMNS + 4u * lane.x;

    // Rows and columns past the end repeat the last one and are not stored.
    let last_row = extent.rows - 1u;
    let last_column = extent.columns - 1u;
    let column_0 = column_of(block, min(column, last_column));
    let column_1 = column_of(block, min(column + 1u, last_column));
    let column_2 = column_of(block, min(column + 2u, last_column));
    let column_3 = column_of(block, min(column + 3u, last_column));

    var s0: vec4<f32>;
    var s1: vec4<f32>;
    var s2: vec4<f32>;
    var s3: vec4<f32>;
    var s4: vec4<f32>;
    var s5: vec4<f32>;
    var s6: vec4<f32>;
    var s7: vec4<f32>;
    for (var square = place.result; square < end_of(place.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let positions = positions_of(square);
        var p0 = vec4<f32>();
        var p1 = vec4<f32>();
        var p2 = vec4<f32>();
        var p3 = vec4<f32>();
        var p4 = vec4<f32>();
        var p5 = vec4<f32>();
        var p6 = vec4<f32>();
        var p7 = vec4<f32>();
        for (var t = 0u; t < positions; t++) {
            let position = position_of(square, t);
            let b = vec4<f32>(
                right(position, column_0),
                right(position, column_1),
                right(position, column_2),
                right(position, column_3),
            );
            p0 += left(position, block, min(row, last_row)) * b;
            p1 += left(position, block, min(row + 1u, last_row)) * b;
            p2 += left(position, block, min(row + 2u, last_row)) * b;
            p3 += left(position, block, min(row + 3u, last_row)) * b;
            p4 += left(position, block, min(row + 4u, last_row)) * b;
            p5 += left(position, block, min(row + 5u, last_row)) * b;
            p6 += left(position, block, min(row + 6u, last_row)) * b;
            p7 += left(position, block, min(row + 7u, last_row)) * b;
        }
        s0 = fold(s0, p0, weight);
        s1 = fold(s1, p1, weight);
        s2 = fold(s2, p2, weight);
        s3 = fold(s3, p3, weight);
        s4 = fold(s4, p4, weight);
        s5 = fold(s5, p5, weight);
        s6 = fold(s6, p6, weight);
        s7 = fold(s7, p7, weight);
    }
    var sums = array<vec4<f32>, 8>(s0, s1, s2, s3, s4, s5, s6, s7);
    for (var i = 0u; i < REGISTER_ROWS; i++) {
        for (var j = 0u; j < 4u; j++) {
            if row + i < extent.rows && column + j < extent.columns {
                store(place.result, block, row + i, column + j, sums[i][j]);
            }
        }
    }
}
