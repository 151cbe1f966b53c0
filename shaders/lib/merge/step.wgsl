// How a merge step takes a parameter from the step before it, and what it leaves of it, four parameters at a time.
// Expects lib/dtype.wgsl, lib/merge/tally.wgsl, lib/merge/count.wgsl, and a kernel with the overrides MERGED and LAST
// and the bindings `state` and `merged`.

/// What the step before left.
fn load_state(quad: u32) -> Tally {
    return unpack(state[4u * quad], state[4u * quad + 1u], state[4u * quad + 2u], state[4u * quad + 3u]);
}

fn store_state(quad: u32, t: Tally) {
    state[4u * quad] = pack(t, 0u);
    state[4u * quad + 1u] = pack(t, 1u);
    state[4u * quad + 2u] = pack(t, 2u);
    state[4u * quad + 3u] = pack(t, 3u);
}

fn store_merged(octet: u32, value: Octet) {
    if MERGED == F32 {
        merged[2u * octet] = value.lo;
        merged[2u * octet + 1u] = value.hi;
    } else {
        merged[octet] = narrow(value, MERGED);
    }
}

/// Counts four parameters at the end, else keeps them for the next step; and what they are by now.
fn finish(quad: u32, t: Tally, origin: vec4<u32>, inside: vec4<bool>) -> vec4<u32> {
    if LAST {
        count_outcome(t, inside);
    } else {
        store_state(quad, t);
    }
    // Where the models agree the reference comes back bit for bit, signed zeros included.
    let value = select(patterns(floats(origin) + t.mean), origin, t.mean == vec4<f32>(0.0));
    if LAST {
        note(RESULT, quad, not_finite(stored(value, MERGED)) & inside);
    }
    return value;
}
