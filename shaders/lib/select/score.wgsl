// Scores as integers that order as they do: the bits of a non-negative f32, −0 counted as 0.
// Expects lib/dtype.wgsl, the bindings `theta` and `fisher`, and the overrides SCORE, THETA and FISHER.

const FISH: u32 = 0u;
const PRUNE: u32 = 1u;

/// What stands for a score that cannot be ordered: above every other.
const BAD: u32 = 0xffffffffu;

fn load_theta(octet: u32) -> Octet {
    if THETA == F32 {
        return Octet(theta[2u * octet], theta[2u * octet + 1u]);
    }
    return widen(theta[octet], THETA);
}

fn load_fisher(octet: u32) -> Octet {
    if FISHER == F32 {
        return Octet(fisher[2u * octet], fisher[2u * octet + 1u]);
    }
    return widen(fisher[octet], FISHER);
}

/// ((0.5 · θ) · θ) · F, or F alone.
fn raw_scores(t: vec4<u32>, f: vec4<u32>) -> vec4<u32> {
    if SCORE == FISH {
        return f;
    }
    return patterns(((0.5 * floats(t)) * floats(t)) * floats(f));
}

fn ordered(t: vec4<u32>, f: vec4<u32>) -> vec4<u32> {
    let score = raw_scores(t, f);
    let negative = f > vec4<u32>(0x80000000u);
    let nan = (score & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x7f800000u);
    return select(score & vec4<u32>(0x7fffffffu), vec4<u32>(BAD), negative | nan | not_finite(f));
}

/// The ordered scores of elements 8 · octet to 8 · octet + 7.
fn scores(octet: u32) -> Octet {
    let f = load_fisher(octet);
    if SCORE == FISH {
        return Octet(ordered(f.lo, f.lo), ordered(f.hi, f.hi));
    }
    let t = load_theta(octet);
    return Octet(ordered(t.lo, f.lo), ordered(t.hi, f.hi));
}
