//! Elastic weight consolidation (Kirkpatrick et al. 2017, equation 3).

/// ½ λ Σ F (θ − θ*)².
#[must_use]
pub fn penalty(lambda: f64, fisher: &[f64], theta: &[f64], anchor: &[f64]) -> f64 {
    let mut sum = 0.0;
    for p in 0..theta.len() {
        let delta = theta[p] - anchor[p];
        sum += fisher[p] * delta * delta;
    }
    0.5 * lambda * sum
}

/// λ F (θ − θ*), one parameter of the penalty's gradient.
#[must_use]
pub fn gradient(lambda: f64, fisher: f64, theta: f64, anchor: f64) -> f64 {
    lambda * fisher * (theta - anchor)
}

/// F ← F_new + γ F_old over Fishers from the oldest to the newest: Σ γ^(T−t) F_t (Schwarz et al. 2018, equation 9).
#[must_use]
pub fn online(gamma: f64, fishers: &[f64]) -> f64 {
    let mut running = 0.0;
    for fisher in fishers {
        running = fisher + gamma * running;
    }
    running
}
