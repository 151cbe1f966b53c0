//! The outputs: the model with zeros in the place of what is not kept, and the mask.

use std::collections::BTreeMap;
use std::path::Path;

use super::PruneOptions;
use crate::checkpoint::{Checkpoint, Output, OutputLayout, TensorInfo};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::methods::select::{COPY_BYTES, Kept, Roles, SelectReport, report};
use crate::shape::usize_of;
use crate::stream::Sink;

/// The outputs being written.
pub(super) struct Writer<'a> {
    model: &'a Checkpoint,
    slots: Vec<Slot<'a>>,
    output: Output,
    mask: Option<Output>,
}

/// Where a ranked tensor comes from and goes.
struct Slot<'a> {
    tensor: &'a TensorInfo,
    /// Its place in the model's output, and in the mask's.
    at: usize,
    in_mask: Option<usize>,
    /// Its bytes an element.
    size: u64,
}

impl Slot<'_> {
    /// Whether kernels see what is stored: F64 is narrowed for them, and its bytes are kept here.
    fn is_streamed(&self) -> bool {
        self.tensor.float().is_some()
    }
}

/// What kernels made of a tensor goes straight to the output.
impl Sink for Writer<'_> {
    fn write(&self, tensor: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let slot = &self.slots[tensor];
        if slot.is_streamed() { self.output.write(slot.at, start * slot.size, bytes) } else { Ok(()) }
    }
}

impl<'a> Writer<'a> {
    pub(super) fn create(
        model: &'a Checkpoint,
        others: &[&Path],
        plan: &Roles<'a>,
        score: &str,
        options: &PruneOptions,
        out: &Path,
    ) -> Result<Self> {
        let inputs = [&[model.path()], others].concat();
        let layout = OutputLayout::like(model, |tensor| Some(tensor.dtype), BTreeMap::new());
        let output = Output::create(out, layout.with_side_files_of(model)?, options.overwrite, &inputs)?;
        let mask = match &options.mask_out {
            None => None,
            Some(path) if output.is_at(path)? => {
                let problem = "is the output of the model too; give the mask another name";
                return Err(Error::output(path, problem));
            }
            Some(path) => Some(Output::create(path, plan.mask_layout(score), options.overwrite, &inputs)?),
        };
        let slot = |tensor: &&'a TensorInfo| Slot {
            tensor,
            at: output.position(&tensor.name).expect("the output has the model's tensors"),
            in_mask: mask.as_ref().and_then(|mask| mask.position(&tensor.name)),
            size: tensor.bytes.checked_div(tensor.elements()).unwrap_or(0),
        };
        Ok(Self { slots: plan.ranked.iter().map(slot).collect(), model, output, mask })
    }

    /// Writes a span's mask, and its elements where they are not streamed.
    pub(super) fn span(&self, kept: &Kept<'_>) -> Result<()> {
        if self.slots[kept.tensor].is_streamed() { self.mask(kept) } else { self.copy_kept(kept) }
    }

    fn mask(&self, kept: &Kept<'_>) -> Result<()> {
        match (&self.mask, self.slots[kept.tensor].in_mask) {
            (Some(mask), Some(slot)) => mask.write(slot, kept.start, kept.mask),
            _ => Ok(()),
        }
    }

    /// Copies a span from the model with zeros in the place of what is not kept, and writes its mask.
    pub(super) fn copy_kept(&self, kept: &Kept<'_>) -> Result<()> {
        let Slot { tensor, at, size, .. } = self.slots[kept.tensor];
        let mut bytes = vec![0; kept.mask.len() * usize_of(size)];
        self.model.read(tensor, kept.start * size, &mut bytes)?;
        for (element, &keep) in bytes.chunks_exact_mut(usize_of(size)).zip(kept.mask) {
            if keep == 0 {
                element.fill(0);
            }
        }
        self.output.write(at, kept.start * size, &bytes)?;
        self.mask(kept)
    }

    /// Copies what is not ranked; in the mask, what is always kept is true.
    pub(super) fn whole(&self, plan: &Roles<'_>, interrupt: &Interrupt) -> Result<()> {
        for &tensor in plan.always.iter().chain(&plan.copied) {
            copy(self.model, tensor, &self.output, interrupt)?;
        }
        if let Some(mask) = &self.mask {
            plan.keep_always(mask)?;
        }
        Ok(())
    }

    pub(super) fn finish(self, plan: &Roles<'_>, kept: &[u64]) -> Result<SelectReport> {
        let mut report = report(plan, kept, &self.output);
        report.bytes_read = plan.always.iter().chain(&plan.copied).map(|tensor| tensor.bytes).sum();
        if let Some(mask) = self.mask {
            report.bytes_written += mask.total_bytes();
            report.mask = Some(mask.path().to_owned());
            mask.finish()?;
        }
        self.output.finish()?;
        Ok(report)
    }
}

/// Copies a tensor into an output that has it.
fn copy(from: &Checkpoint, tensor: &TensorInfo, to: &Output, interrupt: &Interrupt) -> Result<()> {
    let slot = to.position(&tensor.name).expect("the output has the tensors that are copied to it");
    let mut start = 0;
    while start < tensor.bytes {
        interrupt.check()?;
        let mut bytes = vec![0; usize_of(COPY_BYTES.min(tensor.bytes - start))];
        from.read(tensor, start, &mut bytes)?;
        to.write(slot, start, &bytes)?;
        start += bytes.len() as u64;
    }
    Ok(())
}
