//! Weighted averages of models.
//!
//! One parameter of M models: `theta[m]`, `fisher[m]`, `lambda[m]`.

/// Σ λ_m θ_m / Σ λ_m.
#[must_use]
pub fn linear(theta: &[f64], lambda: &[f64]) -> f64 {
    let mut sum = 0.0;
    let mut weights = 0.0;
    for m in 0..theta.len() {
        sum += lambda[m] * theta[m];
        weights += lambda[m];
    }
    sum / weights
}

/// Σ λ_m F_m θ_m / Σ λ_m F_m, and the linear average where that denominator is 0 (Matena & Raffel 2022, equation 3).
#[must_use]
pub fn fisher(theta: &[f64], fisher: &[f64], lambda: &[f64]) -> f64 {
    let mut sum = 0.0;
    let mut weights = 0.0;
    for m in 0..theta.len() {
        sum += lambda[m] * fisher[m] * theta[m];
        weights += lambda[m] * fisher[m];
    }
    if weights == 0.0 { linear(theta, lambda) } else { sum / weights }
}

/// θ_0 + Σ λ_m (F_0 + F_m)(θ_m − θ_0) / (F_0 + Σ λ_m F_m), and θ_0 where that denominator is 0 (Daheim et al.
/// 2024, equation 12).
#[must_use]
pub fn ubgm(base: f64, base_fisher: f64, theta: &[f64], fisher: &[f64], lambda: &[f64]) -> f64 {
    let mut sum = 0.0;
    let mut weights = base_fisher;
    for m in 0..theta.len() {
        sum += lambda[m] * (base_fisher + fisher[m]) * (theta[m] - base);
        weights += lambda[m] * fisher[m];
    }
    if weights == 0.0 { base } else { base + sum / weights }
}
