//! How many are kept, and where the kept ones end.

use std::ops::Range;

use super::{Cut, Keep, Roles, Scope, Selector};
use crate::error::{Error, Result};

impl Roles<'_> {
    /// How many elements a scope keeps.
    pub(crate) fn kept(&self, op: &str, scope: Scope, keep: Keep) -> Result<u64> {
        let always = self.always_elements();
        match scope {
            Scope::Global => {
                let k = keep.of(op, self.ranked_elements() + always)?;
                within_budget(op, k, always)?;
                Ok(k)
            }
            Scope::Tensor => {
                let each = self.ranked.iter().map(|tensor| keep.of(op, tensor.elements()));
                Ok(each.sum::<Result<u64>>()? + always)
            }
        }
    }
}

/// The cuts of a scope: for each range of the ranked tensors, where the kept ones end.
pub(crate) fn cuts(
    op: &str,
    selector: &mut Selector<'_>,
    scope: Scope,
    keep: Keep,
    always: u64,
) -> Result<Vec<(Range<usize>, Cut)>> {
    let lens: Vec<u64> = selector.tensors.iter().map(|tensor| tensor.len).collect();
    let mut parts = Vec::new();
    match scope {
        Scope::Global => {
            let k = within_budget(op, keep.of(op, lens.iter().sum::<u64>() + always)?, always)?;
            parts.push((0..lens.len(), k));
        }
        Scope::Tensor => {
            for (tensor, &len) in lens.iter().enumerate() {
                parts.push((tensor..tensor + 1, keep.of(op, len)?));
            }
        }
    }
    parts.into_iter().map(|(range, k)| Ok((range.clone(), selector.cut(range, k)?))).collect()
}

/// What is left of the budget after what is always kept.
pub(crate) fn within_budget(op: &str, k: u64, always: u64) -> Result<u64> {
    k.checked_sub(always).ok_or_else(|| {
        let problem = format!(
            "{k} are to be kept, those that are always kept have {always}; keep more, or always fewer"
        );
        Error::argument(op, problem)
    })
}
