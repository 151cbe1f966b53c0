// left <- max(left − ties counted, 0), of 64 bits; state[1] <- what of it fits a word. One invocation. Expects no part.

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> ties: array<u32>;
@group(0) @binding(2) var<storage, read_write> left: array<u32>;
@group(0) @binding(3) var<storage, read_write> state: array<u32>;

@compute @workgroup_size(1)
fn main() {
    let found = ties[params.len];
    var low = left[0];
    var high = left[1];
    if high == 0u {
        low -= min(low, found);
    } else {
        if low < found {
            high -= 1u;
        }
        low -= found;
    }
    left[0] = low;
    left[1] = high;
    state[1] = select(low, 0xffffffffu, high > 0u);
}
