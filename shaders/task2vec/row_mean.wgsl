// The sum of each part of the rows of a [rows, width] block, in units of the power of two of its maximum.
// LANES invocations (a power of two) share a part of at most LANES · ITEMS elements; a workgroup has WORKGROUP / LANES
// parts, and no barrier where LANES is 1. Expects lib/dtype.wgsl, lib/wide.wgsl, lib/run.wgsl, lib/record.wgsl,
// lib/join.wgsl.

override WORKGROUP: u32 = 256u;
override LANES: u32 = 256u;
override ITEMS: u32 = 32u;
override VALUES: u32 = 0u;

struct Params {
    /// The block's first element.
    start: u32,
    rows: u32,
    width: u32,
    /// Parts of a row.
    parts: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> records: array<f32>;

struct Part {
    /// In units of 2^exponent.
    sum: f32,
    exponent: i32,
    first_bad: u32,
}

fn join(a: Part, b: Part) -> Part {
    let exponent = max(a.exponent, b.exponent);
    let scale = pow2(vec4<i32>(a.exponent - exponent, b.exponent - exponent, 0, 0));
    return Part(a.sum * scale.x + b.sum * scale.y, exponent, min(a.first_bad, b.first_bad));
}

fn load_values(run: Run, octet: u32) -> Octet {
    if VALUES == F32 {
        return inside(run, octet, Octet(values[2u * octet], values[2u * octet + 1u]), 0u);
    }
    return inside(run, octet, widen(values[octet], VALUES), 0u);
}

/// Four elements from `at`, whatever they hold; zeros stand for those outside of the run.
fn four(run: Run, at: u32, bits: vec4<u32>) -> Part {
    let fine = (bits < vec4<u32>(0x7f800000u)) | (bits == vec4<u32>(0x80000000u));
    let apart = wide(select(vec4<u32>(), bits & vec4<u32>(0x7fffffffu), fine));
    let exponent = max(max(apart.e.x, apart.e.y), max(apart.e.z, apart.e.w));
    let scaled = mantissa_at(apart, vec4<i32>(exponent));
    let index = four_indices(at - run.first);
    return Part(
        sum_of_four(scaled),
        exponent,
        first_index(!fine, index),
    );
}

fn largest(octet: Octet) -> vec4<u32> {
    return max(octet.lo, octet.hi);
}

fn sum_of(octet: Octet, unit: f32) -> vec4<f32> {
    return floats(octet.lo) * unit + floats(octet.hi) * unit;
}

/// What a lane has added up. Turns whose values need care are left for later, a bit for each.
struct Running {
    sums: vec4<f32>,
    exponent: i32,
    left: u32,
}

/// Four octets in units of the largest so far.
fn add_turn(before: Running, run: Run, octet: u32, turn: u32) -> Running {
    let a = load_values(run, octet);
    let b = load_values(run, octet + LANES);
    let c = load_values(run, octet + 2u * LANES);
    let d = load_values(run, octet + 3u * LANES);
    let top = most_of_four(max(max(largest(a), largest(b)), max(largest(c), largest(d))));
    let plain = is_plain(top);
    let exponent = max(before.exponent, select(NOTHING, plain_exponent(top), plain));
    let scale = pow2(vec4<i32>(before.exponent - exponent, -exponent, 0, 0));
    let sums = (sum_of(a, scale.y) + sum_of(b, scale.y)) + (sum_of(c, scale.y) + sum_of(d, scale.y));
    let kept = before.sums * scale.x;
    return Running(
        select(kept, kept + sums, plain),
        exponent,
        select(before.left | (1u << turn), before.left, plain),
    );
}

/// A lane's share of a run.
fn share_of(run: Run, lane: u32) -> Part {
    let first = first_octet(run, lane);
    var running = Running(vec4<f32>(), NOTHING, 0u);
    var turn = 0u;
    for (var octet = first; reaches(run, octet); octet += TURN * LANES) {
        running = add_turn(running, run, octet, turn);
        turn += 1u;
    }
    var part = Part(sum_of_four(running.sums), running.exponent, NO_INDEX);
    for (var left = running.left; left != 0u; left &= left - 1u) {
        for (var i = 0u; i < TURN; i++) {
            let octet = first + (firstTrailingBit(left) * TURN + i) * LANES;
            let values = load_values(run, octet);
            part = join(part, join(four(run, 8u * octet, values.lo), four(run, 8u * octet + 4u, values.hi)));
        }
    }
    return part;
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let lane = local.x % LANES;
    let index = share_at(group, groups, local.x);
    let row = index / params.parts;
    let begin = index % params.parts * (LANES * ITEMS);
    let there = row < params.rows;
    var part = Part(0.0, NOTHING, NO_INDEX);
    if there {
        let len = min(params.width - begin, LANES * ITEMS);
        part = share_of(Run(params.start + row * params.width + begin, len), lane);
    }
    let whole = join_lanes(local.x, lane, part);
    if lane == 0u && there {
        records[3u * index] = whole.sum;
        records[3u * index + 1u] = exponent_word(whole.exponent);
        records[3u * index + 2u] = index_word(whole.first_bad);
    }
}
