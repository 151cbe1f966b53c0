//! Which tensors a selection ranks, keeps whole, or leaves as they are; from headers alone.

use std::collections::BTreeMap;

use super::SelectPlan;
use crate::checkpoint::{Checkpoint, Dtype, Output, OutputLayout, OutputTensor, TensorInfo};
use crate::error::{Error, Result};
use crate::methods::globs::{self, Globs, Role};
use crate::shape::{DType, usize_of};

/// Bytes copied or filled at once.
pub(crate) const COPY_BYTES: u64 = 4 << 20;

/// Which tensors are ranked, kept whole, or left as they are; from headers alone.
pub(crate) struct Roles<'a> {
    /// What is ranked, in the order of names.
    pub(crate) ranked: Vec<&'a TensorInfo>,
    /// What is kept whole and counted.
    pub(crate) always: Vec<&'a TensorInfo>,
    /// What is neither.
    pub(crate) copied: Vec<&'a TensorInfo>,
}

impl<'a> Roles<'a> {
    /// Assigns each tensor of `named` (the model, or a Fisher alone) its role; `is_ranked` says which of
    /// those left over are ranked.
    pub(crate) fn new(
        op: &str,
        named: &'a Checkpoint,
        globs: &Globs,
        mut is_ranked: impl FnMut(&'a TensorInfo) -> bool,
    ) -> Result<Self> {
        let (floats, mut copied): (Vec<_>, Vec<_>) =
            named.tensors().iter().partition(|tensor| !is_integer(tensor.dtype));
        let names: Vec<&str> = floats.iter().map(|tensor| tensor.name.as_str()).collect();
        let roles = globs::roles(op, globs, &names)?;
        let (mut ranked, mut always) = (Vec::new(), Vec::new());
        for (tensor, role) in floats.into_iter().zip(roles) {
            match role {
                Role::Always => always.push(tensor),
                Role::Ranked if is_ranked(tensor) => ranked.push(tensor),
                Role::Excluded | Role::Ranked => copied.push(tensor),
            }
        }
        copied.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { ranked, always, copied })
    }

    pub(crate) fn always_elements(&self) -> u64 {
        self.always.iter().map(|tensor| tensor.elements()).sum()
    }

    pub(crate) fn ranked_elements(&self) -> u64 {
        self.ranked.iter().map(|tensor| tensor.elements()).sum()
    }

    pub(crate) fn shown(&self, kept: Option<u64>) -> SelectPlan {
        let names = |tensors: &[&TensorInfo]| tensors.iter().map(|tensor| tensor.name.clone()).collect();
        SelectPlan {
            ranked: names(&self.ranked),
            always: names(&self.always),
            copied: names(&self.copied),
            elements: self.ranked_elements() + self.always_elements(),
            kept,
        }
    }

    /// The tensors of a mask: everything in the selection's scope.
    pub(crate) fn mask_layout(&self, score: &str) -> OutputLayout {
        let in_scope = self.ranked.iter().chain(&self.always);
        let tensors =
            in_scope.map(|tensor| OutputTensor::new(&tensor.name, Dtype::BOOL, tensor.shape.clone()));
        let metadata = [("squisher.mask", score), ("squisher.version", env!("CARGO_PKG_VERSION"))];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned()));
        OutputLayout::single(tensors.collect(), BTreeMap::from(metadata))
    }

    /// Writes true in a mask for every element of what is always kept.
    pub(crate) fn keep_always(&self, mask: &Output) -> Result<()> {
        self.always.iter().try_for_each(|tensor| fill_true(mask, tensor))
    }
}

/// The first few, and how many more.
pub(crate) fn listed(items: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if items.len() > SHOWN {
        text.push_str(&format!("; and {} more", items.len() - SHOWN));
    }
    text
}

/// The place of a tensor, and how kernels see it: f64 is narrowed on the way.
pub(crate) fn seen(checkpoint: &Checkpoint, name: &str) -> Result<(usize, DType)> {
    let place = checkpoint.position(name).expect("a plan has tensors that were found");
    let tensor = &checkpoint.tensors()[place];
    let dtype = tensor.float().or((tensor.dtype == Dtype::F64).then_some(DType::F32));
    let dtype = dtype.ok_or_else(|| {
        let problem = format!(
            "is stored as {:?}, expected F32, F16, BF16 or F64; convert it, or leave it out with --exclude",
            tensor.dtype
        );
        Error::tensor(checkpoint.file_of(tensor), &tensor.name, problem)
    })?;
    Ok((place, dtype))
}

/// Whether a tensor is not a weight that could be ranked.
fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, BOOL | U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64)
}

/// Writes true for every element of a tensor.
fn fill_true(mask: &Output, tensor: &TensorInfo) -> Result<()> {
    let slot = mask.position(&tensor.name).expect("the mask has what is always kept");
    let ones = vec![1; usize_of(COPY_BYTES.min(tensor.elements()))];
    for start in (0..tensor.elements()).step_by(usize_of(COPY_BYTES)) {
        let len = COPY_BYTES.min(tensor.elements() - start);
        mask.write(slot, start, &ones[..usize_of(len)])?;
    }
    Ok(())
}
