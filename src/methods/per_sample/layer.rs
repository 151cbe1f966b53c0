//! One layer over all files, or those that share a parameter: its gradients are shown to a [`Sum`] in the
//! form that costs it least.
//!
//! Those of all samples are formed for a *slab* at a time: some rows of the weight, or the bias. An
//! embedding's are kept as runs, and inner products of a linear layer can do without any.

use std::ops::Range;
use std::rc::Rc;

use super::chunks::{Chunk, chunks, hold_bytes};
use super::scale::{rounded, scale_of};
use super::{PerSample, Sum};
use crate::backend::Backend;
use crate::checkpoint::{CaptureLayer, LayerKind};
use crate::error::Result;
use crate::kernels::fisher::{Epilogue, Mode};
use crate::memory::View;
use crate::methods::captured::{Batch, Parameter, Role, Sides, cut, small};
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::DType;
use crate::stream::Stage;

/// Bytes of the gradients that are formed at a time.
const SLAB: u64 = 64 << 20;

/// One layer over all files, or those that share a parameter.
pub(super) struct Layer<'a> {
    pub(super) job: &'a PerSample<'a>,
    /// The places of the layers, the parameter's own first.
    members: Vec<usize>,
    pub(super) chunks: Vec<Chunk<'a>>,
    /// Whether data stay in memory from one slab to the next.
    holds: bool,
    /// Whether a sample of some file is taken in parts, which are then batches of the same sample.
    divided: bool,
}

/// A linear layer's numbers of samples and positions over all files, the positions of its longest sample, and
/// its sizes.
pub(super) struct LinearSizes {
    pub(super) samples: f64,
    pub(super) positions: f64,
    pub(super) longest: f64,
    pub(super) inputs: f64,
    pub(super) outputs: f64,
    /// Whether products of unscaled gradients stay in f32.
    pub(super) moderate: bool,
}

/// The gradients of all samples for consecutive elements of one parameter.
pub(super) struct Slab<'s> {
    pub(super) name: &'s str,
    pub(super) first: u64,
    pub(super) len: u64,
    pub(super) chunks: Vec<SlabChunk>,
}

pub(super) struct SlabChunk {
    pub(super) samples: Range<usize>,
    /// `[n, len]`, f32.
    pub(super) gradients: View,
    /// What they are multiplied by.
    pub(super) scale: f64,
}

/// The parameters of a slab.
enum Part {
    Rows(Range<u32>),
    Bias,
}

impl<'a> Layer<'a> {
    /// `parts`: the layers of each file, by size.
    pub(super) fn new(job: &'a PerSample<'a>, members: &[usize], parts: &'a [Vec<CaptureLayer>]) -> Self {
        let (chunks, divided) = chunks(job, members, parts);
        let all: u64 = members.iter().map(|&at| job.bytes_of(at)).sum();
        let holds = chunks.len() == 1 || all <= hold_bytes(job);
        Self { job, members: members.to_vec(), chunks, holds, divided }
    }

    pub(super) fn captured(&self) -> &'a CaptureLayer {
        &self.job.captures[0].layers()[self.members[0]]
    }

    /// Bytes of the gradients that may be formed at a time.
    pub(super) fn slab_bytes(&self) -> u64 {
        let caps = self.job.run.backend.caps();
        let budget = self.job.run.budget.within(&caps);
        let device = if caps.is_host { u64::MAX } else { budget.device_bytes / 4 };
        SLAB.min(budget.host_bytes / 4).min(device).min(budget.max_binding_bytes)
    }

    /// Shows `sum` one parameter's gradients.
    pub(super) fn show(&self, parameter: &Parameter, sum: &mut dyn Sum) -> Result<()> {
        let name = &parameter.name;
        match (parameter.role(), &self.captured().kind) {
            (Role::Bias, _) => self.slab(sum, name, 0, parameter.rows.len, &Part::Bias),
            _ if self.members.len() > 1 || self.divided => self.slabs(sum, parameter),
            (_, LayerKind::Embedding { .. }) => self.embedding(sum, name),
            (_, LayerKind::Linear) if sum.prefers_pairs(&self.linear()?) => sum.pairs(self),
            _ => self.slabs(sum, parameter),
        }
    }

    /// A chunk's data.
    pub(super) fn batches(&self, chunk: &Chunk<'_>) -> Result<Rc<Vec<Batch>>> {
        self.job.run.interrupt.check()?;
        if let Some(batches) = chunk.held.borrow().as_ref() {
            return Ok(Rc::clone(batches));
        }
        let read = || chunk.read(self.job.run.backend, self.divided);
        let batches = Rc::new(self.job.clock.time(Stage::Read, read)?);
        if self.holds {
            chunk.held.replace(Some(Rc::clone(&batches)));
        }
        Ok(batches)
    }

    fn linear(&self) -> Result<LinearSizes> {
        let shape = &self.captured().weight;
        let mut sizes = LinearSizes {
            samples: 0.0,
            positions: 0.0,
            longest: 0.0,
            inputs: shape[1] as f64,
            outputs: shape[0] as f64,
            moderate: true,
        };
        for chunk in &self.chunks {
            let batches = self.batches(chunk)?;
            let batch = &batches[0];
            let (samples, positions) = (batch.samples() as f64, batch.positions() as f64);
            sizes.samples += samples;
            sizes.positions += samples * positions;
            sizes.longest = positions.max(sizes.longest);
            sizes.moderate &= scale_of(&batches) == 1.0;
        }
        Ok(sizes)
    }

    /// Shows `sum` the weight's gradients, some rows at a time.
    fn slabs(&self, sum: &mut dyn Sum, parameter: &Parameter) -> Result<()> {
        let rows = parameter.rows;
        let row_bytes = (4 * rows.len).saturating_mul(self.job.samples() as u64).max(1);
        for range in cut(rows, self.slab_bytes() / row_bytes) {
            let (first, len) = (u64::from(range.start) * rows.len, range.len() as u64 * rows.len);
            self.slab(sum, &parameter.name, first, len, &Part::Rows(range))?;
        }
        Ok(())
    }

    fn slab(&self, sum: &mut dyn Sum, name: &str, first: u64, len: u64, part: &Part) -> Result<()> {
        let mut chunks = Vec::new();
        for chunk in &self.chunks {
            let batches = self.batches(chunk)?;
            let (samples, scale) = (chunk.samples.clone(), scale_of(&batches));
            let gradients = || self.gradients(&batches, len, part);
            let gradients = self.job.clock.time(Stage::Compute, gradients)?;
            chunks.push(SlabChunk { samples, gradients, scale });
        }
        sum.slab(self.job, &Slab { name, first, len, chunks })
    }

    /// The gradients of a chunk's samples for a part of the parameters, `[n, len]`.
    fn gradients(&self, batches: &[Batch], len: u64, part: &Part) -> Result<View> {
        let backend = self.job.run.backend;
        let out = backend.alloc(batches[0].samples().saturating_mul(len), DType::F32)?;
        let weight = ones(backend, &batches[0])?;
        let sides = Sides { weight: &weight, out: &out };
        let mut squares =
            Squares { mode: Mode::Each, gradient_scale: rounded(scale_of(batches)), ..Squares::default() };
        let mut recording = Recording::new(backend);
        let role = match part {
            Part::Rows(_) => Role::Weight,
            Part::Bias => Role::Bias,
        };
        for batch in batches.iter().filter(|batch| batch.adds_to(role)) {
            match part {
                Part::Rows(rows) => {
                    batch.record_rows(backend, &mut recording, rows.clone(), squares, sides)?;
                }
                Part::Bias => batch.record_bias(&mut recording, squares, sides)?,
            }
            // Other sizes and parts add to the first.
            squares.epilogue = Epilogue::Add;
        }
        backend.run(&recording)?;
        Ok(out)
    }
}

/// A weight of 1 for every sample.
pub(super) fn ones(backend: &Backend, batch: &Batch) -> Result<View> {
    backend.buffer(&vec![1.0_f32; small(batch.samples())? as usize], DType::F32)
}
