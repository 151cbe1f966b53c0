// The parts of a sum that lanes of a workgroup have, joined to one. Expects a kernel with Part, join, WORKGROUP and LANES, a power of two; there
// is no barrier where LANES is 1.

var<workgroup> parts: array<Part, WORKGROUP>;

/// The lanes' parts joined, in lane 0.
fn join_lanes(invocation: u32, lane: u32, mine: Part) -> Part {
    if LANES == 1u {
        return mine;
    }
    parts[invocation] = mine;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            parts[invocation] = join(parts[invocation], parts[invocation + half]);
        }
    }
    return parts[invocation];
}
