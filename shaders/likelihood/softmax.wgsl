// gradient[r, n, c] <- p[n, c] - [c is the row's label], with the row's weight and squared norm.
// LANES invocations a row (r, n): a workgroup, or one and no barrier. Expects lib/dtype.wgsl,
// lib/likelihood/logits.wgsl, lib/run.wgsl.

override WORKGROUP: u32 = 64u;
override LANES: u32 = 64u;
override LOGITS: u32 = 0u;
override EACH: bool = false;
override MASKED: bool = true;
override UNIT: bool = false;

struct Params {
    samples: u32,
    classes: u32,
    rounds: u32,
    first_class: u32,
    ignored: u32,
    weight: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<u32>;
@group(0) @binding(4) var<storage, read_write> weight: array<u32>;
@group(0) @binding(5) var<storage, read_write> norm_sq: array<u32>;
@group(0) @binding(6) var<storage, read_write> fault: array<atomic<u32>>;

const NAN: u32 = 0x7fc00000u;
const NEVER: u32 = 0xff800000u;

/// Of each lane: the largest key, the largest of the classes that are not the label, and whether a logit was bad.
var<workgroup> largest: array<vec3<i32>, WORKGROUP>;
/// Of each lane: Σ e and Σ e² over the classes that are not the label.
var<workgroup> sums: array<vec2<f32>, WORKGROUP>;

/// exp(logit - top), zero for a class that cannot be.
fn exp_from(bits: u32, top: f32) -> f32 {
    if bits == 0xff800000u {
        return 0.0;
    }
    return exp(max(bitcast<f32>(bits) - top, -104.0));
}

/// The same of four, zero where `counts` is not.
fn exps_from(bits: vec4<u32>, top: f32, counts: vec4<bool>) -> vec4<f32> {
    let e = exp(max(floats(bits) - top, vec4<f32>(-104.0)));
    return select(vec4<f32>(), e, counts & (bits != vec4<u32>(NEVER)));
}

/// The places in the row of the four elements from `at`, which are those of no class outside of it.
fn classes_at(run: Run, at: u32) -> vec4<u32> {
    return four_indices(at - run.first);
}

/// The largest key, the largest of the classes that are not the label, and whether a logit is bad: of a lane's share of
/// a row.
fn largest_of(run: Run, lane: u32, label: u32) -> vec3<i32> {
    var keys = vec4<i32>(IMPOSSIBLE);
    var others = vec4<i32>(IMPOSSIBLE);
    var bad = vec4<bool>();
    for (var octet = first_octet(run, lane); reaches(run, octet); octet += LANES) {
        let z = inside(run, octet, logits_of(octet), NEVER);
        let lo = select(keys_of(z.lo), vec4<i32>(IMPOSSIBLE), are_bad(z.lo));
        let hi = select(keys_of(z.hi), vec4<i32>(IMPOSSIBLE), are_bad(z.hi));
        keys = max(keys, max(lo, hi));
        let lo_others = select(lo, vec4<i32>(IMPOSSIBLE), classes_at(run, 8u * octet) == vec4<u32>(label));
        let hi_others = select(hi, vec4<i32>(IMPOSSIBLE), classes_at(run, 8u * octet + 4u) == vec4<u32>(label));
        others = max(others, max(lo_others, hi_others));
        bad |= are_bad(z.lo) | are_bad(z.hi);
    }
    return vec3<i32>(
        max(max(keys.x, keys.y), max(keys.z, keys.w)),
        max(max(others.x, others.y), max(others.z, others.w)),
        i32(any(bad)),
    );
}

/// Σ e and Σ e² over the classes of a lane's share that are not the label.
fn sums_of(run: Run, lane: u32, label: u32, top: f32) -> vec2<f32> {
    var plain = vec4<f32>();
    var squares = vec4<f32>();
    for (var octet = first_octet(run, lane); reaches(run, octet); octet += LANES) {
        let z = inside(run, octet, logits_of(octet), NEVER);
        let lo = exps_from(z.lo, top, classes_at(run, 8u * octet) != vec4<u32>(label));
        let hi = exps_from(z.hi, top, classes_at(run, 8u * octet + 4u) != vec4<u32>(label));
        plain += lo + hi;
        squares += lo * lo + hi * hi;
    }
    return vec2<f32>(sum_of_four(plain), sum_of_four(squares));
}

/// The lanes' largest, in all of them.
fn largest_of_row(lane: u32, mine: vec3<i32>) -> vec3<i32> {
    if LANES == 1u {
        return mine;
    }
    largest[lane] = mine;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
    }
    workgroupBarrier();
    return largest[0];
}

/// The lanes' sums, in all of them.
fn sums_of_row(lane: u32, mine: vec2<f32>) -> vec2<f32> {
    if LANES == 1u {
        return mine;
    }
    sums[lane] = mine;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();
    return sums[0];
}

/// What becomes of a row's classes: `scale` times their e, at the label minus that of all others, zero or NaN.
struct Gradient {
    top: f32,
    scale: f32,
    at_label: f32,
    none: bool,
    wrong: bool,
}

fn gradients_of(g: Gradient, bits: vec4<u32>, is_label: vec4<bool>) -> vec4<u32> {
    let e = exps_from(bits, g.top, !is_label) * g.scale;
    let value = select(select(e, vec4<f32>(g.at_label), is_label), vec4<f32>(), vec4<bool>(g.none));
    return select(patterns(value), vec4<u32>(NAN), vec4<bool>(g.wrong));
}

/// Four gradients to where their classes are in the row that begins at `first`.
fn store_four(first: u32, at: vec4<u32>, value: vec4<u32>) {
    if at.x < params.classes {
        gradient[first + at.x] = value.x;
    }
    if at.y < params.classes {
        gradient[first + at.y] = value.y;
    }
    if at.z < params.classes {
        gradient[first + at.z] = value.z;
    }
    if at.w < params.classes {
        gradient[first + at.w] = value.w;
    }
}

/// Neighbouring lanes write neighbouring classes; a lane alone writes octets.
fn store_row(row: u32, run: Run, lane: u32, label: u32, g: Gradient) {
    let first = row * params.classes;
    if LANES == 1u {
        for (var octet = first_octet(run, lane); reaches(run, octet); octet += 1u) {
            let z = logits_of(octet);
            let lo = classes_at(run, 8u * octet);
            let hi = classes_at(run, 8u * octet + 4u);
            store_four(first, lo, gradients_of(g, z.lo, lo == vec4<u32>(label)));
            store_four(first, hi, gradients_of(g, z.hi, hi == vec4<u32>(label)));
        }
        return;
    }
    for (var i = lane; i < params.classes; i += LANES) {
        let value = gradients_of(g, vec4<u32>(logit(run.first + i)), vec4<bool>(i == label));
        gradient[first + i] = value.x;
    }
}

/// The row's label and whether the row is left out.
struct Label {
    class_index: u32,
    skipped: bool,
}

fn label_of(round: u32, sample: u32) -> Label {
    if EACH {
        return Label(params.first_class + round, MASKED && labels[select(0u, sample, MASKED)] == params.ignored);
    }
    let given = labels[round * params.samples + sample];
    return Label(given, given == params.ignored);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    // Who has no row goes through another's, and stores nothing: every invocation reaches every barrier.
    let place = (group.y * groups.x + group.x) * (WORKGROUP / LANES) + local.x / LANES;
    let there = place < params.rounds * params.samples;
    let row = select(0u, place, there);
    let lane = local.x % LANES;
    let sample = row % params.samples;
    let label = label_of(row / params.samples, sample);
    let run = Run(sample * params.classes, params.classes);

    let found = largest_of_row(lane, largest_of(run, lane, label.class_index));
    let top = value_of(found.x);
    let others_top = value_of(found.y);
    let alone = found.y == IMPOSSIBLE;
    let bad = found.z > 0 || found.x == IMPOSSIBLE;
    let sum = select(
        sums_of_row(lane, sums_of(run, lane, label.class_index, others_top)), vec2<f32>(), vec2<bool>(alone),
    );

    let outside = label.class_index >= params.classes && !label.skipped;
    if there && lane == 0u && !label.skipped && (bad || outside) {
        atomicMax(&fault[select(1u, 0u, bad)], ~sample);
    }
    let wrong = (bad || outside) && !label.skipped;
    // In units of the largest of the other classes, so that the row keeps its digits where the label's probability
    // rounds to one.
    let others = sum.x;
    let norm = sqrt(sum.y + others * others);
    var share = 0.0;
    var own = 0.0;
    if !bad && !outside && !label.skipped {
        let at_label = exp_from(logit(run.first + label.class_index), top);
        let at_others = select(exp_from(bitcast<u32>(others_top), top), 0.0, alone);
        let all = at_others * others + at_label;
        share = at_others / all;
        own = at_label / all;
    }
    let none = label.skipped || alone;
    let scale = select(select(share, 1.0 / norm, UNIT), 0.0, none);
    if there {
        store_row(row, run, lane, label.class_index, Gradient(others_top, scale, -(others * scale), none, wrong));
    }
    if there && lane == 0u {
        let length = select(share * norm, 0.0, none);
        let left_out = label.skipped || (UNIT && alone);
        let counted = select(select(1.0, own, EACH) * params.weight, 0.0, left_out);
        weight[row] = select(bitcast<u32>(counted), NAN, wrong);
        norm_sq[row] = select(bitcast<u32>(length * length), NAN, wrong);
    }
}
