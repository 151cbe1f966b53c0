// What records hold besides sums: indices and exponents, as whole numbers in an f32. Expects lib/dtype.wgsl,
// lib/wide.wgsl.

/// Stands for no index: above every other, so that the first is the least.
const NO_INDEX: u32 = 0xffffffffu;

/// The first of four indices whose flag is set.
fn first_index(flags: vec4<bool>, index: vec4<u32>) -> u32 {
    return least_of_four(select(vec4<u32>(NO_INDEX), index, flags));
}

/// -1 for none.
fn index_word(index: u32) -> f32 {
    return select(f32(index), -1.0, index == NO_INDEX);
}

/// 0 for nothing's.
fn exponent_word(exponent: i32) -> f32 {
    return select(f32(exponent), 0.0, exponent == NOTHING);
}
