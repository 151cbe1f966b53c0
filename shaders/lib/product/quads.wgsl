// The form for processors behind a graphics interface where positions lie one after the other: as
// lib/product/register.wgsl, with four positions a turn.
// Expects lib/product/base.wgsl, lib/product/strips.wgsl, lib/product/gather.wgsl, lib/product/fours.wgsl,
// lib/product/fours_own.wgsl or lib/product/fours_shared.wgsl, and a product kernel with WORKGROUP_X (WORKGROUP_Y is
// 1), its `following` position, and four of its factors at a time from a multiple of four on: left_four and right_four.
// Those past the end may be anything.

fn four_from(p0: Position, t: u32, positions: u32) -> Four {
    let p1 = following(p0);
    let p2 = following(p1);
    let there = four_indices(t) < vec4<u32>(positions);
    return Four(p0, p1, p2, following(p2), there);
}

fn add_four(p: Strip, a: vec4<f32>, b0: Strip, b1: Strip, b2: Strip, b3: Strip) -> Strip {
    return multiply_add(multiply_add(multiply_add(multiply_add(p, a.x, b0), a.y, b1), a.z, b2), a.w, b3);
}

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let place = register_tile(group, lane);
    let block = place.block;
    // A whole workgroup: what has no column itself loads for the others.
    if place.result >= results(extent.squares) {
        return;
    }
    // Rows and columns past the end repeat the last one and are not stored.
    let last_column = extent.columns - 1u;
    let column_0 = column_of(block, min(place.column + 0u, last_column));
    let column_1 = column_of(block, min(place.column + 1u, last_column));
    let column_2 = column_of(block, min(place.column + 2u, last_column));
    let column_3 = column_of(block, min(place.column + 3u, last_column));
    let column_4 = column_of(block, min(place.column + 4u, last_column));
    let column_5 = column_of(block, min(place.column + 5u, last_column));
    let column_6 = column_of(block, min(place.column + 6u, last_column));
    let column_7 = column_of(block, min(place.column + 7u, last_column));

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
            let a = left_fours(four, block, place.row, lane.x);
            p0 = add_four(p0, a.r0, b0, b1, b2, b3);
            p1 = add_four(p1, a.r1, b0, b1, b2, b3);
            p2 = add_four(p2, a.r2, b0, b1, b2, b3);
            p3 = add_four(p3, a.r3, b0, b1, b2, b3);
            p4 = add_four(p4, a.r4, b0, b1, b2, b3);
            p5 = add_four(p5, a.r5, b0, b1, b2, b3);
            p6 = add_four(p6, a.r6, b0, b1, b2, b3);
            p7 = add_four(p7, a.r7, b0, b1, b2, b3);
            p8 = add_four(p8, a.r8, b0, b1, b2, b3);
            p9 = add_four(p9, a.r9, b0, b1, b2, b3);
            p10 = add_four(p10, a.r10, b0, b1, b2, b3);
            p11 = add_four(p11, a.r11, b0, b1, b2, b3);
            p12 = add_four(p12, a.r12, b0, b1, b2, b3);
            p13 = add_four(p13, a.r13, b0, b1, b2, b3);
            p14 = add_four(p14, a.r14, b0, b1, b2, b3);
            p15 = add_four(p15, a.r15, b0, b1, b2, b3);
        }
        let p = Strips(p0, p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12, p13, p14, p15);
        sums = fold_strips(sums, p, weight);
    }
    store_strips(sums, place);
}
