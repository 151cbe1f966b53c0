// What the forms of a product kernel share.
//
// A product kernel computes, for each block (a group of a convolution), row and column,
//
//     out <- decay · out + gain · sum over squares of weight · (sum over positions of left · right)²
//
// (without SQUARED, of the sum itself; with EACH, a result for every square instead of their sum) and supplies: extent,
// positions_of, weight_of, Position and position_of, Column and column_of, left, right, fold (what a sum over positions
// adds to the result), store. A form supplies product(group, lane). Expects no part but a product kernel.

override SQUARED: bool = true;
override EACH: bool = false;

/// What one dispatch covers: `blocks` matrices of rows × columns, from `squares` gradients.
struct Extent {
    blocks: u32,
    rows: u32,
    columns: u32,
    squares: u32,
}

/// A workgroup's tile: of which result, which block and which place in it.
struct Tile {
    result: u32,
    block: u32,
    index: u32,
}

fn tile_of(group: u32, tiles: u32, blocks: u32) -> Tile {
    let matrix = group / tiles;
    return Tile(matrix / blocks, matrix % blocks, group % tiles);
}

/// The end of a result's squares, which begin at 0 or, with EACH, at the result's own.
fn end_of(result: u32, squares: u32) -> u32 {
    return select(squares, result + 1u, EACH);
}

/// How many results there are.
fn results(squares: u32) -> u32 {
    return select(1u, squares, EACH);
}

/// Eight values in a row.
struct Strip {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

/// Sixteen of them.
struct Sixteen {
    lo: Strip,
    hi: Strip,
}

fn multiply_add(p: Strip, a: f32, b: Strip) -> Strip {
    return Strip(p.lo + a * b.lo, p.hi + a * b.hi);
}

fn fold_strip(sum: Strip, p: Strip, weight: f32) -> Strip {
    return Strip(fold(sum.lo, p.lo, weight), fold(sum.hi, p.hi, weight));
}

fn left_or_zero(position: Position, block: u32, row: u32, inside: bool) -> f32 {
    if inside {
        return left(position, block, row);
    }
    return 0.0;
}

fn right_or_zero(position: Position, column: Column, inside: bool) -> f32 {
    if inside {
        return right(position, column);
    }
    return 0.0;
}
