//! What the numbers in a checkpoint look like: extremes, mean, zeros, and how much of the whole a few of them hold.
//!
//! Made for Fisher files, whose values are finite and at least 0. Whatever is not is counted as invalid and left out
//! of every other number, so that a damaged file can still be looked at. F64 is narrowed to f32, as everywhere; what is
//! beyond its range is invalid.
//!
//! The share held by the largest values needs their threshold. It is found exactly and without sorting: the bits of
//! non-negative floats order as the floats do, so a first pass counts values by the upper 16 bits, which says in which
//! of 65 536 bins the threshold lies, and a second counts that bin's values by the lower 16, where a count is a value.
//! Two passes over the file, one piece a thread in memory. Partial sums are added in the order of the file: the same
//! file gives the same bits, whatever the number of threads.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use safetensors::Dtype;

use super::{Checkpoint, TensorInfo};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// Bytes read at a time: large enough for a disk, small against any memory.
const PIECE_BYTES: u64 = 4 << 20;

/// Bins of a histogram over 16 bits.
const BINS: usize = 1 << 16;

/// What a set of values looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// How many values there are, invalid ones included.
    pub elements: u64,
    /// How many are 0.
    pub zeros: u64,
    /// How many are negative, infinite or not a number. They enter nothing below.
    pub invalid: u64,
    /// The flat index of the first of those.
    pub first_invalid: Option<u64>,
    /// The smallest value.
    pub min: Option<f32>,
    /// The largest value.
    pub max: Option<f32>,
    /// The sum, in f64.
    pub sum: f64,
}

/// How much the largest values hold of the sum of all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TopShare {
    /// How many values: round-half-even(fraction · valid elements).
    pub kept: u64,
    /// The smallest of them.
    pub threshold: f32,
    /// Their sum over the sum of all.
    pub share: f64,
}

/// The statistics of a checkpoint's f64, f32, f16 and bf16 tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// For each tensor of a float type its position in [`Checkpoint::tensors`] and its summary.
    pub tensors: Vec<(usize, Summary)>,
    /// All of them together.
    pub total: Summary,
    /// What the largest hold; nothing where none were asked for or all values are 0.
    pub top: Option<TopShare>,
    /// How many valid values share their sign, exponent and upper 7 bits of mantissa, by the smallest such value;
    /// ascending, occupied bins only. A bin spans less than 1/128 of its value.
    pub histogram: Vec<(f32, u64)>,
}

impl Summary {
    /// The mean of the valid values; nothing where there are none.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        let valid = self.elements - self.invalid;
        (valid > 0).then(|| self.sum / valid as f64)
    }

    /// Takes another set's values in, after those already here.
    fn join(&mut self, next: &Self) {
        self.first_invalid = self.first_invalid.or(next.first_invalid.map(|at| self.elements + at));
        self.elements += next.elements;
        self.zeros += next.zeros;
        self.invalid += next.invalid;
        self.min = self.min.into_iter().chain(next.min).reduce(f32::min);
        self.max = self.max.into_iter().chain(next.max).reduce(f32::max);
        self.sum += next.sum;
    }

    fn of(values: &[f32]) -> Self {
        let mut summary = Self { elements: values.len() as u64, ..Self::default() };
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for (at, &value) in values.iter().enumerate() {
            let Some(bits) = key(value) else {
                summary.invalid += 1;
                summary.first_invalid.get_or_insert(at as u64);
                continue;
            };
            summary.zeros += u64::from(bits == 0);
            summary.sum += f64::from(value);
            (min, max) = (min.min(value), max.max(value));
        }
        if summary.invalid < summary.elements {
            // Adding 0 turns the -0 that counts as a zero into one.
            (summary.min, summary.max) = (Some(min + 0.0), Some(max + 0.0));
        }
        summary
    }
}

/// Looks at every value of `checkpoint`; `top` is the fraction of the values whose share is asked for, 0 for none.
///
/// # Errors
/// As [`Checkpoint::read`] and [`Checkpoint::verify_unchanged`]; [`Error::Interrupted`](crate::Error::Interrupted).
pub fn statistics(
    checkpoint: &Checkpoint,
    top: f64,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Statistics> {
    let sweep = Sweep { checkpoint, pieces: pieces(checkpoint, PIECE_BYTES), progress, interrupt };
    let found = sweep.statistics(top)?;
    checkpoint.verify_unchanged()?;
    Ok(found)
}

/// What a value sorts by: its bits, which order as the values do; nothing for an invalid one.
fn key(value: f32) -> Option<u32> {
    (0.0..f32::INFINITY).contains(&value).then(|| (value + 0.0).to_bits())
}

/// A range of one tensor.
struct Piece<'a> {
    /// The tensor's position in the checkpoint.
    tensor: usize,
    info: &'a TensorInfo,
    offset: u64,
    bytes: usize,
}

/// Every float tensor in ranges of at most `piece_bytes`, in the order of the file's names; an empty tensor is one.
fn pieces(checkpoint: &Checkpoint, piece_bytes: u64) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for (tensor, info) in checkpoint.tensors().iter().enumerate() {
        if !info.is_float() {
            continue;
        }
        let starts = (0..info.bytes.max(1)).step_by(usize::try_from(piece_bytes).unwrap_or(usize::MAX));
        pieces.extend(starts.map(|offset| {
            let bytes = (info.bytes - offset).min(piece_bytes) as usize;
            Piece { tensor, info, offset, bytes }
        }));
    }
    pieces
}

/// One look after another at all pieces, in parallel.
struct Sweep<'a> {
    checkpoint: &'a Checkpoint,
    pieces: Vec<Piece<'a>>,
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
}

/// Where the threshold of the largest values lies.
struct Threshold {
    /// Its upper 16 bits.
    bin: u32,
    /// How many of that bin's values are among the largest.
    inside: u64,
}

impl Sweep<'_> {
    fn statistics(&self, top: f64) -> Result<Statistics> {
        let upper = Histogram::new();
        let parts = self.each(|values| {
            upper.count(values.iter().filter_map(|&value| key(value)).map(|bits| bits >> 16));
            Summary::of(values)
        })?;
        let tensors = self.join(&parts);
        let mut total = Summary::default();
        tensors.iter().for_each(|(_, summary)| total.join(summary));
        let kept = (top * (total.elements - total.invalid) as f64).round_ties_even() as u64;
        let wanted = kept > 0 && total.sum > 0.0;
        let top = if wanted { Some(self.top_share(&upper, kept, total.sum)?) } else { None };
        Ok(Statistics { tensors, total, top, histogram: upper.occupied() })
    }

    /// The summaries of a tensor's pieces as one.
    fn join(&self, parts: &[Summary]) -> Vec<(usize, Summary)> {
        let mut tensors: Vec<(usize, Summary)> = Vec::new();
        for (piece, part) in self.pieces.iter().zip(parts) {
            match tensors.last_mut() {
                Some((tensor, summary)) if *tensor == piece.tensor => summary.join(part),
                _ => tensors.push((piece.tensor, *part)),
            }
        }
        tensors
    }

    fn top_share(&self, upper: &Histogram, kept: u64, sum: f64) -> Result<TopShare> {
        let Threshold { bin, inside } = upper.threshold(kept);
        let lower = Histogram::new();
        let above = self.each(|values| {
            let keys = values.iter().filter_map(|&value| key(value));
            lower.count(keys.filter(|bits| bits >> 16 == bin).map(|bits| bits & 0xffff));
            let above = values.iter().filter(|&&value| key(value).is_some_and(|bits| bits >> 16 > bin));
            above.map(|&value| f64::from(value)).sum::<f64>()
        })?;
        let last = lower.threshold(inside);
        let value = |low: u32| f32::from_bits(bin << 16 | low);
        let counted = lower.above(last.bin).map(|(low, count)| f64::from(value(low)) * count as f64);
        let threshold = value(last.bin);
        let held =
            above.iter().sum::<f64>() + counted.sum::<f64>() + f64::from(threshold) * last.inside as f64;
        Ok(TopShare { kept, threshold, share: held / sum })
    }

    /// What `look` says of every piece, in order.
    fn each<T: Send>(&self, look: impl Fn(&[f32]) -> T + Sync) -> Result<Vec<T>> {
        self.progress.begin(self.pieces.iter().map(|piece| piece.bytes as u64).sum());
        let one = |piece: &Piece<'_>| {
            self.interrupt.check()?;
            let seen = look(&self.read(piece)?);
            self.progress.advance(piece.bytes as u64);
            Ok(seen)
        };
        self.pieces.par_iter().map(one).collect()
    }

    fn read(&self, piece: &Piece<'_>) -> Result<Vec<f32>> {
        let mut bytes = vec![0_u8; piece.bytes];
        self.checkpoint.read(piece.info, piece.offset, &mut bytes)?;
        Ok(match piece.info.dtype {
            Dtype::F64 => decode(&bytes, |word| f64::from_le_bytes(word) as f32),
            Dtype::F16 => decode(&bytes, |word| half::f16::from_le_bytes(word).to_f32()),
            Dtype::BF16 => decode(&bytes, |word| half::bf16::from_le_bytes(word).to_f32()),
            _ => decode(&bytes, f32::from_le_bytes),
        })
    }
}

/// Numbers of `N` bytes.
fn decode<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&word| one(word)).collect()
}

/// Counts of 16-bit keys, shared by all threads. Whole numbers add up to the same in any order.
struct Histogram(Vec<AtomicU64>);

impl Histogram {
    fn new() -> Self {
        Self((0..BINS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Counts a piece's keys, on its own first.
    fn count(&self, keys: impl Iterator<Item = u32>) {
        let mut own = vec![0_u64; BINS];
        keys.for_each(|key| own[key as usize] += 1);
        for (shared, own) in self.0.iter().zip(own).filter(|(_, own)| *own > 0) {
            shared.fetch_add(own, Ordering::Relaxed);
        }
    }

    /// The occupied bins, as values with these upper halves, ascending.
    fn occupied(&self) -> Vec<(f32, u64)> {
        let counts =
            self.0.iter().enumerate().map(|(bin, count)| (bin as u32, count.load(Ordering::Relaxed)));
        counts
            .filter(|(_, count)| *count > 0)
            .map(|(bin, count)| (f32::from_bits(bin << 16), count))
            .collect()
    }

    /// The bins above `bin`, largest first.
    fn above(&self, bin: u32) -> impl Iterator<Item = (u32, u64)> {
        let counts = self.0.iter().enumerate().skip(bin as usize + 1).rev();
        counts.map(|(bin, count)| (bin as u32, count.load(Ordering::Relaxed)))
    }

    /// The bin in which the `kept` largest end.
    fn threshold(&self, kept: u64) -> Threshold {
        let mut inside = kept;
        for (bin, count) in self.0.iter().enumerate().rev() {
            let count = count.load(Ordering::Relaxed);
            if count >= inside {
                return Threshold { bin: bin as u32, inside };
            }
            inside -= count;
        }
        Threshold { bin: 0, inside: 0 }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

    use super::*;
    use crate::error::Error;

    /// A file of f32 tensors, and of the same values as bf16 and as integers where asked.
    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<f32>)]) -> Checkpoint {
        let bytes = |dtype: Dtype, values: &[f32]| -> Vec<u8> {
            match dtype {
                Dtype::BF16 => values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect(),
                Dtype::F16 => values.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            }
        };
        let data: Vec<Vec<u8>> = tensors.iter().map(|(_, dtype, values)| bytes(*dtype, values)).collect();
        let views = tensors.iter().zip(&data).map(|((name, dtype, values), data)| {
            (*name, TensorView::new(*dtype, vec![values.len()], data).expect("a sound view"))
        });
        serialize_to_file(views, None, path).expect("the crate's writer works");
        Checkpoint::open(path).expect("a sound file")
    }

    /// Values over sixty orders of magnitude, many of them equal.
    fn values(len: usize) -> Vec<f32> {
        let mut state = 9_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        (0..len).map(|_| (next() % 50) as f32 * 10_f32.powi((next() % 60) as i32 - 40)).collect()
    }

    fn look(checkpoint: &Checkpoint, piece_bytes: u64, top: f64) -> Statistics {
        let pieces = pieces(checkpoint, piece_bytes);
        let interrupt = Interrupt::default();
        let sweep = Sweep { checkpoint, pieces, progress: &(), interrupt: &interrupt };
        sweep.statistics(top).expect("the file can be read")
    }

    /// By sorting, as the definition says.
    fn defined_top(values: &[f32], top: f64) -> Option<(u64, f32, f64)> {
        let mut sorted = values.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let kept = (top * values.len() as f64).round_ties_even() as usize;
        let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
        let all = sum(values);
        (kept > 0 && all > 0.0).then(|| (kept as u64, sorted[kept - 1], sum(&sorted[..kept]) / all))
    }

    #[test]
    fn the_top_share_is_the_sorted_one() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for len in [0, 1, 2, 3, 199, 201, 1000, 4097] {
            let values = values(len);
            let file = write(&folder.path().join(format!("{len}")), &[("a", Dtype::F32, values.clone())]);
            for top in [0.0, 0.005, 0.5, 0.999, 1.0] {
                let got = look(&file, 64, top).top;
                let Some((kept, threshold, share)) = defined_top(&values, top) else {
                    assert_eq!(got, None, "len {len}, top {top}");
                    continue;
                };
                let got = got.expect("there are values to keep");
                assert_eq!((got.kept, got.threshold), (kept, threshold), "len {len}, top {top}");
                // Four sums of at most `len` non-negative f64 terms, each within len·2⁻⁵³ of the truth, and
                // two quotients.
                let bound = share * (2 * len + 2) as f64 * f64::EPSILON;
                assert!(
                    (got.share - share).abs() <= bound,
                    "len {len}, top {top}: {} for {share}",
                    got.share
                );
            }
        }
    }

    #[test]
    fn pieces_and_tensors_change_only_the_last_bits_of_sums() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let all = values(999);
        let whole = look(&write(&folder.path().join("1"), &[("a", Dtype::F32, all.clone())]), 1 << 20, 0.1);
        let parts = [("a", Dtype::F32, all[..7].to_vec()), ("b", Dtype::F32, all[7..].to_vec())];
        let split = look(&write(&folder.path().join("2"), &parts), 20, 0.1);
        assert_eq!(split.tensors.len(), 2);
        assert_eq!((split.tensors[0].1.elements, split.tensors[1].1.elements), (7, 992));
        assert!((split.total.sum - whole.total.sum).abs() <= whole.total.sum * 999.0 * f64::EPSILON);
        assert_eq!(Summary { sum: whole.total.sum, ..split.total }, whole.total);
        assert_eq!(split.top.map(|top| top.threshold), whole.top.map(|top| top.threshold));
    }

    #[test]
    fn invalid_values_are_counted_and_left_out() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let odd = vec![f32::NAN, -1.0, 2.0, f32::INFINITY, -0.0, 6.0, 0.0, -f32::NAN];
        let none = vec![f32::NAN];
        let file = write(&folder.path().join("f"), &[("a", Dtype::F32, odd), ("b", Dtype::F32, none)]);
        let seen = look(&file, 8, 0.25);
        let a = Summary {
            elements: 8,
            zeros: 2,
            invalid: 4,
            first_invalid: Some(0),
            min: Some(0.0),
            max: Some(6.0),
            sum: 8.0,
        };
        assert_eq!(seen.tensors[0], (0, a));
        assert_eq!(seen.tensors[0].1.mean(), Some(2.0));
        assert_eq!((seen.tensors[1].1.min, seen.tensors[1].1.mean()), (None, None));
        assert!(seen.total.min.is_some_and(f32::is_sign_positive), "-0 is shown as 0");
        assert_eq!(seen.top, Some(TopShare { kept: 1, threshold: 6.0, share: 0.75 }));
    }

    #[test]
    fn the_first_invalid_value_is_found_in_any_piece() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for at in [0, 1, 2, 7, 8] {
            let mut values = vec![1.0; 9];
            values[at..].fill(-1.0);
            let file = write(
                &folder.path().join(format!("{at}")),
                &[("a", Dtype::F32, vec![0.5; 3]), ("b", Dtype::F32, values)],
            );
            let seen = look(&file, 8, 0.0);
            assert_eq!(seen.tensors[0].1.first_invalid, None);
            assert_eq!(seen.tensors[1].1.first_invalid, Some(at as u64));
        }
    }

    #[test]
    fn doubles_are_narrowed_and_those_beyond_f32_are_invalid() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let data: Vec<u8> = [2.0, 1e300, 0.5, 1e-300].iter().flat_map(|v: &f64| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F64, vec![4], &data).expect("a sound view");
        let path = folder.path().join("f");
        serialize_to_file([("a", view)], None, &path).expect("the crate's writer works");
        let seen = look(&Checkpoint::open(&path).expect("a sound file"), 16, 0.5);
        let total = Summary {
            elements: 4,
            zeros: 1,
            invalid: 1,
            first_invalid: Some(1),
            min: Some(0.0),
            max: Some(2.0),
            sum: 2.5,
        };
        assert_eq!(seen.tensors, [(0, total)]);
        assert_eq!(seen.top, Some(TopShare { kept: 2, threshold: 0.5, share: 1.0 }));
    }

    #[test]
    fn halves_are_widened_and_integers_passed_over() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let tensors =
            [("b", Dtype::BF16, vec![1.5, 3.0]), ("h", Dtype::F16, vec![0.25]), ("i", Dtype::I32, vec![7.0])];
        let seen = look(&write(&folder.path().join("f"), &tensors), 2, 0.0);
        assert_eq!(
            seen.tensors.iter().map(|(at, s)| (*at, s.sum)).collect::<Vec<_>>(),
            [(0, 4.5), (1, 0.25)]
        );
        assert_eq!(seen.total.elements, 3);
    }

    #[test]
    fn an_interrupt_ends_it() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = write(&folder.path().join("f"), &[("a", Dtype::F32, vec![1.0])]);
        let interrupt = Interrupt::default();
        interrupt.request(2);
        let ended = statistics(&file, 0.5, &(), &interrupt);
        assert!(matches!(ended, Err(Error::Interrupted { signal: 2 })), "{ended:?}");
    }
}
