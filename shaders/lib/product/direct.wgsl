// The form for many small blocks (depthwise and other narrow groups), whose rows × columns would leave most of a tile
// empty: one invocation an element.
// Expects lib/product/base.wgsl and a product kernel with WORKGROUP_X; WORKGROUP_Y is 1.

fn product(group: u32, lane: vec2<u32>) {
    let extent = extent();
    let index = group * WORKGROUP_X + lane.x;
    let place = tile_of(index, extent.rows * extent.columns, extent.blocks);
    let block = place.block;
    if place.result >= results(extent.squares) {
        return;
    }
    let row = index / extent.columns % extent.rows;
    let column = column_of(block, index % extent.columns);
    var sum = vec4<f32>();
    for (var square = place.result; square < end_of(place.result, extent.squares); square++) {
        let weight = weight_of(square);
        if weight == 0.0 {
            continue;
        }
        let positions = positions_of(square);
        var p = 0.0;
        for (var t = 0u; t < positions; t++) {
            let position = position_of(square, t);
            p += left(position, block, row) * right(position, column);
        }
        sum = fold(sum, vec4<f32>(p), weight);
    }
    store(place.result, block, row, index % extent.columns, sum.x);
}
