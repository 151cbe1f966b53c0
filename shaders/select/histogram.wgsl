// counts[slot of score] += 1; slot 0 is below the window, 1 to bins are in it, bins + 1 is above.
// One invocation: OCTETS groups of eight elements, strided by the workgroup. Expects lib/dtype.wgsl, lib/score.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 16u;
override SCORE: u32 = 0u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;
/// 1 where the whole window is counted in workgroup memory first.
override LOCAL: u32 = 1u;

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
    for (var i = 0u; i < OCTETS; i++) {
        let octet = first + i * WORKGROUP;
        if octet * 8u < params.len {
            let score = scores(octet);
            for (var j = 0u; j < 4u; j++) {
                count(score.lo[j], 8u * octet + j);
                count(score.hi[j], 8u * octet + 4u + j);
            }
        }
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
