// Sixteen left factors of a register form, all of them loaded by each invocation. Expects lib/product/base.wgsl and
// left_eight.

fn left_sixteen(position: Position, block: u32, row: u32, lane: u32) -> Sixteen {
    return Sixteen(left_eight(position, block, row), left_eight(position, block, row + 8u));
}
