// theta = reference + sum_m w_m (theta_m - reference) / sum_m w_m,  w_m = lambda_m F_m: two models a step.
// One invocation: OCTETS groups of eight elements, strided by the workgroup.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/merge/tally.wgsl, lib/merge/count.wgsl, lib/merge/step.wgsl,
// lib/merge/models.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 4u;
// Storage types; a Fisher of type NONE weighs 1 everywhere.
override THETA_A: u32 = 0u;
override THETA_B: u32 = 0u;
override FISHER_A: u32 = 0u;
override FISHER_B: u32 = 0u;
override REFERENCE: u32 = 0u;
override MERGED: u32 = 0u;
// The first step starts from nothing instead of `state`, the last writes `merged` instead of `state`.
override FIRST: bool = true;
override LAST: bool = true;
// Without a second model, its buffers are not read.
override PAIR: bool = true;

struct Params {
    len: u32,
    lambda_a: f32,          // lambda_a · 2^exponent_a, divided by the normaliser
    exponent_a: i32,
    share_a: f32,           // this model's part of the plain average of the models so far
    floor_a: u32,           // bit pattern
    lambda_b: f32,
    exponent_b: i32,
    share_b: f32,
    floor_b: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta_a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher_a: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> theta_b: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> fisher_b: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> reference: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> state: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> merged: array<vec4<u32>>;
@group(0) @binding(8) var<storage, read_write> counts: array<atomic<u32>>;

fn load_theta_a(octet: u32) -> Octet {
    if THETA_A == F32 {
        return Octet(theta_a[2u * octet], theta_a[2u * octet + 1u]);
    }
    return widen(theta_a[octet], THETA_A);
}

fn load_theta_b(octet: u32) -> Octet {
    if THETA_B == F32 {
        return Octet(theta_b[2u * octet], theta_b[2u * octet + 1u]);
    }
    return widen(theta_b[octet], THETA_B);
}

fn load_fisher_a(octet: u32) -> Octet {
    if FISHER_A == NONE {
        return ONES;
    }
    if FISHER_A == F32 {
        return Octet(fisher_a[2u * octet], fisher_a[2u * octet + 1u]);
    }
    return widen(fisher_a[octet], FISHER_A);
}

fn load_fisher_b(octet: u32) -> Octet {
    if FISHER_B == NONE {
        return ONES;
    }
    if FISHER_B == F32 {
        return Octet(fisher_b[2u * octet], fisher_b[2u * octet + 1u]);
    }
    return widen(fisher_b[octet], FISHER_B);
}

/// Four parameters through this step. Past the end, elements are computed but neither counted nor kept.
fn quad(index: u32, ta: vec4<u32>, fa: vec4<u32>, tb: vec4<u32>, fb: vec4<u32>, origin: vec4<u32>) -> vec4<u32> {
    let inside = four_indices(4u * index) < vec4<u32>(params.len);
    let zero = floats(origin);
    count_model(0u, index, ta, fa, params.floor_a, inside);
    let a = Model(params.lambda_a, params.exponent_a, params.share_a, params.floor_a);
    var tally = with_model(before_models(index), FIRST, ta, fa, zero, a);
    if PAIR {
        let b = Model(params.lambda_b, params.exponent_b, params.share_b, params.floor_b);
        count_model(1u, index, tb, fb, params.floor_b, inside);
        tally = with_model(tally, false, tb, fb, zero, b);
    }
    return finish(index, tally, origin, inside);
}

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let first = (group.y * groups.x + group.x) * WORKGROUP * OCTETS + local.x;
    for (var i = 0u; i < OCTETS; i++) {
        let octet = first + i * WORKGROUP;
        if octet * 8u < params.len {
            let ta = load_theta_a(octet);
            let fa = load_fisher_a(octet);
            // The reference of a first step is its own first model.
            var origin = ta;
            if !FIRST {
                origin = load_reference(octet);
            }
            var tb = ta;
            var fb = fa;
            if PAIR {
                tb = load_theta_b(octet);
                fb = load_fisher_b(octet);
            }
            let lo = quad(2u * octet, ta.lo, fa.lo, tb.lo, fb.lo, origin.lo);
            let hi = quad(2u * octet + 1u, ta.hi, fa.hi, tb.hi, fb.hi, origin.hi);
            if LAST {
                store_merged(octet, Octet(lo, hi));
            }
        }
    }
    add_counts(local.x);
}
