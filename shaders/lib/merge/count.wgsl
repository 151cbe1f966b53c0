// What merge steps count, for the report and for refusing bad input.
// Expects lib/dtype.wgsl, lib/merge/tally.wgsl, and the kernel's binding `counts` (zeroed before). Words of one step:
//
//   0 fallback   1 floored   2 dominated   3 raised
//   4 + 4 m .. : bad Fishers of model m and the first one's place, bad weights and the first one's place
//   12 results that the storage type can't hold, and the first one's place
// A place is stored as the complement of the index, so that the first is the maximum and zero means none.
// Where a dispatch makes two steps, the second's words come NEXT words later, and what only the end shows is
// counted there.

var<private> fallback: u32;
var<private> floored: u32;
var<private> dominated: u32;
/// Of each step.
var<private> raised: array<u32, 2>;
/// Bad Fishers and bad weights of each model, and bad results: how many, and the first one's place.
var<private> found: array<u32, 9>;
var<private> places: array<u32, 9>;
const RESULT: u32 = 8u;
/// Whether a workgroup adds its counts up before they are handed over: where it is as many invocations as run in step,
/// a barrier costs more.
override SHARED: bool = true;
var<workgroup> group_counts: array<atomic<u32>, 5>;
/// Whether some model of the merge has a floor.
override FLOORED: bool = true;
/// Steps of a dispatch, two models each.
override STEPS: u32 = 1u;
const NEXT: u32 = 64u;

fn is_bad(fisher: vec4<u32>) -> vec4<bool> {
    return (fisher > vec4<u32>(0x7f7fffffu)) & (fisher != vec4<u32>(0x80000000u));
}

/// A Fisher as it is used: minus zero is zero, and so is what is not a Fisher (the step is refused or the
/// count reported).
fn checked(fisher: vec4<u32>) -> vec4<u32> {
    return select(fisher, vec4<u32>(0u), fisher > vec4<u32>(0x7f7fffffu));
}

/// Kept in registers until the end: what an invocation finds wrong is seldom anything.
fn note(kind: u32, quad: u32, flags: vec4<bool>) {
    let lane = select(select(select(3u, 2u, flags.z), 1u, flags.y), 0u, flags.x);
    found[kind] += count_of_four(flags);
    places[kind] = max(places[kind], select(0u, ~(4u * quad + lane), any(flags)));
}

fn count_model(model: u32, quad: u32, theta: vec4<u32>, fisher: vec4<u32>, least: u32, inside: vec4<bool>) {
    note(2u * model, quad, is_bad(fisher) & inside);
    note(2u * model + 1u, quad, not_finite(theta) & inside);
    if FLOORED {
        raised[model / 2u] += count_of_four((checked(fisher) < vec4<u32>(least)) & inside);
    }
}

fn count_outcome(t: Tally, inside: vec4<bool>) {
    let none = t.denominator <= vec4<f32>(0.0);
    fallback += count_of_four(none & inside);
    if FLOORED {
        floored += count_of_four((t.unfloored == vec4<u32>(0u)) & inside);
    }
    dominated += count_of_four((t.largest > 0.99 * t.denominator) & inside);
}

fn add_found(kind: u32, word: u32) {
    if found[kind] > 0u {
        atomicAdd(&counts[word], found[kind]);
        atomicMax(&counts[word + 1u], places[kind]);
    }
}

fn add_found_of(step: u32) {
    add_found(4u * step, NEXT * step + 4u);
    add_found(4u * step + 1u, NEXT * step + 6u);
    add_found(4u * step + 2u, NEXT * step + 8u);
    add_found(4u * step + 3u, NEXT * step + 10u);
}

/// The words of what is added up by a workgroup.
fn word_of_own(slot: u32) -> u32 {
    return select(NEXT * (STEPS - 1u) + slot, 3u, slot == 4u);
}

fn add_own(slot: u32, count: u32) {
    if count > 0u {
        if SHARED {
            atomicAdd(&group_counts[slot], count);
        } else {
            atomicAdd(&counts[word_of_own(slot)], count);
        }
    }
}

/// Every invocation of the workgroup calls this once, at the end.
fn add_counts(local: u32) {
    if SHARED {
        if local < 5u {
            atomicStore(&group_counts[local], 0u);
        }
        workgroupBarrier();
    }
    add_found_of(0u);
    if STEPS == 2u {
        add_found_of(1u);
        add_own(4u, raised[0]);
    }
    add_found(RESULT, NEXT * (STEPS - 1u) + 12u);
    add_own(0u, fallback);
    add_own(1u, floored);
    add_own(2u, dominated);
    add_own(3u, raised[STEPS - 1u]);
    if !SHARED {
        return;
    }
    workgroupBarrier();
    if local < 5u {
        let count = atomicLoad(&group_counts[local]);
        if count > 0u {
            atomicAdd(&counts[word_of_own(local)], count);
        }
    }
}
