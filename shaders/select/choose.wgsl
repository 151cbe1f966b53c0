// model <- mask ? model : base (or zero), bit for bit.
// One invocation: OCTETS groups of eight elements, strided by the workgroup. Expects lib/dtype.wgsl.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 2u;
override MODEL: u32 = 0u;
/// 1 where zero takes the place of what is not kept.
override ZERO: u32 = 0u;

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> mask: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read> base: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> model: array<vec4<u32>>;

/// Four bytes, 0 or not, to words of zeros or ones.
fn spread(word: u32) -> vec4<u32> {
    let bytes = (vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(0xffu);
    return select(vec4<u32>(0u), vec4<u32>(0xffffffffu), bytes != vec4<u32>(0u));
}

fn choose(at: u32, keep: vec4<u32>) {
    var other = vec4<u32>(0u);
    if ZERO == 0u {
        other = base[at];
    }
    model[at] = (model[at] & keep) | (other & ~keep);
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
            let bytes = mask[octet];
            let lo = spread(bytes.x);
            let hi = spread(bytes.y);
            if MODEL == F32 {
                choose(2u * octet, lo);
                choose(2u * octet + 1u, hi);
            } else {
                let even = vec4<u32>(lo.xz, hi.xz) & vec4<u32>(0xffffu);
                choose(octet, even | (vec4<u32>(lo.yw, hi.yw) & vec4<u32>(0xffff0000u)));
            }
        }
    }
}
