// scaled <- factor · values
// One invocation: OCTETS groups of eight elements, strided by the workgroup. Expects lib/dtype.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 2u;
override VALUES: u32 = 0u;
override SCALED: u32 = 0u;

struct Params {
    len: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> values: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> scaled: array<vec4<u32>>;

fn load_values(octet: u32) -> Octet {
    if VALUES == F32 {
        return Octet(values[2u * octet], values[2u * octet + 1u]);
    }
    return widen(values[octet], VALUES);
}

fn store_scaled(octet: u32, value: Octet) {
    if SCALED == F32 {
        scaled[2u * octet] = value.lo;
        scaled[2u * octet + 1u] = value.hi;
    } else {
        scaled[octet] = narrow(value, SCALED);
    }
}

fn times(bits: vec4<u32>) -> vec4<u32> {
    return patterns(params.factor * floats(bits));
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
            let value = load_values(octet);
            store_scaled(octet, Octet(times(value.lo), times(value.hi)));
        }
    }
}
