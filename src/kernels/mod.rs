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

use crate::kernel::Visitor;

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

/// The text of a shader file.
macro_rules! shader {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path))
    };
}
pub(crate) use shader;

/// Eight elements a load: the parts that most elementwise kernels share.
pub(crate) const DTYPE: &str = shader!("lib/dtype.wgsl");

/// Weights with an exponent of their own.
pub(crate) const WIDE: &str = shader!("lib/wide.wgsl");

/// One element a load: for kernels whose elements are scattered. Needs [`DTYPE`].
pub(crate) const ELEMENT: &str = shader!("lib/element.wgsl");

/// Runs of consecutive elements that begin anywhere, read by whole octets. Needs [`DTYPE`].
pub(crate) const RUN: &str = shader!("lib/run.wgsl");

/// Invocations of a workgroup of the elementwise kernels: every device allows 256.
pub(crate) const WORKGROUP: u32 = 256;

/// Groups of eight elements an invocation handles, strided by the workgroup: four 16-byte loads of f32,
/// which is the fastest coalesced form that was measured on software Vulkan.
pub(crate) const OCTETS: u32 = 2;

/// The grid of an elementwise kernel over `len` elements, and the check that `len` fits the shader's u32.
pub(crate) fn elementwise(op: &str, len: u64, caps: &crate::gpu::Caps) -> crate::Result<[u32; 3]> {
    let max = u64::from(u32::MAX);
    if len > max {
        return Err(crate::Error::Limit {
            op: op.into(),
            limit: "elements of one step".into(),
            max,
            asked: len,
        });
    }
    crate::kernel::groups_for(op, len, u64::from(8 * WORKGROUP * OCTETS), caps)
}

/// Lengths around every edge of an elementwise kernel: empty, within and past one group of eight, one
/// invocation's share, one workgroup's, and one row of a folded grid with short rows.
pub(crate) const LENGTHS: [usize; 10] = [0, 1, 7, 8, 9, 2047, 2048, 4095, 4097, 10_007];
