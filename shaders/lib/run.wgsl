// A run of consecutive elements that begins and ends anywhere, read by whole octets: elements outside of it count as
// nothing. Its octets are shared by lanes that lie beside each other; a lane takes four of them a turn. Expects
// lib/dtype.wgsl.

/// Octets of a turn.
const TURN: u32 = 4u;

struct Run {
    /// The first element, and the number of elements.
    first: u32,
    len: u32,
}

fn first_octet(run: Run, lane: u32) -> u32 {
    return run.first / 8u + lane;
}

/// Whether an octet begins before the run's end.
fn reaches(run: Run, octet: u32) -> bool {
    return 8u * octet < run.first + run.len;
}

/// Which of the four elements from `at` belong to the run.
fn belongs(run: Run, at: u32) -> vec4<bool> {
    return four_indices(at - run.first) < vec4<u32>(run.len);
}

/// How many elements of an octet belong to the run.
fn members(run: Run, octet: u32) -> u32 {
    let end = run.first + run.len;
    return min(end, 8u * octet + 8u) - min(end, max(run.first, 8u * octet));
}

/// An octet's elements, `other` where they do not belong to the run.
fn inside(run: Run, octet: u32, values: Octet, other: u32) -> Octet {
    return Octet(
        select(vec4<u32>(other), values.lo, belongs(run, 8u * octet)),
        select(vec4<u32>(other), values.hi, belongs(run, 8u * octet + 4u)),
    );
}
