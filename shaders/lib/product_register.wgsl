// The form for processors behind a graphics interface: no workgroup memory and no barrier (each would cost more than it
// saves). An invocation owns 16 rows × 8 columns in registers, so that 24 loads serve 128 multiplications; a workgroup is one row of
// invocations along the columns.
// Expects lib/product.wgsl, lib/product_strips.wgsl, a product kernel with WORKGROUP_X (WORKGROUP_Y is 1), and eight of its factors at a time: Columns,
// columns_of, left_eight, right_eight. Those past the end may be anything.

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

    var sums = Strips();
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
        let p = Strips(p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12, p13, p14, p15);
        sums = fold_strips(sums, p, weight);
    }
    store_strips(sums, place.result, block, row, column);
}
