//! Gradients of one sample, layer by layer, and the Fisher diagonal as the weighted sum of their squares.

/// ∂ℓ/∂W of a linear layer for one sample: g[o, i] = Σ_t b[t, o] · a[t, i].
///
/// `input` is a `[t, i]`, `grad_output` b `[t, o]`, the result `[o, i]`.
#[must_use]
pub fn linear(
    input: &[f64],
    grad_output: &[f64],
    positions: usize,
    inputs: usize,
    outputs: usize,
) -> Vec<f64> {
    let mut gradient = vec![0.0; outputs * inputs];
    for t in 0..positions {
        for o in 0..outputs {
            for i in 0..inputs {
                gradient[o * inputs + i] += grad_output[t * outputs + o] * input[t * inputs + i];
            }
        }
    }
    gradient
}

/// Σ_n weight[n] · g_n², elementwise, over gradients of `len` elements.
#[must_use]
pub fn sum_of_squares(weight: &[f64], gradients: &[Vec<f64>], len: usize) -> Vec<f64> {
    let mut sum = vec![0.0; len];
    for (w, gradient) in weight.iter().zip(gradients) {
        for (sum, g) in sum.iter_mut().zip(gradient) {
            *sum += w * g * g;
        }
    }
    sum
}

/// Gradients of the *sum* of the losses of `fold` consecutive samples: Σ g_n over each such run (the last may be shorter).
#[must_use]
pub fn joint(gradients: &[Vec<f64>], fold: usize) -> Vec<Vec<f64>> {
    gradients
        .chunks(fold)
        .map(|run| (0..run[0].len()).map(|p| run.iter().map(|gradient| gradient[p]).sum()).collect())
        .collect()
}
