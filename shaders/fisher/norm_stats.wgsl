// stats[g] <- (mean, 1 / √(variance + eps)) of the g-th run of `len` consecutive elements; the mean is 0 where not
// CENTERED. LANES invocations (a power of two) share a run; a workgroup has WORKGROUP / LANES runs, and no barrier
// where LANES is 1.
// Expects lib/dtype.wgsl, lib/run.wgsl, lib/join.wgsl.

override WORKGROUP: u32 = 256u;
override LANES: u32 = 256u;
override INPUT: u32 = 0u;
override CENTERED: bool = true;

struct Params {
    runs: u32,
    len: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> input: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> stats: array<f32>;

/// Statistics of some elements: their sum, and the squares of their distances from their own mean (from 0 where not
/// CENTERED).
struct Part {
    count: u32,
    sum: f32,
    spread: f32,
}

struct Eight {
    lo: vec4<f32>,
    hi: vec4<f32>,
}

fn load_input(run: Run, octet: u32) -> Eight {
    var octet_of_run: Octet;
    if INPUT == F32 {
        octet_of_run = inside(run, octet, Octet(input[2u * octet], input[2u * octet + 1u]), 0u);
    } else {
        octet_of_run = inside(run, octet, widen(input[octet], INPUT), 0u);
    }
    return Eight(floats(octet_of_run.lo), floats(octet_of_run.hi));
}

/// The squares of an octet's distances from `mean`, in fours.
fn squares(run: Run, octet: u32, values: Eight, mean: f32) -> vec4<f32> {
    let lo = select(vec4<f32>(), values.lo - mean, belongs(run, 8u * octet));
    let hi = select(vec4<f32>(), values.hi - mean, belongs(run, 8u * octet + 4u));
    return lo * lo + hi * hi;
}

/// One turn: four octets, LANES apart, each loaded once.
fn part_of(run: Run, octet: u32) -> Part {
    let a = load_input(run, octet);
    let b = load_input(run, octet + LANES);
    let c = load_input(run, octet + 2u * LANES);
    let d = load_input(run, octet + 3u * LANES);
    let count = (members(run, octet) + members(run, octet + LANES))
        + (members(run, octet + 2u * LANES) + members(run, octet + 3u * LANES));
    let sum = sum_of_four(((a.lo + a.hi) + (b.lo + b.hi)) + ((c.lo + c.hi) + (d.lo + d.hi)));
    let mean = select(0.0, sum / f32(max(count, 1u)), CENTERED);
    let spread = sum_of_four(
        (squares(run, octet, a, mean) + squares(run, octet + LANES, b, mean))
        + (squares(run, octet + 2u * LANES, c, mean) + squares(run, octet + 3u * LANES, d, mean)),
    );
    return Part(count, sum, spread);
}

/// Chan, Golub & LeVeque (1979): distances from two means become those from the mean of both.
fn join(p: Part, q: Part) -> Part {
    let count = p.count + q.count;
    var between = 0.0;
    if CENTERED {
        let apart = p.sum / f32(max(p.count, 1u)) - q.sum / f32(max(q.count, 1u));
        between = apart * apart * (f32(p.count) * f32(q.count) / f32(max(count, 1u)));
    }
    return Part(count, p.sum + q.sum, p.spread + q.spread + between);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let lane = local.x % LANES;
    let index = share_at(group, groups, local.x);
    var part = Part(0u, 0.0, 0.0);
    if index < params.runs {
        let run = Run(index * params.len, params.len);
        for (var octet = first_octet(run, lane); reaches(run, octet); octet += TURN * LANES) {
            part = join(part, part_of(run, octet));
        }
    }
    let whole = join_lanes(local.x, lane, part);
    if lane == 0u && index < params.runs {
        stats[2u * index] = select(0.0, whole.sum / f32(params.len), CENTERED);
        stats[2u * index + 1u] = inverseSqrt(whole.spread / f32(params.len) + params.eps);
    }
}
