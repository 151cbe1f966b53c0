//! Exact selection of the k best of a stream: an order of scores over data larger than memory, without sorting it.
//!
//! # What it promises
//!
//! **Which items.** As [`TopK`](crate::record::top_k): the k best by score, of equal scores those that come first. Tensors come in
//! the order of the bytes of their names, elements row-major. Exactly k, for every k from 0 to all.
//!
//! **How repeatable.** The same bits whatever the size of a piece, the number of threads, and the backend (for
//! [`Score::Prune`] on devices that keep subnormals). A piece is how much is held at once; it never shows in a result.
//!
//! **How many passes.** At most two over the data to find the threshold, whatever the data are, and mostly one; then one to
//! write. Memory does not grow with the data, nor with the number of ties.
//!
//! # How
//!
//! The bits of a score that is not negative order as the score does, and there are 31 of them. The first pass counts the
//! upper 11 (2048 bins), which tells the bin of the k-th best; the second counts the lower 20 of the scores in that bin (2²⁰
//! bins, so each score has its own), which tells the threshold and how many equal scores are kept. No candidates are
//! kept, so ties cost nothing: a tensor of zeros is as good as any.
//!
//! ```text
//!  sample ──guess──┐
//!                  ▼
//!  pass 1  [coarse: 2048 bins over all scores]  [fine: 2²⁰ single scores around the guess]
//!                  │                                   │ holds the k-th best: done
//!                  ▼                                   ▼
//!  pass 2  [fine: 2²⁰ single scores of the coarse bin] → threshold, ties
//!  pass 3  mask: above the threshold, and the first of the ties; zeros written, or the mask
//! ```
//!
//! A sample of the scores, read before, guesses where the threshold is, and the first pass counts the single scores around
//! the guess too. If the k-th best is among them, which the counts prove, the second pass is not needed.
//! A wrong guess costs that pass and nothing else.
//!
//! # What it gives up
//!
//! The masks come in order, because the budget for ties runs along the stream. Histograms of parts add up
//! ([`Histogram::add`]), so counting can be spread over machines; handing out ties then needs each part's number of them.

use std::ops::Range;

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::kernels::select::{
    BLOCK_LEN, Choose, ChooseArgs, ChooseParams, Count, CountArgs, CountParams, Histogram as HistogramKernel,
    HistogramArgs, HistogramParams, LOCAL_BINS, Mask, MaskArgs, MaskParams, Nm, NmArgs, NmParams,
    STATE_WORDS, Scan, ScanArgs, ScanParams, Score, Scores, mask_words, score_bits,
};
use crate::memory::{Element, Memory, View};
use crate::methods::histogram::{Histogram, Place, Window};
use crate::methods::pieces::{Extent, Piece, pieces};
use crate::progress::Progress;
use crate::record::Recording;
use crate::shape::DType;
use crate::stream::Budget;

/// How many are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// This share of the elements: k = fraction · elements, rounded to the nearest integer, halves to the even one.
    Fraction(f64),
    /// Exactly so many.
    Count(u64),
}

/// Among what the best are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// Among the elements of all tensors.
    #[default]
    Global,
    /// In each tensor among its own.
    Tensor,
}

impl Keep {
    /// k for so many elements.
    ///
    /// # Errors
    /// [`Error::Argument`] for a fraction outside 0 to 1, or more than there are.
    pub fn of(self, op: &str, elements: u64) -> Result<u64> {
        match self {
            Self::Fraction(fraction) if (0.0..=1.0).contains(&fraction) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "between 0 and a u64"
                )]
                let k = (fraction * elements as f64).round_ties_even() as u64;
                Ok(k.min(elements))
            }
            Self::Fraction(fraction) => Err(Error::argument(
                op,
                format!("a share of {fraction} cannot be kept; give one from 0 to 1"),
            )),
            Self::Count(k) if k <= elements => Ok(k),
            Self::Count(k) => {
                let problem =
                    format!("{k} elements cannot be kept, there are {elements}; give at most that many");
                Err(Error::argument(op, problem))
            }
        }
    }
}

/// How many elements may be held at once within a budget; never more than the default, which is as fast as any.
///
/// # Errors
/// [`Error::Budget`] where the counts alone do not fit.
pub fn piece_elements(budget: &Budget) -> Result<u64> {
    /// The counts of both windows, once where kernels run and once read back, and small change.
    const COUNTS: u64 = 5 << 20;
    // θ, F, mask and ties where kernels run; θ and F on their way in, θ and mask on their way out.
    let held = [
        ("device memory", "--device-memory", budget.device_bytes, COUNTS, 10),
        ("host memory", "--host-memory", budget.host_bytes, 2 * COUNTS, 24),
    ];
    let mut elements = PIECE_ELEMENTS;
    for (what, flag, have, counts, each) in held {
        let need = counts + each * BLOCK_LEN;
        if have < need {
            return Err(Error::Budget {
                op: "select".into(),
                what: what.into(),
                need,
                have,
                flag: flag.into(),
            });
        }
        elements = elements.min((have - counts) / each);
    }
    Ok(elements)
}

/// Elements of a piece where nothing else is asked for: 4 MiB of f32.
pub const PIECE_ELEMENTS: u64 = 1 << 20;

/// Where the kept ones end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The bits of the score of the last one kept; above every score where nothing is kept.
    pub threshold: u32,
    /// How many of the scores equal to it are kept.
    pub ties: u64,
    /// How many scores are equal to it.
    pub equal: u64,
}

impl Cut {
    /// Nothing is kept.
    pub const NOTHING: Self = Self { threshold: u32::MAX, ties: 0, equal: 0 };

    /// The cut after the `k` best, if `fine` has a bin for every score and the k-th best is in one.
    #[must_use]
    pub fn after(k: u64, fine: &Histogram) -> Option<Self> {
        match fine.place(k) {
            Place::In { bin, better, count } if fine.window.shift == 0 => {
                Some(Self { threshold: fine.window.low + bin, ties: k - better, equal: count })
            }
            _ => None,
        }
    }

    /// The score of the last one kept, if any is.
    #[must_use]
    pub fn score(&self) -> Option<f32> {
        (self.threshold != u32::MAX).then(|| f32::from_bits(self.threshold))
    }
}

/// A tensor to be ranked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked<'a> {
    /// Elements.
    pub(super) len: u64,
    /// θ, for scores that need it.
    pub(super) theta: Option<Stored<'a>>,
    /// F.
    pub(super) fisher: Stored<'a>,
    /// From one element to the next along the pattern's axis, and the elements of a group; 1 without a pattern.
    pub(super) stride: u64,
    /// Elements that must not be cut apart.
    pub(super) unit: u64,
}

/// A tensor in a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored<'a> {
    /// The file.
    pub(super) checkpoint: &'a Checkpoint,
    /// The tensor.
    pub(super) tensor: &'a TensorInfo,
    /// Its element type, one that kernels load.
    pub(super) dtype: DType,
}

impl Stored<'_> {
    fn read(&self, start: u64, out: &mut [u8]) -> Result<()> {
        self.checkpoint.read(self.tensor, start * self.dtype.size(), out)
    }

    /// Elements from `start` on, as f32.
    fn values(&self, start: u64, len: u64) -> Result<Vec<f32>> {
        let mut bytes = vec![0; usize_of(len * self.dtype.size())];
        self.read(start, &mut bytes)?;
        Ok(decode(self.dtype, &bytes))
    }
}

pub(super) fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::F16 => halves().map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
        DType::BF16 => halves().map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
    }
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).expect("a piece fits the address space")
}

/// What a finished piece gives for one span: which elements are kept, and θ with zeros in the place of the others.
pub(super) struct Kept<'a> {
    /// Which of the ranked tensors.
    pub(super) tensor: usize,
    /// The span's first element.
    pub(super) start: u64,
    /// One byte an element, 1 or 0.
    pub(super) mask: &'a [u8],
    /// θ as stored, where it was asked for.
    pub(super) pruned: Option<&'a [u8]>,
}

/// What takes the results, in order.
pub(super) type Sink<'s> = &'s mut dyn FnMut(Kept<'_>) -> Result<()>;

/// What is shown scores: the tensor, its first element among them, and the scores.
pub(super) type Scored<'s> = &'s mut dyn FnMut(usize, u64, &[f32]) -> Result<()>;

/// Tensors to be ranked, and the buffers that pieces of them pass through.
pub(super) struct Sweep<'a> {
    backend: &'a Backend,
    score: Score,
    pub(super) tensors: Vec<Ranked<'a>>,
    room: u64,
    lanes: Lanes,
    progress: &'a dyn Progress,
    interrupt: &'a Interrupt,
    /// Passes over the data to find thresholds: the most that any of them took.
    pub(super) passes: u32,
    /// Bytes read.
    pub(super) bytes_read: u64,
}

/// Memory for one piece, allocated once.
struct Lanes {
    theta: View,
    fisher: View,
    mask: View,
    above: View,
    ties: View,
    fault: View,
    coarse: Lane,
    fine: Lane,
}

/// A window being counted.
struct Lane {
    state: View,
    counts: View,
}

/// A piece in memory.
struct Loaded {
    scores: Scores,
    theta: View,
    fisher: View,
    len: u32,
}

/// Samples for the guess: so many runs of so many neighbours.
const RUNS: u64 = 512;
const RUN: u64 = 128;

impl<'a> Sweep<'a> {
    /// A sweep over `tensors` (in the order of ties) in pieces of at most `room` elements.
    pub(super) fn new(
        backend: &'a Backend,
        score: Score,
        tensors: Vec<Ranked<'a>>,
        room: u64,
        progress: &'a dyn Progress,
        interrupt: &'a Interrupt,
    ) -> Result<Self> {
        // Nothing needs more room than there are elements; a unit needs at least its own.
        let total: u64 = tensors.iter().map(|tensor| tensor.len).sum();
        let room = room.clamp(1, u64::from(u32::MAX)).min(total.max(1));
        let lanes = Lanes::new(backend, room)?;
        Ok(Self { backend, score, tensors, room, lanes, progress, interrupt, passes: 0, bytes_read: 0 })
    }

    /// Finds the cut after the `k` best of `range` of the tensors, which have at least k elements.
    pub(super) fn cut(&mut self, range: Range<usize>, k: u64) -> Result<Cut> {
        let mut windows = vec![Window::COARSE];
        windows.extend(self.guess(range.clone(), k)?.map(Window::around));
        let counted = self.histograms(range.clone(), &windows)?;
        self.passes = self.passes.max(1);
        if k == 0 {
            return Ok(Cut::NOTHING);
        }
        if let Some(cut) = counted.get(1).and_then(|fine| Cut::after(k, fine)) {
            return Ok(cut);
        }
        // The coarse window holds every score; what differs between two passes was changed between them.
        let Place::In { bin, .. } = counted[0].place(k) else { return Err(self.changed(range.start)) };
        self.passes = 2;
        let fine = self.histograms(range.clone(), &[Window::COARSE.inside(bin)])?;
        fine.first().and_then(|fine| Cut::after(k, fine)).ok_or_else(|| self.changed(range.start))
    }

    /// Counts that contradict each other: the coarse window holds every score, so the data were not the same twice.
    fn changed(&self, tensor: usize) -> Error {
        let path = self.tensors[tensor].fisher.checkpoint.path();
        Error::file(path, "two passes counted different values: it was changed while it was read; run again")
    }

    /// Where a sample puts the `k`-th best; nothing where counting twice is no more work than sampling.
    fn guess(&mut self, range: Range<usize>, k: u64) -> Result<Option<u32>> {
        let ends: Vec<u64> = (self.tensors[range.clone()].iter())
            .scan(0, |end, tensor| {
                *end += tensor.len;
                Some(*end)
            })
            .collect();
        let total = ends.last().copied().unwrap_or(0);
        if k == 0 || total < 16 * RUNS * RUN {
            return Ok(None);
        }
        let mut sample = Vec::new();
        for run in 0..RUNS {
            // Evenly spread, each moved within its share so that no regular structure is met every time.
            let share = total / RUNS;
            let at = run * share + scatter(run) % share;
            let tensor = ends.partition_point(|&end| end <= at);
            let start = at - (ends[tensor] - self.tensors[range.start + tensor].len);
            self.sample(range.start + tensor, start, &mut sample)?;
        }
        sample.sort_unstable_by(|a, b| b.cmp(a));
        let rank = u128::from(k) * sample.len() as u128 / u128::from(total);
        let rank = usize::try_from(rank).unwrap_or(usize::MAX).min(sample.len().saturating_sub(1));
        Ok(sample.get(rank).copied())
    }

    fn sample(&mut self, tensor: usize, start: u64, sample: &mut Vec<u32>) -> Result<()> {
        let Ranked { len, theta, fisher, .. } = self.tensors[tensor];
        let run = RUN.min(len - start);
        let fishers = fisher.values(start, run)?;
        let thetas = theta.map_or_else(|| Ok(fishers.clone()), |theta| theta.values(start, run))?;
        let bits = fishers.into_iter().zip(thetas).filter_map(|(f, t)| score_bits(self.score, t, f));
        sample.extend(bits);
        self.bytes_read += run * self.bytes_of(tensor);
        Ok(())
    }

    /// Counts the scores of `range` of the tensors in one pass. At most one window of each kind, coarse and fine.
    pub(super) fn histograms(&mut self, range: Range<usize>, windows: &[Window]) -> Result<Vec<Histogram>> {
        let mut sums: Vec<Histogram> = windows.iter().map(|&window| Histogram::new(window)).collect();
        for &window in windows {
            let lane = self.lanes.lane(window);
            self.backend.upload(&lane.state, bytemuck::cast_slice(&[window.low, 0]))?;
            self.clear(&lane.counts)?;
        }
        let mut pending = 0_u64;
        self.begin(range.clone());
        for piece in self.pieces(range)? {
            if pending + piece.len > u64::from(u32::MAX) {
                self.collect(&mut sums)?;
                pending = 0;
            }
            let loaded = self.load(&piece)?;
            self.count(&loaded, windows)?;
            self.refuse_fault(&piece)?;
            pending += piece.len;
        }
        self.collect(&mut sums)?;
        Ok(sums)
    }

    fn count(&self, loaded: &Loaded, windows: &[Window]) -> Result<()> {
        let mut recording = Recording::new(self.backend);
        recording.clear(&self.lanes.fault);
        for &Window { low, shift, bins } in windows {
            let lane = self.lanes.lane(Window { low, shift, bins });
            let args = HistogramArgs {
                theta: loaded.theta.clone(),
                fisher: loaded.fisher.clone(),
                state: lane.state.clone(),
                counts: lane.counts.clone(),
                fault: self.lanes.fault.clone(),
            };
            let kernel = HistogramKernel { scores: loaded.scores, local: bins <= LOCAL_BINS };
            recording.dispatch(&kernel, HistogramParams { len: loaded.len, shift, bins }, args)?;
        }
        self.backend.run(&recording)
    }

    /// Adds the device's counts to the sums, before they can overflow.
    fn collect(&self, sums: &mut [Histogram]) -> Result<()> {
        for sum in sums {
            let lane = self.lanes.lane(sum.window);
            sum.add_words(&self.backend.download::<u32>(&lane.counts)?)?;
            self.clear(&lane.counts)?;
        }
        Ok(())
    }

    /// Applies a cut to `range` of the tensors, in order; with `zero`, θ is given out too, pruned.
    pub(super) fn apply(&mut self, range: Range<usize>, cut: Cut, zero: bool, sink: Sink<'_>) -> Result<()> {
        let mut budget = cut.ties;
        self.begin(range.clone());
        for piece in self.pieces(range)? {
            let loaded = self.load(&piece)?;
            let of_piece = u32::try_from(budget).unwrap_or(u32::MAX);
            let state = &self.lanes.coarse.state;
            self.backend.upload(state, bytemuck::cast_slice(&[cut.threshold, of_piece]))?;
            let blocks = u64::from(loaded.len).div_ceil(BLOCK_LEN);
            let ties = self.lanes.ties.first(blocks + 1)?;
            let mut recording = Recording::new(self.backend);
            self.record_mask(&mut recording, &loaded, &ties)?;
            if zero {
                self.record_zeros(&mut recording, &loaded)?;
            }
            self.backend.run(&recording)?;
            let found = self.backend.download::<u32>(&ties)?.last().copied().unwrap_or(0);
            budget = budget.saturating_sub(found.into());
            self.deliver(&piece, &loaded, zero, sink)?;
        }
        Ok(())
    }

    fn record_mask(&self, recording: &mut Recording, loaded: &Loaded, ties: &View) -> Result<()> {
        let Loaded { scores, len, .. } = *loaded;
        let state = self.lanes.coarse.state.clone();
        let args = CountArgs {
            theta: loaded.theta.clone(),
            fisher: loaded.fisher.clone(),
            state: state.clone(),
            above: self.lanes.above.first(ties.len())?,
            ties: ties.clone(),
        };
        recording.dispatch(&Count { scores }, CountParams { len }, args)?;
        let blocks = u32::try_from(ties.len() - 1).expect("fewer blocks than elements");
        recording.dispatch(&Scan, ScanParams { len: blocks }, ScanArgs { counts: ties.clone() })?;
        let args = MaskArgs {
            theta: loaded.theta.clone(),
            fisher: loaded.fisher.clone(),
            state,
            ties: ties.clone(),
            mask: self.mask_of(loaded)?,
        };
        recording.dispatch(&Mask { scores }, MaskParams { len }, args)?;
        Ok(())
    }

    fn record_zeros(&self, recording: &mut Recording, loaded: &Loaded) -> Result<()> {
        let mask = self.mask_of(loaded)?;
        let args = ChooseArgs { base: mask.clone(), mask, model: loaded.theta.clone() };
        let kernel = Choose { model: loaded.scores.theta, zero: true };
        recording.dispatch(&kernel, ChooseParams { len: loaded.len }, args)?;
        Ok(())
    }

    /// Keeps the best of every few of `range` of the tensors, whose strides and units say along which axis.
    pub(super) fn apply_pattern(
        &mut self,
        range: Range<usize>,
        (keep, size): (u32, u32),
        sink: Sink<'_>,
    ) -> Result<()> {
        self.begin(range.clone());
        for piece in self.pieces(range)? {
            let loaded = self.load(&piece)?;
            let stride = piece.spans.first().map_or(1, |span| self.tensors[span.tensor].stride);
            let params =
                NmParams { len: loaded.len, keep, size, stride: u32::try_from(stride).unwrap_or(u32::MAX) };
            let mask = self.mask_of(&loaded)?;
            let mut recording = Recording::new(self.backend);
            recording.clear(&mask).clear(&self.lanes.fault);
            let args = NmArgs {
                theta: loaded.theta.clone(),
                fisher: loaded.fisher.clone(),
                mask,
                fault: self.lanes.fault.clone(),
            };
            recording.dispatch(&Nm { scores: loaded.scores }, params, args)?;
            self.record_zeros(&mut recording, &loaded)?;
            self.backend.run(&recording)?;
            self.refuse_fault(&piece)?;
            self.deliver(&piece, &loaded, true, sink)?;
        }
        self.passes = self.passes.max(1);
        Ok(())
    }

    /// Hands the spans of a finished piece out.
    fn deliver(&self, piece: &Piece, loaded: &Loaded, zero: bool, sink: Sink<'_>) -> Result<()> {
        let mask = self.backend.download::<u8>(&self.mask_of(loaded)?)?;
        let theta = if zero { self.backend.download::<u8>(&loaded.theta)? } else { Vec::new() };
        let size = usize_of(loaded.scores.theta.size());
        let mut at = 0;
        for span in &piece.spans {
            let end = at + usize_of(span.len);
            let pruned = zero.then(|| &theta[at * size..end * size]);
            sink(Kept { tensor: span.tensor, start: span.start, mask: &mask[at..end], pruned })?;
            at = end;
        }
        Ok(())
    }

    /// Calls `each` with the scores of consecutive elements, in order, computed on the host.
    pub(super) fn scores(&mut self, each: Scored<'_>) -> Result<()> {
        let all = 0..self.tensors.len();
        self.begin(all.clone());
        for piece in self.pieces(all)? {
            self.interrupt.check()?;
            for span in &piece.spans {
                let Ranked { theta, fisher, .. } = self.tensors[span.tensor];
                let fishers = fisher.values(span.start, span.len)?;
                let thetas =
                    theta.map_or_else(|| Ok(fishers.clone()), |theta| theta.values(span.start, span.len))?;
                let mut scores = Vec::with_capacity(fishers.len());
                for (i, (f, t)) in (span.start..).zip(fishers.into_iter().zip(thetas)) {
                    let bits = score_bits(self.score, t, f);
                    scores.push(f32::from_bits(
                        bits.ok_or_else(|| self.fault(span.tensor, i, theta.map(|_| t), f))?,
                    ));
                }
                each(span.tensor, span.start, &scores)?;
                self.advance(span.len * self.bytes_of(span.tensor));
            }
        }
        self.passes = self.passes.max(1);
        Ok(())
    }

    fn pieces(&self, range: Range<usize>) -> Result<Vec<Piece>> {
        let extent = |tensor: &Ranked<'_>| Extent {
            len: tensor.len,
            kind: (tensor.theta.map(|theta| theta.dtype), tensor.fisher.dtype, tensor.stride),
            unit: tensor.unit,
        };
        let extents: Vec<_> = self.tensors[range.clone()].iter().map(extent).collect();
        let mut pieces = pieces(&extents, self.room)?;
        for span in pieces.iter_mut().flat_map(|piece| &mut piece.spans) {
            span.tensor += range.start;
        }
        Ok(pieces)
    }

    /// Reads a piece into the lanes.
    fn load(&mut self, piece: &Piece) -> Result<Loaded> {
        self.interrupt.check()?;
        let first = self.tensors[piece.spans[0].tensor];
        let fisher = first.fisher.dtype;
        let theta = first.theta.map_or(fisher, |theta| theta.dtype);
        let view = |lane: &View, dtype: DType| View::new(lane.memory().clone(), 0, piece.len, dtype.into());
        let fishers = view(&self.lanes.fisher, fisher)?;
        self.fill(&fishers, piece, |tensor| Some(tensor.fisher))?;
        let thetas = match self.score {
            Score::Fish => fishers.clone(),
            Score::Prune => {
                let thetas = view(&self.lanes.theta, theta)?;
                self.fill(&thetas, piece, |tensor| tensor.theta)?;
                thetas
            }
        };
        self.advance(piece.spans.iter().map(|span| span.len * self.bytes_of(span.tensor)).sum());
        let scores = Scores { score: self.score, theta, fisher };
        let len = u32::try_from(piece.len).expect("the room of a piece is a u32");
        Ok(Loaded { scores, theta: thetas, fisher: fishers, len })
    }

    /// Reads one input of a piece: on the host straight to where kernels read it.
    fn fill(
        &self,
        view: &View,
        piece: &Piece,
        input: impl Fn(&Ranked<'a>) -> Option<Stored<'a>>,
    ) -> Result<()> {
        let read = |mut out: &mut [u8]| {
            for span in &piece.spans {
                let stored = input(&self.tensors[span.tensor]).expect("a score that needs θ has it");
                let (own, rest) = out.split_at_mut(usize_of(span.len * stored.dtype.size()));
                stored.read(span.start, own)?;
                out = rest;
            }
            Ok(())
        };
        match view.memory() {
            Memory::Host(memory) => memory.write(read)?,
            Memory::Device(_) => {
                let mut bytes = vec![0; usize_of(view.bytes())];
                read(&mut bytes)?;
                self.backend.upload(view, &bytes)
            }
        }
    }

    fn mask_of(&self, loaded: &Loaded) -> Result<View> {
        self.lanes.mask.first(mask_words(loaded.len.into()))
    }

    fn clear(&self, view: &View) -> Result<()> {
        let mut recording = Recording::new(self.backend);
        recording.clear(view);
        self.backend.run(&recording)
    }

    fn begin(&self, range: Range<usize>) {
        self.progress.begin(range.map(|tensor| self.tensors[tensor].len * self.bytes_of(tensor)).sum());
    }

    fn advance(&mut self, bytes: u64) {
        self.bytes_read += bytes;
        self.progress.advance(bytes);
    }

    /// Bytes of the inputs of one element.
    fn bytes_of(&self, tensor: usize) -> u64 {
        let Ranked { theta, fisher, .. } = self.tensors[tensor];
        fisher.dtype.size() + theta.map_or(0, |theta| theta.dtype.size())
    }

    /// Refuses a piece with a score that cannot be ordered, naming its tensor and index.
    fn refuse_fault(&self, piece: &Piece) -> Result<()> {
        let fault = self.backend.download::<u32>(&self.lanes.fault)?[0];
        let Some((tensor, index)) = (fault != 0).then(|| piece.locate((!fault).into())).flatten() else {
            return Ok(());
        };
        let Ranked { theta, fisher, .. } = self.tensors[tensor];
        let f = fisher.values(index, 1)?[0];
        let t = theta.map(|theta| theta.values(index, 1)).transpose()?.map(|values| values[0]);
        Err(self.fault(tensor, index, t, f))
    }

    fn fault(&self, tensor: usize, index: u64, theta: Option<f32>, fisher: f32) -> Error {
        let Ranked { theta: model, fisher: stored, .. } = self.tensors[tensor];
        let (of, problem) = match (model, theta) {
            _ if !fisher.is_finite() || fisher < 0.0 => (
                stored,
                format!(
                    "element {index} of the Fisher is {fisher}, expected a finite number of at least 0; compute the Fisher again, or leave the tensor out with --exclude"
                ),
            ),
            (Some(model), Some(theta)) => (
                model,
                format!(
                    "element {index} is {theta}, which has no score; repair the model, or leave the tensor out with --exclude"
                ),
            ),
            _ => (stored, format!("element {index} has no score")),
        };
        Error::tensor(of.checkpoint.file_of(of.tensor), &of.tensor.name, problem)
    }
}

impl Lanes {
    fn new(backend: &Backend, room: u64) -> Result<Self> {
        let words = |len: u64| backend.alloc(len, Element::U32);
        let lane = |bins: u32| {
            Ok::<_, Error>(Lane { state: words(STATE_WORDS)?, counts: words(u64::from(bins) + 2)? })
        };
        let blocks = room.div_ceil(BLOCK_LEN) + 1;
        Ok(Self {
            theta: backend.alloc(room, DType::F32)?,
            fisher: backend.alloc(room, DType::F32)?,
            mask: words(mask_words(room))?,
            above: words(blocks)?,
            ties: words(blocks)?,
            fault: words(1)?,
            coarse: lane(Window::COARSE.bins)?,
            fine: lane(1 << Window::COARSE.shift)?,
        })
    }

    fn lane(&self, window: Window) -> &Lane {
        if window.bins <= LOCAL_BINS { &self.coarse } else { &self.fine }
    }
}

/// A number that looks random, the same for the same `n` (splitmix64).
fn scatter(n: u64) -> u64 {
    let z = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 27)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_is_rounded_half_to_even() {
        for (fraction, elements, k) in [
            (0.5, 1, 0),
            (0.5, 3, 2),
            (0.5, 5, 2),
            (0.25, 6, 2),
            (0.005, 5329, 27),
            (1.0, 7, 7),
            (0.0, 7, 0),
            (1.0, 0, 0),
        ] {
            assert_eq!(
                Keep::Fraction(fraction).of("t", elements).expect("a share"),
                k,
                "{fraction} of {elements}"
            );
        }
        assert_eq!(Keep::Fraction(1.0).of("t", u64::MAX).expect("a share"), u64::MAX);
    }

    #[test]
    fn shares_and_counts_that_cannot_be_kept_are_refused() {
        for keep in [Keep::Fraction(-0.1), Keep::Fraction(1.1), Keep::Fraction(f64::NAN), Keep::Count(8)] {
            let refused = keep.of("prune", 7).expect_err("it must be refused");
            assert_eq!(refused.exit_code(), 2, "{refused}");
        }
        let refused = Keep::Count(8).of("prune", 7).expect_err("it must be refused").to_string();
        assert!(refused.contains("8 elements cannot be kept, there are 7"), "{refused}");
    }
}
