//! Task2Vec: Fishers of one network on several tasks as vectors, and how far apart they are.
//!
//! | `group` | entry | vector |
//! |---|---|---|
//! | `tensor` | the mean of a tensor | as long as there are tensors |
//! | `row` | the mean over all but the axis of outputs (one output filter); a vector's or scalar's own elements | as long as there are rows |
//! | `element` | the element | never whole in memory; for distances only |
//!
//! Outputs lie along the first axis, of transposed convolutions along the second: `fisher` names their
//! weights in its file, other Fishers do not say. Tensors without elements are left out.
//!
//! Distances, with v = 1/F: see [`Metric`]; `asymmetric` is d(a, b) − α d(a, trivial) with d = `normalized`,
//! from the task of the row to that of the column (Achille et al., *Task2Vec*, 2019; Li et al., *Fishers for
//! Free?*, 2025, table 7).
//!
//! **Guaranteed:** each file is read once, whatever the number of pairs. Bad values are refused by tensor and
//! index, and nothing is written then. The same input, backend and budget give the same bits. Another budget
//! cuts rows and vectors elsewhere, which changes the rounding of f32 partial sums and nothing else: means
//! within 19 roundings, the sums behind a distance within what
//! [`Similarity`](crate::kernels::task2vec::Similarity) states.
//!
//! **Given up:** on a device the sums behind a cosine carry about 1e-6 of relative error, so distances below that tell
//! nothing; the host's are sums in f64, rounded once a share.
//!
//! ```no_run
//! use std::path::PathBuf;
//!
//! use squisher::methods::NonFinite;
//! use squisher::methods::task2vec::distance::{DistanceMetric, DistanceOptions, distance};
//! use squisher::methods::task2vec::{Group, Metric};
//! use squisher::{Backend, Run};
//!
//! let fishers: [PathBuf; 2] = ["birds.fisher.safetensors".into(), "cars.fisher.safetensors".into()];
//! let metric = DistanceMetric::Symmetric(Metric::Normalized);
//! let options = DistanceOptions { metric, group: Group::Row, non_finite: NonFinite::Error };
//! let report = distance(&fishers, &options, &Run::new(&Backend::Host))?;
//! println!("{} to {}: {}", report.names[0], report.names[1], report.matrix[0][1]);
//! # Ok::<(), squisher::Error>(())
//! ```

pub mod distance;
pub mod embed;
mod inputs;
mod ranking;

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

pub use ranking::{Ranking, Scores, rank};

pub use crate::kernels::task2vec::Metric;

use crate::error::{Error, Result};

/// What one entry of a task's vector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// An element; for distances only.
    Element,
    /// The mean of a row: one output filter.
    Row,
    /// The mean of a tensor.
    Tensor,
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Element => "element",
            Self::Row => "row",
            Self::Tensor => "tensor",
        })
    }
}

impl FromStr for Group {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let known = [Self::Element, Self::Row, Self::Tensor].into_iter().find(|group| group.to_string() == s);
        known.ok_or_else(|| Error::argument("group", format!("\"{s}\" is not one of element, row, tensor")))
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Records of one step start at a multiple of this many words: 256 bytes, the strictest device's alignment.
const STRIDE: u64 = 64;
