//! What measures a device's arithmetic.

/// v ← decay · v + gain, `steps` times, by the sum of the geometric series.
#[must_use]
pub fn fma(value: f64, decay: f64, gain: f64, steps: u32) -> f64 {
    let power = decay.powf(steps.into());
    let series = if decay == 1.0 { f64::from(steps) } else { (1.0 - power) / (1.0 - decay) };
    power * value + gain * series
}
