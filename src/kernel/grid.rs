//! From a number of items to a grid of workgroups.

use crate::error::{Error, Result};
use crate::gpu::Caps;

/// The grid for `items` items with `per_group` items a workgroup, folded into two dimensions.
///
/// A dimension holds at most 65 535 workgroups on most devices. The shader's index of a workgroup is
/// `workgroup_id.y * num_workgroups.x + workgroup_id.x`; those past the end have nothing to do.
///
/// # Errors
/// [`Error::Limit`] where two dimensions are not enough.
pub fn groups_for(op: &str, items: u64, per_group: u64, caps: &Caps) -> Result<[u32; 3]> {
    groups_of(op, items.div_ceil(per_group), caps)
}

/// The grid of `groups` workgroups, folded as [`groups_for`] does.
///
/// # Errors
/// [`Error::Limit`] where two dimensions are not enough.
pub fn groups_of(op: &str, groups: u64, caps: &Caps) -> Result<[u32; 3]> {
    let max = u64::from(caps.max_groups);
    let rows = groups.div_ceil(max).max(1);
    let limit = || Error::Limit {
        op: op.into(),
        limit: "max_compute_workgroups_per_dimension".into(),
        max,
        asked: rows,
    };
    if rows > max {
        return Err(limit());
    }
    // Rows of equal length: with G = rows · x − r, at most `rows − 1` workgroups are idle.
    let x = groups.div_ceil(rows);
    let x = u32::try_from(x).map_err(|_| limit())?;
    let y = u32::try_from(rows).map_err(|_| limit())?;
    Ok([x, y, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(max_groups: u32) -> Caps {
        Caps { max_groups, ..Caps::host() }
    }

    #[test]
    fn every_item_has_a_group_and_no_dimension_is_too_long() {
        for groups in [0, 1, 6, 7, 8, 14, 15, 48, 49] {
            let [x, y, z] = groups_of("t", groups, &caps(7)).expect("49 groups fit 7 by 7");
            assert!(u64::from(x) * u64::from(y) * u64::from(z) >= groups, "{groups}");
            assert!(x <= 7 && y <= 7, "{groups}: {x} {y}");
        }
        assert!(groups_of("t", 50, &caps(7)).is_err());
    }
}
