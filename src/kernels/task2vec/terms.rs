//! What one pair of values adds to a distance, in f64, and the distance that the sums make.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What a pair of Fishers is compared by. Index a is the first one, v = 1/F.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// 1 − ⟨F_a, F_b⟩ / (‖F_a‖ ‖F_b‖). Blind to the scale of either.
    Cosine,
    /// The cosine distance of F_a/(F_a + F_b) and F_b/(F_a + F_b), 0/0 = 0, no ε: Task2Vec's symmetric distance
    /// (Achille et al. 2019, equation 3). Blind to a common scale only.
    Normalized,
    /// Σ max(KL(a‖b), KL(b‖a)) of zero-mean normals of variance v. Blind to a common scale only.
    Kl,
    /// The mean of ½ (KL(a‖m) + KL(b‖m)), m of variance ½ (v_a + v_b). Blind to a common scale only.
    Jsd,
}

impl Metric {
    /// Every metric.
    pub const ALL: [Self; 4] = [Self::Cosine, Self::Normalized, Self::Kl, Self::Jsd];

    /// The number by which the shader knows it.
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Cosine => 0,
            Self::Normalized => 1,
            Self::Kl => 2,
            Self::Jsd => 3,
        }
    }

    /// Whether a value of 0 in only one of the two leaves it without a finite value.
    #[must_use]
    pub const fn needs_both(self) -> bool {
        matches!(self, Self::Kl | Self::Jsd)
    }

    /// What one pair of values adds to [`Sums`](super::Sums). Infinite where [`Metric::needs_both`] and one is 0.
    #[inline(always)]
    pub(super) fn terms(self, a: f64, b: f64) -> [f64; 3] {
        match self {
            Self::Cosine => [a * b, a * a, b * b],
            Self::Normalized => {
                let sum = if a + b > 0.0 { a + b } else { 1.0 };
                let (a, b) = (a / sum, b / sum);
                [a * b, a * a, b * b]
            }
            Self::Kl => [divergence(a, b), 0.0, 0.0],
            Self::Jsd => [to_the_average(a, b), 0.0, 0.0],
        }
    }

    /// The distance that sums over `len` pairs make.
    ///
    /// The cosine of a vector of zeros is not defined: nothing.
    pub(super) fn distance(self, [xy, xx, yy]: [f64; 3], len: u64) -> Option<f64> {
        match self {
            Self::Cosine | Self::Normalized => {
                // Of one square: the root of S² is S, so two equal vectors are at distance 0 exactly.
                let norm = if xx == yy { xx } else { xx.sqrt() * yy.sqrt() };
                (norm > 0.0).then(|| (1.0 - xy / norm).max(0.0))
            }
            Self::Kl => Some(xy),
            Self::Jsd => (len > 0).then(|| xy / len as f64),
        }
    }
}

/// ½ (q − 1 − ln q) with q ≥ 1 the ratio of the two: the larger divergence is the one from the wider normal.
fn divergence(a: f64, b: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    if low == high {
        return 0.0;
    }
    let excess = (high - low) / low;
    if excess < 1e-3 {
        // Taylor: excess²/2 − excess³/3 + …, where the difference would cancel.
        let d = excess;
        return 0.5 * d * d * (0.5 - d * (1.0 / 3.0 - d * (0.25 - d * (0.2 - d / 6.0))));
    }
    0.5 * (excess - excess.ln_1p())
}

/// ¼ ln(1 + (q − 1)²/(4q)), which is ½ ln((v_a + v_b) / (2 √(v_a v_b))) without its cancellation.
fn to_the_average(a: f64, b: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    if low == high {
        return 0.0;
    }
    let excess = (high - low) / low;
    0.25 * (0.25 * excess * (excess / (high / low))).ln_1p()
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cosine => "cosine",
            Self::Normalized => "normalized",
            Self::Kl => "kl",
            Self::Jsd => "jsd",
        })
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = Self::ALL.into_iter().find(|metric| metric.to_string() == s);
        known.ok_or_else(|| {
            Error::argument("metric", format!("\"{s}\" is not one of cosine, normalized, kl, jsd"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::task2vec as reference;

    #[test]
    fn terms_are_those_of_the_definitions() {
        for (a, b) in [(1.0_f64, 2.0_f64), (3.0, 1.0), (1.0, 1.5), (1e-30, 2e-30), (1e9, 1.0), (5.0, 5.0)] {
            // The definition adds logarithms of both values, each rounded at its own size; then come four roundings of
            // the result's.
            let near = |got: f64, want: f64| {
                let sizes = want.abs() + a.ln().abs() + b.ln().abs();
                assert!((got - want).abs() <= 4.0 * f64::EPSILON * sizes, "{a} {b}: {got} {want}");
            };
            near(Metric::Kl.terms(a, b)[0], reference::kl(&[a], &[b]));
            near(Metric::Jsd.terms(a, b)[0], reference::jsd(&[a], &[b]));
        }
    }

    #[test]
    fn small_ratios_do_not_cancel() {
        for excess in [1e-12_f64, 1e-6, 0.9e-3, 1.1e-3, 0.1] {
            let d = (1.0 + excess) - 1.0;
            // 2s²/(1 − s) − 2 (s³/3 + s⁵/5 + …) with s = d/(2 + d): no subtraction of near numbers.
            let s = d / (2.0 + d);
            let tail: f64 = (1..30).map(|k| s.powi(2 * k + 1) / f64::from(2 * k + 1)).sum();
            let want = s * s / (1.0 - s) - tail;
            let got = divergence(1.0, 1.0 + excess);
            assert!((got / want - 1.0).abs() < 1e-11, "{excess}: {got:e} {want:e}");
        }
    }
}
