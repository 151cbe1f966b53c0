// indices, values: the kept elements in the order of their indices. One workgroup a block of 4096 elements.
// Expects lib/dtype.wgsl, lib/score.wgsl, lib/scan.wgsl, lib/keep.wgsl.

override SCORE: u32 = 0u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;

struct Params {
    len: u32,
    room: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read> above: array<u32>;
@group(0) @binding(5) var<storage, read> ties: array<u32>;
@group(0) @binding(6) var<storage, read_write> indices: array<u32>;
@group(0) @binding(7) var<storage, read_write> values: array<u32>;

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let block = group.y * groups.x + group.x;
    var all = sixteen(block, local.x);
    var kept = kept_bits(all, block, local.x);
    var at = sum_before(local.x, countOneBits(kept));
    let first = block * 4096u + 16u * local.x;
    if first < params.len {
        at += above[block] + min(ties[block], state[1]);
        for (; kept != 0u && at < params.room; at++) {
            let i = firstTrailingBit(kept);
            indices[at] = first + i;
            values[at] = score_at(&all, i);
            kept &= kept - 1u;
        }
    }
}
