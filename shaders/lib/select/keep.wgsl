// Which of a workgroup's 4096 consecutive elements are kept: all above the threshold state[0], and the first
// state[1] of those equal to it, counted from the start by ties[block]. One invocation: 16 consecutive elements.
// Expects lib/dtype.wgsl, lib/select/score.wgsl, lib/select/scan.wgsl, the bindings `state` and `ties`, and params.len.

struct Sixteen {
    first: Octet,
    second: Octet,
}

fn sixteen(block: u32, lane: u32) -> Sixteen {
    return sixteen_from(block * 512u + 2u * lane);
}

fn sixteen_from(octet: u32) -> Sixteen {
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

/// The lowest four bits.
fn bits_of(flags: vec4<bool>) -> u32 {
    let bits = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), flags);
    return (bits.x | bits.y) | (bits.z | bits.w);
}

fn bits_above(all: Sixteen, threshold: vec4<u32>) -> u32 {
    return bits_of(all.first.lo > threshold) | (bits_of(all.first.hi > threshold) << 4u)
        | (bits_of(all.second.lo > threshold) << 8u) | (bits_of(all.second.hi > threshold) << 12u);
}

fn bits_equal(all: Sixteen, threshold: vec4<u32>) -> u32 {
    return bits_of(all.first.lo == threshold) | (bits_of(all.first.hi == threshold) << 4u)
        | (bits_of(all.second.lo == threshold) << 8u) | (bits_of(all.second.hi == threshold) << 12u);
}

/// One bit for each of the invocation's elements. Every invocation must call it.
fn kept_bits(all: Sixteen, block: u32, lane: u32) -> u32 {
    let first = block * 4096u + 16u * lane;
    let len = min(params.len - min(first, params.len), 16u);
    let inside = (1u << len) - 1u;
    let threshold = vec4<u32>(state[0]);
    var kept = bits_above(all, threshold) & inside;
    var equal = bits_equal(all, threshold) & inside;
    // The ties of most blocks are all kept or all left out: only where the budget ends do they have to be counted.
    let before = ties[block];
    let most = state[1];
    if ties[block + 1u] <= most {
        return kept | equal;
    }
    if before >= most {
        return kept;
    }
    var rank = before + sum_before(lane, countOneBits(equal));
    for (; equal != 0u && rank < most; rank++) {
        kept |= equal & (~equal + 1u);
        equal &= equal - 1u;
    }
    return kept;
}
