// Matrices of 8 × 8 for lib/product/matrix.wgsl. Expects no part.

const SIDE: u32 = 8u;

alias LeftMatrix = coop_mat8x8<f16, A>;
alias RightMatrix = coop_mat8x8<f16, B>;
alias SumMatrix = coop_mat8x8<f32, C>;
