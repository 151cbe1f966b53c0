//! Where a parameter's result is kept: in one buffer, or, where one binding cannot hold it, in several of consecutive rows.

use std::ops::Range;

use super::{Parameter, Unit, WeightRows, room};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::memory::View;
use crate::shape::DType;
use crate::stream::Budget;

/// Some rows of a parameter.
pub(crate) struct Held {
    pub(crate) rows: Range<u32>,
    pub(crate) view: View,
}

/// Zeroed buffers for some rows of a parameter.
///
/// # Errors
/// [`Error::Limit`] where one row is more than a binding; [`Error::Device`] where memory ran out.
pub(crate) fn hold(backend: &Backend, parameter: &Parameter, ranges: &[Range<u32>]) -> Result<Vec<Held>> {
    let hold = |rows: &Range<u32>| {
        let view = backend.alloc(rows.len() as u64 * parameter.rows.len, DType::F32);
        let view = view.map_err(|error| of_row(error, &parameter.name))?;
        Ok(Held { rows: rows.clone(), view })
    };
    ranges.iter().map(hold).collect()
}

/// The rows of every parameter of a unit that are computed at a time: all of them at once where they are within `budget` bytes. Each range is one
/// buffer's.
///
/// # Errors
/// [`Error::Budget`] where one row is more.
pub(crate) fn passes(unit: &Unit, caps: &Caps, share: Share) -> Result<Vec<Vec<Vec<Range<u32>>>>> {
    let none = vec![Vec::new(); unit.parameters.len()];
    let mut passes = vec![none.clone()];
    let mut used = 0;
    for (at, Parameter { name, rows, .. }) in unit.parameters.iter().enumerate() {
        let row = 4 * rows.len;
        share.check(row, name)?;
        // The index of an embedding has a word more than there are rows, which may be of one element.
        for range in cut(*rows, room(caps).min(share.bytes) / row.max(8)) {
            let bytes = range.len() as u64 * row;
            if used > 0 && used + bytes > share.bytes {
                passes.push(none.clone());
                used = 0;
            }
            passes.last_mut().expect("there is a first")[at].push(range);
            used += bytes;
        }
    }
    Ok(passes)
}

/// What results may have of a memory budget.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    /// Bytes of the parameters that are computed at a time.
    pub(crate) bytes: u64,
    budget: u64,
    is_host: bool,
}

impl Share {
    /// Half of the budget for results, of which there are `copies`. The other half is for inputs and gradients of what is computed and of
    /// what is read meanwhile, an eighth each: that is what bindings are taken to have.
    pub(crate) fn of(budget: &Budget, caps: &Caps, copies: u64) -> (Self, Caps) {
        let all = if caps.is_host { budget.host_bytes } else { budget.device_bytes };
        let within = Caps { max_binding_bytes: caps.max_binding_bytes.min(all / 8), ..caps.clone() };
        (Self { bytes: all / 2 / copies, budget: all, is_host: caps.is_host }, within)
    }

    fn check(self, row: u64, name: &str) -> Result<()> {
        if row <= self.bytes {
            return Ok(());
        }
        let (what, flag) = match self.is_host {
            true => ("host memory", "--host-memory"),
            false => ("device memory", "--device-memory"),
        };
        Err(Error::Budget {
            op: format!("the result {}", crate::error::printable(name)),
            what: what.into(),
            need: (self.budget / self.bytes.max(1)).max(2).saturating_mul(row),
            have: self.budget,
            flag: flag.into(),
        })
    }
}

/// Where one buffer does not do, it is a row that is too large.
fn of_row(error: Error, name: &str) -> Error {
    match error {
        Error::Limit { limit, max, asked, .. } => {
            let limit = format!("{limit} for a row of it (the host backend has no such limit)");
            Error::Limit { op: format!("the result {}", crate::error::printable(name)), limit, max, asked }
        }
        other => other,
    }
}

/// Ranges of at most so many rows that cover a weight: whole units, or parts of one.
pub(crate) fn cut(rows: WeightRows, at_once: u64) -> Vec<Range<u32>> {
    let at_once = u32::try_from(at_once).unwrap_or(u32::MAX).max(1);
    let (block, step) = match at_once / rows.unit {
        0 => (rows.unit, at_once),
        units => (rows.count, units * rows.unit),
    };
    let blocks = (0..rows.count).step_by(block.max(1) as usize);
    blocks
        .flat_map(|start| {
            let end = rows.count.min(start.saturating_add(block));
            (start..end).step_by(step as usize).map(move |first| first..end.min(first.saturating_add(step)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_cover_every_row_once_and_keep_units_or_stay_inside_one() {
        for (count, unit) in [(1, 1), (7, 1), (64, 1), (12, 3), (12, 12), (0, 1)] {
            for at_once in [0, 1, 2, 3, 5, 7, 100] {
                let ranges = cut(WeightRows { count, unit, len: 1 }, at_once);
                let covered: Vec<u32> = ranges.iter().cloned().flatten().collect();
                assert_eq!(covered, (0..count).collect::<Vec<_>>(), "{count} {unit} {at_once}");
                for range in ranges {
                    let whole = range.start % unit == 0 && range.end % unit == 0;
                    let inside = range.start / unit == (range.end - 1) / unit;
                    assert!(whole || inside, "{range:?} of units of {unit}");
                    assert!(range.len() as u64 <= at_once.max(1), "{range:?} at once {at_once}");
                }
            }
        }
    }
}
