// Philox4x32-10 (Salmon et al. 2011): 128 random bits of a counter and a key, in integers alone, hence the
// same everywhere. And arithmetic on 64 bits, as pairs of a low and a high word. Expects no part.

/// a · b.
fn multiply(a: u32, b: u32) -> vec2<u32> {
    let a_low = a & 0xffffu;
    let a_high = a >> 16u;
    let b_low = b & 0xffffu;
    let b_high = b >> 16u;
    let middle = ((a_low * b_low) >> 16u) + ((a_high * b_low) & 0xffffu) + ((a_low * b_high) & 0xffffu);
    let high = a_high * b_high + ((a_high * b_low) >> 16u) + ((a_low * b_high) >> 16u) + (middle >> 16u);
    return vec2<u32>(a * b, high);
}

fn add(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let low = a.x + b.x;
    return vec2<u32>(low, a.y + b.y + u32(low < a.x));
}

fn philox(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round++) {
        let even = multiply(0xd2511f53u, c.x);
        let odd = multiply(0xcd9e8d57u, c.z);
        c = vec4<u32>(odd.y ^ c.y ^ k.x, odd.x, even.y ^ c.w ^ k.y, even.x);
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return c;
}
