// v <- decay · v + gain · (gradient_scale · g)², and max_v <- max(max_v, v)
// One invocation: OCTETS groups of eight elements, strided by the workgroup. Expects lib/dtype.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 2u;
override GRADIENT: u32 = 0u;
override ACCUMULATOR: u32 = 0u;

struct Params {
    len: u32,
    decay: f32,
    gain: f32,
    gradient_scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gradient: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> exp_avg_sq: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> max_exp_avg_sq: array<vec4<u32>>;

fn load_gradient(octet: u32) -> Octet {
    if GRADIENT == F32 {
        return Octet(gradient[2u * octet], gradient[2u * octet + 1u]);
    }
    return widen(gradient[octet], GRADIENT);
}

fn load_accumulator(octet: u32) -> Octet {
    if ACCUMULATOR == F32 {
        return Octet(exp_avg_sq[2u * octet], exp_avg_sq[2u * octet + 1u]);
    }
    return widen(exp_avg_sq[octet], ACCUMULATOR);
}

fn store_accumulator(octet: u32, value: Octet) {
    if ACCUMULATOR == F32 {
        exp_avg_sq[2u * octet] = value.lo;
        exp_avg_sq[2u * octet + 1u] = value.hi;
    } else {
        exp_avg_sq[octet] = narrow(value, ACCUMULATOR);
    }
}

fn load_maximum(octet: u32) -> Octet {
    if ACCUMULATOR == F32 {
        return Octet(max_exp_avg_sq[2u * octet], max_exp_avg_sq[2u * octet + 1u]);
    }
    return widen(max_exp_avg_sq[octet], ACCUMULATOR);
}

fn store_maximum(octet: u32, value: Octet) {
    if ACCUMULATOR == F32 {
        max_exp_avg_sq[2u * octet] = value.lo;
        max_exp_avg_sq[2u * octet + 1u] = value.hi;
    } else {
        max_exp_avg_sq[octet] = narrow(value, ACCUMULATOR);
    }
}

fn update(v: vec4<u32>, g: vec4<u32>) -> vec4<u32> {
    let scaled = params.gradient_scale * floats(g);
    return patterns(params.decay * floats(v) + params.gain * (scaled * scaled));
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
            let old = load_accumulator(octet);
            let g = load_gradient(octet);
            let most = load_maximum(octet);
            let v = Octet(update(old.lo, g.lo), update(old.hi, g.hi));
            store_accumulator(octet, v);
            // The bit patterns of non-negative numbers order as the numbers do, NaN above all.
            store_maximum(octet, Octet(max(most.lo, v.lo), max(most.hi, v.hi)));
        }
    }
}
