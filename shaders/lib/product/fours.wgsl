// Sixteen fours, one a row: four positions of the left factors that an invocation multiplies by in
// lib/product/quads.wgsl and lib/product/slide.wgsl, and the sums of the latter. Expects no part.

/// Names, not an array, and no loop over them: drivers take seconds to compile what is indexed at run time.
struct Fours {
    r0: vec4<f32>,
    r1: vec4<f32>,
    r2: vec4<f32>,
    r3: vec4<f32>,
    r4: vec4<f32>,
    r5: vec4<f32>,
    r6: vec4<f32>,
    r7: vec4<f32>,
    r8: vec4<f32>,
    r9: vec4<f32>,
    r10: vec4<f32>,
    r11: vec4<f32>,
    r12: vec4<f32>,
    r13: vec4<f32>,
    r14: vec4<f32>,
    r15: vec4<f32>,
}
