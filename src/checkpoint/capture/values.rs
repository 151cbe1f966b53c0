//! A capture's values, checked as they are read: floats are finite, weights at least 0, ids those of rows.

use std::ops::Range;

use super::{Capture, LOGIT_GRAD, WEIGHT};
use crate::checkpoint::TensorInfo;
use crate::error::{Error, Result};
use crate::memory::Element;
use crate::shape::{DType, shape_text, usize_of};

impl Capture {
    /// `sample_weight` `[n]`.
    ///
    /// # Errors
    /// [`Error::File`] where there is none; [`Error::Tensor`] for a weight that is no number or below 0.
    pub fn sample_weight(&self) -> Result<Vec<f64>> {
        let tensor = self.checkpoint.get(WEIGHT).ok_or_else(|| {
            let problem = "has no sample_weight, which weighting needs; store one weight a sample, or leave --weighted out";
            Error::file(self.path(), problem)
        })?;
        let weights = self.floats(tensor)?;
        match weights.iter().position(|&weight| weight < 0.0) {
            None => Ok(weights.into_iter().map(f64::from).collect()),
            Some(index) => {
                let problem = format!("{:e} at index {index}; a weight is at least 0", weights[index]);
                Err(Error::tensor(self.path(), WEIGHT, problem))
            }
        }
    }

    /// Whether there is a `logit_grad`.
    #[must_use]
    pub fn has_logit_grad(&self) -> bool {
        self.checkpoint.get(LOGIT_GRAD).is_some()
    }

    /// ‖∂ℓ_n/∂z_n‖² for every sample, in f64, of the loss as it was captured.
    ///
    /// # Errors
    /// [`Error::File`] where there is no `logit_grad`; [`Error::Tensor`] for NaN or infinity in it.
    pub fn logit_grad_sq(&self) -> Result<Vec<f64>> {
        let tensor = self.checkpoint.get(LOGIT_GRAD).ok_or_else(|| {
            let problem =
                "has no logit_grad, which the iEF needs: store ∂loss/∂logits [n, c] under that name";
            Error::file(self.path(), problem)
        })?;
        let values = self.floats(tensor)?;
        let row = values.len().checked_div(usize_of(self.samples)).unwrap_or(0).max(1);
        let sum_sq = |row: &[f32]| row.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
        let mut sums: Vec<f64> = values.chunks(row).map(sum_sq).collect();
        sums.resize(usize_of(self.samples), 0.0);
        Ok(sums)
    }

    /// A float tensor's bytes as stored, every value finite.
    ///
    /// # Errors
    /// As [`Checkpoint::read`](crate::checkpoint::Checkpoint::read); [`Error::Tensor`] with the index of the first NaN or infinity.
    pub fn read(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize_of(tensor.bytes)];
        self.read_range(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with whole elements of a float tensor from a byte offset on, every value finite.
    ///
    /// # Errors
    /// As [`Capture::read`].
    pub fn read_range(&self, tensor: &TensorInfo, byte_offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.checkpoint.read(tensor, byte_offset, bytes)?;
        let dtype = self.float(tensor)?;
        match first_not_finite(bytes, dtype) {
            None => Ok(()),
            Some(index) => {
                let index = byte_offset / dtype.size() + index as u64;
                let problem = format!(
                    "NaN or infinity at flat index {index} of {}; the run diverged or overflowed (in f16, scale the loss down)",
                    shape_text(&tensor.shape)
                );
                Err(Error::tensor(self.path(), &tensor.name, problem))
            }
        }
    }

    /// A float tensor's values.
    ///
    /// # Errors
    /// As [`Capture::read`].
    pub fn floats(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        let bytes = self.read(tensor)?;
        let dtype = self.float(tensor)?;
        let mut values = vec![0.0; bytes.len() / Element::from(dtype).bytes()];
        widen_bytes(&bytes, dtype, &mut values);
        Ok(values)
    }

    /// Some ids of an embedding's input, counted over the tensor, every one below `rows`.
    ///
    /// # Errors
    /// As [`Checkpoint::read`](crate::checkpoint::Checkpoint::read); [`Error::Tensor`] with the index of the first id out of range.
    pub fn ids(&self, tensor: &TensorInfo, ids: Range<u64>, rows: u32) -> Result<Vec<u32>> {
        const BYTES: u64 = 8;
        let mut bytes = vec![0; usize_of(BYTES * (ids.end - ids.start))];
        self.checkpoint.read(tensor, BYTES * ids.start, &mut bytes)?;
        let (words, _) = bytes.as_chunks::<8>();
        let id = |(index, word): (u64, &[u8; 8])| {
            let id = i64::from_le_bytes(*word);
            u32::try_from(id).ok().filter(|id| *id < rows).ok_or_else(|| {
                let problem = format!("id {id} at flat index {index}, the table has rows 0..{rows}");
                Error::tensor(self.path(), &tensor.name, problem)
            })
        };
        (ids.start..).zip(words).map(id).collect()
    }
}

/// Index of the first NaN or infinity, told from the bits.
fn first_not_finite(bytes: &[u8], dtype: DType) -> Option<usize> {
    let sixteen = |exponent: u16| {
        bytes.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & exponent == exponent)
    };
    match dtype {
        DType::F32 => {
            let bad = |b: &[u8; 4]| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000;
            bytes.as_chunks::<4>().0.iter().position(bad)
        }
        DType::F16 => sixteen(0x7c00),
        DType::BF16 => sixteen(0x7f80),
    }
}

/// Little-endian storage as f32.
pub(crate) fn widen_bytes(bytes: &[u8], dtype: DType, out: &mut [f32]) {
    match dtype {
        DType::F32 => {
            out.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(v, b)| *v = f32::from_le_bytes(*b));
        }
        DType::F16 => out
            .iter_mut()
            .zip(bytes.as_chunks::<2>().0)
            .for_each(|(v, b)| *v = half::f16::from_le_bytes(*b).to_f32()),
        DType::BF16 => out
            .iter_mut()
            .zip(bytes.as_chunks::<2>().0)
            .for_each(|(v, b)| *v = half::bf16::from_le_bytes(*b).to_f32()),
    }
}
