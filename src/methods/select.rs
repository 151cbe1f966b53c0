//! Exact selection of the k best of a stream: an order of scores over data larger than memory, without sorting it.
//!
//! # What it promises
//!
//! **Which items.** As [`TopK`](crate::record::top_k): the k best by score, of equal scores those that come
//! first. Tensors come in the order of the bytes of their names, elements row-major. Exactly k, for every k
//! from 0 to all.
//!
//! **How repeatable.** The same bits whatever the size of a chunk, the number of threads, and the backend (for
//! [`Score::Prune`] on devices that keep subnormals). A chunk never shows in a result.
//!
//! **How many passes.** At most two over the data to find the threshold, whatever the data are, and mostly
//! one; then one to write. Memory does not grow with the data, nor with the number of ties.
//!
//! # How
//!
//! The bits of a score that is not negative order as the score does, and there are 31 of them. The first pass
//! counts the upper 11 (2048 bins), which tells the bin of the k-th best; the second counts the lower 20 of
//! the scores in that bin (2²⁰ bins, so each score has its own), which tells the threshold and how many equal
//! scores are kept. No candidates are kept, so ties cost nothing: a tensor of zeros is as good as any.
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
//! A sample of the scores, read before, guesses where the threshold is, and the first pass counts the single
//! scores around the guess too. If the k-th best is among them, which the counts prove, the second pass is
//! not needed. A wrong guess costs that pass and nothing else.
//!
//! # What it gives up
//!
//! The masks come in order, because the budget for ties runs along the stream: on a device in a buffer that
//! each chunk takes its own from ([`Spend`](crate::kernels::select::Spend)), so that reading, computing and
//! writing overlap.

mod budget;
mod cut;
mod histogram;
mod parts;
mod report;
mod roles;
mod sweeps;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use budget::{cuts, within_budget};
pub(super) use cut::Cut;
pub use cut::{Keep, Scope};
use histogram::{Histogram, Place, Window};
use parts::{Classes, Part, PartSink, PartSource, parts};
pub use report::{SelectPlan, SelectReport, Selected};
pub(super) use report::{report, sparsity};
pub(super) use roles::{COPY_BYTES, Roles, listed, seen};
use sweeps::{Applying, Counting, Keeping, Lanes};

use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::kernels::select::{BLOCK_LEN, Score, Scores, score_bits};
use crate::memory::View;
use crate::methods::source::{CheckpointSource, FISHER_VALUES};
use crate::record::Recording;
use crate::shape::{DType, usize_of};
use crate::stream::{
    self, Budget, Buffers, Chunk, Clock, Cuts, Direction, End, Job, Layout, Plan, Run, Sink, Stage, Stream,
    Sweep, TensorSpec, Timings,
};

/// How many elements may be in one chunk within a budget, three of which are on their way at a time; never
/// more than the default, which is as fast as any.
///
/// # Errors
/// [`Error::Budget`] where the counts alone do not fit.
pub(super) fn piece_elements(run: &Run<'_>) -> Result<u64> {
    /// The counts of both windows, once where kernels run and once read back, and small change.
    const COUNTS: u64 = 5 << 20;
    // In each of three slots θ, F, the pruned θ and the mask; before a device with its own memory, mappable
    // buffers of as much.
    let held = [
        ("device memory", "--device-memory", run.budget.device_bytes, COUNTS, 40),
        ("host memory", "--host-memory", run.budget.host_bytes, 2 * COUNTS, 40),
    ];
    // The host has no memory of a device's, which comes first.
    let on_host = matches!(run.backend, Backend::Host);
    let mut elements = PIECE_ELEMENTS;
    for (what, flag, have, counts, each) in held.into_iter().skip(usize::from(on_host)) {
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

/// Elements of a chunk where nothing else is asked for: 4 MiB of f32.
const PIECE_ELEMENTS: u64 = 1 << 20;

/// A tensor to be ranked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    /// Elements.
    pub(super) len: u64,
    /// Its place in the model, for scores that need θ, and how kernels see it.
    pub(super) theta: Option<(usize, DType)>,
    /// Its place in the Fisher, and how kernels see it.
    pub(super) fisher: (usize, DType),
    /// From one element to the next along the pattern's axis; 1 without a pattern.
    pub(super) stride: u64,
    /// Elements that must not be cut apart.
    pub(super) unit: u64,
}

/// What is ranked: the tensors in the order of ties, and the files they are in.
pub(super) struct Inputs<'a> {
    /// θ, for scores that need it.
    pub(super) model: Option<&'a Checkpoint>,
    /// F.
    pub(super) fisher: &'a Checkpoint,
    /// The tensors.
    pub(super) tensors: Vec<Ranked>,
    /// Fishers that are NaN, infinite or negative are read as 0 and counted here; nothing where they are refused.
    pub(super) zeroed: Option<&'a AtomicU64>,
}

/// What a finished chunk gives for one span: which elements are kept.
pub(super) struct Kept<'a> {
    /// Which of the ranked tensors.
    pub(super) tensor: usize,
    /// The span's first element.
    pub(super) start: u64,
    /// One byte an element, 1 or 0.
    pub(super) mask: &'a [u8],
}

/// What takes the masks, in order.
pub(super) type Take<'s> = &'s mut (dyn FnMut(Kept<'_>) -> Result<()> + Send + Sync);

/// What is shown scores: the tensor, its first element among them, and the scores.
pub(super) type Scored<'s> = &'s mut dyn FnMut(usize, u64, &[f32]) -> Result<()>;

/// Passes over the tensors to be ranked. Each is one run of a [`Plan`](stream::Plan): reading, computing and
/// writing overlap.
pub(super) struct Selector<'a> {
    run: &'a Run<'a>,
    score: Score,
    pub(super) tensors: Vec<Ranked>,
    theta: Option<CheckpointSource<'a>>,
    fisher: CheckpointSource<'a>,
    zeroed: Option<&'a AtomicU64>,
    /// Elements of a chunk.
    room: u64,
    lanes: Lanes,
    /// Passes over the data to find thresholds: the most that any of them took.
    pub(super) passes: u32,
    /// Bytes read.
    pub(super) bytes_read: u64,
    /// Where the time of all passes went.
    pub(super) timings: Timings,
}

/// Samples for the guess: so many runs of so many neighbours.
const RUNS: u64 = 512;
const RUN: u64 = 128;

impl<'a> Selector<'a> {
    /// A selector in chunks of at most `room` elements.
    pub(super) fn new(score: Score, inputs: Inputs<'a>, room: u64, run: &'a Run<'a>) -> Result<Self> {
        let Inputs { model, fisher, tensors, zeroed } = inputs;
        // Nothing needs more room than there are elements; a unit needs at least its own.
        let total: u64 = tensors.iter().map(|tensor| tensor.len).sum();
        let unit = tensors.iter().map(|tensor| tensor.unit).max().unwrap_or(1);
        let room = room.max(unit).clamp(1, u64::from(u32::MAX)).min(total.max(1));
        let places = tensors.iter().map(|tensor| tensor.fisher.0).collect();
        let fisher = CheckpointSource::new(fisher, places).zeroing(zeroed);
        let theta = model.map(|model| {
            let places = tensors.iter().filter_map(|tensor| Some(tensor.theta?.0)).collect();
            CheckpointSource::new(model, places)
        });
        Ok(Self {
            run,
            score,
            tensors,
            theta,
            fisher,
            zeroed,
            room,
            lanes: Lanes::new(run.backend, room)?,
            passes: 0,
            bytes_read: 0,
            timings: Timings::default(),
        })
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
        let Place::In { bin, .. } = counted[0].place(k) else { return Err(self.changed()) };
        self.passes = 2;
        let fine = self.histograms(range, &[Window::COARSE.inside(bin)])?;
        fine.first().and_then(|fine| Cut::after(k, fine)).ok_or_else(|| self.changed())
    }

    /// Counts that contradict each other: the coarse window holds every score, so the data were not the same twice.
    fn changed(&self) -> Error {
        let path = self.fisher.path();
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
        let run = RUN.min(self.tensors[tensor].len - start);
        let (thetas, fishers) = self.values(tensor, start, run)?;
        let bits = fishers.into_iter().zip(thetas).filter_map(|(f, t)| score_bits(self.score, t, f));
        sample.extend(bits);
        self.bytes_read += run * self.bytes_of(tensor);
        Ok(())
    }

    /// θ (F again where there is none) and F of consecutive elements.
    fn values(&self, tensor: usize, start: u64, len: u64) -> Result<(Vec<f32>, Vec<f32>)> {
        let fishers = self.fisher.floats(tensor, start, len)?;
        let thetas = self.theta.as_ref().map(|theta| theta.floats(tensor, start, len));
        Ok((thetas.unwrap_or_else(|| Ok(fishers.clone()))?, fishers))
    }

    /// Counts the scores of `range` of the tensors in one pass. At most one window of each kind, coarse and fine.
    fn histograms(&mut self, range: Range<usize>, windows: &[Window]) -> Result<Vec<Histogram>> {
        let mut sums: Vec<Histogram> = windows.iter().map(|&window| Histogram::new(window)).collect();
        for &window in windows {
            let lane = self.lanes.lane(window);
            self.run.backend.upload(&lane.state, bytemuck::cast_slice(&[window.low, 0]))?;
            self.clear(&lane.counts)?;
        }
        // A device counts in 32 bits: as many at a time as cannot overflow.
        for parts in parts(&self.tensors, range, u32::MAX.into()) {
            let plan = self.plan(&parts, None)?;
            let mut sweep = Counting { selector: self, parts: &parts, windows };
            let timings = self.run(&plan, &parts, None, &mut sweep)?;
            self.note(&plan, timings);
            self.collect(&mut sums)?;
        }
        Ok(sums)
    }

    /// Adds the device's counts to the sums, before they can overflow.
    fn collect(&self, sums: &mut [Histogram]) -> Result<()> {
        for sum in sums {
            let lane = self.lanes.lane(sum.window);
            sum.add_words(&self.run.backend.download::<u32>(&lane.counts)?)?;
            self.clear(&lane.counts)?;
        }
        Ok(())
    }

    /// Applies cuts to ranges of the tensors, in order; `pruned` takes θ with zeros in the place of what is not kept.
    pub(super) fn apply(
        &mut self,
        cuts: &[(Range<usize>, Cut)],
        pruned: Option<&dyn Sink>,
        take: Take<'_>,
    ) -> Result<()> {
        self.last_pass(cuts, Keeping::Cuts(cuts), pruned, take)
    }

    /// Keeps the `keep` best of every `size` elements of all tensors, whose strides and units say along which axis.
    pub(super) fn apply_pattern(
        &mut self,
        (keep, size): (u32, u32),
        pruned: &dyn Sink,
        take: Take<'_>,
    ) -> Result<()> {
        self.passes = self.passes.max(1);
        let all = [(0..self.tensors.len(), Cut::NOTHING)];
        self.last_pass(&all, Keeping::Pattern(keep, size), Some(pruned), take)
    }

    fn last_pass(
        &mut self,
        ranges: &[(Range<usize>, Cut)],
        keeping: Keeping<'_>,
        pruned: Option<&dyn Sink>,
        take: Take<'_>,
    ) -> Result<()> {
        // Every pass reads every value; the last one counts those that were read as 0.
        self.zeroed.iter().for_each(|zeroed| zeroed.store(0, Ordering::Relaxed));
        let mut all = Vec::new();
        for (range, _) in ranges {
            all.extend(parts(&self.tensors, range.clone(), u64::MAX).into_iter().flatten());
        }
        let classes = Classes::of(&self.tensors, &all, ranges);
        let plan = self.plan(&all, Some((&classes, pruned.is_some())))?;
        let mut sweep = Applying {
            selector: self,
            parts: &all,
            classes: &classes,
            keeping,
            pruned: pruned.is_some(),
            take,
            seconds: 0.0,
        };
        let mut timings = self.run(&plan, &all, pruned, &mut sweep)?;
        timings.write += sweep.seconds;
        self.note(&plan, timings);
        Ok(())
    }

    /// How parts stream: in any order where nothing runs along them, else by classes, which keep it.
    fn plan(&self, parts: &[Part], classes: Option<(&Classes, bool)>) -> Result<Plan> {
        let read = |name: &str| Stream { name: name.into(), direction: Direction::Read };
        let mut streams: Vec<Stream> = self.theta.iter().map(|_| read("model")).collect();
        streams.push(read("fisher"));
        let pruned = classes.is_some_and(|(_, pruned)| pruned);
        if pruned {
            streams.push(Stream { name: "pruned".into(), direction: Direction::Write });
        }
        let spec = |(at, part): (usize, &Part)| {
            let Ranked { theta, fisher, .. } = self.tensors[part.tensor];
            let theta = theta.map(|theta| theta.1);
            let written = theta.filter(|_| pruned);
            TensorSpec {
                name: String::new(),
                elements: part.len,
                dtypes: theta.into_iter().chain([fisher.1]).chain(written).collect(),
                class: classes.map_or(0, |(classes, _)| classes.of_part[at]),
            }
        };
        let tensors = parts.iter().enumerate().map(spec).collect();
        let unit = |class: u32| classes.map_or(1, |(classes, _)| classes.units[class as usize]);
        let budget = Budget::default().within(&self.run.backend.caps());
        let layout = Layout { streams, tensors, scratch_bytes: 0 };
        Plan::cut(&layout, &budget, &Cuts { most: self.room, unit: &unit })
    }

    fn run(
        &self,
        plan: &Plan,
        parts: &[Part],
        pruned: Option<&dyn Sink>,
        sweep: &mut dyn Sweep,
    ) -> Result<Timings> {
        let of_parts = |source| PartSource { source, parts };
        let theta = self.theta.as_ref().map(of_parts);
        let fisher = of_parts(&self.fisher);
        let mut ends: Vec<End<'_>> = theta.iter().map(|theta| End::Source(theta)).collect();
        ends.push(End::Source(&fisher));
        let pruned = pruned.map(|sink| PartSink { sink, parts });
        ends.extend(pruned.iter().map(|sink| End::Sink(sink)));
        stream::run(&Job { run: self.run, plan, ends }, sweep)
    }

    fn note(&mut self, plan: &Plan, timings: Timings) {
        self.timings += timings;
        self.bytes_read += plan.traffic().read;
    }

    /// Calls `each` with the scores of consecutive elements, in order, computed on the host.
    pub(super) fn scores(&mut self, each: Scored<'_>) -> Result<()> {
        let clock = Clock::start();
        self.zeroed.iter().for_each(|zeroed| zeroed.store(0, Ordering::Relaxed));
        self.run
            .progress
            .begin((0..self.tensors.len()).map(|at| self.tensors[at].len * self.bytes_of(at)).sum());
        for tensor in 0..self.tensors.len() {
            let len = self.tensors[tensor].len;
            for start in (0..len).step_by(usize_of(self.room)) {
                self.run.interrupt.check()?;
                let run = self.room.min(len - start);
                let (thetas, fishers) = clock.time(Stage::Read, || self.values(tensor, start, run))?;
                clock.time(Stage::Compute, || {
                    let score = |(i, (f, t))| {
                        let bits = score_bits(self.score, t, f).ok_or_else(|| self.fault(tensor, i, t, f));
                        bits.map(f32::from_bits)
                    };
                    let inputs = (start..).zip(fishers.into_iter().zip(thetas));
                    each(tensor, start, &inputs.map(score).collect::<Result<Vec<f32>>>()?)
                })?;
                let bytes = run * self.bytes_of(tensor);
                self.bytes_read += bytes;
                self.run.progress.advance(bytes);
            }
        }
        self.passes = self.passes.max(1);
        self.timings += clock.timings();
        Ok(())
    }

    fn clear(&self, view: &View) -> Result<()> {
        let mut recording = Recording::new(self.run.backend);
        recording.clear(view);
        self.run.backend.run(&recording)
    }

    /// Bytes of the inputs of one element.
    fn bytes_of(&self, tensor: usize) -> u64 {
        let Ranked { theta, fisher, .. } = self.tensors[tensor];
        fisher.1.size() + theta.map_or(0, |theta| theta.1.size())
    }

    /// Refuses a chunk with a score that cannot be ordered, naming its tensor and index.
    fn refuse_fault(&self, parts: &[Part], chunk: &Chunk, fault: u32) -> Result<()> {
        if fault == 0 {
            return Ok(());
        }
        let at = u64::from(!fault);
        let segment = chunk.segments.iter().find(|s| s.at <= at && at < s.at + s.len);
        let segment = segment.expect("a kernel counts only elements of its chunk");
        let part = parts[segment.tensor];
        let index = part.start + segment.start + at - segment.at;
        let (thetas, fishers) = self.values(part.tensor, index, 1)?;
        Err(self.fault(part.tensor, index, thetas[0], fishers[0]))
    }

    fn fault(&self, tensor: usize, index: u64, theta: f32, fisher: f32) -> Error {
        match &self.theta {
            _ if !fisher.is_finite() || fisher < 0.0 => {
                let problem = format!(
                    "element {index} of the Fisher is {fisher}, expected {FISHER_VALUES}, and --exclude leaves the tensor out"
                );
                self.fisher.refuse(tensor, problem)
            }
            Some(model) => {
                let problem = format!(
                    "element {index} is {theta}, which has no score; repair the model, or leave the tensor out with --exclude"
                );
                model.refuse(tensor, problem)
            }
            None => self.fisher.refuse(tensor, format!("element {index} has no score")),
        }
    }

    /// The views of a chunk's θ (F again where there is none) and F, and how kernels score them.
    fn scored<'b>(&self, chunk: &Chunk, buffers: &'b Buffers) -> (Scores, &'b View, &'b View) {
        let at = usize::from(self.theta.is_some());
        let scores = Scores { score: self.score, theta: chunk.dtypes[0], fisher: chunk.dtypes[at] };
        (scores, &buffers.streams[0], &buffers.streams[at])
    }
}

/// A number that looks random enough to scatter samples, the same for the same `n`.
fn scatter(n: u64) -> u64 {
    let z = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 27)
}
