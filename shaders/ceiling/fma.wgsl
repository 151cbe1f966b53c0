// v <- decay · v + gain, `steps` times: arithmetic in registers, as much as a device can do.
// One invocation: sixteen elements in four independent chains of vectors, strided by the workgroup. Expects no part.

override WORKGROUP: u32 = 256u;
override OCTETS: u32 = 2u;

struct Params {
    len: u32,
    steps: u32,
    decay: f32,
    gain: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> values: array<vec4<f32>>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let first = 2u * ((group.y * groups.x + group.x) * WORKGROUP * OCTETS + local.x);
    let second = first + 2u * WORKGROUP;
    if first * 4u >= params.len {
        return;
    }
    let decay = vec4<f32>(params.decay);
    let gain = vec4<f32>(params.gain);
    // Padding may be read and written; past it, loads give anything and stores do nothing.
    var a = values[first];
    var b = values[first + 1u];
    var c = values[second];
    var d = values[second + 1u];
    // Four steps a turn: the loop's own arithmetic would be a third of the work.
    for (var step = 0u; step < params.steps / 4u; step++) {
        a = fma(fma(fma(fma(a, decay, gain), decay, gain), decay, gain), decay, gain);
        b = fma(fma(fma(fma(b, decay, gain), decay, gain), decay, gain), decay, gain);
        c = fma(fma(fma(fma(c, decay, gain), decay, gain), decay, gain), decay, gain);
        d = fma(fma(fma(fma(d, decay, gain), decay, gain), decay, gain), decay, gain);
    }
    for (var step = 0u; step < params.steps % 4u; step++) {
        a = fma(a, decay, gain);
        b = fma(b, decay, gain);
        c = fma(c, decay, gain);
        d = fma(d, decay, gain);
    }
    values[first] = a;
    values[first + 1u] = b;
    if second * 4u < params.len {
        values[second] = c;
        values[second + 1u] = d;
    }
}
