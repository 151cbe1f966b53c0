//! The kernels: one small file a shader, at the same path as in `shaders/`, and the registry.
//!
//! To add one: `shaders/FAMILY/NAME.wgsl`, `src/kernels/FAMILY/NAME.rs` (doc, `params!`, `args!`, `Kernel`,
//! `Checked`), a definition in [`reference`](crate::reference) if the quantity is new, and one line in the
//! registry below. Contract test, oracle test, bench and `verify` find it by themselves.

pub mod ceiling;
pub mod ewc;
pub mod fisher;
pub mod likelihood;
pub mod merge;
pub mod optimizer;
pub mod select;
pub mod stats;
pub mod task2vec;

use crate::error::Result;
use crate::gpu::{Caps, DeviceClass};
use crate::kernel::{Visitor, groups_for};

macro_rules! kernels {
    ($($kernel:path,)*) => {
        /// Calls the visitor once for each kernel, in the order of the registry.
        pub fn visit_all(visitor: &mut impl Visitor) {
            $(visitor.kernel::<$kernel>();)*
        }
    };
}

kernels! {
    ceiling::Fma,
    stats::Summary,
    fisher::EmbeddingSq,
    fisher::NormSq,
    fisher::NormStats,
    optimizer::Ema,
    optimizer::Amsgrad,
    optimizer::Scale,
    merge::Fisher,
    merge::FisherFour,
    merge::Ubgm,
    fisher::LinearSq,
    fisher::LinearSqShared,
    fisher::ConvSq,
    fisher::SumSq,
    likelihood::Draw,
    likelihood::Softmax,
    likelihood::Gaussian,
    fisher::Gram,
    select::Histogram,
    select::Narrow,
    select::Count,
    select::Scan,
    select::Mask,
    select::Gather,
    select::Nm,
    select::Choose,
    select::Spend,
    task2vec::RowMean,
    task2vec::Similarity,
    ewc::Gradient,
    ewc::Penalty,
}

/// Who has a share of the values that a kernel sums up: each share leaves one record, and records are put together in f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A workgroup, whose sums a tree in its memory joins. For GPUs, and the host.
    Workgroup,
    /// One invocation, and no barrier: on a processor behind a graphics interface a barrier costs more than the values between two of them.
    Invocation,
}

impl Owner {
    /// The one that suits a device.
    #[must_use]
    pub fn of(caps: &Caps) -> Self {
        if caps.class == DeviceClass::Software && !caps.is_host { Self::Invocation } else { Self::Workgroup }
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
    const fn share(self, of_workgroup: u32) -> u64 {
        8 * (self.lanes() * self.octets(of_workgroup)) as u64
    }

    /// The most roundings that lie one after the other in a share's sum where each group of eight has to be taken with care: three
    /// within it, one for each of an invocation's groups and one for what needed none, and those of the lanes; one more covers what
    /// is below 2⁻¹²⁶ of the unit, which a device may flush.
    const fn roundings(self, of_workgroup: u32) -> u32 {
        3 + self.octets(of_workgroup) + 1 + self.lanes().ilog2() + 1
    }

    fn overrides(self, of_workgroup: u32) -> [(&'static str, f64); 3] {
        [
            ("WORKGROUP", self.workgroup().into()),
            ("LANES", self.lanes().into()),
            ("OCTETS", self.octets(of_workgroup).into()),
        ]
    }

    /// The grid for `len` values.
    fn grid(self, op: &str, len: u64, of_workgroup: u32, caps: &Caps) -> Result<[u32; 3]> {
        let shares = u64::from(self.workgroup() / self.lanes());
        groups_for(op, len.div_ceil(self.share(of_workgroup)), shares, caps)
    }
}

/// The text of a shader file.
macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path))
    };
}
pub(crate) use shader;

/// Eight elements a load: the parts that most elementwise kernels share.
pub(crate) const DTYPE: &str = shader!("lib/dtype.wgsl");

/// What lanes of a workgroup have, joined to one.
pub(crate) const JOIN: &str = shader!("lib/join.wgsl");

/// Weights with an exponent of their own.
pub(crate) const WIDE: &str = shader!("lib/wide.wgsl");

/// One element a load: for kernels whose elements are scattered. Needs [`DTYPE`].
pub(crate) const ELEMENT: &str = shader!("lib/element.wgsl");

/// Runs of consecutive elements that begin anywhere, read by whole octets. Needs [`DTYPE`].
pub(crate) const RUN: &str = shader!("lib/run.wgsl");

/// Neighbouring columns eight at a time. Needs [`DTYPE`].
pub(crate) const COLUMNS: &str = shader!("lib/columns.wgsl");

/// Invocations of a workgroup of the elementwise kernels: every device allows 256.
pub(crate) const WORKGROUP: u32 = 256;

/// Groups of eight elements an invocation handles, strided by the workgroup: four 16-byte loads of f32,
/// which is the fastest coalesced form that was measured on software Vulkan.
pub(crate) const OCTETS: u32 = 2;

/// The grid of an elementwise kernel over `len` elements, and the check that `len` fits the shader's u32.
pub(crate) fn elementwise(op: &str, len: u64, caps: &Caps) -> Result<[u32; 3]> {
    let max = u64::from(u32::MAX);
    if len > max {
        return Err(crate::Error::Limit {
            op: op.into(),
            limit: "elements of one step".into(),
            max,
            asked: len,
        });
    }
    groups_for(op, len, u64::from(8 * WORKGROUP * OCTETS), caps)
}

/// Sizes that a kernel is timed at whose form is chosen for the device: from bound by launching to as much as a device binds.
pub(crate) const BENCHED: [u64; 7] = [1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26, 1 << 28];

/// Lengths around every edge of an elementwise kernel: empty, within and past one group of eight, one
/// invocation's share, one workgroup's, and one row of a folded grid with short rows.
pub(crate) const LENGTHS: [usize; 10] = [0, 1, 7, 8, 9, 2047, 2048, 4095, 4097, 10_007];
