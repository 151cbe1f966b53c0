// mask: one byte an element, 1 where it is kept. One workgroup a block of 4096 elements.
// Expects lib/dtype.wgsl, lib/score.wgsl, lib/scan.wgsl, lib/keep.wgsl.

override SCORE: u32 = 0u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read> ties: array<u32>;
@group(0) @binding(5) var<storage, read_write> mask: array<vec4<u32>>;

/// Four bits to the lowest bits of four bytes.
fn bytes_of(bits: u32) -> u32 {
    return (bits & 1u) | ((bits & 2u) << 7u) | ((bits & 4u) << 14u) | ((bits & 8u) << 21u);
}

@compute @workgroup_size(256)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let block = group.y * groups.x + group.x;
    let kept = kept_bits(sixteen(block, local.x), block, local.x);
    let first = block * 4096u + 16u * local.x;
    if first < params.len {
        mask[first / 16u] = vec4<u32>(bytes_of(kept), bytes_of(kept >> 4u), bytes_of(kept >> 8u), bytes_of(kept >> 12u));
    }
}
