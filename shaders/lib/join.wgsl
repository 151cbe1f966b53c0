// LANES invocations (a power of two) have a share of a sum, WORKGROUP / LANES shares a workgroup; the lanes' parts are
// joined to one, without a barrier where LANES is 1. Expects no part, but a kernel with Part, join, WORKGROUP
// and LANES.

/// The share of an invocation, of which it is lane `invocation % LANES`.
fn share_at(group: vec3<u32>, groups: vec3<u32>, invocation: u32) -> u32 {
    return (group.y * groups.x + group.x) * (WORKGROUP / LANES) + invocation / LANES;
}

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
