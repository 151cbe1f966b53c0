// What a merge step counts, for the report and for refusing bad input. Expects lib/dtype.wgsl, lib/tally.wgsl, and the
// kernel's `counts` (zeroed before) and `params.len`.
//
//   0 fallback   1 floored   2 dominated   3 raised
//   4 + 4 m .. : bad Fishers of model m and the first one's place, bad weights and the first one's place
//   12 results that the storage type can't hold, and the first one's place
// A place is stored as the complement of the index, so that the first is the maximum and zero means none.

const ONES: Octet = Octet(vec4<u32>(0x3f800000u), vec4<u32>(0x3f800000u));

var<private> fallback: u32;
var<private> floored: u32;
var<private> dominated: u32;
var<private> raised: u32;
/// Slots 4 to 13 in pairs: how many, and the first one's place.
var<private> found: array<u32, 5>;
var<private> places: array<u32, 5>;
/// Whether a workgroup adds its counts up before they are handed over: where it is as many invocations as run in step, a barrier costs more.
override SHARED: bool = true;
var<workgroup> group_counts: array<atomic<u32>, 4>;

fn is_bad(fisher: vec4<u32>) -> vec4<bool> {
    return (fisher > vec4<u32>(0x7f7fffffu)) & (fisher != vec4<u32>(0x80000000u));
}

/// A Fisher as it is used: minus zero is zero, and so is what is not a Fisher (the step is refused or the count reported).
fn checked(fisher: vec4<u32>) -> vec4<u32> {
    return select(fisher, vec4<u32>(0u), fisher > vec4<u32>(0x7f7fffffu));
}

fn total(flags: vec4<bool>) -> u32 {
    let ones = vec4<u32>(flags);
    return ones.x + ones.y + ones.z + ones.w;
}

/// Kept in registers until the end: what an invocation finds wrong is seldom anything.
fn note(slot: u32, quad: u32, flags: vec4<bool>) {
    let kind = slot / 2u - 2u;
    let lane = select(select(select(3u, 2u, flags.z), 1u, flags.y), 0u, flags.x);
    found[kind] += total(flags);
    places[kind] = max(places[kind], select(0u, ~(4u * quad + lane), any(flags)));
}

fn add_found(kind: u32) {
    if found[kind] > 0u {
        atomicAdd(&counts[2u * kind + 4u], found[kind]);
        atomicMax(&counts[2u * kind + 5u], places[kind]);
    }
}

fn add_own(slot: u32, count: u32) {
    if SHARED {
        if count > 0u {
            atomicAdd(&group_counts[slot], count);
        }
    } else if count > 0u {
        atomicAdd(&counts[slot], count);
    }
}

fn count_model(model: u32, quad: u32, theta: vec4<u32>, fisher: vec4<u32>, least: u32, inside: vec4<bool>) {
    note(4u + 4u * model, quad, is_bad(fisher) & inside);
    note(6u + 4u * model, quad, not_finite(theta) & inside);
    raised += total((checked(fisher) < vec4<u32>(least)) & inside);
}

fn count_outcome(t: Tally, inside: vec4<bool>) {
    let none = t.denominator <= vec4<f32>(0.0);
    fallback += total(none & inside);
    floored += total((t.unfloored == vec4<u32>(0u)) & inside);
    dominated += total((t.largest > 0.99 * t.denominator) & !none & inside);
}

/// Every invocation of the workgroup calls this once, at the end.
fn add_counts(local: u32) {
    add_found(0u);
    add_found(1u);
    add_found(2u);
    add_found(3u);
    add_found(4u);
    add_own(0u, fallback);
    add_own(1u, floored);
    add_own(2u, dominated);
    add_own(3u, raised);
    if !SHARED {
        return;
    }
    workgroupBarrier();
    if local < 4u {
        let count = atomicLoad(&group_counts[local]);
        if count > 0u {
            atomicAdd(&counts[local], count);
        }
    }
}
