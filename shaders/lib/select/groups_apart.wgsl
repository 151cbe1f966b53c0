// The best of groups of any size and stride: one invocation a group, and a mask in which several have bytes of a word.
// Expects lib/dtype.wgsl, lib/select/score.wgsl, the override WORKGROUP, the parameters of select/nm.wgsl and its
// binding `fault`.

@group(0) @binding(3) var<storage, read_write> mask: array<atomic<u32>>;

fn score_of(index: u32) -> u32 {
    let all = scores(index / 8u);
    let i = index % 8u;
    if i < 4u {
        return all.lo[i];
    }
    return all.hi[i - 4u];
}

fn choose(group: u32, lane: u32) {
    let member = group * WORKGROUP + lane;
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
