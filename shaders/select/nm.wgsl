// mask |= 1 at the `keep` best of every `size` elements that lie `stride` apart; ties go to the earlier.
// One invocation a group. Expects lib/dtype.wgsl, lib/score.wgsl.

override WORKGROUP: u32 = 256u;
override SCORE: u32 = 0u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;

struct Params {
    len: u32,
    keep: u32,
    size: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> mask: array<atomic<u32>>;
@group(0) @binding(4) var<storage, read_write> fault: array<atomic<u32>>;

fn score_of(index: u32) -> u32 {
    let all = scores(index / 8u);
    let i = index % 8u;
    if i < 4u {
        return all.lo[i];
    }
    return all.hi[i - 4u];
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let member = (group.y * groups.x + group.x) * WORKGROUP + local.x;
    if member >= params.len / params.size {
        return;
    }
    let first = member / params.stride * params.stride * params.size + member % params.stride;
    var group_scores: array<u32, 32>;
    for (var i = 0u; i < params.size; i++) {
        let index = first + i * params.stride;
        group_scores[i] = score_of(index);
        if group_scores[i] == BAD {
            atomicMax(&fault[0], ~index);
        }
    }
    for (var i = 0u; i < params.size; i++) {
        var better = 0u;
        for (var j = 0u; j < params.size; j++) {
            let wins = group_scores[j] > group_scores[i] || (group_scores[j] == group_scores[i] && j < i);
            better += u32(wins);
        }
        if better < params.keep {
            let index = first + i * params.stride;
            atomicOr(&mask[index / 4u], 1u << (8u * (index % 4u)));
        }
    }
}
