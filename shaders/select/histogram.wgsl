// counts[slot of score] += 1; slot 0 is below the window, 1 to bins are in it, bins + 1 is above.
// One invocation: OCTETS groups of eight elements, strided by the workgroup. Expects lib/dtype.wgsl,
// lib/select/score.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 32u;
override SCORE: u32 = 0u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;
/// 1 where the whole window is counted in workgroup memory first.
override LOCAL: u32 = 1u;
/// Whether few scores are expected in the window: then those outside are counted in registers.
override SPARSE: bool = false;

struct Params {
    len: u32,
    shift: u32,
    bins: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read_write> counts: array<atomic<u32>>;
@group(0) @binding(5) var<storage, read_write> fault: array<atomic<u32>>;

/// 2048 bins and the two outside; without LOCAL only those two, at 0 and 1.
var<workgroup> own: array<atomic<u32>, 2050>;

fn slot_of(score: u32) -> u32 {
    let low = state[0];
    if score < low {
        return 0u;
    }
    return min((score - low) >> params.shift, params.bins) + 1u;
}

fn count(score: u32, index: u32) {
    if index >= params.len {
        return;
    }
    if score == BAD {
        atomicMax(&fault[0], ~index);
        return;
    }
    let slot = slot_of(score);
    if LOCAL == 1u {
        atomicAdd(&own[slot], 1u);
    } else if slot == 0u {
        atomicAdd(&own[0], 1u);
    } else if slot > params.bins {
        atomicAdd(&own[1], 1u);
    } else {
        atomicAdd(&counts[slot], 1u);
    }
}

/// The slots of four scores, none of which is bad.
fn count_four(score: vec4<u32>) {
    let inside = min((score - state[0]) >> vec4<u32>(params.shift), vec4<u32>(params.bins)) + 1u;
    let slot = select(inside, vec4<u32>(), score < vec4<u32>(state[0]));
    atomicAdd(&own[slot.x], 1u);
    atomicAdd(&own[slot.y], 1u);
    atomicAdd(&own[slot.z], 1u);
    atomicAdd(&own[slot.w], 1u);
}

/// How many of four are below the window, and how many above it.
fn outside(score: vec4<u32>) -> vec2<u32> {
    let below = score < vec4<u32>(state[0]);
    let beyond = ((score - state[0]) >> vec4<u32>(params.shift)) >= vec4<u32>(params.bins);
    return vec2<u32>(count_of_four(below), count_of_four(!below & beyond));
}

fn has_bad(score: Octet) -> bool {
    let top = max(score.lo, score.hi);
    return most_of_four(top) == BAD;
}

fn hand_over(slot: u32, number: u32) {
    if number > 0u {
        atomicAdd(&counts[slot], number);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let first = (group.y * groups.x + group.x) * WORKGROUP * OCTETS + local.x;
    for (var slot = local.x; slot < select(2u, params.bins + 2u, LOCAL == 1u); slot += WORKGROUP) {
        atomicStore(&own[slot], 0u);
    }
    workgroupBarrier();
    // Groups whose scores are looked at one by one: with a bad one, at the end, or with some for the large window.
    var aside = 0u;
    // Where few scores are expected in the window, groups that have some.
    var some = 0u;
    var beside = vec2<u32>();
    for (var i = 0u; i < OCTETS; i++) {
        let octet = first + i * WORKGROUP;
        if octet * 8u < params.len {
            let score = scores(octet);
            var plain = !has_bad(score) && params.len - octet * 8u >= 8u;
            if SPARSE || LOCAL == 0u {
                let both = outside(score.lo) + outside(score.hi);
                let all = both.x + both.y == 8u;
                beside += select(vec2<u32>(), both, plain && all);
                some |= select(0u, 1u << i, plain && !all && LOCAL == 1u);
                plain = plain && (all || LOCAL == 1u);
            } else if plain {
                count_four(score.lo);
                count_four(score.hi);
            }
            aside |= select(1u << i, 0u, plain);
        }
    }
    for (; some != 0u; some &= some - 1u) {
        let score = scores(first + firstTrailingBit(some) * WORKGROUP);
        count_four(score.lo);
        count_four(score.hi);
    }
    for (; aside != 0u; aside &= aside - 1u) {
        let octet = first + firstTrailingBit(aside) * WORKGROUP;
        let score = scores(octet);
        for (var j = 0u; j < 4u; j++) {
            count(score.lo[j], 8u * octet + j);
            count(score.hi[j], 8u * octet + 4u + j);
        }
    }
    if SPARSE || LOCAL == 0u {
        atomicAdd(&own[0], beside.x);
        atomicAdd(&own[select(1u, params.bins + 1u, LOCAL == 1u)], beside.y);
    }
    workgroupBarrier();
    if LOCAL == 1u {
        for (var slot = local.x; slot < params.bins + 2u; slot += WORKGROUP) {
            hand_over(slot, atomicLoad(&own[slot]));
        }
    } else if local.x < 2u {
        hand_over(local.x * (params.bins + 1u), atomicLoad(&own[local.x]));
    }
}
