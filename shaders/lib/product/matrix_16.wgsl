// Matrices of 16 × 16 for lib/product/matrix.wgsl. Expects no part.

const SIDE: u32 = 16u;

alias LeftMatrix = coop_mat16x16<f16, A>;
alias RightMatrix = coop_mat16x16<f16, B>;
alias SumMatrix = coop_mat16x16<f32, C>;
