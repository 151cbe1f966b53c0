// Eight factors at a time of a product kernel whose columns lie anywhere: one load each. Rows and columns past the end
// repeat the last. Expects lib/product.wgsl and a product kernel.

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
