// Sixteen left factors of a register form where a workgroup is one subgroup of eight: each invocation loads two, and
// all have them.
// Expects lib/product/base.wgsl and a product kernel.

fn of_all(own: f32) -> Strip {
    return Strip(
        vec4<f32>(
            subgroupBroadcast(own, 0u),
            subgroupBroadcast(own, 1u),
            subgroupBroadcast(own, 2u),
            subgroupBroadcast(own, 3u),
        ),
        vec4<f32>(
            subgroupBroadcast(own, 4u),
            subgroupBroadcast(own, 5u),
            subgroupBroadcast(own, 6u),
            subgroupBroadcast(own, 7u),
        ),
    );
}

fn left_sixteen(position: Position, block: u32, row: u32, lane: u32) -> Sixteen {
    let last = extent().rows - 1u;
    return Sixteen(
        of_all(left(position, block, min(row + lane, last))),
        of_all(left(position, block, min(row + 8u + lane, last))),
    );
}
