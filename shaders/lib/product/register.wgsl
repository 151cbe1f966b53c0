// The form for processors behind a graphics interface: no workgroup memory and no barrier (each would cost more than it
// saves). An invocation owns 16 rows × 8 columns in registers, so that 24 factors serve 128 multiplications;
// a workgroup is one row of invocations along the columns.
// Expects lib/product/base.wgsl, lib/product/strips.wgsl, lib/product/left_own.wgsl or lib/product/left_shared.wgsl,
// and a product kernel with WORKGROUP_X (WORKGROUP_Y is 1) and eight of its factors at a time: Columns, columns_of,
// left_eight, right_eight. Those past the end may be anything.

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let place = register_tile(group, lane);
    let block = place.block;
    // A whole workgroup: what has no column itself loads for the others.
    if place.result >= results(extent.squares) {
        return;
    }
    let columns = columns_of(block, place.column);

    var sums = Strips();
    for (var square = place.result; square < end_of(place.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let positions = positions_of(square);
        // Sixteen names and no loop over them: nothing is indexed at run time, see Strips.
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
            let a = left_sixteen(position, block, place.row, lane.x);
            p0 = multiply_add(p0, a.lo.lo.x, b);
            p1 = multiply_add(p1, a.lo.lo.y, b);
            p2 = multiply_add(p2, a.lo.lo.z, b);
            p3 = multiply_add(p3, a.lo.lo.w, b);
            p4 = multiply_add(p4, a.lo.hi.x, b);
            p5 = multiply_add(p5, a.lo.hi.y, b);
            p6 = multiply_add(p6, a.lo.hi.z, b);
            p7 = multiply_add(p7, a.lo.hi.w, b);
            p8 = multiply_add(p8, a.hi.lo.x, b);
            p9 = multiply_add(p9, a.hi.lo.y, b);
            p10 = multiply_add(p10, a.hi.lo.z, b);
            p11 = multiply_add(p11, a.hi.lo.w, b);
            p12 = multiply_add(p12, a.hi.hi.x, b);
            p13 = multiply_add(p13, a.hi.hi.y, b);
            p14 = multiply_add(p14, a.hi.hi.z, b);
            p15 = multiply_add(p15, a.hi.hi.w, b);
        }
        let p = Strips(p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12, p13, p14, p15);
        sums = fold_strips(sums, p, weight);
    }
    store_strips(sums, place);
}
