//! Embeddings of tasks and distances between them.
//!
//! `a` and `b` are Fishers of two tasks, F at least 0, one entry a group of parameters; variances are v = 1/F.

/// Σ of each row of a block of rows of `width`.
#[must_use]
pub fn row_sum(values: &[f64], width: usize) -> Vec<f64> {
    values.chunks(width).map(|row| row.iter().sum()).collect()
}

/// The mean of each row of a block of rows of `width` (Achille et al. 2019, section 2.2: one number a filter).
#[must_use]
pub fn row_mean(values: &[f64], width: usize) -> Vec<f64> {
    row_sum(values, width).iter().map(|sum| sum / width as f64).collect()
}

/// Σ a b, Σ a², Σ b².
#[must_use]
pub fn products(a: &[f64], b: &[f64]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for i in 0..a.len() {
        sums[0] += a[i] * b[i];
        sums[1] += a[i] * a[i];
        sums[2] += b[i] * b[i];
    }
    sums
}

/// F_a/(F_a + F_b) and F_b/(F_a + F_b), 0 where both are 0.
#[must_use]
pub fn shares(a: &[f64], b: &[f64]) -> [Vec<f64>; 2] {
    let mut shares = [Vec::new(), Vec::new()];
    for i in 0..a.len() {
        let sum = a[i] + b[i];
        shares[0].push(if sum > 0.0 { a[i] / sum } else { 0.0 });
        shares[1].push(if sum > 0.0 { b[i] / sum } else { 0.0 });
    }
    shares
}

/// 1 − ⟨a, b⟩ / (‖a‖ ‖b‖).
#[must_use]
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let [ab, aa, bb] = products(a, b);
    1.0 - ab / (aa.sqrt() * bb.sqrt())
}

/// The cosine distance of F_a/(F_a + F_b) and F_b/(F_a + F_b) (Achille et al. 2019, equation 3, without its
/// absolute ε).
#[must_use]
pub fn normalized(a: &[f64], b: &[f64]) -> f64 {
    let [a, b] = shares(a, b);
    cosine(&a, &b)
}

/// KL(N(0, v_0) ‖ N(0, v_1)) = ½ (v_0/v_1 − 1 + ln v_1 − ln v_0), v = 1/F.
#[must_use]
pub fn gaussian_kl(f_0: f64, f_1: f64) -> f64 {
    let (v_0, v_1) = (1.0 / f_0, 1.0 / f_1);
    0.5 * (v_0 / v_1 - 1.0 + v_1.ln() - v_0.ln())
}

/// Σ of the larger of the two divergences; two zeros do not differ.
#[must_use]
pub fn kl(a: &[f64], b: &[f64]) -> f64 {
    let mut sum = 0.0;
    for i in 0..a.len() {
        if a[i] != b[i] {
            sum += gaussian_kl(a[i], b[i]).max(gaussian_kl(b[i], a[i]));
        }
    }
    sum
}

/// The mean over all entries of the mean divergence to the average variance; two zeros do not differ.
#[must_use]
pub fn jsd(a: &[f64], b: &[f64]) -> f64 {
    let mut sum = 0.0;
    for i in 0..a.len() {
        if a[i] != b[i] {
            let average = 1.0 / (0.5 * (1.0 / a[i] + 1.0 / b[i]));
            sum += 0.5 * (gaussian_kl(a[i], average) + gaussian_kl(b[i], average));
        }
    }
    sum / a.len() as f64
}

/// d(a, b) − α d(a, trivial) with d = [`normalized`] (Achille et al. 2019, equation 4; α = 0.15 there).
#[must_use]
pub fn asymmetric(a: &[f64], b: &[f64], trivial: &[f64], alpha: f64) -> f64 {
    normalized(a, b) - alpha * normalized(a, trivial)
}
