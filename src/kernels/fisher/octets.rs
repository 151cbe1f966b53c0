//! Neighbouring columns in groups of eight: how many of them an invocation sums up.

use crate::error::{Error, Result};
use crate::gpu::Caps;

/// Invocations of a workgroup that sums neighbouring columns: as many as software devices run in step. Each reads its
/// own octets of every row, so a workgroup goes through all rows before the next one begins.
pub(super) const COLUMN_LANES: u32 = 8;

/// Octets of neighbouring columns for each invocation on a device, 0 where one invocation, or several, have one column:
/// on a GPU, where that is as good, and for widths that are not multiples of eight. As many as leave a workgroup for
/// each processor, or four: the wider the piece of a row that is read at a time, the fewer pages are begun. The number
/// changes no bit: a column is summed by one invocation.
pub(super) fn octets_for(caps: &Caps, columns: u32, rows: u64) -> u32 {
    // A square so long meets `Caps::max_iterations`.
    if !caps.is_software_device() || !columns.is_multiple_of(8) || columns == 0 || rows >= 4096 {
        return 0;
    }
    let processors = std::thread::available_parallelism().map_or(4, |number| number.get().min(4));
    let least = u32::try_from(processors).expect("at most four");
    let of_one = columns / (8 * COLUMN_LANES);
    [8, 4, 2].into_iter().find(|octets| of_one / octets >= least).unwrap_or(1)
}

/// Refuses numbers of octets that no shader has, and columns that do not come in eights.
pub(super) fn check_octets(op: &str, octets: u32, columns: u32, together: bool) -> Result<()> {
    if ![0, 1, 2, 4, 8].contains(&octets) {
        return Err(Error::argument(op, format!("{octets} octets an invocation, expected 0, 1, 2, 4 or 8")));
    }
    if octets > 0 && !(together && columns.is_multiple_of(8)) {
        let problem =
            format!("{columns} columns do not lie beside each other in eights, as octets have them");
        return Err(Error::argument(op, problem));
    }
    Ok(())
}

/// Workgroups for so many columns in octets.
pub(super) fn octet_groups(octets: u32, columns: u32) -> u64 {
    u64::from(columns).div_ceil(8 * u64::from(COLUMN_LANES * octets.max(1)))
}

/// The overrides of a kernel that has neighbouring columns in octets; nothing where it has not.
pub(super) fn octet_overrides(octets: u32) -> Vec<(&'static str, f64)> {
    if octets == 0 {
        return Vec::new();
    }
    vec![("TOGETHER", 1.0), ("OCTETS", octets.into()), ("WORKGROUP", COLUMN_LANES.into())]
}
