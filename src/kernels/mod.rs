//! The kernels: one small file a shader, at the same path as in `shaders/`, and the registry.
//!
//! To add one: `shaders/FAMILY/NAME.wgsl`, `src/kernels/FAMILY/NAME.rs` (doc, `params!`, `args!`, `Kernel`,
//! `Checked`), a definition in [`reference`](crate::reference) if the quantity is new, and one line in the
//! registry below, which is ordered as the README's table of kernels is. Contract test, oracle test, bench and `verify`
//! find it by themselves.

pub mod ceiling;
pub mod ewc;
pub mod fisher;
pub mod likelihood;
pub mod merge;
pub mod optimizer;
mod owner;
mod parts;
mod records;
pub mod select;
mod sizes;
pub mod stats;
pub mod task2vec;

pub use owner::Owner;
pub(crate) use parts::{COLUMNS, DTYPE, ELEMENT, JOIN, RECORD, RUN, WIDE, shader};
pub(crate) use sizes::{BENCHED, LENGTHS, OCTETS, WORKGROUP, elementwise};

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
    fisher::LinearSq,
    fisher::LinearSqShared,
    fisher::ConvSq,
    fisher::EmbeddingSq,
    fisher::NormStats,
    fisher::NormSq,
    fisher::SumSq,
    fisher::Gram,
    likelihood::Softmax,
    likelihood::Gaussian,
    likelihood::Draw,
    optimizer::Ema,
    optimizer::Amsgrad,
    optimizer::Scale,
    merge::Fisher,
    merge::FisherFour,
    merge::Ubgm,
    select::Histogram,
    select::Narrow,
    select::Count,
    select::Scan,
    select::Mask,
    select::Gather,
    select::Spend,
    select::Nm,
    select::Choose,
    stats::Summary,
    task2vec::RowMean,
    task2vec::Similarity,
    ewc::Penalty,
    ewc::Gradient,
    ceiling::Fma,
}
