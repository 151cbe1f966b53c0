// mask |= 1 at the `keep` best of every `size` elements that lie `stride` apart; ties go to the earlier.
// Expects lib/dtype.wgsl, lib/select/score.wgsl, and lib/select/groups_beside.wgsl or lib/select/groups_apart.wgsl,
// which have the binding 3, `mask`, and
//   choose(group, lane)   what an invocation of a workgroup does

override WORKGROUP: u32 = 256u;
override SCORE: u32 = 0u;
override THETA: u32 = 0u;
override FISHER: u32 = 0u;

struct Params {
    len: u32,
    keep: u32,
    size: u32,
    stride: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> theta: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> fisher: array<vec4<u32>>;
@group(0) @binding(4) var<storage, read_write> fault: array<atomic<u32>>;

@compute @workgroup_size(WORKGROUP)
fn main(
    @builtin(local_invocation_id) local: vec3<u32>,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    choose(group.y * groups.x + group.x, local.x);
}
