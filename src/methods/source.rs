//! Checkpoints as the two ends of a stream.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use half::{bf16, f16};
use safetensors::Dtype;

use crate::checkpoint::{Checkpoint, Output};
use crate::error::{Error, Result};
use crate::stream::{Sink, Source};

/// What to do with Fishers that are NaN, infinite or negative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// Refuse, naming tensor and index.
    #[default]
    Error,
    /// Treat as 0 and count.
    Zero,
}

impl NonFinite {
    /// Where values that are treated as 0 are counted.
    pub(crate) fn counted(self, count: &AtomicU64) -> Option<&AtomicU64> {
        (self == Self::Zero).then_some(count)
    }
}

/// What the values of a Fisher are, and what to do about others: most often the file is another one.
pub(crate) const FISHER_VALUES: &str = "a finite number of at least 0, so this is not a Fisher (a model in its place?); \
                                        if it is one, --non-finite zero counts such values as 0";

/// Tensors of a checkpoint as a stream's source. F64 is narrowed to f32; a value beyond its range is an error.
pub(crate) struct CheckpointSource<'a> {
    checkpoint: &'a Checkpoint,
    /// For each tensor of the layout, its place in the checkpoint.
    places: Vec<usize>,
    /// Counts the values that no Fisher can have and that are read as 0; nothing where they are read as they are.
    zeroed: Option<&'a AtomicU64>,
    /// Becomes true with the first byte that is not 0.
    nonzero: Option<&'a AtomicBool>,
    /// Whether negative values below f32's range stay negative, to be found.
    signed: bool,
}

impl<'a> CheckpointSource<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, places: Vec<usize>) -> Self {
        Self { checkpoint, places, zeroed: None, nonzero: None, signed: false }
    }

    /// Reads values that no Fisher can have as 0 and counts them, if there is somewhere to count.
    pub(crate) fn zeroing(self, zeroed: Option<&'a AtomicU64>) -> Self {
        Self { zeroed, ..self.of_fisher() }
    }

    /// Keeps a negative f64 negative, however small: no Fisher has one, and −0 would pass for one.
    pub(crate) fn of_fisher(self) -> Self {
        Self { signed: true, ..self }
    }

    /// Tells whether anything but zeros was read, if there is somewhere to tell.
    pub(crate) fn noting(self, nonzero: Option<&'a AtomicBool>) -> Self {
        Self { nonzero, ..self }
    }

    /// The tensors with the names of `like` at `places` of it.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a name that is not there.
    pub(crate) fn matching(checkpoint: &'a Checkpoint, like: &Checkpoint, places: &[usize]) -> Result<Self> {
        let place = |&place: &usize| {
            let name = &like.tensors()[place].name;
            let missing = || Error::tensor(checkpoint.path(), name, "is missing");
            checkpoint.position(name).ok_or_else(missing)
        };
        Ok(Self::new(checkpoint, places.iter().map(place).collect::<Result<_>>()?))
    }

    /// Elements as f32.
    pub(crate) fn floats(&self, tensor: usize, start: u64, len: u64) -> Result<Vec<f32>> {
        let info = &self.checkpoint.tensors()[self.places[tensor]];
        let size = if info.dtype == Dtype::F64 { 4 } else { info.dtype.bitsize() as u64 / 8 };
        let bytes = usize::try_from(len * size).expect("pieces are small");
        let mut raw = vec![0; bytes];
        self.read(tensor, start, &mut raw)?;
        Ok(match info.dtype {
            Dtype::F16 => raw.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Dtype::BF16 => raw.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &'a Path {
        self.checkpoint.path()
    }

    /// An error about a tensor.
    pub(crate) fn refuse(&self, tensor: usize, problem: impl Into<String>) -> Error {
        let info = &self.checkpoint.tensors()[self.places[tensor]];
        Error::tensor(self.checkpoint.file_of(info), &info.name, problem)
    }

    /// The error for one element: its value, its index, and what it should be.
    pub(crate) fn bad_value(&self, tensor: usize, index: u64, expected: &str) -> Error {
        let value = match self.floats(tensor, index, 1) {
            Ok(values) => format!("{:?}", values[0]),
            Err(error) => return error,
        };
        self.refuse(tensor, format!("index {index} is {value}, expected {expected}"))
    }

    fn narrow(&self, place: usize, start: u64, out: &mut [u8]) -> Result<()> {
        let info = &self.checkpoint.tensors()[place];
        let mut wide = vec![0; out.len() * 2];
        self.checkpoint.read(info, start * 8, &mut wide)?;
        for (i, (wide, out)) in wide.chunks_exact(8).zip(out.chunks_exact_mut(4)).enumerate() {
            let value = f64::from_le_bytes(wide.try_into().expect("chunks of eight bytes"));
            #[expect(
                clippy::cast_possible_truncation,
                reason = "rounding is wanted; overflow is checked below"
            )]
            let mut narrow = value as f32;
            if value.is_finite() && narrow.is_infinite() {
                let problem = format!("index {} is {value:e}, beyond the range of f32", start + i as u64);
                return Err(Error::tensor(self.checkpoint.file_of(info), &info.name, problem));
            }
            if self.signed && value < 0.0 && narrow == 0.0 {
                narrow = -f32::from_bits(1);
            }
            out.copy_from_slice(&narrow.to_le_bytes());
        }
        Ok(())
    }
}

impl Source for CheckpointSource<'_> {
    fn read(&self, tensor: usize, start: u64, out: &mut [u8]) -> Result<()> {
        let place = self.places[tensor];
        let info = &self.checkpoint.tensors()[place];
        if info.dtype == Dtype::F64 {
            self.narrow(place, start, out)?;
        } else {
            self.checkpoint.read(info, start * (info.dtype.bitsize() as u64 / 8), out)?;
        }
        // Looked for until it is found: in a Fisher that is one, within the first bytes.
        if let Some(nonzero) = self.nonzero.filter(|found| !found.load(Ordering::Relaxed)) {
            nonzero.fetch_or(out.iter().any(|byte| *byte != 0), Ordering::Relaxed);
        }
        if let Some(zeroed) = self.zeroed {
            zeroed.fetch_add(zero_impossible(info.dtype, out), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Puts 0 in the place of NaN, infinities and negative values, and tells how many there were. By their bits,
/// as kernels do.
fn zero_impossible(dtype: Dtype, bytes: &mut [u8]) -> u64 {
    match dtype {
        Dtype::F16 => zero_where(bytes, |b| u32::from(u16::from_le_bytes(b)) << 16, 0x7c00_0000),
        Dtype::BF16 => zero_where(bytes, |b| u32::from(u16::from_le_bytes(b)) << 16, 0x7f80_0000),
        _ => zero_where(bytes, u32::from_le_bytes, 0x7f80_0000),
    }
}

/// `exponent` is the one that NaN and infinities have, of values with the sign in the highest bit.
fn zero_where<const N: usize>(bytes: &mut [u8], bits: impl Fn([u8; N]) -> u32, exponent: u32) -> u64 {
    const SIGN: u32 = 1 << 31;
    let mut zeroed = 0;
    for value in bytes.as_chunks_mut().0 {
        let bits = bits(*value);
        if bits & exponent == exponent || bits > SIGN {
            *value = [0; N];
            zeroed += 1;
        }
    }
    zeroed
}

/// Tensors of an output as a stream's sink.
pub(crate) struct OutputSink<'a> {
    output: &'a Output,
    /// For each tensor of the layout, its place in the output.
    places: Vec<usize>,
}

impl<'a> OutputSink<'a> {
    /// The tensors with the names of `like` at `places` of it.
    pub(crate) fn matching(output: &'a Output, like: &Checkpoint, places: &[usize]) -> Self {
        let place = |&place: &usize| {
            output.position(&like.tensors()[place].name).expect("the output was laid out from these tensors")
        };
        Self { output, places: places.iter().map(place).collect() }
    }
}

impl OutputSink<'_> {
    /// Takes elements as written, by the run that left the output.
    pub(crate) fn vouch(&self, tensor: usize, start: u64, len: u64) -> Result<()> {
        let (place, size) = self.place(tensor);
        self.output.vouch(place, start * size, len * size)
    }

    /// A tensor's place in the output, and the bytes of an element.
    fn place(&self, tensor: usize) -> (usize, u64) {
        let place = self.places[tensor];
        (place, self.output.tensors()[place].dtype.bitsize() as u64 / 8)
    }
}

impl Sink for OutputSink<'_> {
    fn write(&self, tensor: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let (place, size) = self.place(tensor);
        self.output.write(place, start * size, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_fisher_can_be_becomes_zero_and_nothing_else_does() {
        let values = [
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            -1.0,
            -1e-45,
            -0.0,
            0.0,
            1e-45,
            2.0,
            f32::MAX,
        ];
        let mut f32s: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(zero_impossible(Dtype::F32, &mut f32s), 6);
        let want = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.0, 0.0, 1e-45, 2.0, f32::MAX];
        assert_eq!(f32s, want.iter().flat_map(|v: &f32| v.to_le_bytes()).collect::<Vec<u8>>());
        // 1e-45 is below both halves: a zero, of either sign.
        let mut f16s: Vec<u8> = values[..10].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(zero_impossible(Dtype::F16, &mut f16s), 5);
        assert_eq!(&f16s[18..], f16::from_f32(2.0).to_le_bytes());
        let mut bf16s: Vec<u8> = values[..10].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(zero_impossible(Dtype::BF16, &mut bf16s), 5);
        assert_eq!(&bf16s[18..], bf16::from_f32(2.0).to_le_bytes());
    }
}
