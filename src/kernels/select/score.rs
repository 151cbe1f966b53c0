//! What is ranked, and its scores on the host.

use crate::error::Result;
use crate::kernel::{BLOCK, CaseBuffer, Floats, Slice, noise};
use crate::memory::View;
use crate::reference;
use crate::shape::DType;

/// What a parameter is ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Score {
    /// F, the diagonal Fisher (Sung et al. 2021, FISH Mask).
    Fish,
    /// ½ θ² F: what the loss grows by when θ is set to zero, to second order (Theis et al. 2018). In f32,
    /// left to right: ((0.5 · θ) · θ) · F.
    Prune,
}

/// A score and how its inputs are stored: what specialises the kernels of a selection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scores {
    /// What parameters are ranked by.
    pub score: Score,
    /// Storage of θ; for [`Score::Fish`], which has none, that of F, which is bound in its place.
    pub theta: DType,
    /// Storage of F.
    pub fisher: DType,
}

/// What stands for a score that cannot be ordered: above every other.
pub(super) const BAD: u32 = u32::MAX;

impl Scores {
    pub(super) fn overrides(self) -> Vec<(&'static str, f64)> {
        let score = match self.score {
            Score::Fish => 0,
            Score::Prune => 1,
        };
        vec![
            ("SCORE", score.into()),
            ("THETA", self.theta.code().into()),
            ("FISHER", self.fisher.code().into()),
        ]
    }

    /// Checks the two inputs of a kernel.
    pub(super) fn check(self, op: &str, theta: &View, fisher: &View, len: u32) -> Result<()> {
        theta.check(op, "theta", len.into(), Some(self.theta.into()))?;
        fisher.check(op, "fisher", len.into(), Some(self.fisher.into()))
    }

    /// Bytes of the inputs of one element.
    pub(super) fn bytes(self) -> u64 {
        self.fisher.size() + if self.score == Score::Prune { self.theta.size() } else { 0 }
    }

    /// Operations of one score.
    pub(super) fn flops(self) -> u64 {
        if self.score == Score::Prune { 3 } else { 0 }
    }
}

/// One score as an integer that orders as scores do: the bits of the f32, −0 counted as 0. Nothing where θ or F is NaN,
/// or F is negative or infinite, or the score is NaN.
#[must_use]
pub fn score_bits(score: Score, theta: f32, fisher: f32) -> Option<u32> {
    let raw = match score {
        Score::Fish => fisher,
        Score::Prune => 0.5 * theta * theta * fisher,
    };
    Some(ordered(raw, fisher)).filter(|&bits| bits != BAD)
}

/// Told from the bits, which vectorises.
#[inline(always)]
fn ordered(score: f32, fisher: f32) -> u32 {
    const MAGNITUDE: u32 = 0x7fff_ffff;
    const INFINITE: u32 = 0x7f80_0000;
    let (bits, fisher) = (score.to_bits() & MAGNITUDE, fisher.to_bits());
    let bad = (fisher > !MAGNITUDE) | (fisher & MAGNITUDE >= INFINITE) | (bits > INFINITE);
    if bad { BAD } else { bits }
}

/// Scratch for the scores of one block.
pub(super) struct Scorer {
    theta: Floats,
    fisher: Floats,
    bits: Box<[u32; BLOCK]>,
}

impl Default for Scorer {
    fn default() -> Self {
        Self { theta: Floats::default(), fisher: Floats::default(), bits: Box::new([0; BLOCK]) }
    }
}

impl Scorer {
    /// The ordered scores of elements `start..start + len`, at most [`BLOCK`] of them.
    #[inline(always)]
    pub(super) fn load(
        &mut self,
        score: Score,
        theta: Slice<'_>,
        fisher: Slice<'_>,
        start: usize,
        len: usize,
    ) -> &[u32] {
        let out = &mut self.bits[..len];
        let fisher = self.fisher.load(fisher.range(start, len));
        match score {
            Score::Fish => {
                for (out, &f) in out.iter_mut().zip(fisher) {
                    *out = ordered(f, f);
                }
            }
            Score::Prune => {
                let theta = self.theta.load(theta.range(start, len));
                for ((out, &t), &f) in out.iter_mut().zip(theta).zip(fisher) {
                    *out = ordered(0.5 * t * t * f, f);
                }
            }
        }
        out
    }
}

/// Element ranges of about equal length for `parts` tasks, in whole steps of `step` elements.
pub(super) fn ranges(len: usize, parts: usize, step: usize) -> Vec<std::ops::Range<usize>> {
    let each = len.div_ceil(parts.max(1)).next_multiple_of(step).max(step);
    (0..len).step_by(each).map(|start| start..len.min(start + each)).collect()
}

/// What kernel cases are made of: inputs, and the definition's scores of them as they are stored.
#[derive(Clone)]
pub(super) struct Inputs {
    pub(super) scores: Scores,
    pub(super) theta: CaseBuffer,
    pub(super) fisher: CaseBuffer,
    pub(super) values: Vec<f64>,
}

impl Inputs {
    pub(super) fn new(scores: Scores, theta: &[f64], fisher: &[f64]) -> Self {
        let fisher = CaseBuffer::floats(scores.fisher, fisher);
        let theta = match scores.score {
            Score::Fish => fisher.clone(),
            Score::Prune => CaseBuffer::floats(scores.theta, theta),
        };
        let pairs = theta.values().into_iter().zip(fisher.values());
        let values = pairs
            .map(|(t, f)| match scores.score {
                Score::Fish => reference::select::fish(f),
                Score::Prune => reference::select::prune(t, f),
            })
            .collect();
        Self { scores, theta, fisher, values }
    }

    /// Fishers over many magnitudes, a third of them equal to another, some zero; θ small multiples of ½, so that no
    /// product leaves the normal range.
    pub(super) fn mixed(scores: Scores, seed: u64, len: usize) -> Self {
        let u = noise(seed, len);
        let fisher: Vec<f64> = (u.iter().zip(noise(seed + 1, len)))
            .map(|(u, v)| match v {
                v if v < -0.4 => (u * 4.0).round().abs() * 0.25,
                v if v < -0.3 => -0.0,
                v => u.abs() * 10_f64.powf(3.0 * v),
            })
            .collect();
        let theta: Vec<f64> = noise(seed + 2, len).iter().map(|t| (t * 6.0).round() / 2.0).collect();
        Self::new(scores, &theta, &fisher)
    }

    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.values.len()).expect("cases are small")
    }
}

/// Every specialisation, and one of each score for what need not be tried on all.
pub(super) fn all_scores() -> Vec<Scores> {
    let mut all = Vec::new();
    for fisher in DType::ALL {
        all.push(Scores { score: Score::Fish, theta: fisher, fisher });
        all.extend(DType::ALL.map(|theta| Scores { score: Score::Prune, theta, fisher }));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_ordered_has_no_bits() {
        let inf = f32::INFINITY;
        for (theta, fisher) in
            [(1.0, f32::NAN), (1.0, -1.0), (1.0, -inf), (1.0, inf), (0.0, -1e-45), (0.0, inf)]
        {
            assert_eq!(score_bits(Score::Prune, theta, fisher), None, "{theta} {fisher}");
            assert_eq!(score_bits(Score::Fish, theta, fisher), None, "{theta} {fisher}");
        }
        for (theta, fisher) in [(f32::NAN, 1.0), (inf, 0.0), (f32::NAN, 0.0)] {
            assert_eq!(score_bits(Score::Prune, theta, fisher), None, "{theta} {fisher}");
        }
        assert_eq!(score_bits(Score::Fish, f32::NAN, -0.0), Some(0));
        assert_eq!(score_bits(Score::Prune, -2.0, -0.0), Some(0));
        assert_eq!(score_bits(Score::Prune, inf, 1.0), Some(inf.to_bits()));
        assert_eq!(score_bits(Score::Fish, 0.0, 1e-45), Some(1));
    }

    #[test]
    fn ranges_cover_everything_once_in_whole_steps() {
        for (len, parts, step) in [(0, 3, 8), (1, 3, 8), (100, 3, 8), (64, 8, 8), (65, 8, 8), (10, 0, 4)] {
            let ranges = ranges(len, parts, step);
            let mut next = 0;
            for range in &ranges {
                assert_eq!((range.start, range.start % step), (next, 0), "{len} {parts} {step}");
                next = range.end;
            }
            assert_eq!(next, len, "{len} {parts} {step}");
            assert!(ranges.len() <= parts.max(1), "{len} {parts} {step}");
        }
    }
}
