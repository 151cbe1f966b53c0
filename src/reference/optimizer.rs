//! Updates of squared-gradient accumulators.

/// decay · v + gain · (gradient_scale · g)² (Kingma & Ba 2015, algorithm 1, with decay β₂ and gain 1 − β₂).
#[must_use]
pub fn ema(v: f64, g: f64, decay: f64, gain: f64, gradient_scale: f64) -> f64 {
    let scaled = gradient_scale * g;
    decay * v + gain * scaled * scaled
}
