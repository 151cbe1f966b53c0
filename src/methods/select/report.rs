//! What a selection would do, and what it did.

use std::path::PathBuf;

use serde::Serialize;

use super::Roles;
use crate::checkpoint::{Output, TensorInfo};
use crate::error::printable;
use crate::stream::Timings;

/// What was kept of one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Selected {
    /// The tensor's name.
    pub name: String,
    /// The tensor's shape.
    pub shape: Vec<u64>,
    /// Elements of the tensor.
    pub elements: u64,
    /// Elements that are kept.
    pub kept: u64,
    /// The share of those not kept; 0 of nothing.
    pub sparsity: f64,
}

impl Selected {
    pub(crate) fn new(tensor: &TensorInfo, kept: u64) -> Self {
        let (name, shape, elements) = (tensor.name.clone(), tensor.shape.clone(), tensor.elements());
        Self { name, shape, elements, kept, sparsity: sparsity(elements, kept) }
    }
}

pub(crate) fn sparsity(elements: u64, kept: u64) -> f64 {
    if elements == 0 { 0.0 } else { (elements - kept) as f64 / elements as f64 }
}

/// What a selection gave.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SelectReport {
    /// The tensors in the selection's scope, by name.
    pub tensors: Vec<Selected>,
    /// Elements of these tensors.
    pub elements: u64,
    /// Elements that are kept.
    pub kept: u64,
    /// The share of those not kept.
    pub sparsity: f64,
    /// The score of the last one kept, where there is one threshold for all.
    pub threshold: Option<f32>,
    /// Tensors copied as they are: integers, booleans, and what globs leave out.
    pub copied: Vec<String>,
    /// What the user should look at.
    pub warnings: Vec<String>,
    /// The most passes over the data that finding a threshold took.
    pub passes: u32,
    /// Fishers that were NaN, infinite or negative and counted as 0.
    pub non_finite: u64,
    /// Bytes of tensors read.
    pub bytes_read: u64,
    /// Bytes of files written.
    pub bytes_written: u64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Where the time of the passes went.
    pub timings: Timings,
    /// Where kernels ran.
    pub adapter: String,
    /// The path of the output.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub output: PathBuf,
    /// The mask, where one was asked for.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub mask: Option<PathBuf>,
}

/// What a selection would do, from headers alone.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SelectPlan {
    /// The tensors that would be selected from.
    pub ranked: Vec<String>,
    /// Those that would be kept whole and counted.
    pub always: Vec<String>,
    /// Those that would be copied as they are.
    pub copied: Vec<String>,
    /// Elements in the selection's scope.
    pub elements: u64,
    /// How many would be kept; nothing for filters, whose sizes differ.
    pub kept: Option<u64>,
}

/// One line for all tensors of which nothing is left, with the first three names.
fn nothing_kept(gone: &[&Selected]) -> Option<String> {
    let names: Vec<String> = gone.iter().take(3).map(|tensor| printable(&tensor.name)).collect();
    let more = if gone.len() > 3 { format!(" and {} more", gone.len() - 3) } else { String::new() };
    let tensors = if gone.len() == 1 { "tensor".to_owned() } else { format!("{} tensors:", gone.len()) };
    (!gone.is_empty()).then(|| format!("nothing is kept of {tensors} {}{more}", names.join(", ")))
}

/// What was kept, with what is known from the plan and the output.
pub(crate) fn report(plan: &Roles<'_>, kept: &[u64], output: &Output) -> SelectReport {
    let ranked = plan.ranked.iter().zip(kept).map(|(tensor, &kept)| Selected::new(tensor, kept));
    let always = plan.always.iter().map(|tensor| Selected::new(tensor, tensor.elements()));
    let mut tensors: Vec<Selected> = ranked.chain(always).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let elements = plan.ranked_elements() + plan.always_elements();
    let kept = tensors.iter().map(|tensor| tensor.kept).sum();
    let gone: Vec<&Selected> = tensors.iter().filter(|t| t.elements > 0 && t.kept == 0).collect();
    let warnings = nothing_kept(&gone);
    SelectReport {
        elements,
        kept,
        sparsity: sparsity(elements, kept),
        warnings: warnings.into_iter().collect(),
        tensors,
        threshold: None,
        copied: plan.copied.iter().map(|tensor| tensor.name.clone()).collect(),
        passes: 0,
        non_finite: 0,
        bytes_read: 0,
        bytes_written: output.total_bytes(),
        seconds: 0.0,
        timings: Timings::default(),
        adapter: String::new(),
        output: output.path().to_owned(),
        mask: None,
    }
}
