//! Tensors that hold no floats: equal in all models, and copied.

use super::MergeReport;
use super::inputs::{Inputs, Kind, OP};
use crate::checkpoint::{Checkpoint, Output, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::interrupt::Interrupt;

/// Bytes of one piece of a copy.
const PIECE_BYTES: usize = 1 << 20;

impl Inputs<'_> {
    /// Copies the tensors that hold no floats, which must be equal in all models and in the base.
    pub(super) fn copy_others(
        &self,
        output: &Output,
        interrupt: &Interrupt,
        report: &mut MergeReport,
    ) -> Result<()> {
        for (tensor, _) in self.first().tensors().iter().zip(&self.kinds).filter(|(_, k)| **k == Kind::Copied)
        {
            let slot = output
                .position(&tensor.name)
                .expect("the output was laid out from the first model's tensors");
            let mut own = vec![0; PIECE_BYTES];
            let mut other = vec![0; PIECE_BYTES];
            let mut at = 0;
            while at < tensor.bytes {
                interrupt.check()?;
                let len =
                    usize::try_from(tensor.bytes - at).map_or(PIECE_BYTES, |rest| rest.min(PIECE_BYTES));
                self.first().read(tensor, at, &mut own[..len])?;
                for opened in self.all().skip(1) {
                    let same =
                        opened.model.get(&tensor.name).expect("names were checked against the first model");
                    opened.model.read(same, at, &mut other[..len])?;
                    if let Some(byte) = (0..len).find(|&i| own[i] != other[i]) {
                        let bits = tensor.dtype.bitsize() as u64;
                        let index = (at + byte as u64) * 8 / bits.max(1);
                        return Err(Error::mismatch(OP, self.unequal(tensor, &opened.model, index)));
                    }
                }
                output.write(slot, at, &own[..len])?;
                at += len as u64;
            }
            report.copied += tensor.elements();
            report.bytes_read += tensor.bytes * self.all().count() as u64;
        }
        Ok(())
    }

    fn unequal(&self, tensor: &TensorInfo, other: &Checkpoint, index: u64) -> String {
        format!(
            "tensor {} of type {:?} differs between {} and {} (first at index {index}); only floats can be averaged",
            printable(&tensor.name),
            tensor.dtype,
            self.first().path().display(),
            other.path().display()
        )
    }
}
