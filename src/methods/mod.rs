//! The jobs: each composes reading, sweeps and writing into one result, from files to files.
//!
//! A job's module has two functions, which are called alike as a rule:
//!
//! ```text
//! plan(inputs, &options, &run)         what would be done, or why it cannot be: from headers and budgets alone
//! job(inputs, &options, out, &run)     does it
//! ```
//!
//! Inputs and `out` are paths ([`squisher::extract`] takes states that were opened, as their names may need a
//! decision). Options say what is computed; where each file counts for something of its own
//! (a merge's λ, an anchor's Fishers) they hold the files, too, as they hold what is written only if it is
//! asked for (a mask, a Gram matrix, a gradient). [`Run`](crate::Run) says with what: backend, memory, who
//! hears of it, who may end it; `Run::new(&backend)` is enough. A plan that needs nothing of it is not given
//! it.
//!
//! ```no_run
//! use std::path::Path;
//!
//! use squisher::methods::mask::{MaskOptions, mask};
//! use squisher::methods::select::Keep;
//! use squisher::{Backend, Run};
//!
//! let options = MaskOptions::new(Keep::Fraction(0.005));
//! let (fisher, out) = (Path::new("fisher.safetensors"), Path::new("mask.safetensors"));
//! let report = mask(fisher, &options, out, &Run::new(&Backend::Host))?;
//! println!("{} of {} kept", report.kept, report.elements);
//! # Ok::<(), squisher::Error>(())
//! ```

mod captured;
pub mod ewc;
pub mod fisher;
mod globs;
pub mod mask;
pub mod merge;
pub mod per_sample;
pub mod prune;
pub mod reset;
pub mod select;
mod source;
#[cfg(feature = "pytorch")]
pub mod squisher;
pub mod step;
pub mod task2vec;
mod transposed;

pub use globs::Globs;
pub use source::NonFinite;
