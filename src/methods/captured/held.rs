//! Where a parameter's result is kept: in one buffer, or, where one binding cannot hold it, in several of consecutive rows.

use std::ops::Range;

use super::{WeightRows, room};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::memory::View;
use crate::shape::DType;

/// Some rows of a parameter.
pub(crate) struct Held {
    pub(crate) rows: Range<u32>,
    pub(crate) view: View,
}

/// Zeroed buffers for all rows of the parameter called `name`.
///
/// # Errors
/// [`Error::Limit`] where one row is more than a binding; [`Error::Device`] where memory ran out.
pub(crate) fn hold(backend: &Backend, name: &str, rows: WeightRows) -> Result<Vec<Held>> {
    // The index of an embedding has a word more than there are rows, which may be of one element.
    let at_once = room(&backend.caps()) / (4 * rows.len.max(2));
    let hold = |range: Range<u32>| {
        let view = backend.alloc(range.len() as u64 * rows.len, DType::F32);
        Ok(Held { rows: range, view: view.map_err(|error| of_row(error, name))? })
    };
    cut(rows, at_once).into_iter().map(hold).collect()
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
