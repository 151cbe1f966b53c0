//! The three formulas in f64, for one parameter, as they are written down; and how far f32 may be from them.

use squisher::methods::merge::Method;

/// What one parameter is merged from.
pub(crate) struct Parameter<'a> {
    pub(crate) theta: &'a [f64],
    pub(crate) fisher: &'a [f64],
    pub(crate) lambda: &'a [f64],
    /// θ_0 and F_0.
    pub(crate) base: (f64, f64),
}

/// The merged value, and the sum of the magnitudes of what was added up to it.
pub(crate) struct Merged {
    pub(crate) value: f64,
    pub(crate) scale: f64,
    largest: f64,
}

impl Parameter<'_> {
    pub(crate) fn merged(&self, method: Method) -> Merged {
        match method {
            Method::Linear => self.average(&vec![1.0; self.theta.len()]),
            Method::Fisher if self.weights(self.fisher).iter().sum::<f64>() == 0.0 => {
                self.average(&vec![1.0; self.theta.len()])
            }
            Method::Fisher => self.average(self.fisher),
            Method::Ubgm => self.matched(),
        }
    }

    fn weights(&self, fisher: &[f64]) -> Vec<f64> {
        fisher.iter().zip(self.lambda).map(|(f, l)| f * l).collect()
    }

    /// Σ w θ / Σ w.
    fn average(&self, fisher: &[f64]) -> Merged {
        let weights = self.weights(fisher);
        let sum: f64 = weights.iter().sum();
        let value = weights.iter().zip(self.theta).map(|(w, t)| w * t).sum::<f64>() / sum;
        let reach =
            weights.iter().zip(self.theta).map(|(w, t)| w * (t - self.theta[0]).abs()).sum::<f64>() / sum;
        Merged { value, scale: self.theta[0].abs() + reach, largest: self.largest() }
    }

    /// θ_0 + Σ λ (F_0 + F) (θ − θ_0) / (F_0 + Σ λ F).
    fn matched(&self) -> Merged {
        let (origin, prior) = self.base;
        let sum = prior + self.weights(self.fisher).iter().sum::<f64>();
        let pull = |m: usize| self.lambda[m] * (prior + self.fisher[m]) * (self.theta[m] - origin) / sum;
        let pulls: Vec<f64> = (0..self.theta.len()).map(|m| if sum == 0.0 { 0.0 } else { pull(m) }).collect();
        let value = origin + pulls.iter().sum::<f64>();
        let scale = origin.abs() + pulls.iter().map(|p| p.abs()).sum::<f64>();
        Merged { value, scale, largest: self.largest().max(origin.abs()) }
    }

    fn largest(&self) -> f64 {
        self.theta.iter().fold(0.0, |a: f64, t| a.max(t.abs()))
    }
}

impl Merged {
    /// How far the computed f32 may be from the value, for `models` models.
    ///
    /// A model's term carries the rounding of its weight (2 u) and its distance (u), of the sum of the weights (a u a
    /// model; all are positive), and of each later step's share (division 5 u on a device, product and sum 2 u). The
    /// reference's addition rounds once more. A weight below 2⁻¹²⁶ of the sum counts as nothing.
    pub(crate) fn bound(&self, models: usize) -> f64 {
        let units = 8.0 * models as f64 + 8.0;
        units * U * self.scale + 2.0_f64.powi(-126) * (1.0 + 2.0 * self.largest)
    }
}

/// Half the distance from 1 to the next f32.
const U: f64 = 1.0 / 16_777_216.0;
