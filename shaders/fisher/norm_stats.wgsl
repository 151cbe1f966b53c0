// stats[g] <- (mean, 1 / √(variance + eps)) of the g-th run of `len` consecutive elements; the mean is 0 where not CENTERED.
// One workgroup a run, two passes over it. Expects lib/dtype.wgsl, lib/element.wgsl.

override WORKGROUP: u32 = 256u;
override INPUT: u32 = 0u;
override CENTERED: bool = true;

struct Params {
    runs: u32,
    len: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<u32>;
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;

var<workgroup> partial: array<f32, WORKGROUP>;

fn value(index: u32) -> f32 {
    return element(input[word_of(index, INPUT)], index, INPUT);
}

/// The sum of every invocation's `mine`, the same in all of them.
fn sum_of_workgroup(mine: f32, lane: u32) -> f32 {
    partial[lane] = mine;
    workgroupBarrier();
    for (var step = WORKGROUP / 2u; step > 0u; step >>= 1u) {
        if lane < step {
            partial[lane] += partial[lane + step];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let run = group.y * groups.x + group.x;
    if run >= params.runs {
        return;
    }
    let first = run * params.len;
    var mean = 0.0;
    if CENTERED {
        var sum = 0.0;
        for (var i = local.x; i < params.len; i += WORKGROUP) {
            sum += value(first + i);
        }
        mean = sum_of_workgroup(sum, local.x) / f32(params.len);
    }
    var squares = 0.0;
    for (var i = local.x; i < params.len; i += WORKGROUP) {
        let distance = value(first + i) - mean;
        squares += distance * distance;
    }
    let variance = sum_of_workgroup(squares, local.x) / f32(params.len);
    if local.x == 0u {
        stats[2u * run] = mean;
        stats[2u * run + 1u] = 1.0 / sqrt(variance + params.eps);
    }
}
