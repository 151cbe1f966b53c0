//! Selection: scores, and which are the k largest.

/// F, where −0 is 0 (Sung et al. 2021).
#[must_use]
pub fn fish(fisher: f64) -> f64 {
    fisher + 0.0
}

/// ((0.5 · θ) · θ) · F with each product rounded to f32 (Theis et al. 2018; the rounding is part of the definition, so
/// that the order of scores is the same everywhere). −0 is 0.
#[must_use]
pub fn prune(theta: f64, fisher: f64) -> f64 {
    let round = |x: f64| {
        #[expect(clippy::cast_possible_truncation, reason = "the definition rounds each product to f32")]
        let x = x as f32;
        f64::from(x)
    };
    round(round(round(0.5 * theta) * theta) * fisher) + 0.0
}

/// The indices of the `k` largest, best first; the earlier of equal ones first.
#[must_use]
pub fn best(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
    order.truncate(k);
    order
}

/// Whether each is among the `k` largest.
#[must_use]
pub fn mask(scores: &[f64], k: usize) -> Vec<bool> {
    let mut mask = vec![false; scores.len()];
    for i in best(scores, k) {
        mask[i] = true;
    }
    mask
}

/// Of every `of` scores that lie `stride` apart, whether each is among the `keep` largest.
#[must_use]
pub fn nm(scores: &[f64], keep: usize, of: usize, stride: usize) -> Vec<bool> {
    let mut out = vec![false; scores.len()];
    for start in (0..scores.len()).filter(|i| (i / stride).is_multiple_of(of)) {
        let members: Vec<usize> = (0..of).map(|j| start + j * stride).collect();
        let of_group: Vec<f64> = members.iter().map(|&i| scores[i]).collect();
        for i in best(&of_group, keep) {
            out[members[i]] = true;
        }
    }
    out
}

/// How many scores lie in each `[edges[i], edges[i + 1])`; the edges ascend.
#[must_use]
pub fn histogram(scores: &[f64], edges: &[f64]) -> Vec<u32> {
    let mut counts = vec![0; edges.len().saturating_sub(1)];
    for &score in scores {
        let reached = edges.partition_point(|&edge| edge <= score).checked_sub(1);
        if let Some(count) = reached.and_then(|bin| counts.get_mut(bin)) {
            *count += 1;
        }
    }
    counts
}
