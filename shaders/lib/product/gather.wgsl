// Eight factors at a time of a product kernel whose columns lie anywhere: one load each, rows and columns past the end
// repeat the last; and what it needs to have four positions at a time. Expects lib/dtype.wgsl, lib/product/base.wgsl
// and a product kernel with left_four.

/// Four positions in a row, and which of them there are.
struct Four {
    p0: Position,
    p1: Position,
    p2: Position,
    p3: Position,
    there: vec4<bool>,
}

/// Four elements from a multiple of four on, out of the storage words that hold them.
fn quad_of(words: vec4<u32>, index: u32, dtype: u32) -> vec4<f32> {
    if dtype == F32 {
        return floats(words);
    }
    let pair = select(words.xy, words.zw, (index & 4u) != 0u);
    return floats(vec4<u32>(widen_pair(pair.x, dtype), widen_pair(pair.y, dtype)));
}

/// Four positions of a left factor, zeros past the last position; rows past the end repeat the last one.
fn left_there(four: Four, block: u32, row: u32) -> vec4<f32> {
    return select(vec4<f32>(), left_four(four, block, min(row, extent().rows - 1u)), four.there);
}

struct Columns {
    c0: Column,
    c1: Column,
    c2: Column,
    c3: Column,
    c4: Column,
    c5: Column,
    c6: Column,
    c7: Column,
}

fn columns_of(block: u32, column: u32) -> Columns {
    let last = extent().columns - 1u;
    return Columns(
        column_of(block, column),
        column_of(block, min(column + 1u, last)),
        column_of(block, min(column + 2u, last)),
        column_of(block, min(column + 3u, last)),
        column_of(block, min(column + 4u, last)),
        column_of(block, min(column + 5u, last)),
        column_of(block, min(column + 6u, last)),
        column_of(block, min(column + 7u, last)),
    );
}

fn right_eight(position: Position, columns: Columns) -> Strip {
    return Strip(
        vec4<f32>(
            right(position, columns.c0),
            right(position, columns.c1),
            right(position, columns.c2),
            right(position, columns.c3),
        ),
        vec4<f32>(
            right(position, columns.c4),
            right(position, columns.c5),
            right(position, columns.c6),
            right(position, columns.c7),
        ),
    );
}

fn left_eight(position: Position, block: u32, row: u32) -> Strip {
    let last = extent().rows - 1u;
    return Strip(
        vec4<f32>(
            left(position, block, min(row, last)),
            left(position, block, min(row + 1u, last)),
            left(position, block, min(row + 2u, last)),
            left(position, block, min(row + 3u, last)),
        ),
        vec4<f32>(
            left(position, block, min(row + 4u, last)),
            left(position, block, min(row + 5u, last)),
            left(position, block, min(row + 6u, last)),
            left(position, block, min(row + 7u, last)),
        ),
    );
}
