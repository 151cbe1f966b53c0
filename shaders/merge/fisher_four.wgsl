// theta = reference + sum_m w_m (theta_m - reference) / sum_m w_m,  w_m = lambda_m F_m: two steps of merge/fisher.wgsl,
// with what lies between them in registers. One invocation: OCTETS groups of eight elements, strided by the workgroup.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/merge/tally.wgsl, lib/merge/count.wgsl, lib/merge/step.wgsl,
// lib/merge/models.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 4u;
// Storage types; a Fisher of type NONE weighs 1 everywhere.
override THETA_A: u32 = 0u;
override THETA_B: u32 = 0u;
override THETA_C: u32 = 0u;
override THETA_D: u32 = 0u;
override FISHER_A: u32 = 0u;
override FISHER_B: u32 = 0u;
override FISHER_C: u32 = 0u;
override FISHER_D: u32 = 0u;
override REFERENCE: u32 = 0u;
override MERGED: u32 = 0u;
// The first step starts from nothing instead of `state`, the last writes `merged` instead of `state`.
override FIRST: bool = true;
override LAST: bool = true;
// Without a fourth model, its buffers are not read.
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
    lambda_c: f32,
    exponent_c: i32,
    share_c: f32,
    floor_c: u32,
    lambda_d: f32,
    exponent_d: i32,
    share_d: f32,
    floor_d: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta_a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher_a: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> theta_b: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> fisher_b: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read> theta_c: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read> fisher_c: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read> theta_d: array<vec4<u32>>;
@group(0) @binding(8) var<storage, read> fisher_d: array<vec4<u32>>;
@group(0) @binding(9) var<storage, read> reference: array<vec4<u32>>;
@group(0) @binding(10) var<storage, read_write> state: array<vec4<u32>>;
@group(0) @binding(11) var<storage, read_write> merged: array<vec4<u32>>;
@group(0) @binding(12) var<storage, read_write> counts: array<atomic<u32>>;

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

fn load_theta_c(octet: u32) -> Octet {
    if THETA_C == F32 {
        return Octet(theta_c[2u * octet], theta_c[2u * octet + 1u]);
    }
    return widen(theta_c[octet], THETA_C);
}

fn load_theta_d(octet: u32) -> Octet {
    if THETA_D == F32 {
        return Octet(theta_d[2u * octet], theta_d[2u * octet + 1u]);
    }
    return widen(theta_d[octet], THETA_D);
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

fn load_fisher_c(octet: u32) -> Octet {
    if FISHER_C == NONE {
        return ONES;
    }
    if FISHER_C == F32 {
        return Octet(fisher_c[2u * octet], fisher_c[2u * octet + 1u]);
    }
    return widen(fisher_c[octet], FISHER_C);
}

fn load_fisher_d(octet: u32) -> Octet {
    if FISHER_D == NONE {
        return ONES;
    }
    if FISHER_D == F32 {
        return Octet(fisher_d[2u * octet], fisher_d[2u * octet + 1u]);
    }
    return widen(fisher_d[octet], FISHER_D);
}

/// The weights and Fishers of four parameters in four models.
struct Quads {
    ta: vec4<u32>,
    fa: vec4<u32>,
    tb: vec4<u32>,
    fb: vec4<u32>,
    tc: vec4<u32>,
    fc: vec4<u32>,
    td: vec4<u32>,
    fd: vec4<u32>,
}

/// Four parameters through both steps. Past the end, elements are computed but neither counted nor kept.
fn quad(index: u32, models: Quads, origin: vec4<u32>) -> vec4<u32> {
    let inside = four_indices(4u * index) < vec4<u32>(params.len);
    let zero = floats(origin);
    let a = Model(params.lambda_a, params.exponent_a, params.share_a, params.floor_a);
    let b = Model(params.lambda_b, params.exponent_b, params.share_b, params.floor_b);
    let c = Model(params.lambda_c, params.exponent_c, params.share_c, params.floor_c);
    let d = Model(params.lambda_d, params.exponent_d, params.share_d, params.floor_d);
    count_model(0u, index, models.ta, models.fa, a.least, inside);
    count_model(1u, index, models.tb, models.fb, b.least, inside);
    count_model(2u, index, models.tc, models.fc, c.least, inside);
    var tally = with_model(before_models(index), FIRST, models.ta, models.fa, zero, a);
    tally = with_model(tally, false, models.tb, models.fb, zero, b);
    tally = with_model(tally, false, models.tc, models.fc, zero, c);
    if PAIR {
        count_model(3u, index, models.td, models.fd, d.least, inside);
        tally = with_model(tally, false, models.td, models.fd, zero, d);
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
            let tb = load_theta_b(octet);
            let fb = load_fisher_b(octet);
            let tc = load_theta_c(octet);
            let fc = load_fisher_c(octet);
            // The reference of a first step is its own first model.
            var origin = ta;
            if !FIRST {
                origin = load_reference(octet);
            }
            var td = tc;
            var fd = fc;
            if PAIR {
                td = load_theta_d(octet);
                fd = load_fisher_d(octet);
            }
            let lo = quad(2u * octet, Quads(ta.lo, fa.lo, tb.lo, fb.lo, tc.lo, fc.lo, td.lo, fd.lo), origin.lo);
            let hi = quad(2u * octet + 1u, Quads(ta.hi, fa.hi, tb.hi, fb.hi, tc.hi, fc.hi, td.hi, fd.hi), origin.hi);
            if LAST {
                store_merged(octet, Octet(lo, hi));
            }
        }
    }
    add_counts(local.x);
}
