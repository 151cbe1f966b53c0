//! What the passes do with each chunk: counting its scores, or making its mask.

use std::ops::Range;
use std::time::Instant;

use super::histogram::Window;
use super::parts::{Classes, Part};
use super::{Cut, Kept, Selector, Take};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kernels::Owner;
use crate::kernels::select::{
    BLOCK_LEN, Choose, ChooseArgs, ChooseParams, Count, CountArgs, CountParams, Histogram as HistogramKernel,
    HistogramArgs, HistogramParams, LOCAL_BINS, Mask, MaskArgs, MaskParams, Nm, NmArgs, NmParams,
    STATE_WORDS, Scan, ScanArgs, ScanParams, Spend, SpendArgs, SpendParams, mask_words,
};
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::shape::usize_of;
use crate::stream::{Buffers, Chunk, Sweep};

/// A chunk's mask lies behind its fault word, 256 bytes on: the strictest device's alignment.
pub(super) const MASK_AT: u64 = 64;

/// Memory that all chunks share; what a chunk has of its own is in the ring's slots.
pub(super) struct Lanes {
    pub(super) above: View,
    pub(super) ties: View,
    /// How many ties are left, 64 bits.
    pub(super) left: View,
    /// A fault of a step that writes other results too: no two of its buffers may share memory.
    pub(super) fault: View,
    pub(super) coarse: Lane,
    pub(super) fine: Lane,
}

/// A window being counted.
pub(super) struct Lane {
    pub(super) state: View,
    pub(super) counts: View,
}

/// A pass that counts.
pub(super) struct Counting<'s, 'a> {
    pub(super) selector: &'s Selector<'a>,
    pub(super) parts: &'s [Part],
    pub(super) windows: &'s [Window],
}

impl Sweep for Counting<'_, '_> {
    fn result_words(&self) -> u64 {
        1
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let (scores, theta, fisher) = self.selector.scored(chunk, buffers);
        for &Window { low, shift, bins } in self.windows {
            let lane = self.selector.lanes.lane(Window { low, shift, bins });
            let args = HistogramArgs {
                theta: theta.clone(),
                fisher: fisher.clone(),
                state: lane.state.clone(),
                counts: lane.counts.clone(),
                fault: results(buffers).first(1)?,
            };
            let local = bins <= LOCAL_BINS;
            let kernel = HistogramKernel { scores, local, sparse: !local };
            recording.dispatch(&kernel, HistogramParams { len: len32(chunk), shift, bins }, args)?;
        }
        Ok(())
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        self.selector.refuse_fault(self.parts, chunk, results[0])
    }
}

/// By what the last pass keeps.
#[derive(Clone, Copy)]
pub(super) enum Keeping<'s> {
    /// What is above a cut, and the first of the ties.
    Cuts(&'s [(Range<usize>, Cut)]),
    /// So many of every so many.
    Pattern(u32, u32),
}

/// The pass that makes masks, and zeros in the place of what is not kept.
pub(super) struct Applying<'s, 'a> {
    pub(super) selector: &'s Selector<'a>,
    pub(super) parts: &'s [Part],
    pub(super) classes: &'s Classes,
    pub(super) keeping: Keeping<'s>,
    pub(super) pruned: bool,
    pub(super) take: Take<'s>,
    /// What `take` took.
    pub(super) seconds: f64,
}

impl Sweep for Applying<'_, '_> {
    fn result_words(&self) -> u64 {
        MASK_AT + mask_words(self.selector.room)
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let results = results(buffers);
        let mask = View::new(
            results.memory().clone(),
            results.offset() + 4 * MASK_AT,
            mask_words(chunk.elements),
            Element::U32,
        )?;
        match self.keeping {
            Keeping::Cuts(cuts) => self.record_cut(recording, chunk, buffers, cuts, &mask)?,
            Keeping::Pattern(keep, size) => {
                self.record_pattern(recording, chunk, buffers, (keep, size), &mask)?;
            }
        }
        if self.pruned {
            let pruned = buffers.streams.last().expect("the last stream is the pruned model").clone();
            recording.copy(&buffers.streams[0], &pruned)?;
            let args = ChooseArgs { base: mask.clone(), mask, model: pruned };
            let kernel = Choose { model: chunk.dtypes[0], zero: true };
            recording.dispatch(&kernel, ChooseParams { len: len32(chunk) }, args)?;
        }
        Ok(())
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        self.selector.refuse_fault(self.parts, chunk, results[0])?;
        let started = Instant::now();
        let mask: &[u8] = bytemuck::cast_slice(&results[usize_of(MASK_AT)..]);
        for segment in &chunk.segments {
            let part = self.parts[segment.tensor];
            let mask = &mask[usize_of(segment.at)..usize_of(segment.at + segment.len)];
            (self.take)(Kept { tensor: part.tensor, start: part.start + segment.start, mask })?;
        }
        self.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }
}

impl Applying<'_, '_> {
    /// The ties that are left run along the chunks, where the kernels are: the host never waits for them.
    fn record_cut(
        &self,
        recording: &mut Recording,
        chunk: &Chunk,
        buffers: &Buffers,
        cuts: &[(Range<usize>, Cut)],
        mask: &View,
    ) -> Result<()> {
        let (scores, theta, fisher) = self.selector.scored(chunk, buffers);
        let Lanes { above, ties, left, coarse, .. } = &self.selector.lanes;
        let state = &coarse.state;
        if let Some(cut) = self.beginning(chunk, cuts) {
            let first = u32::try_from(cut.ties).unwrap_or(u32::MAX);
            self.selector.run.backend.upload(state, bytemuck::cast_slice(&[cut.threshold, first]))?;
            self.selector.run.backend.upload(left, &cut.ties.to_le_bytes())?;
        }
        let blocks = chunk.elements.div_ceil(BLOCK_LEN);
        let (above, ties) = (above.first(blocks + 1)?, ties.first(blocks + 1)?);
        let (theta, fisher) = (theta.clone(), fisher.clone());
        let len = len32(chunk);
        let (_, cut) = cuts[self.classes.cuts[chunk.class as usize].0];
        let mask_args = MaskArgs {
            theta: theta.clone(),
            fisher: fisher.clone(),
            state: state.clone(),
            ties: ties.clone(),
            mask: mask.clone(),
        };
        let mask_kernel = Mask { scores, owner: Owner::of(recording.caps()) };
        if cut.ties == cut.equal {
            // None of the ties is left out, so nothing has to be known of where they lie.
            recording.clear(&ties);
            return recording.dispatch(&mask_kernel, MaskParams { len }, mask_args).map(|_| ());
        }
        let args = CountArgs { theta, fisher, state: state.clone(), above, ties: ties.clone() };
        recording.dispatch(&Count { scores }, CountParams { len }, args)?;
        let blocks = u32::try_from(blocks).expect("fewer blocks than elements");
        recording.dispatch(&Scan, ScanParams { len: blocks }, ScanArgs { counts: ties.clone() })?;
        recording.dispatch(&mask_kernel, MaskParams { len }, mask_args)?;
        let args = SpendArgs { ties, left: left.clone(), state: state.clone() };
        recording.dispatch(&Spend, SpendParams { len: blocks }, args)?;
        Ok(())
    }

    /// The cut that begins with this chunk, if one does.
    fn beginning(&self, chunk: &Chunk, cuts: &[(Range<usize>, Cut)]) -> Option<Cut> {
        let (cut, first) = self.classes.cuts[chunk.class as usize];
        let segment = chunk.segments.first()?;
        let of_class = self.classes.of_part.partition_point(|&class| class < chunk.class);
        (first && segment.tensor == of_class && segment.start == 0).then(|| cuts[cut].1)
    }

    fn record_pattern(
        &self,
        recording: &mut Recording,
        chunk: &Chunk,
        buffers: &Buffers,
        (keep, size): (u32, u32),
        mask: &View,
    ) -> Result<()> {
        let (scores, theta, fisher) = self.selector.scored(chunk, buffers);
        let stride = u32::try_from(self.classes.strides[chunk.class as usize]).unwrap_or(u32::MAX);
        let args = NmArgs {
            theta: theta.clone(),
            fisher: fisher.clone(),
            mask: mask.clone(),
            fault: self.selector.lanes.fault.clone(),
        };
        recording.clear(&args.fault);
        let fault = args.fault.clone();
        let params = NmParams { len: len32(chunk), keep, size, stride };
        recording.dispatch(&Nm::new(scores, size, stride), params, args)?;
        recording.copy(&fault, &results(buffers).first(1)?)?;
        Ok(())
    }
}

impl Lanes {
    pub(super) fn new(backend: &Backend, room: u64) -> Result<Self> {
        let words = |len: u64| backend.alloc(len, Element::U32);
        let lane = |bins: u32| {
            Ok::<_, Error>(Lane { state: words(STATE_WORDS)?, counts: words(u64::from(bins) + 2)? })
        };
        let blocks = room.div_ceil(BLOCK_LEN) + 1;
        Ok(Self {
            above: words(blocks)?,
            ties: words(blocks)?,
            left: words(2)?,
            fault: words(1)?,
            coarse: lane(Window::COARSE.bins)?,
            fine: lane(1 << Window::COARSE.shift)?,
        })
    }

    pub(super) fn lane(&self, window: Window) -> &Lane {
        if window.bins <= LOCAL_BINS { &self.coarse } else { &self.fine }
    }
}

pub(super) fn results(buffers: &Buffers) -> &View {
    buffers.results.as_ref().expect("this sweep asks for results")
}

pub(super) fn len32(chunk: &Chunk) -> u32 {
    u32::try_from(chunk.elements).expect("the room of a chunk is a u32")
}
