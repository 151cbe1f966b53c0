// counts[i] <- sum of counts before i; counts[len] <- sum of all. In place, by one workgroup: tiles of 256 times ITEMS
// one after the other, since nothing may wait for another workgroup. Expects lib/select/scan.wgsl.

override ITEMS: u32 = 8u;

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read_write> counts: array<u32>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_id) local: vec3<u32>) {
    var carried = 0u;
    for (var tile = 0u; tile < params.len; tile += 256u * ITEMS) {
        let first = tile + local.x * ITEMS;
        let end = min(first + ITEMS, params.len);
        var sum = 0u;
        for (var i = first; i < end; i++) {
            sum += counts[i];
        }
        var before = carried + sum_before(local.x, sum);
        for (var i = first; i < end; i++) {
            let own = counts[i];
            counts[i] = before;
            before += own;
        }
        carried += sum_of_all();
    }
    if local.x == 0u {
        counts[params.len] = carried;
    }
}
