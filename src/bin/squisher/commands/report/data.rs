//! What a report shows of each input, read in at most two passes.

use std::path::Path;

use safetensors::Dtype;
use squisher::checkpoint::{Checkpoint, Statistics, TensorInfo, is_capture, statistics};
use squisher::{Error, Interrupt, Progress};

/// The fraction whose share of the mass is stated: the share that FISH masks keep.
pub(super) const TOP: f64 = 0.005;

/// One Fisher or mask.
pub(super) struct Input {
    pub(super) title: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) kind: Kind,
}

/// What an input holds.
pub(super) enum Kind {
    Fisher(Statistics),
    /// For each tensor its place, how many elements it has and how many are kept.
    Mask(Vec<(usize, u64, u64)>),
}

impl Input {
    pub(super) fn read(path: &Path, progress: &dyn Progress, interrupt: &Interrupt) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path)?;
        let title = title(path);
        let masks = checkpoint.tensors().iter().filter(|tensor| tensor.dtype == Dtype::BOOL).count();
        if masks == 0 {
            if checkpoint.metadata().get("squisher.kind").is_some_and(|kind| kind == "embedding") {
                return Err(Error::file(
                    path,
                    "is an embedding, no Fisher; `squisher distance` compares its tasks",
                ));
            }
            if is_capture(&checkpoint) {
                return Err(Error::file(
                    path,
                    "is a capture, not a Fisher; `squisher fisher` computes one from it",
                ));
            }
            let found = statistics(&checkpoint, TOP, progress, interrupt)?;
            refuse_other_values(&checkpoint, &found)?;
            return Ok(Self { title, checkpoint, kind: Kind::Fisher(found) });
        }
        if masks < checkpoint.tensors().len() {
            return Err(Error::file(path, "holds BOOL tensors and others; a mask holds BOOL tensors only"));
        }
        let kept = kept(&checkpoint, interrupt)?;
        Ok(Self { title, checkpoint, kind: Kind::Mask(kept) })
    }
}

/// Refuses a file without floats, and one with values that no Fisher can have.
fn refuse_other_values(checkpoint: &Checkpoint, found: &Statistics) -> Result<(), Error> {
    if found.tensors.is_empty() {
        let problem = "holds neither float tensors (a Fisher) nor BOOL tensors (a mask)";
        return Err(Error::file(checkpoint.path(), problem));
    }
    for (at, summary) in &found.tensors {
        let Some(index) = summary.first_invalid else { continue };
        let tensor = &checkpoint.tensors()[*at];
        let problem = format!(
            "index {index} is NaN, infinite, negative or beyond f32 ({} such in the file), so this is no Fisher",
            found.total.invalid
        );
        return Err(Error::tensor(checkpoint.file_of(tensor), &tensor.name, problem));
    }
    Ok(())
}

/// A path by its last two parts: files of one name lie in folders of different ones.
fn title(path: &Path) -> String {
    let parts: Vec<_> =
        path.components().rev().take(2).map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

fn kept(checkpoint: &Checkpoint, interrupt: &Interrupt) -> Result<Vec<(usize, u64, u64)>, Error> {
    const PIECE: usize = 1 << 20;
    let mut buffer = vec![0_u8; PIECE];
    let mut found = Vec::new();
    for (place, tensor) in checkpoint.tensors().iter().enumerate() {
        let mut kept = 0;
        let mut at = 0;
        while at < tensor.bytes {
            interrupt.check()?;
            let len = usize::try_from(tensor.bytes - at).map_or(PIECE, |rest| rest.min(PIECE));
            checkpoint.read(tensor, at, &mut buffer[..len])?;
            kept += buffer[..len].iter().filter(|&&byte| byte != 0).count() as u64;
            at += len as u64;
        }
        found.push((place, tensor.elements(), kept));
    }
    Ok(found)
}

/// How two Fishers of one network agree, on a sample of their parameters.
pub(super) struct Agreement {
    pub(super) titles: [String; 2],
    /// Pairs of values.
    pub(super) points: Vec<(f32, f32)>,
    /// Spearman's rank correlation of the sample.
    pub(super) spearman: f64,
}

/// Parameters of the sample: enough for three digits of a rank correlation.
const SAMPLE: u64 = 4000;

/// The agreement of the first two Fishers, if there are two and they are of one network.
pub(super) fn agreement(inputs: &[Input]) -> Result<Option<Agreement>, Error> {
    let mut fishers = inputs.iter().filter(|input| matches!(input.kind, Kind::Fisher(_)));
    let (Some(a), Some(b)) = (fishers.next(), fishers.next()) else { return Ok(None) };
    let shared: Vec<(&TensorInfo, &TensorInfo)> = a
        .checkpoint
        .tensors()
        .iter()
        .filter(|tensor| tensor.is_float())
        .filter_map(|tensor| Some((tensor, b.checkpoint.get(&tensor.name)?)))
        .filter(|(one, other)| one.shape == other.shape && other.is_float())
        .collect();
    let total: u64 = shared.iter().map(|(tensor, _)| tensor.elements()).sum();
    if total < 3 {
        return Ok(None);
    }
    let stride = total.div_ceil(SAMPLE);
    let mut points = Vec::new();
    let mut skip = 0;
    for (one, other) in shared {
        let elements = one.elements();
        let mut index = skip;
        while index < elements {
            points.push((value(&a.checkpoint, one, index)?, value(&b.checkpoint, other, index)?));
            index += stride;
        }
        skip = index - elements;
    }
    let spearman = correlation(&ranks(points.iter().map(|p| p.0)), &ranks(points.iter().map(|p| p.1)));
    Ok(Some(Agreement { titles: [a.title.clone(), b.title.clone()], points, spearman }))
}

fn value(checkpoint: &Checkpoint, tensor: &TensorInfo, index: u64) -> Result<f32, Error> {
    let size = tensor.dtype.bitsize() / 8;
    let mut bytes = [0_u8; 8];
    checkpoint.read(tensor, index * size as u64, &mut bytes[..size])?;
    let [a, b, c, d, ..] = bytes;
    Ok(match tensor.dtype {
        Dtype::F64 => f64::from_le_bytes(bytes) as f32,
        Dtype::F16 => half::f16::from_le_bytes([a, b]).to_f32(),
        Dtype::BF16 => half::bf16::from_le_bytes([a, b]).to_f32(),
        _ => f32::from_le_bytes([a, b, c, d]),
    })
}

/// Ranks from 0; equal values share the mean of theirs.
fn ranks(values: impl Iterator<Item = f32>) -> Vec<f64> {
    let values: Vec<f32> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let same = order[start..].iter().take_while(|&&i| values[i] == values[order[start]]).count();
        let rank = start as f64 + (same as f64 - 1.0) / 2.0;
        order[start..start + same].iter().for_each(|&i| ranks[i] = rank);
        start += same;
    }
    ranks
}

/// Pearson's correlation; 0 where one of them does not vary.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        ab += (x - mean_a) * (y - mean_b);
        aa += (x - mean_a).powi(2);
        bb += (y - mean_b).powi(2);
    }
    if aa * bb > 0.0 { ab / (aa * bb).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_ties_are_shared_and_correlation_sees_only_order() {
        assert_eq!(ranks([3.0, 1.0, 1.0, 9.0].into_iter()), [2.0, 0.5, 0.5, 3.0]);
        let a = ranks([1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(correlation(&a, &ranks([1.0, 8.0, 27.0, 64.0].into_iter())), 1.0);
        assert_eq!(correlation(&a, &ranks([4.0, 3.0, 2.0, 1.0].into_iter())), -1.0);
        assert_eq!(correlation(&a, &ranks([5.0; 4].into_iter())), 0.0);
    }
}
