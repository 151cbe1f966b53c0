//! How files become one view: runs of bytes, one after the other, in pieces.

use std::ops::Range;

use super::InFile;
use super::portion::{Band, Span};
use crate::backend::Backend;
use crate::checkpoint::{Capture, CaptureLayer, TensorInfo, widen_bytes};
use crate::error::{Error, Result, printable};
use crate::memory::View;
use crate::shape::{DType, usize_of};

/// Bytes of an id.
const ID_BYTES: u64 = 8;

/// Bytes that are read at a time: whole groups of elements of every type.
const PIECE: usize = 4 << 20;

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
        let samples = self.files.iter().map(|file| self.samples_of(file.capture));
        let samples: u64 = samples.map(|range| range.end - range.start).sum();
        let target = if self.scale.is_empty() { stored } else { DType::F32 };
        let view = backend.alloc(len, target).map_err(|error| self.too_large(error))?;
        let mut pieces = Pieces {
            backend,
            view: &view,
            stored,
            scale: self.scale,
            of_sample: len.checked_div(samples).unwrap_or(0).max(1),
            measure: self.gradient,
            at: 0,
            largest: 0.0,
            values: Vec::new(),
        };
        pieces.read(&runs, bytes)?;
        let largest = pieces.largest;
        Ok((view, largest))
    }
}

/// Where pieces go, one after the other.
struct Pieces<'a> {
    backend: &'a Backend,
    view: &'a View,
    stored: DType,
    scale: &'a [f64],
    of_sample: u64,
    measure: bool,
    at: u64,
    largest: f32,
    values: Vec<f32>,
}

impl Pieces<'_> {
    /// Reads runs, of so many bytes together, a piece at a time.
    fn read(&mut self, runs: &[Run<'_>], bytes: u64) -> Result<()> {
        let mut piece = vec![0; PIECE.min(usize::try_from(bytes).unwrap_or(PIECE))];
        let mut filled = 0;
        for Run { capture, tensor, start, len } in runs {
            let mut done = 0;
            while done < *len {
                let take = usize::try_from(len - done).unwrap_or(PIECE).min(piece.len() - filled);
                let into = &mut piece[filled..filled + take];
                match start {
                    Some(start) => capture.read_range(tensor, start + done, into)?,
                    None => into.fill(0),
                }
                (filled, done) = (filled + take, done + take as u64);
                if filled == piece.len() {
                    self.store(&piece)?;
                    filled = 0;
                }
            }
        }
        self.store(&piece[..filled])
    }

    /// Puts the next bytes into their place.
    fn store(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let len = bytes.len() as u64 / self.stored.size();
        let element = self.view.element();
        let offset = self.view.offset() + self.at * element.bytes() as u64;
        let target = View::new(self.view.memory().clone(), offset, len, element)?;
        if self.measure {
            self.values.resize(usize_of(len), 0.0);
            widen_bytes(bytes, self.stored, &mut self.values);
            self.scale_values();
            self.largest = self.values.iter().fold(self.largest, |most, value| most.max(value.abs()));
        }
        if self.scale.is_empty() {
            self.backend.upload(&target, bytes)?;
        } else {
            self.backend.upload(&target, bytemuck::cast_slice(&self.values))?;
        }
        self.at += len;
        Ok(())
    }

    /// Every value times its sample's factor.
    fn scale_values(&mut self) {
        if self.scale.is_empty() {
            return;
        }
        for (at, value) in (self.at..).zip(&mut self.values) {
            let sample = usize_of(at / self.of_sample);
            #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
            let scaled = (f64::from(*value) * self.scale[sample]) as f32;
            *value = scaled;
        }
    }
}
