// The form for processors behind a graphics interface where positions lie one after the other: as lib/product_register.wgsl, with
// four positions a turn.
// Expects lib/product.wgsl, lib/product_gather.wgsl, a product kernel with WORKGROUP_X (WORKGROUP_Y is 1), its `following` position, and
// four of its factors at a time from a multiple of four on: left_four and right_four. Those past the end may be anything.

const REGISTER_ROWS: u32 = 16u;

override REGISTER_COLUMNS: u32 = 8u * WORKGROUP_X;

fn four_from(p0: Position, t: u32, positions: u32) -> Four {
    let p1 = following(p0);
    let p2 = following(p1);
    let there = vec4<u32>(t) + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(positions);
    return Four(p0, p1, p2, following(p2), there);
}

fn add_four(p: Strip, a: vec4<f32>, b0: Strip, b1: Strip, b2: Strip, b3: Strip) -> Strip {
    return multiply_add(multiply_add(multiply_add(multiply_add(p, a.x, b0), a.y, b1), a.z, b2), a.w, b3);
}

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
    // Rows and columns past the end repeat the last one and are not stored.
    let last_row = extent.rows - 1u;
    let last_column = extent.columns - 1u;
    let column_0 = column_of(block, min(column + 0u, last_column));
    let column_1 = column_of(block, min(column + 1u, last_column));
    let column_2 = column_of(block, min(column + 2u, last_column));
    let column_3 = column_of(block, min(column + 3u, last_column));
    let column_4 = column_of(block, min(column + 4u, last_column));
    let column_5 = column_of(block, min(column + 5u, last_column));
    let column_6 = column_of(block, min(column + 6u, last_column));
    let column_7 = column_of(block, min(column + 7u, last_column));

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
        var position = position_of(square, 0u);
        for (var t = 0u; t < positions; t += 4u) {
            let four = four_from(position, t, positions);
            position = following(four.p3);
            let c0 = select(vec4<f32>(), right_four(four, column_0), four.there);
            let c1 = select(vec4<f32>(), right_four(four, column_1), four.there);
            let c2 = select(vec4<f32>(), right_four(four, column_2), four.there);
            let c3 = select(vec4<f32>(), right_four(four, column_3), four.there);
            let c4 = select(vec4<f32>(), right_four(four, column_4), four.there);
            let c5 = select(vec4<f32>(), right_four(four, column_5), four.there);
            let c6 = select(vec4<f32>(), right_four(four, column_6), four.there);
            let c7 = select(vec4<f32>(), right_four(four, column_7), four.there);
            let b0 = Strip(vec4<f32>(c0.x, c1.x, c2.x, c3.x), vec4<f32>(c4.x, c5.x, c6.x, c7.x));
            let b1 = Strip(vec4<f32>(c0.y, c1.y, c2.y, c3.y), vec4<f32>(c4.y, c5.y, c6.y, c7.y));
            let b2 = Strip(vec4<f32>(c0.z, c1.z, c2.z, c3.z), vec4<f32>(c4.z, c5.z, c6.z, c7.z));
            let b3 = Strip(vec4<f32>(c0.w, c1.w, c2.w, c3.w), vec4<f32>(c4.w, c5.w, c6.w, c7.w));
            p0 = add_four(p0, select(vec4<f32>(), left_four(four, block, min(row + 0u, last_row)), four.there), b0, b1, b2, b3);
            p1 = add_four(p1, select(vec4<f32>(), left_four(four, block, min(row + 1u, last_row)), four.there), b0, b1, b2, b3);
            p2 = add_four(p2, select(vec4<f32>(), left_four(four, block, min(row + 2u, last_row)), four.there), b0, b1, b2, b3);
            p3 = add_four(p3, select(vec4<f32>(), left_four(four, block, min(row + 3u, last_row)), four.there), b0, b1, b2, b3);
            p4 = add_four(p4, select(vec4<f32>(), left_four(four, block, min(row + 4u, last_row)), four.there), b0, b1, b2, b3);
            p5 = add_four(p5, select(vec4<f32>(), left_four(four, block, min(row + 5u, last_row)), four.there), b0, b1, b2, b3);
            p6 = add_four(p6, select(vec4<f32>(), left_four(four, block, min(row + 6u, last_row)), four.there), b0, b1, b2, b3);
            p7 = add_four(p7, select(vec4<f32>(), left_four(four, block, min(row + 7u, last_row)), four.there), b0, b1, b2, b3);
            p8 = add_four(p8, select(vec4<f32>(), left_four(four, block, min(row + 8u, last_row)), four.there), b0, b1, b2, b3);
            p9 = add_four(p9, select(vec4<f32>(), left_four(four, block, min(row + 9u, last_row)), four.there), b0, b1, b2, b3);
            p10 = add_four(p10, select(vec4<f32>(), left_four(four, block, min(row + 10u, last_row)), four.there), b0, b1, b2, b3);
            p11 = add_four(p11, select(vec4<f32>(), left_four(four, block, min(row + 11u, last_row)), four.there), b0, b1, b2, b3);
            p12 = add_four(p12, select(vec4<f32>(), left_four(four, block, min(row + 12u, last_row)), four.there), b0, b1, b2, b3);
            p13 = add_four(p13, select(vec4<f32>(), left_four(four, block, min(row + 13u, last_row)), four.there), b0, b1, b2, b3);
            p14 = add_four(p14, select(vec4<f32>(), left_four(four, block, min(row + 14u, last_row)), four.there), b0, b1, b2, b3);
            p15 = add_four(p15, select(vec4<f32>(), left_four(four, block, min(row + 15u, last_row)), four.there), b0, b1, b2, b3);
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
