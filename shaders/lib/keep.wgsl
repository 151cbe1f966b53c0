// Which of a workgroup's 4096 consecutive elements are kept: all above the threshold state[0], and the first
// state[1] of those equal to it, counted from the start by ties[block]. One invocation: 16 consecutive elements.
// Expects lib/dtype.wgsl, lib/score.wgsl, lib/scan.wgsl, the bindings `state` and `ties`, and params.len.

struct Sixteen {
    first: Octet,
    second: Octet,
}

fn sixteen(block: u32, lane: u32) -> Sixteen {
    let octet = block * 512u + 2u * lane;
    var out: Sixteen;
    if octet * 8u < params.len {
        out.first = scores(octet);
    }
    if octet * 8u + 8u < params.len {
        out.second = scores(octet + 1u);
    }
    return out;
}

fn score_at(all: ptr<function, Sixteen>, i: u32) -> u32 {
    if i < 4u {
        return (*all).first.lo[i];
    }
    if i < 8u {
        return (*all).first.hi[i - 4u];
    }
    if i < 12u {
        return (*all).second.lo[i - 8u];
    }
    return (*all).second.hi[i - 12u];
}

/// One bit for each of the invocation's elements. Every invocation must call it.
fn kept_bits(all: ptr<function, Sixteen>, block: u32, lane: u32) -> u32 {
    let threshold = state[0];
    let first = block * 4096u + 16u * lane;
    var kept = 0u;
    var equal = 0u;
    for (var i = 0u; i < 16u; i++) {
        let score = score_at(all, i);
        if first + i < params.len {
            kept |= u32(score > threshold) << i;
            equal |= u32(score == threshold) << i;
        }
    }
    var rank = sum_before(lane, countOneBits(equal));
    if first < params.len {
        rank += ties[block];
    }
    for (; equal != 0u && rank < state[1]; rank++) {
        kept |= equal & (~equal + 1u);
        equal &= equal - 1u;
    }
    return kept;
}
