// The best of groups of 2, 4 or 8 elements that lie beside each other: an invocation has SIXTEENS times sixteen
// elements, which are whole groups and whole words of the mask. Expects lib/dtype.wgsl, lib/select/score.wgsl, the
// override WORKGROUP, the parameters of select/nm.wgsl and its binding `fault`.

override SIZE: u32 = 4u;
override SIXTEENS: u32 = 4u;

@group(0) @binding(3) var<storage, read_write> mask: array<vec4<u32>>;

/// Of each of four elements, how many of its group are better. Equal ones are better where they come before.
fn better_of_four(s: vec4<u32>) -> vec4<u32> {
    let yx = u32(s.y > s.x);
    let wz = u32(s.w > s.z);
    if SIZE == 2u {
        return vec4<u32>(yx, 1u - yx, wz, 1u - wz);
    }
    let zx = u32(s.z > s.x);
    let wx = u32(s.w > s.x);
    let zy = u32(s.z > s.y);
    let wy = u32(s.w > s.y);
    return vec4<u32>(yx + zx + wx, 1u - yx + zy + wy, 2u - zx - zy + wz, 3u - wx - wy - wz);
}

/// Of each of `later`, how many of `earlier` are better, and the other way round.
fn better_across(earlier: vec4<u32>, later: vec4<u32>) -> Octet {
    let x = vec4<u32>(later.xxxx > earlier);
    let y = vec4<u32>(later.yyyy > earlier);
    let z = vec4<u32>(later.zzzz > earlier);
    let w = vec4<u32>(later.wwww > earlier);
    let of_earlier = x + y + z + w;
    let of_later = vec4<u32>(4u) - vec4<u32>(sum(x), sum(y), sum(z), sum(w));
    return Octet(of_earlier, of_later);
}

fn sum(of_four: vec4<u32>) -> u32 {
    return (of_four.x + of_four.y) + (of_four.z + of_four.w);
}

/// A byte for each of four elements from `index` of which fewer than N are better.
fn kept(better: vec4<u32>, index: u32) -> u32 {
    let inside = four_indices(index) < vec4<u32>(params.len);
    let flags = (better < vec4<u32>(params.keep)) & inside;
    let bytes = select(vec4<u32>(), vec4<u32>(1u, 0x100u, 0x10000u, 0x1000000u), flags);
    return (bytes.x | bytes.y) | (bytes.z | bytes.w);
}

fn kept_of_eight(s: Octet, index: u32) -> vec2<u32> {
    var better = Octet(better_of_four(s.lo), better_of_four(s.hi));
    if SIZE == 8u {
        let across = better_across(s.lo, s.hi);
        better = Octet(better.lo + across.lo, better.hi + across.hi);
    }
    return vec2<u32>(kept(better.lo, index), kept(better.hi, index + 4u));
}

fn has_bad(s: Octet) -> bool {
    let top = max(s.lo, s.hi);
    return most_of_four(top) == BAD;
}

/// The complement of the first bad one of four elements from `index`, as it is reported; 0 for none.
fn told(s: vec4<u32>, index: u32) -> u32 {
    let at = four_indices(index);
    let bad = select(vec4<u32>(), ~at, (s == vec4<u32>(BAD)) & (at < vec4<u32>(params.len)));
    return most_of_four(bad);
}

fn choose(group: u32, lane: u32) {
    let first = group * WORKGROUP * SIXTEENS + lane;
    var aside = 0u;
    for (var i = 0u; i < SIXTEENS; i++) {
        let sixteen = first + i * WORKGROUP;
        if 16u * sixteen < params.len {
            let a = scores(2u * sixteen);
            let b = scores(2u * sixteen + 1u);
            aside |= select(0u, 1u << i, has_bad(a) || has_bad(b));
            mask[sixteen] |= vec4<u32>(kept_of_eight(a, 16u * sixteen), kept_of_eight(b, 16u * sixteen + 8u));
        }
    }
    // What is bad is seldom anything, and looked at after.
    for (; aside != 0u; aside &= aside - 1u) {
        let sixteen = first + firstTrailingBit(aside) * WORKGROUP;
        let a = scores(2u * sixteen);
        let b = scores(2u * sixteen + 1u);
        let of_a = max(told(a.lo, 16u * sixteen), told(a.hi, 16u * sixteen + 4u));
        let of_b = max(told(b.lo, 16u * sixteen + 8u), told(b.hi, 16u * sixteen + 12u));
        atomicMax(&fault[0], max(of_a, of_b));
    }
}
