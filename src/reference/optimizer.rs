//! Updates of squared-gradient accumulators.

/// decay · v + gain · (gradient_scale · g)² (Kingma & Ba 2015, algorithm 1, with decay β₂ and gain 1 − β₂).
#[must_use]
pub fn ema(v: f64, g: f64, decay: f64, gain: f64, gradient_scale: f64) -> f64 {
    let scaled = gradient_scale * g;
    decay * v + gain * scaled * scaled
}

/// The accumulator and its running maximum (Reddi et al. 2018, algorithm 2), with factors (decay, gain,
/// gradient_scale). A NaN stays, as in `torch.maximum`.
#[must_use]
pub fn amsgrad(v: f64, v_max: f64, g: f64, factors: (f64, f64, f64)) -> (f64, f64) {
    let (decay, gain, gradient_scale) = factors;
    let v = ema(v, g, decay, gain, gradient_scale);
    if v.is_nan() || v_max.is_nan() { (v, f64::NAN) } else { (v, v.max(v_max)) }
}

/// factor · v.
#[must_use]
pub fn scale(v: f64, factor: f64) -> f64 {
    factor * v
}
