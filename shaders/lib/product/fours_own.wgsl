// Each invocation loads all sixteen fours. Expects lib/product/fours.wgsl, lib/product/gather.wgsl.

fn left_fours(four: Four, block: u32, row: u32, lane: u32) -> Fours {
    return Fours(
        left_there(four, block, row + 0u),
        left_there(four, block, row + 1u),
        left_there(four, block, row + 2u),
        left_there(four, block, row + 3u),
        left_there(four, block, row + 4u),
        left_there(four, block, row + 5u),
        left_there(four, block, row + 6u),
        left_there(four, block, row + 7u),
        left_there(four, block, row + 8u),
        left_there(four, block, row + 9u),
        left_there(four, block, row + 10u),
        left_there(four, block, row + 11u),
        left_there(four, block, row + 12u),
        left_there(four, block, row + 13u),
        left_there(four, block, row + 14u),
        left_there(four, block, row + 15u),
    );
}
