// gradient <- λ · F · (θ − θ*), or that added to what is there.
// One invocation: OCTETS groups of eight elements, strided by the workgroup. Expects lib/dtype.wgsl and lib/wide.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 2u;
override THETA: u32 = 0u;
override ANCHOR: u32 = 0u;
override FISHER: u32 = 0u;
override GRADIENT: u32 = 0u;
/// Whether the old gradient is added to.
override ADD: bool = true;

struct Params {
    len: u32,
    /// λ = lambda · 2^lambda_exponent.
    lambda: f32,
    lambda_exponent: i32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> anchor: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> gradient: array<vec4<u32>>;

fn load_theta(octet: u32) -> Octet {
    if THETA == F32 {
        return Octet(theta[2u * octet], theta[2u * octet + 1u]);
    }
    return widen(theta[octet], THETA);
}

fn load_anchor(octet: u32) -> Octet {
    if ANCHOR == F32 {
        return Octet(anchor[2u * octet], anchor[2u * octet + 1u]);
    }
    return widen(anchor[octet], ANCHOR);
}

fn load_fisher(octet: u32) -> Octet {
    if FISHER == F32 {
        return Octet(fisher[2u * octet], fisher[2u * octet + 1u]);
    }
    return widen(fisher[octet], FISHER);
}

fn load_gradient(octet: u32) -> Octet {
    if GRADIENT == F32 {
        return Octet(gradient[2u * octet], gradient[2u * octet + 1u]);
    }
    return widen(gradient[octet], GRADIENT);
}

fn store_gradient(octet: u32, value: Octet) {
    if GRADIENT == F32 {
        gradient[2u * octet] = value.lo;
        gradient[2u * octet + 1u] = value.hi;
    } else {
        gradient[octet] = narrow(value, GRADIENT);
    }
}

/// By their own exponents: λ F may leave the range of f32 where λ F (θ − θ*) does not.
fn pull(t: vec4<u32>, a: vec4<u32>, f: vec4<u32>) -> vec4<f32> {
    let delta = floats(t) - floats(a);
    let bits = patterns(delta);
    let weight = wide(select(f & vec4<u32>(0x7fffffffu), vec4<u32>(0u), not_finite(f)));
    let distance = wide(select(bits & vec4<u32>(0x7fffffffu), vec4<u32>(0u), not_finite(bits)));
    let exponent = weight.e + distance.e + params.lambda_exponent;
    let half = exponent >> vec4<u32>(1u);
    let size = params.lambda * (weight.m * distance.m) * pow2(half) * pow2(exponent - half);
    let negative = ((f ^ bits) & vec4<u32>(0x80000000u)) != vec4<u32>(0u);
    // NaN and infinity are passed on.
    return select(select(size, -size, negative), floats(f) * delta, not_finite(f) | not_finite(bits));
}

fn updated(g: vec4<u32>, t: vec4<u32>, a: vec4<u32>, f: vec4<u32>) -> vec4<u32> {
    if ADD {
        return patterns(floats(g) + pull(t, a, f));
    }
    return patterns(pull(t, a, f));
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
            let a = load_anchor(octet);
            let f = load_fisher(octet);
            var g = Octet();
            if ADD {
                g = load_gradient(octet);
            }
            store_gradient(octet, Octet(updated(g.lo, t.lo, a.lo, f.lo), updated(g.hi, t.hi, a.hi, f.hi)));
        }
    }
}
