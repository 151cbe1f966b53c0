// above[block], ties[block]: scores above the threshold state[0], and equal to it, in each block.
// One workgroup a block: OCTETS groups of eight an invocation. Expects lib/dtype.wgsl, lib/select/score.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 2u;
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
@group(0) @binding(4) var<storage, read_write> above: array<u32>;
@group(0) @binding(5) var<storage, read_write> ties: array<u32>;

var<workgroup> own_above: atomic<u32>;
var<workgroup> own_ties: atomic<u32>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let block = group.y * groups.x + group.x;
    if local.x == 0u {
        atomicStore(&own_above, 0u);
        atomicStore(&own_ties, 0u);
    }
    workgroupBarrier();
    let threshold = vec4<u32>(state[0]);
    var more = 0u;
    var same = 0u;
    for (var i = 0u; i < OCTETS; i++) {
        let octet = (block * OCTETS + i) * WORKGROUP + local.x;
        if octet * 8u < params.len {
            let score = scores(octet);
            let index = four_indices(8u * octet);
            let low = index < vec4<u32>(params.len);
            let high = index + 4u < vec4<u32>(params.len);
            more += count_of_four(low & (score.lo > threshold)) + count_of_four(high & (score.hi > threshold));
            same += count_of_four(low & (score.lo == threshold)) + count_of_four(high & (score.hi == threshold));
        }
    }
    if more > 0u {
        atomicAdd(&own_above, more);
    }
    if same > 0u {
        atomicAdd(&own_ties, same);
    }
    workgroupBarrier();
    if local.x == 0u && block * WORKGROUP * OCTETS * 8u < params.len {
        above[block] = atomicLoad(&own_above);
        ties[block] = atomicLoad(&own_ties);
    }
}
