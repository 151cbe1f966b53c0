// What the three forms of a product kernel share.
//
// A product kernel computes, for each block (a group of a convolution), row and column,
//
//     out <- decay · out + gain · sum over squares of weight · (sum over positions of left · right)²
//
// and supplies: extent, positions_of, weight_of, Position and position_of, Column and column_of, left, right,
// fold (what a sum over positions adds to the result), store. A form supplies product(group, lane).

/// What one dispatch covers: `blocks` matrices of rows × columns, from `squares` gradients.
struct Extent {
    blocks: u32,
    rows: u32,
    columns: u32,
    squares: u32,
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
