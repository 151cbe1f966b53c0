//! Checkpoints in safetensors: which tensors there are, reading any range of them, writing new ones.
//!
//! # What is guaranteed
//!
//! - **Nothing is believed.** A header is checked completely before anything is read by it: its length against
//!   the file, every size against dtype and shape, the data section for holes, overlaps and trailing bytes, names
//!   for repetition; an index against its shards, in both directions. Each refusal names file and tensor, what was
//!   expected, what came, and what to do. Names are data: compared by bytes, never used as paths.
//! - **Memory does not grow with the model.** Only headers are held. Reading and writing go by position, from any
//!   number of threads, in pieces of the caller's size. Nothing is memory-mapped: an input that shrinks while it is
//!   read is an error here, where a map would kill the process. [`Checkpoint::verify_unchanged`], called at the end
//!   of a job, tells whether an input was changed meanwhile.
//! - **An output appears whole or not at all.** [`Output`] writes a partial beside the target, sets its disk space
//!   aside at the start, counts which bytes were written, and refuses to finish while one is missing. It is synced,
//!   then renamed. Until that moment the old output is as it was; dropping an [`Output`] removes the partial.
//!   A process killed outright leaves a partial behind (`.NAME.partial-PID-…`), which the next run to the same
//!   target removes; while the first one lives, a second is refused. A job that can go on where it ended asks for a
//!   partial that stays ([`Output::create_or_resume`]); its journal says what of it is on disk.
//! - **The bytes are the format's own.** A file equals what the `safetensors` crate writes for the same tensors, so
//!   outputs can be compared by hash. (That crate writes several metadata entries in random order; here they are
//!   sorted.) No timestamp and no host name is written: equal inputs give equal files.
//!
//! # What is not
//!
//! - A network file system may report a rename done before another machine sees it, and some ignore the sync of a
//!   folder: after a crash of the *server* the old output may be back. It is never half of each.
//! - Replacing an existing *folder* is one atomic step where the system can exchange two names (Linux, macOS);
//!   elsewhere it is two renames, and a crash exactly between them leaves the old content under
//!   `.NAME.replaced-…` and nothing under the target.
//! - Detecting a changed input relies on size, modification time and file identity. A writer that restores the time
//!   goes unnoticed, as does a change within the file system's clock step of the moment of opening.
//! - Data is not checksummed: the format has no place for it.
//!
//! # Why not the crate's own writer
//!
//! `safetensors::serialize_to_file` wants each whole tensor in memory and has no way to report that producing one
//! failed; it does not sync, makes files of mode 0600, and replaces a symbolic link instead of what it points to.
//! The crate remains the judge: tests compare every byte with its writer and read everything back with its reader.

#[cfg(feature = "pytorch")]
mod accumulator;
mod capture;
mod coverage;
mod disk;
mod header;
mod index;
mod kept;
mod layout;
#[cfg(feature = "pytorch")]
mod model;
#[cfg(feature = "pytorch")]
mod names;
mod open;
#[cfg(feature = "pytorch")]
mod optimizer;
mod output;
mod partial;
#[cfg(feature = "pytorch")]
mod pickle;
mod statistics;
mod target;

#[cfg(feature = "pytorch")]
pub use accumulator::{Accumulator, Scale, momentum_bound};

pub use capture::{
    CAPTURE_FORMAT, Capture, CaptureLayer, Labels, LayerKind, LayerUse, LossReduction, Tied, Window,
    is_capture, positions, same_network,
};
pub(crate) use capture::{same_layers, same_shapes, widen_bytes};
pub use header::{MAX_AXES, MAX_HEADER_BYTES, MAX_TENSORS};
pub use layout::{OutputFile, OutputLayout, OutputTensor};
#[cfg(feature = "pytorch")]
pub use model::ModelParams;
#[cfg(feature = "pytorch")]
pub use names::{GroupRule, NameHints, NameMap, NameSource, Named, Param, SNIPPET, resolve};
pub use open::{Checkpoint, Shard, TensorInfo};
#[cfg(feature = "pytorch")]
pub use optimizer::{OptimizerState, ParamGroup, ParamId, StateEntry, StateTensor};
pub use output::{Output, OutputSlot};
pub use safetensors::Dtype;
pub use statistics::{Statistics, Summary, TopShare, statistics};
