// What an invocation of the register forms owns: sixteen rows of eight columns. Expects lib/product/base.wgsl and a
// product kernel with WORKGROUP_X.

const REGISTER_ROWS: u32 = 16u;

override REGISTER_COLUMNS: u32 = 8u * WORKGROUP_X;

/// One strip a row. Named, not an array: drivers take seconds to compile one that is indexed at run time.
struct Strips {
    s0: Strip,
    s1: Strip,
    s2: Strip,
    s3: Strip,
    s4: Strip,
    s5: Strip,
    s6: Strip,
    s7: Strip,
    s8: Strip,
    s9: Strip,
    s10: Strip,
    s11: Strip,
    s12: Strip,
    s13: Strip,
    s14: Strip,
    s15: Strip,
}

/// An invocation's place: of which result and block, and its first row and column.
struct Place {
    result: u32,
    block: u32,
    row: u32,
    column: u32,
}

fn register_tile(group: u32, lane: vec2<u32>) -> Place {
    let extent = extent();
    let column_tiles = (extent.columns + REGISTER_COLUMNS - 1u) / REGISTER_COLUMNS;
    let row_tiles = (extent.rows + REGISTER_ROWS - 1u) / REGISTER_ROWS;
    let tile = tile_of(group, row_tiles * column_tiles, extent.blocks);
    return Place(
        tile.result,
        tile.block,
        tile.index / column_tiles * REGISTER_ROWS,
        tile.index % column_tiles * REGISTER_COLUMNS + 8u * lane.x,
    );
}

fn fold_strips(sum: Strips, p: Strips, weight: f32) -> Strips {
    return Strips(
        fold_strip(sum.s0, p.s0, weight),
        fold_strip(sum.s1, p.s1, weight),
        fold_strip(sum.s2, p.s2, weight),
        fold_strip(sum.s3, p.s3, weight),
        fold_strip(sum.s4, p.s4, weight),
        fold_strip(sum.s5, p.s5, weight),
        fold_strip(sum.s6, p.s6, weight),
        fold_strip(sum.s7, p.s7, weight),
        fold_strip(sum.s8, p.s8, weight),
        fold_strip(sum.s9, p.s9, weight),
        fold_strip(sum.s10, p.s10, weight),
        fold_strip(sum.s11, p.s11, weight),
        fold_strip(sum.s12, p.s12, weight),
        fold_strip(sum.s13, p.s13, weight),
        fold_strip(sum.s14, p.s14, weight),
        fold_strip(sum.s15, p.s15, weight),
    );
}

/// Stores what of it lies inside of the result.
fn store_strips(sums: Strips, place: Place) {
    let extent = extent();
    for (var i = 0u; i < REGISTER_ROWS && place.row + i < extent.rows; i++) {
        var sum = sums.s0;
        switch i {
            case 1u: { sum = sums.s1; }
            case 2u: { sum = sums.s2; }
            case 3u: { sum = sums.s3; }
            case 4u: { sum = sums.s4; }
            case 5u: { sum = sums.s5; }
            case 6u: { sum = sums.s6; }
            case 7u: { sum = sums.s7; }
            case 8u: { sum = sums.s8; }
            case 9u: { sum = sums.s9; }
            case 10u: { sum = sums.s10; }
            case 11u: { sum = sums.s11; }
            case 12u: { sum = sums.s12; }
            case 13u: { sum = sums.s13; }
            case 14u: { sum = sums.s14; }
            case 15u: { sum = sums.s15; }
            default: {}
        }
        for (var j = 0u; j < 8u && place.column + j < extent.columns; j++) {
            store(place.result, place.block, place.row + i, place.column + j, sum.lo.x);
            sum = Strip(vec4<f32>(sum.lo.yzw, sum.hi.x), vec4<f32>(sum.hi.yzw, 0.0));
        }
    }
}
