// mask: one byte an element, 1 where it is kept. One workgroup a block of 4096 elements; with ALONE, no invocation
// waits for another.
// Expects lib/dtype.wgsl, lib/select/score.wgsl, lib/select/scan.wgsl, lib/select/keep.wgsl.

override WORKGROUP: u32 = 256u;
override ALONE: bool = false;
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

/// Four flags, a byte each.
fn bytes_of_flags(flags: vec4<bool>) -> u32 {
    let bytes = select(vec4<u32>(), vec4<u32>(1u, 0x100u, 0x10000u, 0x1000000u), flags);
    return (bytes.x | bytes.y) | (bytes.z | bytes.w);
}

/// Four elements from `index`, all that reach `least`.
fn reaching(score: vec4<u32>, least: vec4<u32>, index: u32) -> u32 {
    let inside = four_indices(index) < vec4<u32>(params.len);
    return bytes_of_flags((score >= least) & inside);
}

/// Four elements from `index`: all above the threshold, and those equal to it before which fewer than state[1] are.
fn in_order(score: vec4<u32>, index: u32, before: ptr<function, u32>) -> u32 {
    let inside = four_indices(index) < vec4<u32>(params.len);
    let equal = vec4<u32>((score == vec4<u32>(state[0])) & inside);
    let two = equal.x + equal.y;
    let rank = *before + vec4<u32>(0u, equal.x, two, two + equal.z);
    *before = rank.w + equal.w;
    let kept = (score > vec4<u32>(state[0])) | ((equal == vec4<u32>(1u)) & (rank < vec4<u32>(state[1])));
    return bytes_of_flags(kept & inside);
}

/// A block whose ties are all kept or all left out has one least score. The one in which the budget for ties ends is
/// walked through by one invocation.
fn fill_alone(block: u32, lane: u32) {
    let most = state[1];
    let divided = ties[block] < most && ties[block + 1u] > most;
    let above = state[0] + u32(state[0] != BAD);
    let least = vec4<u32>(select(above, state[0], ties[block + 1u] <= most));
    let sixteens = min(params.len / 16u + u32(params.len % 16u != 0u), 256u * block + 256u);
    for (var at = 256u * block + lane; at < select(sixteens, 0u, divided); at += WORKGROUP) {
        let all = sixteen_from(2u * at);
        mask[at] = vec4<u32>(
            reaching(all.first.lo, least, 16u * at), reaching(all.first.hi, least, 16u * at + 4u),
            reaching(all.second.lo, least, 16u * at + 8u), reaching(all.second.hi, least, 16u * at + 12u),
        );
    }
    var before = ties[block];
    for (var at = 256u * block; at < select(0u, sixteens, divided && lane == 0u); at++) {
        let all = sixteen_from(2u * at);
        let a = in_order(all.first.lo, 16u * at, &before);
        let b = in_order(all.first.hi, 16u * at + 4u, &before);
        let c = in_order(all.second.lo, 16u * at + 8u, &before);
        let d = in_order(all.second.hi, 16u * at + 12u, &before);
        mask[at] = vec4<u32>(a, b, c, d);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let block = group.y * groups.x + group.x;
    if ALONE {
        if 4096u * block < params.len {
            fill_alone(block, local.x);
        }
        return;
    }
    let kept = kept_bits(sixteen(block, local.x), block, local.x);
    let first = block * 4096u + 16u * local.x;
    if first < params.len {
        mask[first / 16u] =
            vec4<u32>(bytes_of(kept), bytes_of(kept >> 4u), bytes_of(kept >> 8u), bytes_of(kept >> 12u));
    }
}
