// The sum of each part of the rows of a [rows, width] block, in units of the power of two of its maximum.
// LANES invocations (a power of two) share a part of at most LANES · ITEMS elements; a workgroup has WORKGROUP / LANES parts.
// Expects lib/dtype.wgsl, lib/element.wgsl and lib/wide.wgsl.

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
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read_write> records: array<f32>;

const NO_BAD: u32 = 0xffffffffu;

struct Part {
    /// In units of 2^exponent.
    sum: f32,
    exponent: i32,
    first_bad: u32,
}

var<workgroup> shared_parts: array<Part, WORKGROUP>;

fn join(a: Part, b: Part) -> Part {
    let exponent = max(a.exponent, b.exponent);
    let scale = pow2(vec4<i32>(a.exponent - exponent, b.exponent - exponent, 0, 0));
    return Part(a.sum * scale.x + b.sum * scale.y, exponent, min(a.first_bad, b.first_bad));
}

fn load(index: u32) -> u32 {
    return bitcast<u32>(element(values[word_of(index, VALUES)], index, VALUES));
}

/// The elements `at`, `at` + LANES, … (four of them) of a part of `len` elements that begins at `start`.
fn four(start: u32, at: vec4<u32>, len: u32) -> Part {
    let inside = at < vec4<u32>(len);
    let index = vec4<u32>(start) + select(vec4<u32>(0u), at, inside);
    let bits = vec4<u32>(load(index.x), load(index.y), load(index.z), load(index.w));
    let fine = (bits < vec4<u32>(0x7f800000u)) | (bits == vec4<u32>(0x80000000u));
    let apart = wide(select(vec4<u32>(0u), bits & vec4<u32>(0x7fffffffu), inside & fine));
    let exponent = max(max(apart.e.x, apart.e.y), max(apart.e.z, apart.e.w));
    let scaled = mantissa_at(apart, vec4<i32>(exponent));
    let bad = select(vec4<u32>(NO_BAD), at, inside & !fine);
    return Part(
        (scaled.x + scaled.y) + (scaled.z + scaled.w),
        exponent,
        min(min(bad.x, bad.y), min(bad.z, bad.w)),
    );
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let lane = local.x % LANES;
    let index = (group.y * groups.x + group.x) * (WORKGROUP / LANES) + local.x / LANES;
    let row = index / params.parts;
    let begin = index % params.parts * (LANES * ITEMS);
    let there = row < params.rows;
    var part = Part(0.0, NOTHING, NO_BAD);
    if there {
        let start = params.start + row * params.width + begin;
        let len = min(params.width - begin, LANES * ITEMS);
        for (var i = 0u; i < ITEMS; i += 4u) {
            let at = vec4<u32>(lane + i * LANES) + vec4<u32>(0u, 1u, 2u, 3u) * LANES;
            if at.x < len {
                part = join(part, four(start, at, len));
            }
        }
    }
    shared_parts[local.x] = part;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            shared_parts[local.x] = join(shared_parts[local.x], shared_parts[local.x + half]);
        }
    }
    if lane == 0u && there {
        let whole = shared_parts[local.x];
        records[3u * index] = whole.sum;
        records[3u * index + 1u] = select(f32(whole.exponent), 0.0, whole.exponent == NOTHING);
        records[3u * index + 2u] = select(f32(whole.first_bad), -1.0, whole.first_bad == NO_BAD);
    }
}
