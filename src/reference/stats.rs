//! Summary statistics of a Fisher diagonal.

/// Whether a value can be a Fisher diagonal's: finite and not below zero.
#[must_use]
pub fn is_good(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

/// Σ of the good values.
#[must_use]
pub fn sum(values: &[f64]) -> f64 {
    values.iter().filter(|v| is_good(**v)).sum()
}

/// Σ of the squares of the good values.
#[must_use]
pub fn sum_sq(values: &[f64]) -> f64 {
    values.iter().filter(|v| is_good(**v)).map(|v| v * v).sum()
}

/// The largest good value; nothing where there is none.
#[must_use]
pub fn max(values: &[f64]) -> Option<f64> {
    values.iter().copied().filter(|v| is_good(*v)).reduce(f64::max)
}

/// The smallest good value; nothing where there is none.
#[must_use]
pub fn min(values: &[f64]) -> Option<f64> {
    values.iter().copied().filter(|v| is_good(*v)).reduce(f64::min)
}

/// How many values are zero, of either sign.
#[must_use]
pub fn zeros(values: &[f64]) -> u64 {
    values.iter().filter(|v| **v == 0.0).count() as u64
}

/// How many values are not good, and the index of the first.
#[must_use]
pub fn bad(values: &[f64]) -> Option<(u64, u64)> {
    let first = values.iter().position(|v| !is_good(*v))?;
    let count = values.iter().filter(|v| !is_good(**v)).count();
    Some((count as u64, first as u64))
}
