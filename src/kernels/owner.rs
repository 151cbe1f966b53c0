//! Who has a share of the values that a kernel sums up.

use super::WORKGROUP;
use crate::error::Result;
use crate::gpu::Caps;
use crate::kernel::groups_for;

/// Who has a share of the values that a kernel sums up: each share leaves one record, and records are put together
/// in f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A workgroup, whose sums a tree in its memory joins. For GPUs, and the host.
    Workgroup,
    /// One invocation, and no barrier: on a processor behind a graphics interface a barrier costs more than the values
    /// between two of them.
    Invocation,
}

impl Owner {
    /// The one that suits a device.
    #[must_use]
    pub fn of(caps: &Caps) -> Self {
        if caps.is_software_device() { Self::Invocation } else { Self::Workgroup }
    }

    const fn lanes(self) -> u32 {
        match self {
            Self::Workgroup => WORKGROUP,
            Self::Invocation => 1,
        }
    }

    const fn workgroup(self) -> u32 {
        match self {
            Self::Workgroup => WORKGROUP,
            Self::Invocation => 64,
        }
    }

    /// Groups of eight values of an invocation, where those of a workgroup have `of_workgroup` each.
    const fn octets(self, of_workgroup: u32) -> u32 {
        match self {
            Self::Workgroup => of_workgroup,
            Self::Invocation => 64,
        }
    }

    /// Values of a share.
    pub(super) const fn share(self, of_workgroup: u32) -> u64 {
        8 * (self.lanes() * self.octets(of_workgroup)) as u64
    }

    /// The most roundings that lie one after the other in a share's sum where each group of eight has to be taken with
    /// care: three within it, one for each of an invocation's groups and one for what needed none, and those of the
    /// lanes; one more covers what is below 2⁻¹²⁶ of the unit, which a device may flush.
    pub(super) const fn roundings(self, of_workgroup: u32) -> u32 {
        3 + self.octets(of_workgroup) + 1 + self.lanes().ilog2() + 1
    }

    pub(super) fn overrides(self, of_workgroup: u32) -> [(&'static str, f64); 3] {
        [
            ("WORKGROUP", self.workgroup().into()),
            ("LANES", self.lanes().into()),
            ("OCTETS", self.octets(of_workgroup).into()),
        ]
    }

    /// The grid for `len` values.
    pub(super) fn grid(self, op: &str, len: u64, of_workgroup: u32, caps: &Caps) -> Result<[u32; 3]> {
        let shares = u64::from(self.workgroup() / self.lanes());
        groups_for(op, len.div_ceil(self.share(of_workgroup)), shares, caps)
    }
}
