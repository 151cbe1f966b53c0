//! Streaming what does not fit: one pass over all parameters, in chunks, within budgets.
//!
//! A checkpoint is a **virtual flat array**: its tensors in name order, packed densely, so that thousands of small
//! tensors share a chunk and a large one spans many. Several such arrays run in parallel (the models' weights,
//! their Fishers, the output); a chunk is the same range of elements of each.
//!
//! ```text
//!          slot 0      slot 1      slot 2
//!  read    chunk 3 ─┐
//!  upload           └─ chunk 2 ─┐                 five stages, each at another chunk
//!  compute              ...     └─ chunk 1 ─┐
//!  bring back                               │
//!  write                             chunk 0┘ ─→ the slot is free again
//! ```
//!
//! **Plan, then run.** [`Plan::new`] decides everything from names and sizes: which elements lie where in
//! which chunk, how many bytes of which memory. It is pure data, can be printed (`--dry-run`) and is tested
//! without a device. [`run`] executes it and decides nothing.
//!
//! **Guaranteed:** every element passes exactly once and in order; no buffer exceeds what the device binds; the ring
//! exceeds neither budget, whatever the sizes of models and tensors (2³² elements and more); the same input
//! gives the same plan, and chunk boundaries never show in the result, because elementwise kernels see no
//! neighbour.
//!
//! **Given up:** a chunk holds tensors of one combination of storage types, so a model that alternates types
//! tensor by tensor is read out of file order; and the slots' buffers are as long as the longest chunk needs, though
//! a narrower combination would need less.

mod budget;
mod lane;
mod means;
mod plan;
mod run;
mod timings;

pub use budget::{Budget, Memories, parse_size};
pub use means::Run;
pub(crate) use plan::Cuts;
pub use plan::{Chunk, Direction, Layout, Plan, Segment, Stream, TensorSpec, Traffic};
pub use run::{Buffers, End, Job, Sink, Source, Sweep, run};
pub use timings::Timings;
pub(crate) use timings::{Clock, Stage};
