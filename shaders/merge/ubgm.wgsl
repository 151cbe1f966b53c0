// theta = base + sum_m lambda_m (F_0 + F_m) (theta_m - base) / (F_0 + sum_m lambda_m F_m): one model a step.
// One invocation: OCTETS groups of eight elements, strided by the workgroup.
// Expects lib/dtype.wgsl, lib/wide.wgsl, lib/merge/tally.wgsl, lib/merge/count.wgsl, lib/merge/step.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 4u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;
override BASE: u32 = 0u;
override BASE_FISHER: u32 = 0u;
override MERGED: u32 = 0u;
// The first step starts from the base instead of `state`, the last writes `merged` instead of `state`.
override FIRST: bool = true;
override LAST: bool = true;

struct Params {
    len: u32,
    lambda: f32,            // lambda · 2^lambda_exponent
    lambda_exponent: i32,
    scale: f32,             // 1 / normaliser of the model's Fisher, likewise
    scale_exponent: i32,
    floor: u32,             // bit pattern
    base_scale: f32,
    base_scale_exponent: i32,
    delta: f32,             // added to the base's scaled Fisher; 0 for none
    delta_exponent: i32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> base: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read> base_fisher: array<vec4<u32>>;
@group(0) @binding(5) var<storage, read_write> state: array<vec4<u32>>;
@group(0) @binding(6) var<storage, read_write> merged: array<vec4<u32>>;
@group(0) @binding(7) var<storage, read_write> counts: array<atomic<u32>>;

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

fn load_base(octet: u32) -> Octet {
    if BASE == F32 {
        return Octet(base[2u * octet], base[2u * octet + 1u]);
    }
    return widen(base[octet], BASE);
}

fn load_base_fisher(octet: u32) -> Octet {
    if BASE_FISHER == F32 {
        return Octet(base_fisher[2u * octet], base_fisher[2u * octet + 1u]);
    }
    return widen(base_fisher[octet], BASE_FISHER);
}

/// F_0 + delta, scaled.
fn prior(base_fisher: vec4<u32>) -> Wide {
    let scaled = wide_times(wide(checked(base_fisher)), params.base_scale, params.base_scale_exponent);
    if params.delta == 0.0 {
        return scaled;
    }
    let delta = Wide(vec4<f32>(params.delta), vec4<i32>(params.delta_exponent));
    let e = max(scaled.e, delta.e);
    return Wide(mantissa_at(scaled, e) + mantissa_at(delta, e), e);
}

fn before_model(quad: u32, start: Wide) -> Tally {
    if FIRST {
        return Tally(vec4<f32>(), start.m, vec4<f32>(), start.e, vec4<u32>());
    }
    return load_state(quad);
}

/// Four parameters through this step. Past the end, elements are computed but neither counted nor kept.
fn quad(index: u32, t: vec4<u32>, f: vec4<u32>, origin: vec4<u32>, f0: vec4<u32>) -> vec4<u32> {
    let inside = four_indices(4u * index) < vec4<u32>(params.len);
    count_model(0u, index, t, f, params.floor, inside);
    if FIRST {
        note(2u, index, is_bad(f0) & inside);
        note(3u, index, not_finite(origin) & inside);
    }
    let start = prior(f0);
    let least = vec4<u32>(params.floor);
    let raised = checked(f) < least;
    let own = wide_times(wide(select(checked(f), least, raised)), params.scale, params.scale_exponent);
    let weight = wide_times(own, params.lambda, params.lambda_exponent);
    let pull = wide_times(start, params.lambda, params.lambda_exponent);
    let tally = before_model(index, start);
    let e = max(tally.exponent, max(weight.e, pull.e));
    let distance = floats(t) - floats(origin);
    var next = add_model(tally, weight, mantissa_at(weight, e) + mantissa_at(pull, e), e, distance, 0.0);
    next.unfloored |= select(vec4<u32>(1u), vec4<u32>(0u), raised);
    return finish(index, next, origin, inside);
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
            let t = load_theta(octet);
            let f = load_fisher(octet);
            let origin = load_base(octet);
            let f0 = load_base_fisher(octet);
            let lo = quad(2u * octet, t.lo, f.lo, origin.lo, f0.lo);
            let hi = quad(2u * octet + 1u, t.hi, f.hi, origin.hi, f0.hi);
            if LAST {
                store_merged(octet, Octet(lo, hi));
            }
        }
    }
    add_counts(local.x);
}
