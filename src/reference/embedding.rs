//! Gradients of an embedding's rows.

/// scale · Σ_{t: id_nt = r} b_nt for every sample n and row r (Dangel et al. 2020, `SumGradSquared`, for a
/// look-up table).
///
/// `ids` is `[n, t]`, `grad_output` `[n, t, dim]`; each of the `samples` results is `[rows, dim]`.
#[must_use]
pub fn gradients(
    ids: &[u32],
    grad_output: &[f64],
    samples: usize,
    (rows, dim): (usize, usize),
    scale: f64,
) -> Vec<Vec<f64>> {
    let positions = ids.len().checked_div(samples).unwrap_or(0);
    let one = |n: usize| {
        let mut gradient = vec![0.0; rows * dim];
        for t in n * positions..(n + 1) * positions {
            for d in 0..dim {
                gradient[ids[t] as usize * dim + d] += scale * grad_output[t * dim + d];
            }
        }
        gradient
    };
    (0..samples).map(one).collect()
}
