//! The grid of the elementwise kernels, and the sizes that cases and benches have in common.

use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::groups_for;

/// Invocations of a workgroup of the elementwise kernels: every device allows 256.
pub(crate) const WORKGROUP: u32 = 256;

/// Groups of eight elements an invocation handles, strided by the workgroup: four 16-byte loads of f32,
/// which is the fastest coalesced form that was measured on software Vulkan.
pub(crate) const OCTETS: u32 = 2;

/// The grid of an elementwise kernel over `len` elements, and the check that `len` fits the shader's u32.
pub(crate) fn elementwise(op: &str, len: u64, caps: &Caps) -> Result<[u32; 3]> {
    let max = u64::from(u32::MAX);
    if len > max {
        return Err(Error::Limit {
            op: op.into(),
            limit: "the most elements of one step".into(),
            max,
            asked: len,
        });
    }
    groups_for(op, len, u64::from(8 * WORKGROUP * OCTETS), caps)
}

/// Sizes that a kernel is timed at whose form is chosen for the device: from bound by launching to as much as a device
/// binds.
pub(crate) const BENCHED: [u64; 7] = [1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28];

/// Lengths around every edge of an elementwise kernel: empty, within and past one group of eight, one
/// invocation's share, one workgroup's, and one row of a folded grid with short rows.
pub(crate) const LENGTHS: [usize; 10] = [0, 1, 7, 8, 9, 2047, 2048, 4095, 4097, 10_007];
