//! A capture's values, checked as they are read: floats are finite, weights at least 0, ids those of rows.

use std::ops::Range;

use super::{Capture, LOGIT_GRAD, WEIGHT};
use crate::checkpoint::TensorInfo;
use crate::error::{Error, Result};
use crate::kernel::vectorised;
use crate::memory::Element;
use crate::shape::{DType, shape_text, usize_of};

impl Capture {
    /// `sample_weight` `[n]`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is none; [`Error::Tensor`] for a weight that is not a number or is below 0.
    pub fn sample_weight(&self) -> Result<Vec<f64>> {
        let tensor = self.checkpoint.get(WEIGHT).ok_or_else(|| {
            self.lacks(
                "sample_weight, which weighting needs; store one weight a sample, or leave --weighted out",
            )
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

    /// The file is sound, and lacks what is asked of it.
    fn lacks(&self, what: &str) -> Error {
        Error::mismatch("captures", format!("{} has no {what}", self.path().display()))
    }

    /// Whether there is a `logit_grad`.
    #[must_use]
    pub fn has_logit_grad(&self) -> bool {
        self.checkpoint.get(LOGIT_GRAD).is_some()
    }

    /// ‖∂ℓ_n/∂z_n‖² for every sample, in f64, of the loss as it was captured.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is no `logit_grad`; [`Error::Tensor`] for NaN or infinity in it.
    pub fn logit_grad_sq(&self) -> Result<Vec<f64>> {
        let tensor = self.checkpoint.get(LOGIT_GRAD).ok_or_else(|| {
            self.lacks("logit_grad, which the iEF needs: store ∂loss/∂logits [n, c] under that name")
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
    /// As [`Checkpoint::read`](crate::checkpoint::Checkpoint::read); [`Error::Tensor`] with the index of the
    /// first NaN or infinity.
    pub fn read(&self, tensor: &TensorInfo) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize_of(tensor.bytes)];
        self.read_range(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `bytes` with whole elements of a float tensor from a byte offset on, every value finite. Gives
    /// the largest magnitude among them.
    ///
    /// # Errors
    /// As [`Capture::read`].
    pub fn read_range(&self, tensor: &TensorInfo, byte_offset: u64, bytes: &mut [u8]) -> Result<f32> {
        let dtype = self.float(tensor)?;
        let mut most = 0.0_f32;
        for (piece, at) in bytes.chunks_mut(CACHED).zip((byte_offset..).step_by(CACHED)) {
            self.checkpoint.read(tensor, at, piece)?;
            let of_piece = greatest(piece, dtype);
            if !of_piece.is_finite() {
                return Err(self.not_finite(tensor, at / dtype.size(), piece, dtype));
            }
            most = most.max(of_piece);
        }
        Ok(most)
    }

    /// Which of a tensor's elements from `first` on is not a number.
    fn not_finite(&self, tensor: &TensorInfo, first: u64, bytes: &[u8], dtype: DType) -> Error {
        let is_number = |element: &[u8]| greatest(element, dtype).is_finite();
        let index = bytes.chunks(usize_of(dtype.size())).take_while(|element| is_number(element)).count();
        let problem = format!(
            "NaN or infinity at flat index {} of {}; the run diverged or overflowed (in f16, scale the loss down)",
            first + index as u64,
            shape_text(&tensor.shape)
        );
        Error::tensor(self.path(), &tensor.name, problem)
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
    /// As [`Checkpoint::read`](crate::checkpoint::Checkpoint::read); [`Error::Tensor`] with the index of the
    /// first id out of range.
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

/// Bytes that are read and then looked at while a cache still has them: whole elements of every type.
const CACHED: usize = 256 << 10;

/// The largest magnitude; NaN or infinity where there is one. Without the sign, floats order as their bits
/// do, and what is not finite comes last.
fn greatest(bytes: &[u8], dtype: DType) -> f32 {
    match dtype {
        DType::F32 => f32::from_bits(vectorised(|| {
            let words = bytes.as_chunks::<4>().0.iter();
            words.fold(0, |most, &word| most.max(u32::from_le_bytes(word) & 0x7fff_ffff))
        })),
        DType::F16 => half::f16::from_bits(greatest_half(bytes)).to_f32(),
        DType::BF16 => half::bf16::from_bits(greatest_half(bytes)).to_f32(),
    }
}

fn greatest_half(bytes: &[u8]) -> u16 {
    vectorised(|| {
        let words = bytes.as_chunks::<2>().0.iter();
        words.fold(0, |most, &word| most.max(u16::from_le_bytes(word) & 0x7fff))
    })
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

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// −7 among smaller ones, at every place of lengths about every width of vectors; then infinity or NaN of
    /// either sign.
    #[test]
    fn the_greatest_magnitude_is_found_wherever_it_is_and_what_is_no_number_is_greater() {
        for len in [1, 7, 8, 31, 32, 33, 100] {
            for at in 0..len {
                for odd in [-7.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
                    let values = (0..len).map(|i| if i == at { odd } else { i as f32 / 50.0 - 1.0 });
                    let values: Vec<f32> = values.collect();
                    let of = |to_bytes: &dyn Fn(f32) -> Vec<u8>, dtype| {
                        greatest(
                            &values.iter().flat_map(|&value| to_bytes(value)).collect::<Vec<u8>>(),
                            dtype,
                        )
                    };
                    let found = [
                        of(&|value| value.to_le_bytes().to_vec(), DType::F32),
                        of(&|value| f16::from_f32(value).to_le_bytes().to_vec(), DType::F16),
                        of(&|value| bf16::from_f32(value).to_le_bytes().to_vec(), DType::BF16),
                    ];
                    let right = |got: f32| if odd.is_finite() { got == 7.0 } else { !got.is_finite() };
                    assert!(found.into_iter().all(right), "{found:?} for {odd} at {at} of {len}");
                }
            }
        }
    }
}
