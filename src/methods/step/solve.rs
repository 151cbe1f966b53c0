//! (K + λI) x = target, by Cholesky in place, and what K tells besides.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt;
use faer::{MatMut, MatRef, Par};

use super::OP;
use crate::error::{Error, Result};

/// A pivot of this share of its diagonal element is rounding of f32.
const ROUNDING: f64 = 1.0 / (1 << 20) as f64;

/// x, and what follows from K and it.
pub(super) struct Solution {
    pub(super) x: Vec<f64>,
    /// ‖g_n‖.
    pub(super) gradient_norms: Vec<f64>,
    /// Δᵀ ∇L.
    pub(super) slope: f64,
}

impl Solution {
    pub(super) fn of(mut gram: Vec<f64>, target: &[f64], damping: f64) -> Result<Self> {
        let samples = target.len();
        let gradient_norms = (0..samples).map(|n| gram[n * (samples + 1)].sqrt()).collect();
        let row_sums: Vec<f64> = gram.chunks(samples.max(1)).map(|row| row.iter().sum()).collect();
        let mut x = target.to_vec();
        solve(&mut gram, damping, &mut x)?;
        let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        Ok(Self { gradient_norms, slope: inner(&x, &row_sums), x })
    }
}

/// Solves (K + λI) x = `rhs` in place: `rhs` becomes x, `gram` the factor.
///
/// `gram` is K `[N, N]`, symmetric; N³/3 operations, no other memory than a column.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not fit; [`Error::Mismatch`] where K + λI has no inverse as far as f32
/// gradients tell, with a damping that would do.
fn solve(gram: &mut [f64], damping: f64, rhs: &mut [f64]) -> Result<()> {
    let n = rhs.len();
    if gram.len() != n * n {
        return Err(Error::shape(OP, "gram", format!("{n} × {n} elements"), gram.len().to_string()));
    }
    if n == 0 {
        return Ok(());
    }
    let diagonal: Vec<f64> = (0..n).map(|m| gram[m * n + m]).collect();
    (0..n).for_each(|m| gram[m * n + m] += damping);
    let largest = diagonal.iter().fold(0.0, |most: f64, value| most.max(*value));
    let singular = |sample| singular(sample, damping, largest);
    // K is symmetric: by rows or by columns is the same.
    let mut memory =
        MemBuffer::new(llt::factor::cholesky_in_place_scratch::<f64>(n, Par::Seq, Default::default()));
    let stack = MemStack::new(&mut memory);
    let factor = MatMut::from_column_major_slice_mut(gram, n, n);
    llt::factor::cholesky_in_place(
        factor,
        llt::factor::LltRegularization::default(),
        Par::Seq,
        stack,
        Default::default(),
    )
    .map_err(|llt::factor::LltError::NonPositivePivot { index }| singular(index))?;
    for (m, &diagonal) in diagonal.iter().enumerate() {
        let pivot = gram[m * n + m];
        if pivot.is_nan() || pivot * pivot <= diagonal * ROUNDING {
            return Err(singular(m));
        }
    }
    let factor = MatRef::from_column_major_slice(gram, n, n);
    llt::solve::solve_in_place(factor, MatMut::from_column_major_slice_mut(rhs, n, 1), Par::Seq, stack);
    Ok(())
}

/// What sample's pivot is nothing, with the least damping that would do.
fn singular(sample: usize, damping: f64, largest: f64) -> Error {
    if largest == 0.0 {
        let problem = "every sample's gradient is 0, so that K is 0 and has no inverse: there is no step to take (is it the gradient of \
                       the loss that was captured?)";
        return Error::mismatch(OP, problem);
    }
    let least = largest * ROUNDING;
    let damped = if damping == 0.0 { "K".to_owned() } else { format!("K + {damping:e}·I") };
    let problem = format!(
        "{damped} has no inverse: the gradient of sample {sample} is 0 or, as far as f32 tells, a sum of those before it (repeated \
         samples, or more samples than parameters); pass --damping {least:.1e} or more"
    );
    Error::mismatch(OP, problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_solved_and_damped() {
        let (mut gram, mut x) = (vec![4.0, 2.0, 2.0, 3.0], vec![2.0, 5.0]);
        solve(&mut gram, 0.0, &mut x).expect("positive definite");
        assert!((x[0] + 0.5).abs() < 1e-15 && (x[1] - 2.0).abs() < 1e-15, "{x:?}");
        let (mut gram, mut x) = (vec![1.0, 1.0, 1.0, 1.0], vec![1.0, 1.0]);
        solve(&mut gram, 2.0, &mut x).expect("damped");
        assert!(x.iter().all(|x| (x - 0.25).abs() < 1e-15), "{x:?}");
        solve(&mut [], 0.0, &mut []).expect("nothing to solve");
    }

    #[test]
    fn gradients_that_are_all_zero_are_told_and_no_damping_is_advised() {
        let refusal = solve(&mut [0.0; 4], 0.0, &mut [1.0, 1.0]).expect_err("singular").to_string();
        assert!(
            refusal.contains("every sample's gradient is 0") && !refusal.contains("--damping"),
            "{refusal}"
        );
        solve(&mut [0.0; 4], 1.0, &mut [1.0, 1.0]).expect("damped, it is no step at all");
    }

    #[test]
    fn a_singular_system_is_refused_with_the_damping_that_does() {
        let near = 1.0 - 1e-9;
        for gram in [vec![1.0, 1.0, 1.0, 1.0], vec![1.0, near, near, 1.0], vec![1.0, 0.0, 0.0, 0.0]] {
            let refusal = solve(&mut gram.clone(), 0.0, &mut [1.0, 1.0]).expect_err("singular").to_string();
            assert!(refusal.contains("sample 1") && refusal.contains("--damping 9.5e-7"), "{refusal}");
            solve(&mut gram.clone(), 1e-6, &mut [1.0, 1.0]).expect("the damping named does");
        }
        assert!(solve(&mut [1.0], 0.0, &mut [1.0, 2.0]).is_err());
    }
}
