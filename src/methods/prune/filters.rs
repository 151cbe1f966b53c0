//! Whole filters: their scores, and which of them stay.

use std::ops::Range;

use super::OP;
use super::writer::Writer;
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::methods::select::{COPY_BYTES, Keep, Kept, Roles, Scope, Selector, within_budget};
use crate::shape::usize_of;

/// Ranges of the ranked tensors, and how many filters of each are kept.
pub(super) fn parts(plan: &Roles<'_>, scope: Scope, keep: Keep) -> Result<Vec<(Range<usize>, u64)>> {
    let always =
        plan.always.iter().filter(|tensor| tensor.shape.len() > 1).map(|tensor| tensor.shape[0]).sum();
    let rows = plan.ranked.iter().map(|tensor| tensor.shape[0]);
    match scope {
        Scope::Global => {
            let k = within_budget(OP, keep.of(OP, rows.sum::<u64>() + always)?, always)?;
            Ok(vec![(0..plan.ranked.len(), k)])
        }
        Scope::Tensor => {
            rows.enumerate().map(|(tensor, rows)| Ok((tensor..tensor + 1, keep.of(OP, rows)?))).collect()
        }
    }
}

/// Elements of a filter.
fn width(plan: &Roles<'_>, tensor: usize) -> u64 {
    let tensor = plan.ranked[tensor];
    tensor.elements().checked_div(tensor.shape[0]).unwrap_or(0).max(1)
}

/// `filter-sum` of every filter: Σ ½ θ² F, in f64.
pub(super) fn sums(selector: &mut Selector<'_>, plan: &Roles<'_>) -> Result<Vec<Vec<f64>>> {
    let mut sums: Vec<Vec<f64>> =
        plan.ranked.iter().map(|tensor| vec![0.0; usize_of(tensor.shape[0])]).collect();
    selector.scores(&mut |tensor, start, scores| {
        let width = width(plan, tensor);
        for (element, &score) in (start..).zip(scores) {
            sums[tensor][usize_of(element / width)] += f64::from(score);
        }
        Ok(())
    })?;
    Ok(sums)
}

/// Writes the filters with the best scores and zeros in the place of the others; gives the last kept one's
/// score, if there is one order for all.
pub(super) fn keep_best(
    plan: &Roles<'_>,
    scores: &[Vec<f64>],
    (scope, keep): (Scope, Keep),
    writer: &Writer<'_>,
    kept: &mut [u64],
    interrupt: &Interrupt,
) -> Result<Option<f32>> {
    let (stays, last) = best(plan, scores, scope, keep)?;
    for (tensor, stays) in stays.iter().enumerate() {
        let (len, width) = (plan.ranked[tensor].elements(), width(plan, tensor));
        kept[tensor] = stays.iter().map(|&keep| u64::from(keep) * width).sum::<u64>().min(len);
        // Elements of at most eight bytes.
        for start in (0..len).step_by(usize_of(COPY_BYTES / 8)) {
            interrupt.check()?;
            let end = len.min(start + COPY_BYTES / 8);
            let mask: Vec<u8> = (start..end).map(|element| stays[usize_of(element / width)]).collect();
            writer.copy_kept(&Kept { tensor, start, mask: &mask })?;
        }
    }
    #[expect(clippy::cast_possible_truncation, reason = "reported for a person to read")]
    let threshold = last.filter(|_| scope == Scope::Global).map(|score| score as f32);
    Ok(threshold)
}

/// 1 for every filter that stays, and the score of the last one.
fn best(
    plan: &Roles<'_>,
    scores: &[Vec<f64>],
    scope: Scope,
    keep: Keep,
) -> Result<(Vec<Vec<u8>>, Option<f64>)> {
    let mut last = None;
    let mut stays: Vec<Vec<u8>> = scores.iter().map(|scores| vec![0; scores.len()]).collect();
    for (range, k) in parts(plan, scope, keep)? {
        let mut order: Vec<(usize, usize)> =
            range.flat_map(|tensor| (0..scores[tensor].len()).map(move |row| (tensor, row))).collect();
        // Stable: equal scores stay in the order of tensors and rows.
        order.sort_by(|a, b| scores[b.0][b.1].total_cmp(&scores[a.0][a.1]));
        order.truncate(usize_of(k));
        last = order.last().map(|&(tensor, row)| scores[tensor][row]);
        order.into_iter().for_each(|(tensor, row)| stays[tensor][row] = 1);
    }
    Ok((stays, last))
}
