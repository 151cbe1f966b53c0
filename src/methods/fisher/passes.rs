//! What is computed at a time and in which order it is read: unit by unit, pass by pass, file by file,
//! portion by portion.
//!
//! A *unit* is a layer, or several that share parameters. A *pass* is some rows of its parameters, all where
//! they fit the budget, and goes over all files, each a *batch*. A batch is read in *portions*, which are the
//! layers' own. Reader and computation walk the same iterators, so that what is read next is what is computed
//! next.

use std::ops::Range;

use super::job::Job;
use crate::checkpoint::Capture;
use crate::error::Result;
use crate::gpu::Caps;
use crate::interrupt::Interrupt;
use crate::methods::captured::{
    Batch, InFile, Parameter, Portion, Role, Share, Unit, has_several_sizes, passes, ranges,
};
use crate::shape::usize_of;
use crate::stream::{Clock, Stage};

/// Bytes of gradients of several samples that are in memory at a time.
const SLAB_BYTES: u64 = 1 << 20;

/// How a unit of layers is computed.
pub(super) struct Plan<'a> {
    pub(super) unit: &'a Unit,
    /// Of each pass, of each parameter, one range a buffer.
    pub(super) rows: Vec<Vec<Vec<Range<u32>>>>,
    caps: Caps,
}

impl Plan<'_> {
    pub(super) fn passes<'a>(
        &'a self,
        clock: &'a Clock,
        interrupt: &'a Interrupt,
    ) -> impl Iterator<Item = Pass<'a>> {
        let Self { unit, ref caps, .. } = *self;
        let pass = move |(at, rows): (usize, &'a Vec<_>)| Pass {
            unit,
            rows,
            caps,
            first: at == 0,
            clock,
            interrupt,
        };
        self.rows.iter().enumerate().map(pass)
    }
}

/// Some rows of a unit's parameters, and how they are computed.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    pub(super) unit: &'a Unit,
    /// Of each parameter, one range a buffer.
    pub(super) rows: &'a [Vec<Range<u32>>],
    /// What the device allows, within the budget.
    pub(super) caps: &'a Caps,
    /// Whether it is the first of its unit.
    pub(super) first: bool,
    pub(super) clock: &'a Clock,
    interrupt: &'a Interrupt,
}

/// One unit's data of one file.
#[derive(Clone, Copy)]
pub(super) struct OfBatch<'a> {
    pub(super) pass: Pass<'a>,
    pub(super) capture: &'a Capture,
    /// Which batch.
    pub(super) step: usize,
}

/// A portion of a batch, which is read at once, and the layer of which it is.
pub(super) struct Read<'a> {
    batch: OfBatch<'a>,
    pub(super) layer: usize,
    pub(super) portion: Portion,
}

impl<'a> OfBatch<'a> {
    /// Some samples: layer by layer, as many at a time as fit.
    pub(super) fn portions(self, samples: Range<u64>) -> impl Iterator<Item = Read<'a>> {
        self.layers().flat_map(move |layer| {
            let portions = self.file(layer).portions(self.pass.caps, samples.clone());
            portions.into_iter().map(move |portion| Read { batch: self, layer, portion })
        })
    }

    /// Ranges of samples; an empty one for none, whose old values decay, too.
    pub(super) fn groups(self, at_once: u64) -> impl Iterator<Item = Range<u64>> {
        let samples = self.capture.samples();
        ranges(samples.max(1), at_once).map(move |range| range.start..range.end.min(samples))
    }

    /// Samples whose gradients lie in memory at a time: as many as one step takes of every layer, and as keep
    /// the buffers small.
    pub(super) fn samples_at_once(self) -> u64 {
        let bytes = |(rows, parameter): (&Vec<Range<u32>>, &Parameter)| {
            4 * parameter.rows.len * rows.iter().map(|range| range.len() as u64).sum::<u64>()
        };
        let all: u64 = self.pass.rows.iter().zip(&self.pass.unit.parameters).map(bytes).sum();
        let most = SLAB_BYTES.min(self.pass.caps.max_binding_bytes) / all.max(1);
        let of_layers = self.layers().map(|layer| self.file(layer).samples_at_once(self.pass.caps));
        of_layers.min().unwrap_or(1).min(most).max(1)
    }

    /// A layer of the file.
    fn file(self, layer: usize) -> InFile<'a> {
        InFile { capture: self.capture, layer: &self.capture.layers()[layer] }
    }

    /// The parameters of a layer of which the pass has rows.
    pub(super) fn of_layer(self, layer: usize) -> impl Iterator<Item = (usize, Role)> {
        self.pass.unit.of_layer(layer).filter(move |(at, _)| !self.pass.rows[*at].is_empty())
    }

    /// The layers that add to rows of the pass.
    fn layers(self) -> impl Iterator<Item = usize> {
        self.pass.unit.layers.iter().copied().filter(move |&layer| self.of_layer(layer).next().is_some())
    }

    /// Bytes of all the unit's layers.
    pub(super) fn bytes(self) -> u64 {
        self.pass.unit.layers.iter().map(|&layer| self.capture.layers()[layer].bytes()).sum()
    }
}

impl Job<'_> {
    /// One unit of layers, in as many passes as the budget asks for.
    pub(super) fn plan<'u>(&self, unit: &'u Unit) -> Result<Plan<'u>> {
        let share = |copies| Share::of(&self.run.budget, &self.run.backend.caps(), copies);
        let (_, caps) = share(1);
        let needs_sums =
            |capture| self.options.kind.folds_samples() || self.adds_by_sample(unit, capture, &caps);
        let needs_sums = self.captures.iter().any(needs_sums);
        let (share, caps) = share(1 + u64::from(needs_sums) + u64::from(self.is_grouped()));
        Ok(Plan { unit, rows: passes(unit, &caps, share)?, caps })
    }

    /// Whether the gradient of a sample is not to be had in one step, which squares it: where layers share a
    /// parameter, where uses are of several sizes, and where a sample is too large.
    pub(super) fn adds_by_sample(&self, unit: &Unit, capture: &Capture, caps: &Caps) -> bool {
        let divided = |&layer: &usize| {
            let layer = &capture.layers()[layer];
            has_several_sizes(layer) || !InFile { capture, layer }.takes_whole_samples(caps)
        };
        !self.options.kind.joins_samples() && (unit.is_tied() || unit.layers.iter().any(divided))
    }

    /// A unit's data, file by file.
    pub(super) fn batches<'b>(&'b self, pass: Pass<'b>) -> impl Iterator<Item = OfBatch<'b>> {
        self.captures.iter().enumerate().map(move |(step, capture)| OfBatch { pass, capture, step })
    }

    /// What is read of a batch, in the order in which it is computed.
    pub(super) fn portions<'b>(&'b self, batch: OfBatch<'b>) -> impl Iterator<Item = Read<'b>> {
        let by_sample = self.adds_by_sample(batch.pass.unit, batch.capture, batch.pass.caps);
        let at_once = if by_sample { batch.samples_at_once() } else { u64::MAX };
        batch.groups(at_once).flat_map(move |samples| batch.portions(samples))
    }

    /// Reads a portion of a batch.
    pub(super) fn load(&self, Read { batch, portion, .. }: Read<'_>) -> Result<Batch> {
        batch.pass.interrupt.check()?;
        let scale = &self.batches[batch.step].scale;
        let samples = portion.samples();
        let scale = match &scale[..] {
            [] => &[],
            all => &all[usize_of(samples.start)..usize_of(samples.end)],
        };
        batch
            .pass
            .clock
            .time(Stage::Read, || Batch::load_portion(self.run.backend, batch.capture, &portion, scale))
    }
}
