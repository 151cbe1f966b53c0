//! How a parameter is cut: rows along its leading axis.

use std::ops::Range;

use super::small;
use crate::checkpoint::{CaptureLayer, LayerKind};
use crate::error::Result;
use crate::shape::elements;

/// How a weight is cut: rows along its leading axis, at multiples of `unit`, of `len` elements each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WeightRows {
    pub(crate) count: u32,
    pub(crate) unit: u32,
    pub(crate) len: u64,
}

/// How a layer's weight is cut.
pub(super) fn weight_rows(layer: &CaptureLayer) -> Result<WeightRows> {
    let shape = &layer.weight;
    let all = elements(shape).unwrap_or(u64::MAX);
    let (count, unit) = match &layer.kind {
        LayerKind::Linear | LayerKind::Embedding { .. } => (shape[0], 1),
        LayerKind::Conv(window) | LayerKind::ConvTranspose(window) if window.groups == 1 => (shape[0], 1),
        LayerKind::Conv(window) | LayerKind::ConvTranspose(window) => {
            (shape[0], shape[0] / window.groups.max(1))
        }
        _ => (1, 1),
    };
    Ok(WeightRows {
        count: small(count)?,
        unit: small(unit)?.max(1),
        len: all.checked_div(count).unwrap_or(0),
    })
}

/// A bias, which is not cut.
pub(super) fn bias_rows(layer: &CaptureLayer) -> WeightRows {
    WeightRows { count: 1, unit: 1, len: elements(&layer.bias_shape).unwrap_or(u64::MAX) }
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
