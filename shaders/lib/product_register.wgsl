// The form for processors behind a graphics interface: no workgroup memory and no barrier (each would cost more than it
// saves). An invocation owns 16 rows × 8 columns in registers, so that 24 loads serve 128 multiplications; a workgroup is one row of
// invocations along the columns.
// Expects lib/product.wgsl, a product kernel with WORKGROUP_X (WORKGROUP_Y is 1), and eight of its factors at a time: Columns,
// columns_of, left_eight, right_eight. Those past the end may be anything.

const REGISTER_ROWS: u32 = 16u;

override REGISTER_COLUMNS: u32 = 8u * WORKGROUP_X;

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let column_tiles = (extent.columns + REGISTER_COLUMNS - 1u) / REGISTER_COLUMNS;
    let row_tiles = (extent.rows + REGISTER_ROWS - 1u) / REGISTER_ROWS;
    let place = tile_of(group, row_tiles * column_tiles, extent.blocks);
    let block = place.block;
    let row = place.index / column_tiles * REGISTER_ROWS;
    let column = place.index % column_tiles * REGISTER_COLUMNS + 8u * lane.x;
    if place.result >= results(extent.squares) || column >= extent.columns {
        return;
    }
    let columns = columns_of(block, column);

    var s0: Strip;
    var s1: Strip;
    var s2: Strip;
    var s3: Strip;
    var s4: Strip;
    var s5: Strip;
    var s6: Strip;
    var s7: Strip;
    var s8: Strip;
    var s9: Strip;
    var s10: Strip;
    var s11: Strip;
    var s12: Strip;
    var s13: Strip;
    var s14: Strip;
    var s15: Strip;
    for (var square = place.result; square < end_of(place.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let positions = positions_of(square);
        var p0 = Strip();
        var p1 = Strip();
        var p2 = Strip();
        var p3 = Strip();
        var p4 = Strip();
        var p5 = Strip();
        var p6 = Strip();
        var p7 = Strip();
        var p8 = Strip();
        var p9 = Strip();
        var p10 = Strip();
        var p11 = Strip();
        var p12 = Strip();
        var p13 = Strip();
        var p14 = Strip();
        var p15 = Strip();
        for (var t = 0u; t < positions; t++) {
            let position = position_of(square, t);
            let b = right_eight(position, columns);
            let a = left_eight(position, block, row);
            p0 = multiply_add(p0, a.lo.x, b);
            p1 = multiply_add(p1, a.lo.y, b);
            p2 = multiply_add(p2, a.lo.z, b);
            p3 = multiply_add(p3, a.lo.w, b);
            p4 = multiply_add(p4, a.hi.x, b);
            p5 = multiply_add(p5, a.hi.y, b);
            p6 = multiply_add(p6, a.hi.z, b);
            p7 = multiply_add(p7, a.hi.w, b);
            let c = left_eight(position, block, row + 8u);
            p8 = multiply_add(p8, c.lo.x, b);
            p9 = multiply_add(p9, c.lo.y, b);
            p10 = multiply_add(p10, c.lo.z, b);
            p11 = multiply_add(p11, c.lo.w, b);
            p12 = multiply_add(p12, c.hi.x, b);
            p13 = multiply_add(p13, c.hi.y, b);
            p14 = multiply_add(p14, c.hi.z, b);
            p15 = multiply_add(p15, c.hi.w, b);
        }
        s0 = fold_strip(s0, p0, weight);
        s1 = fold_strip(s1, p1, weight);
        s2 = fold_strip(s2, p2, weight);
        s3 = fold_strip(s3, p3, weight);
        s4 = fold_strip(s4, p4, weight);
        s5 = fold_strip(s5, p5, weight);
        s6 = fold_strip(s6, p6, weight);
        s7 = fold_strip(s7, p7, weight);
        s8 = fold_strip(s8, p8, weight);
        s9 = fold_strip(s9, p9, weight);
        s10 = fold_strip(s10, p10, weight);
        s11 = fold_strip(s11, p11, weight);
        s12 = fold_strip(s12, p12, weight);
        s13 = fold_strip(s13, p13, weight);
        s14 = fold_strip(s14, p14, weight);
        s15 = fold_strip(s15, p15, weight);
    }
    // A choice, not an array that is indexed at run time: drivers take seconds to compile that.
    for (var i = 0u; i < REGISTER_ROWS && row + i < extent.rows; i++) {
        var sum = s0;
        switch i {
            case 1u: { sum = s1; }
            case 2u: { sum = s2; }
            case 3u: { sum = s3; }
            case 4u: { sum = s4; }
            case 5u: { sum = s5; }
            case 6u: { sum = s6; }
            case 7u: { sum = s7; }
            case 8u: { sum = s8; }
            case 9u: { sum = s9; }
            case 10u: { sum = s10; }
            case 11u: { sum = s11; }
            case 12u: { sum = s12; }
            case 13u: { sum = s13; }
            case 14u: { sum = s14; }
            case 15u: { sum = s15; }
            default: {}
        }
        for (var j = 0u; j < 8u && column + j < extent.columns; j++) {
            store(place.result, block, row + i, column + j, sum.lo.x);
            sum = Strip(vec4<f32>(sum.lo.yzw, sum.hi.x), vec4<f32>(sum.hi.yzw, 0.0));
        }
    }
}
