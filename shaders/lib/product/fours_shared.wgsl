// Where a workgroup is one subgroup of eight, each invocation loads two of the sixteen fours, and all have them.
// Expects lib/product/fours.wgsl, lib/product/gather.wgsl.

/// An invocation's own row and the eighth after it, for all.
fn fours_of_all(a: vec4<f32>, b: vec4<f32>) -> Fours {
    return Fours(
        subgroupBroadcast(a, 0u),
        subgroupBroadcast(a, 1u),
        subgroupBroadcast(a, 2u),
        subgroupBroadcast(a, 3u),
        subgroupBroadcast(a, 4u),
        subgroupBroadcast(a, 5u),
        subgroupBroadcast(a, 6u),
        subgroupBroadcast(a, 7u),
        subgroupBroadcast(b, 0u),
        subgroupBroadcast(b, 1u),
        subgroupBroadcast(b, 2u),
        subgroupBroadcast(b, 3u),
        subgroupBroadcast(b, 4u),
        subgroupBroadcast(b, 5u),
        subgroupBroadcast(b, 6u),
        subgroupBroadcast(b, 7u),
    );
}

fn left_fours(four: Four, block: u32, row: u32, lane: u32) -> Fours {
    return fours_of_all(left_there(four, block, row + lane), left_there(four, block, row + 8u + lane));
}
