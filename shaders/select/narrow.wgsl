// From the top, the bin that holds score number state[1] of the window: state[0] becomes its lower end and
// state[1] the number within it. One workgroup. Expects no part.

override WORKGROUP: u32 = 256u;

struct Params {
    shift: u32,
    bins: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> counts: array<u32>;
@group(0) @binding(2) var<storage, read_write> state: array<u32>;

var<workgroup> sums: array<u32, WORKGROUP>;

fn in_bin(bin: u32) -> u32 {
    if bin >= params.bins {
        return 0u;
    }
    return counts[bin + 1u];
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(local_invocation_id) local: vec3<u32>) {
    let strip = (params.bins + WORKGROUP - 1u) / WORKGROUP;
    var sum = 0u;
    for (var i = 0u; i < strip; i++) {
        sum += in_bin(local.x * strip + i);
    }
    sums[local.x] = sum;
    workgroupBarrier();
    if local.x == 0u {
        var wanted = state[1];
        var at = WORKGROUP - 1u;
        while at > 0u && sums[at] < wanted {
            wanted -= sums[at];
            at -= 1u;
        }
        var bin = at * strip + strip - 1u;
        while bin > at * strip && in_bin(bin) < wanted {
            wanted -= in_bin(bin);
            bin -= 1u;
        }
        state[0] += bin << params.shift;
        state[1] = wanted;
    }
}
