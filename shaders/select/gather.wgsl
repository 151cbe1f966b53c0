// indices, values: the kept elements in the order of their indices. One workgroup a block of 4096 elements: an
// invocation has sixteen of them, or, with FEW, which is eight invocations, 512, and a block of which nothing is kept
// is not read.
// Expects lib/dtype.wgsl, lib/select/score.wgsl, lib/select/scan.wgsl, lib/select/keep.wgsl.

override WORKGROUP: u32 = 256u;
override FEW: bool = false;
override SCORE: u32 = 0u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;

struct Params {
    len: u32,
    room: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read> above: array<u32>;
@group(0) @binding(5) var<storage, read> ties: array<u32>;
@group(0) @binding(6) var<storage, read_write> indices: array<u32>;
@group(0) @binding(7) var<storage, read_write> values: array<u32>;

/// How many scores are above the threshold and, in the upper half of the word, equal to it.
fn counted(score: vec4<u32>, index: u32) -> u32 {
    let inside = four_indices(index) < vec4<u32>(params.len);
    let threshold = vec4<u32>(state[0]);
    let above_it = select(vec4<u32>(), vec4<u32>(1u), (score > threshold) & inside);
    let counts = above_it | select(vec4<u32>(), vec4<u32>(0x10000u), (score == threshold) & inside);
    return (counts.x + counts.y) + (counts.z + counts.w);
}

/// Where the next element goes: what lies before it above the threshold, and equal to it.
struct Place {
    above: u32,
    ties: u32,
}

fn put(place: ptr<function, Place>, score: u32, index: u32) {
    let over = score > state[0];
    let tie = score == state[0];
    let at = (*place).above + min((*place).ties, state[1]);
    if (over || (tie && (*place).ties < state[1])) && index < params.len && at < params.room {
        indices[at] = index;
        values[at] = score;
    }
    (*place).above += u32(over);
    (*place).ties += u32(tie);
}

fn put_four(place: ptr<function, Place>, score: vec4<u32>, index: u32) {
    put(place, score.x, index);
    put(place, score.y, index + 1u);
    put(place, score.z, index + 2u);
    put(place, score.w, index + 3u);
}

/// How many are kept before a block.
fn kept_before(block: u32) -> u32 {
    return above[block] + min(ties[block], state[1]);
}

/// Every invocation counts its 64 octets and marks those that it will have to look at again, once it knows where its
/// own begin.
fn gather_few(block: u32, lane: u32) {
    let some = 4096u * block < params.len && kept_before(block + 1u) > kept_before(block);
    let first = 512u * block + 64u * lane;
    var marks = vec2<u32>();
    var found = 0u;
    for (var i = 0u; i < select(0u, 64u, some); i++) {
        if 8u * (first + i) < params.len {
            let score = scores(first + i);
            let own = counted(score.lo, 8u * (first + i)) + counted(score.hi, 8u * (first + i) + 4u);
            found += own;
            let mark = select(0u, 1u << (i % 32u), own > 0u);
            marks |= select(vec2<u32>(0u, mark), vec2<u32>(mark, 0u), i < 32u);
        }
    }
    running[lane] = found;
    workgroupBarrier();
    var place = Place(above[block], ties[block]);
    for (var i = 0u; i < select(0u, lane, some); i++) {
        place.above += running[i] & 0xffffu;
        place.ties += running[i] >> 16u;
    }
    while (marks.x | marks.y) != 0u {
        let low = marks.x != 0u;
        let i = select(firstTrailingBit(marks.y) + 32u, firstTrailingBit(marks.x), low);
        marks = select(vec2<u32>(0u, marks.y & (marks.y - 1u)), vec2<u32>(marks.x & (marks.x - 1u), marks.y), low);
        let score = scores(first + i);
        put_four(&place, score.lo, 8u * (first + i));
        put_four(&place, score.hi, 8u * (first + i) + 4u);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let block = group.y * groups.x + group.x;
    if FEW {
        gather_few(block, local.x);
        return;
    }
    var all = sixteen(block, local.x);
    var kept = kept_bits(all, block, local.x);
    var at = sum_before(local.x, countOneBits(kept));
    let first = block * 4096u + 16u * local.x;
    if first < params.len {
        at += above[block] + min(ties[block], state[1]);
        for (; kept != 0u && at < params.room; at++) {
            let i = firstTrailingBit(kept);
            indices[at] = first + i;
            values[at] = score_at(&all, i);
            kept &= kept - 1u;
        }
    }
}
