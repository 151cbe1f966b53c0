//! A model put together by a mask: mask ? fine-tuned : pretrained, bit for bit, in any element type.
//!
//! So a fine-tuned model is taken back to its start everywhere but in the masked parameters. Bytes are copied
//! and nothing is computed, so it runs on the host's threads whatever the backend, and in a few MiB a thread.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Dtype, Output, OutputLayout, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::kernel::vectorised;
use crate::methods::select::{Selected, listed, sparsity};
use crate::shape::{shape_text, usize_of};
use crate::stream::{Clock, Run, Stage, Timings};

/// What becomes of tensors that the mask does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmasked {
    /// They must be equal in both models, else the reset is refused.
    #[default]
    Equal,
    /// They are taken from the fine-tuned model.
    Model,
    /// They are taken from the pretrained one.
    Base,
}

/// What a reset does where the mask says nothing.
#[derive(Clone, Debug, Default)]
pub struct ResetOptions {
    /// What becomes of tensors that the mask does not have.
    pub unmasked: Unmasked,
    /// Replace an existing output.
    pub overwrite: bool,
}

/// What a reset would do, from headers alone.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ResetPlan {
    /// The tensors that the mask has.
    pub masked: Vec<String>,
    /// Those it does not have.
    pub copied: Vec<String>,
    /// Elements of the former.
    pub elements: u64,
}

/// What [`reset`] would do.
///
/// # Errors
/// What headers alone show to be wrong, as [`reset`].
pub fn plan(mask: &Path, model: &Path, base: &Path) -> Result<ResetPlan> {
    let (mask, model) = (Checkpoint::open(mask)?, Checkpoint::open(model)?);
    refuse_differences(&mask, &model, &Checkpoint::open(base)?)?;
    let (masked, copied): (Vec<_>, Vec<_>) =
        model.tensors().iter().partition(|tensor| mask.get(&tensor.name).is_some());
    let names = |tensors: &[&TensorInfo]| tensors.iter().map(|tensor| tensor.name.clone()).collect();
    let elements = masked.iter().map(|tensor| tensor.elements()).sum();
    Ok(ResetPlan { masked: names(&masked), copied: names(&copied), elements })
}

/// What a reset gave.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ResetReport {
    /// The tensors that the mask has.
    pub tensors: Vec<Selected>,
    /// Elements of these tensors.
    pub elements: u64,
    /// Those taken from the fine-tuned model.
    pub kept: u64,
    /// The share taken from the pretrained one.
    pub sparsity: f64,
    /// The tensors that the mask does not have.
    pub copied: Vec<String>,
    /// Bytes of tensors read.
    pub bytes_read: u64,
    /// Bytes of files written.
    pub bytes_written: u64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Where the time went, of all threads together.
    pub timings: Timings,
    /// The path of the output.
    #[serde(serialize_with = "crate::paths::as_text")]
    pub output: PathBuf,
}

/// Bytes of each input handled at once; a multiple of every element size.
const STEP_BYTES: u64 = 1 << 20;

const OP: &str = "reset";

/// Writes mask ? `model` : `base`, with the model's files, types and side files.
///
/// # Errors
/// [`Error::Mismatch`] where names, shapes or types differ, or an unmasked tensor differs; [`Error::Tensor`] for a mask
/// that is not BOOL, or holds another byte than 0 and 1; [`Error::Output`] where the output cannot be written.
pub fn reset(
    mask: &Path,
    model: &Path,
    base: &Path,
    options: &ResetOptions,
    out: &Path,
    run: &Run<'_>,
) -> Result<ResetReport> {
    let began = Instant::now();
    let (mask, model, base) = (&Checkpoint::open(mask)?, &Checkpoint::open(model)?, &Checkpoint::open(base)?);
    refuse_differences(mask, model, base)?;
    let layout = OutputLayout::like(model, |tensor| Some(tensor.dtype), BTreeMap::new());
    let inputs = [mask.path(), model.path(), base.path()];
    let output = Output::create(out, layout.with_side_files_of(model)?, options.overwrite, &inputs)?;
    let job = Reset { mask, model, base, options, output, run, clock: Clock::start() };
    let pieces = job.pieces();
    let bytes_read = pieces.iter().map(|piece| 2 * piece.len + piece.mask_len()).sum();
    run.progress.begin(bytes_read);
    // Piece by piece on all cores: while one reads, another chooses or writes.
    let one = |bytes: &mut Bytes, piece: &Piece<'_>| job.run(piece, bytes);
    let kept_of = pieces.par_iter().map_init(Bytes::default, one).collect::<Result<Vec<u64>>>()?;
    inputs_unchanged(&[mask, model, base])?;
    let (tensors, copied) = job.selected(&pieces, &kept_of);
    let (elements, kept) = (tensors.iter().map(|t| t.elements).sum(), tensors.iter().map(|t| t.kept).sum());
    let report = ResetReport {
        tensors,
        elements,
        kept,
        sparsity: sparsity(elements, kept),
        copied,
        bytes_read,
        bytes_written: job.output.total_bytes(),
        seconds: began.elapsed().as_secs_f64(),
        timings: job.clock.timings(),
        output: job.output.path().to_owned(),
    };
    job.output.finish()?;
    Ok(report)
}

fn inputs_unchanged(inputs: &[&Checkpoint]) -> Result<()> {
    inputs.iter().try_for_each(|input| input.verify_unchanged())
}

struct Reset<'a> {
    mask: &'a Checkpoint,
    model: &'a Checkpoint,
    base: &'a Checkpoint,
    options: &'a ResetOptions,
    output: Output,
    run: &'a Run<'a>,
    clock: Clock,
}

/// Consecutive bytes of one of the model's tensors.
struct Piece<'a> {
    /// Its place in the model.
    place: usize,
    start: u64,
    len: u64,
    /// The mask's tensor and the bytes of an element, where there is a mask.
    masked: Option<(&'a TensorInfo, u64)>,
}

impl Piece<'_> {
    /// Bytes of the mask, one an element.
    fn mask_len(&self) -> u64 {
        self.masked.map_or(0, |(_, size)| self.len / size)
    }
}

/// A thread's bytes of one piece.
#[derive(Default)]
struct Bytes {
    own: Vec<u8>,
    other: Vec<u8>,
    mask: Vec<u8>,
}

impl Bytes {
    fn resize(&mut self, piece: &Piece<'_>) {
        self.own.resize(usize_of(piece.len), 0);
        self.other.resize(usize_of(piece.len), 0);
        self.mask.resize(usize_of(piece.mask_len()), 0);
    }
}

impl<'a> Reset<'a> {
    fn pieces(&self) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        for (place, tensor) in self.model.tensors().iter().enumerate() {
            let size = tensor.bytes.checked_div(tensor.elements()).unwrap_or(1).max(1);
            let masked = self.mask.get(&tensor.name).map(|mask| (mask, size));
            for start in (0..tensor.bytes).step_by(usize_of(STEP_BYTES)) {
                pieces.push(Piece { place, start, len: STEP_BYTES.min(tensor.bytes - start), masked });
            }
        }
        pieces
    }

    /// Writes one piece; gives how many of its elements the mask keeps.
    fn run(&self, piece: &Piece<'_>, bytes: &mut Bytes) -> Result<u64> {
        self.run.interrupt.check()?;
        let tensor = &self.model.tensors()[piece.place];
        bytes.resize(piece);
        self.clock.time(Stage::Read, || self.read(piece, tensor, bytes))?;
        let Bytes { own, other, mask } = bytes;
        let chosen: &[u8] = self.clock.time(Stage::Compute, || match piece.masked {
            None => self.unmasked(tensor, own, other),
            Some((of, size)) => {
                self.refuse_bytes(of, piece.start / size, mask)?;
                vectorised(|| choose(own, other, mask));
                Ok(own.as_slice())
            }
        })?;
        let slot = self.output.position(&tensor.name).expect("the output has the model's tensors");
        self.clock.time(Stage::Write, || self.output.write(slot, piece.start, chosen))?;
        self.run.progress.advance(2 * piece.len + piece.mask_len());
        Ok(mask.iter().map(|&keep| u64::from(keep)).sum())
    }

    fn read(&self, piece: &Piece<'_>, tensor: &TensorInfo, bytes: &mut Bytes) -> Result<()> {
        let base = self.base.get(&tensor.name).expect("the names were compared before");
        self.model.read(tensor, piece.start, &mut bytes.own)?;
        self.base.read(base, piece.start, &mut bytes.other)?;
        let of_mask = piece.masked.map(|(of, size)| self.mask.read(of, piece.start / size, &mut bytes.mask));
        of_mask.unwrap_or(Ok(()))
    }

    fn refuse_bytes(&self, of: &TensorInfo, start: u64, mask: &[u8]) -> Result<()> {
        if mask.iter().fold(0, |all, &byte| all | byte) <= 1 {
            return Ok(());
        }
        let at = mask.iter().position(|&byte| byte > 1).expect("no byte has more bits than all together");
        let problem =
            format!("element {} is {}, a BOOL is 0 or 1; the mask is damaged", start + at as u64, mask[at]);
        Err(Error::tensor(self.mask.file_of(of), &of.name, problem))
    }

    fn unmasked<'b>(&self, tensor: &TensorInfo, own: &'b [u8], other: &'b [u8]) -> Result<&'b [u8]> {
        if self.options.unmasked == Unmasked::Equal && own != other {
            let problem = format!(
                "tensor {} is not in the mask and differs between the models; say which one to take with --unmasked",
                printable(&tensor.name)
            );
            return Err(Error::mismatch(OP, problem));
        }
        Ok(if self.options.unmasked == Unmasked::Base { other } else { own })
    }

    /// What was kept of each masked tensor, and the names of the others.
    fn selected(&self, pieces: &[Piece<'_>], kept_of: &[u64]) -> (Vec<Selected>, Vec<String>) {
        let mut kept = vec![0; self.model.tensors().len()];
        for (piece, of_piece) in pieces.iter().zip(kept_of) {
            kept[piece.place] += of_piece;
        }
        let (mut tensors, mut copied) = (Vec::new(), Vec::new());
        for (tensor, kept) in self.model.tensors().iter().zip(kept) {
            match self.mask.get(&tensor.name) {
                Some(_) => tensors.push(Selected::new(tensor, kept)),
                None => copied.push(tensor.name.clone()),
            }
        }
        (tensors, copied)
    }
}

/// `own` where the mask says so, else `other`, in elements of whatever size the lengths give.
#[inline(always)]
fn choose(own: &mut [u8], other: &[u8], mask: &[u8]) {
    match own.len().checked_div(mask.len()).unwrap_or(1) {
        0 | 1 => choose_among::<1>(own, other, mask),
        2 => choose_among::<2>(own, other, mask),
        4 => choose_among::<4>(own, other, mask),
        8 => choose_among::<8>(own, other, mask),
        size => choose_any(own, other, mask, size),
    }
}

/// Without a branch: a mask is as random as the scores, and every other guess at it would be wrong.
#[inline(always)]
fn choose_among<const SIZE: usize>(own: &mut [u8], other: &[u8], mask: &[u8]) {
    let (own, other) = (own.as_chunks_mut::<SIZE>().0, other.as_chunks::<SIZE>().0);
    for ((own, other), &keep) in own.iter_mut().zip(other).zip(mask) {
        *own = if keep == 0 { *other } else { *own };
    }
}

fn choose_any(own: &mut [u8], other: &[u8], mask: &[u8], size: usize) {
    for ((own, other), &keep) in own.chunks_exact_mut(size).zip(other.chunks_exact(size)).zip(mask) {
        if keep == 0 {
            own.copy_from_slice(other);
        }
    }
}

/// Refuses a model, a base and a mask that are not of one network, from headers alone.
fn refuse_differences(mask: &Checkpoint, model: &Checkpoint, base: &Checkpoint) -> Result<()> {
    let mut found = differences_of_base(model, base);
    for tensor in mask.tensors() {
        if tensor.dtype != Dtype::BOOL {
            let problem =
                format!("is stored as {:?}, a mask is BOOL; make it with `squisher mask`", tensor.dtype);
            return Err(Error::tensor(mask.file_of(tensor), &tensor.name, problem));
        }
        found.extend(difference_of_mask(model, tensor));
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::mismatch(OP, format!("the inputs are not of one network: {}", listed(&found))))
}

/// Everything that differs between the model and its base.
fn differences_of_base(model: &Checkpoint, base: &Checkpoint) -> Vec<String> {
    let difference = |tensor: &TensorInfo| {
        let name = printable(&tensor.name);
        match base.get(&tensor.name) {
            None => Some(format!("{name} is not in the base")),
            Some(other) if (&other.shape, other.dtype) != (&tensor.shape, tensor.dtype) => {
                Some(format!("{name} is {}, in the base {}", kind(tensor), kind(other)))
            }
            Some(_) => None,
        }
    };
    let extra = base.tensors().iter().filter(|tensor| model.get(&tensor.name).is_none());
    let extra = extra.map(|tensor| format!("{} is only in the base", printable(&tensor.name)));
    model.tensors().iter().filter_map(difference).chain(extra).collect()
}

/// Why a tensor of a mask cannot choose from the model's, if it cannot.
fn difference_of_mask(model: &Checkpoint, tensor: &TensorInfo) -> Option<String> {
    let name = printable(&tensor.name);
    let Some(own) = model.get(&tensor.name) else {
        return Some(format!("{name} of the mask is not in the model"));
    };
    if own.dtype.bitsize() % 8 != 0 {
        let bits = own.dtype.bitsize();
        return Some(format!("{name} is stored in {bits} bits an element, which no mask can choose from"));
    }
    if own.shape != tensor.shape {
        let (of, own) = (shape_text(&tensor.shape), shape_text(&own.shape));
        return Some(format!("the mask of {name} has shape {of}, the model's is {own}"));
    }
    None
}

fn kind(tensor: &TensorInfo) -> String {
    format!("{:?} {}", tensor.dtype, shape_text(&tensor.shape))
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn every_element_size_is_chosen_whole() {
        for size in [1, 2, 3, 4, 8, 16] {
            for len in [0, 1, 15, 16, 17, 1000] {
                let mask: Vec<u8> = (0..len).map(|i| u8::from(i * i % 7 < 3)).collect();
                let own: Vec<u8> = (0..len * size).map(|i| (i % 251) as u8).collect();
                let other: Vec<u8> = own.iter().map(|byte| !byte).collect();
                let mut got = own.clone();
                choose(&mut got, &other, &mask);
                for (i, byte) in got.into_iter().enumerate() {
                    let from = if mask[i / size] == 1 { &own } else { &other };
                    assert_eq!(byte, from[i], "byte {i} of {len} elements of {size} bytes");
                }
            }
        }
    }
}
