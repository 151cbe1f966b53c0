// gradient[r, n, c] <- p[n, c] - [c is the row's label], with the row's weight and squared norm.
// One workgroup a row (r, n). Expects lib/dtype.wgsl, lib/logits.wgsl.

override WORKGROUP: u32 = 64u;
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
@group(0) @binding(1) var<storage, read> logits: array<u32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> gradient: array<u32>;
@group(0) @binding(4) var<storage, read_write> weight: array<u32>;
@group(0) @binding(5) var<storage, read_write> norm_sq: array<u32>;
@group(0) @binding(6) var<storage, read_write> fault: array<atomic<u32>>;

const NAN: u32 = 0x7fc00000u;

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
    let row = group.y * groups.x + group.x;
    if row >= params.rounds * params.samples {
        return;
    }
    let lane = local.x;
    let sample = row % params.samples;
    let label = label_of(row / params.samples, sample);
    let first = sample * params.classes;

    var mine = vec3<i32>(IMPOSSIBLE, IMPOSSIBLE, 0);
    for (var i = lane; i < params.classes; i += WORKGROUP) {
        let bits = logit(first + i);
        let key = select(key_of(bits), IMPOSSIBLE, is_bad(bits));
        mine = max(mine, vec3<i32>(key, select(key, IMPOSSIBLE, i == label.class_index), i32(is_bad(bits))));
    }
    largest[lane] = mine;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            largest[lane] = max(largest[lane], largest[lane + half]);
        }
    }
    workgroupBarrier();
    let top = value_of(largest[0].x);
    let others_top = value_of(largest[0].y);
    let alone = largest[0].y == IMPOSSIBLE;
    let bad = largest[0].z > 0 || largest[0].x == IMPOSSIBLE;

    var sum = vec2<f32>();
    for (var i = lane; i < params.classes; i += WORKGROUP) {
        if i != label.class_index && !alone {
            let e = exp_from(logit(first + i), others_top);
            sum += vec2<f32>(e, e * e);
        }
    }
    sums[lane] = sum;
    for (var half = WORKGROUP / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            sums[lane] += sums[lane + half];
        }
    }
    workgroupBarrier();

    let outside = label.class_index >= params.classes && !label.skipped;
    if lane == 0u && !label.skipped && (bad || outside) {
        atomicMax(&fault[select(1u, 0u, bad)], ~sample);
    }
    let wrong = (bad || outside) && !label.skipped;
    // In units of the largest of the other classes, so that the row keeps its digits where the label's probability rounds to one.
    let others = sums[0].x;
    let norm = sqrt(sums[0].y + others * others);
    var share = 0.0;
    var own = 0.0;
    if !bad && !outside && !label.skipped {
        let at_label = exp_from(logit(first + label.class_index), top);
        let at_others = select(exp_from(bitcast<u32>(others_top), top), 0.0, alone);
        let all = at_others * others + at_label;
        share = at_others / all;
        own = at_label / all;
    }
    let none = label.skipped || alone;
    let scale = select(select(share, 1.0 / norm, UNIT), 0.0, none);
    for (var i = lane; i < params.classes; i += WORKGROUP) {
        var value = 0.0;
        if !none {
            if i == label.class_index {
                value = -(others * scale);
            } else {
                value = exp_from(logit(first + i), others_top) * scale;
            }
        }
        gradient[row * params.classes + i] = select(bitcast<u32>(value), NAN, wrong);
    }
    if lane == 0u {
        let length = select(share * norm, 0.0, none);
        let left_out = label.skipped || (UNIT && alone);
        let counted = select(select(1.0, own, EACH) * params.weight, 0.0, left_out);
        weight[row] = select(bitcast<u32>(counted), NAN, wrong);
        norm_sq[row] = select(bitcast<u32>(length * length), NAN, wrong);
    }
}
