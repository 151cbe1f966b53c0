//! How files become one view: runs of bytes, one after the other, in pieces.

use std::ops::Range;

use super::InFile;
use super::portion::{Band, Span};
use super::way::{Way, filled};
use crate::backend::Backend;
use crate::checkpoint::{Capture, CaptureLayer, TensorInfo, widen_bytes};
use crate::error::{Error, Result, printable};
use crate::memory::View;
use crate::shape::{DType, usize_of};

/// Bytes of an id.
const ID_BYTES: u64 = 8;

/// What becomes one view: inputs or gradients of files, samples and uses, in this order.
#[derive(Clone)]
pub(super) struct Reading<'s, 'a> {
    pub(super) files: &'s [InFile<'a>],
    /// Samples of the only file; all of all files if there are none given.
    pub(super) samples: Option<Range<u64>>,
    /// Of one sample: the positions of its inputs and of its gradients.
    pub(super) bands: Option<[&'s Band; 2]>,
    /// Whether it is the gradients.
    pub(super) gradient: bool,
    /// One factor a sample, or none.
    pub(super) scale: &'s [f64],
}

/// Consecutive bytes of one tensor, or zeros.
#[derive(Clone, Copy)]
struct Run<'a> {
    capture: &'a Capture,
    tensor: &'a TensorInfo,
    start: Option<u64>,
    len: u64,
}

impl<'s, 'a> Reading<'s, 'a> {
    /// The inputs of all samples of files.
    pub(super) fn of_files(files: &'s [InFile<'a>]) -> Self {
        Self { files, samples: None, bands: None, gradient: false, scale: &[] }
    }

    fn tensors(&self, layer: &'a CaptureLayer) -> impl Iterator<Item = &'a TensorInfo> {
        let gradient = self.gradient;
        layer.uses.iter().map(move |one| if gradient { &one.grad_output } else { &one.input })
    }

    fn samples_of(&self, capture: &Capture) -> Range<u64> {
        self.samples.clone().unwrap_or(0..capture.samples())
    }

    fn band(&self) -> Option<&Band> {
        self.bands.map(|[input, gradient]| if self.gradient { gradient } else { input })
    }

    /// The runs of a band of one sample.
    fn of_band(&self, band: &Band) -> Vec<Run<'a>> {
        let InFile { capture, layer } = self.files[0];
        let tensor = if self.gradient { &layer.uses[0].grad_output } else { &layer.uses[0].input };
        let each = tensor.bytes.checked_div(capture.samples()).unwrap_or(0);
        let (sample, size) =
            (self.samples_of(capture).start * each, each.checked_div(band.of_sample()).unwrap_or(0));
        let run = |Span { start, len }: Span| Run {
            capture,
            tensor,
            start: start.map(|start| sample + start * size),
            len: len * size,
        };
        band.spans().into_iter().map(run).collect()
    }

    /// Every run of bytes: consecutive samples of a tensor, or, of several uses, sample by sample.
    fn runs(&self) -> Vec<Run<'a>> {
        if let Some(band) = self.band() {
            return self.of_band(band);
        }
        let mut runs = Vec::new();
        for &InFile { capture, layer } in self.files {
            let samples = self.samples_of(capture);
            let run = |tensor: &'a TensorInfo, samples: Range<u64>| {
                let each = tensor.bytes.checked_div(capture.samples()).unwrap_or(0);
                Run {
                    capture,
                    tensor,
                    start: Some(samples.start * each),
                    len: (samples.end - samples.start) * each,
                }
            };
            if let [only] = self.tensors(layer).collect::<Vec<_>>()[..] {
                runs.push(run(only, samples));
                continue;
            }
            for sample in samples {
                runs.extend(self.tensors(layer).map(|tensor| run(tensor, sample..sample + 1)));
            }
        }
        runs
    }

    /// The ids, the uses of a sample one after the other.
    pub(super) fn ids(&self, rows: u32) -> Result<Vec<u32>> {
        let mut all = Vec::new();
        for Run { capture, tensor, start, len } in self.runs() {
            // No position of an embedding lies outside of its sample.
            let first = start.unwrap_or(0) / ID_BYTES;
            all.extend(capture.ids(tensor, first..first + len / ID_BYTES, rows)?);
        }
        Ok(all)
    }

    /// What cannot be divided further is refused by name.
    fn too_large(&self, error: Error) -> Error {
        let InFile { capture, layer } = self.files[0];
        match (error, self.tensors(layer).next()) {
            (Error::Limit { limit, max, asked, .. }, Some(tensor)) => {
                let op = format!(
                    "{}: what is taken of {} at a time",
                    capture.path().display(),
                    printable(&tensor.name)
                );
                Error::Limit {
                    op,
                    limit: format!("{limit} (the host backend has no such limit)"),
                    max,
                    asked,
                }
            }
            (other, _) => other,
        }
    }

    /// Reads everything; also gives the largest magnitude.
    pub(super) fn load(&self, backend: &Backend) -> Result<(View, f32)> {
        let first = self.tensors(self.files[0].layer).next();
        let stored =
            first.and_then(TensorInfo::float).expect("a capture's types are checked when it is opened");
        let runs = self.runs();
        let bytes: u64 = runs.iter().map(|run| run.len).sum();
        let len = bytes / stored.size();
        let target = if self.scale.is_empty() { stored } else { DType::F32 };
        let read = |way: Way<'_>| match way {
            Way::Host(all) if self.scale.is_empty() => fill(&runs, all),
            way => self.in_pieces(way, len, stored, &runs),
        };
        filled(backend, len, target.into(), read).map_err(|error| self.too_large(error))
    }

    /// Reads runs piece by piece, on their way to a device or to be multiplied.
    fn in_pieces(&self, mut way: Way<'_>, len: u64, stored: DType, runs: &[Run<'_>]) -> Result<f32> {
        let samples = self.files.iter().map(|file| self.samples_of(file.capture));
        let samples: u64 = samples.map(|range| range.end - range.start).sum();
        let of_sample = len.checked_div(samples).unwrap_or(0).max(1);
        let piece = way.piece();
        let mut bytes = vec![0; piece.min(usize_of(len * stored.size()))];
        let (mut at, mut largest) = (0, 0.0_f32);
        for runs in pieces(runs, piece as u64) {
            let bytes = &mut bytes[..usize_of(runs.iter().map(|run| run.len).sum())];
            let most = fill(&runs, bytes)?;
            largest = largest.max(if self.scale.is_empty() {
                way.put(at * stored.size(), bytes)?;
                most
            } else {
                let values = scaled(bytes, stored, |index| self.scale[usize_of((at + index) / of_sample)]);
                way.put(at * DType::F32.size(), bytemuck::cast_slice(&values))?;
                values.iter().fold(0.0, |most, value| value.abs().max(most))
            });
            at += bytes.len() as u64 / stored.size();
        }
        Ok(largest)
    }
}

/// Reads runs one after the other; gives the largest magnitude.
fn fill(runs: &[Run<'_>], mut bytes: &mut [u8]) -> Result<f32> {
    let mut largest = 0.0_f32;
    for Run { capture, tensor, start, len } in runs {
        let (own, others) = bytes.split_at_mut(usize_of(*len));
        match start {
            Some(start) => largest = largest.max(capture.read_range(tensor, *start, own)?),
            None => own.fill(0),
        }
        bytes = others;
    }
    Ok(largest)
}

/// The same runs in pieces of so many bytes, the last of which may have fewer.
fn pieces<'a>(runs: &[Run<'a>], bytes: u64) -> Vec<Vec<Run<'a>>> {
    let mut pieces = Vec::new();
    let mut free = 0;
    for run in runs {
        let mut done = 0;
        while done < run.len {
            if free == 0 {
                pieces.push(Vec::new());
                free = bytes;
            }
            let len = free.min(run.len - done);
            let start = run.start.map(|start| start + done);
            pieces.last_mut().expect("there is one with room").push(Run { start, len, ..*run });
            (done, free) = (done + len, free - len);
        }
    }
    pieces
}

/// Every value times a factor of its index.
fn scaled(bytes: &[u8], stored: DType, factor: impl Fn(u64) -> f64) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / usize_of(stored.size())];
    widen_bytes(bytes, stored, &mut values);
    for (index, value) in (0..).zip(&mut values) {
        #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
        let product = (f64::from(*value) * factor(index)) as f32;
        *value = product;
    }
    values
}
