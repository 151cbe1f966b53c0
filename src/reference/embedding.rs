//! Squared gradients of an embedding's rows.

/// Σ_n weight_n (scale · Σ_{t: id_nt = r} b_nt)² for every row r (Dangel et al. 2020, `SumGradSquared`, for a look-up
/// table).
///
/// `ids` is `[n, t]`, `grad_output` `[n, t, dim]`, `weight` `[n]`; the result is `[rows, dim]`.
#[must_use]
pub fn sum(
    ids: &[u32],
    grad_output: &[f64],
    weight: &[f64],
    (rows, dim): (usize, usize),
    scale: f64,
) -> Vec<f64> {
    let positions = ids.len().checked_div(weight.len()).unwrap_or(0);
    let mut out = vec![0.0; rows * dim];
    for (n, w) in weight.iter().enumerate() {
        let mut gradient = vec![0.0; rows * dim];
        for t in n * positions..(n + 1) * positions {
            for d in 0..dim {
                gradient[ids[t] as usize * dim + d] += scale * grad_output[t * dim + d];
            }
        }
        for (out, g) in out.iter_mut().zip(gradient) {
            *out += w * (g * g);
        }
    }
    out
}
