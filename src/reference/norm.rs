//! Gradients and squared gradients of the weights of normalisation layers.

/// Mean and 1/√(variance + eps) of `values`, the variance divided by their number (Ba et al. 2016, eq. 4, as PyTorch
/// computes it). RMS norm (Zhang & Sennrich 2019) has no mean.
#[must_use]
pub fn stats(values: &[f64], eps: f64, centered: bool) -> (f64, f64) {
    let len = values.len() as f64;
    let mean = if centered { values.iter().sum::<f64>() / len } else { 0.0 };
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / len;
    (mean, 1.0 / (variance + eps).sqrt())
}

/// How one element of a normalisation layer is found.
#[derive(Clone, Copy, Debug)]
pub struct Element {
    /// Its index in input and gradient.
    pub index: usize,
    /// The index of its mean and scale.
    pub stat: usize,
}

/// scale · Σ_{n ∈ s} Σ_t b_nt x̂_nt for every square s and channel, x̂ = (x − mean) · scale; a square is `fold`
/// consecutive samples of `samples`, the last one may have fewer.
///
/// `element` says where sample n, position t, channel c lies. `stats` holds pairs.
#[must_use]
pub fn gradients(
    (input, grad_output, stats): (&[f64], &[f64], &[f64]),
    (samples, fold, positions, channels): (usize, usize, usize, usize),
    element: impl Fn(usize, usize, usize) -> Element,
    scale: f64,
) -> Vec<Vec<f64>> {
    let channel = |s: usize, c: usize| {
        let mut gradient = 0.0;
        for n in s * fold..samples.min((s + 1) * fold) {
            for t in 0..positions {
                let at = element(n, t, c);
                let normal = (input[at.index] - stats[2 * at.stat]) * stats[2 * at.stat + 1];
                gradient += scale * grad_output[at.index] * normal;
            }
        }
        gradient
    };
    (0..samples.div_ceil(fold)).map(|s| (0..channels).map(|c| channel(s, c)).collect()).collect()
}
