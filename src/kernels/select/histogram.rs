//! How many scores lie in each bin of a window.

mod cases;

use rayon::prelude::*;

use super::score::{BAD, Scorer, ranges};
use super::{SCORE, STATE_WORDS, Score, Scores};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernel::{BLOCK, Cost, Kernel, Slice, groups_for, vectorised};
use crate::kernels::{DTYPE, WORKGROUP, shader};
use crate::memory::Element;

/// Counts scores per bin of a window of score bits:
///
/// ```text
/// counts[1 + b] += #{p : state[0] + b · 2^shift ≤ s[p] < state[0] + (b + 1) · 2^shift}
/// ```
///
/// with s the ordered bits of the score (see [`Score`]); `counts[0]` counts what lies below the window and
/// `counts[bins + 1]` what lies above.
///
/// - `theta`   θ `[p]`; F again for [`Score::Fish`]
/// - `fisher`  F `[p]`
/// - `state`   `[2]`, the first word is the window's lower end
/// - `counts`  `[bins + 2]`, added to
/// - `fault`   `[1]`, becomes at least `!p` for every p whose score cannot be ordered: NaN, or of a Fisher that is
///   negative or infinite. Such scores are not counted; start from 0 and 0 means none, else `!fault` is the first.
///
/// Reads each input once. The result does not depend on the order of execution: integers are added. Windows of at most
/// [`LOCAL_BINS`] bins are counted in workgroup memory first; larger ones straight in `counts`, which is for windows
/// that few scores lie in. Definition: [`reference::select::histogram`](crate::reference::select::histogram).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// What is counted.
    pub scores: Scores,
    /// Counting in workgroup memory first; requires at most [`LOCAL_BINS`] bins.
    pub local: bool,
    /// Few scores are expected in the window, as in every one but the first: those outside are counted in registers.
    /// Changes no count.
    pub sparse: bool,
}

/// The bins that workgroup memory holds on every device, with the two counts outside.
pub const LOCAL_BINS: u32 = 2048;

/// Groups of eight elements an invocation counts before its workgroup hands its counts over.
const OCTETS: u32 = 32;

crate::params! {
    /// The numbers of one [`Histogram`] step.
    pub struct HistogramParams {
        /// Elements.
        len: u32,
        /// A bin is 2^shift wide.
        shift: u32,
        /// Bins of the window.
        bins: u32,
    }
}

crate::args! {
    /// The buffers of one [`Histogram`] step.
    pub struct HistogramArgs / HistogramSlices {
        /// θ `[p]`.
        read theta,
        /// F `[p]`.
        read fisher,
        /// `[2]`, the window's lower end first.
        read state,
        /// `[bins + 2]`, added to.
        write counts,
        /// `[1]`, `!p` of the first bad element.
        write fault,
    }
}

impl Kernel for Histogram {
    const NAME: &'static str = "select.histogram";
    type Params = HistogramParams;
    type Args = HistogramArgs;

    fn wgsl(&self) -> Vec<&'static str> {
        vec![shader!("select/histogram.wgsl"), DTYPE, SCORE]
    }

    fn overrides(&self) -> Vec<(&'static str, f64)> {
        let own = [
            ("WORKGROUP", WORKGROUP.into()),
            ("OCTETS", OCTETS.into()),
            ("LOCAL", u32::from(self.local).into()),
            ("SPARSE", u32::from(self.sparse).into()),
        ];
        self.scores.overrides().into_iter().chain(own).collect()
    }

    fn launch(&self, params: &HistogramParams, args: &HistogramArgs, caps: &Caps) -> Result<[u32; 3]> {
        self.scores.check(Self::NAME, &args.theta, &args.fisher, params.len)?;
        args.state.check(Self::NAME, "state", STATE_WORDS, Some(Element::U32))?;
        args.counts.check(Self::NAME, "counts", u64::from(params.bins) + 2, Some(Element::U32))?;
        args.fault.check(Self::NAME, "fault", 1, Some(Element::U32))?;
        if params.shift > 31 || params.bins == 0 || (self.local && params.bins > LOCAL_BINS) {
            let problem = format!(
                "{} bins of 2^{}; expected 1 to {LOCAL_BINS} (more without workgroup memory) of at most 2^31",
                params.bins, params.shift
            );
            return Err(Error::argument(Self::NAME, problem));
        }
        groups_for(Self::NAME, params.len.into(), u64::from(8 * WORKGROUP * OCTETS), caps)
    }

    fn host(&self, params: &HistogramParams, args: HistogramSlices<'_>) {
        let low = args.state.cast::<u32>()[0];
        let window = Window { low, shift: params.shift, bins: params.bins };
        // Small tables are cheap to make and balance the threads; a large one, if it comes to that, is made
        // once a thread.
        let parts = rayon::current_num_threads() * if params.bins <= LOCAL_BINS { 4 } else { 1 };
        let parts = ranges(params.len as usize, parts, BLOCK);
        let counts = args.counts.cast::<u32>();
        let tallies: Vec<Tally> = parts
            .into_par_iter()
            .map(|part| {
                vectorised(
                    #[inline(always)]
                    || Tally::of(self.scores.score, args.theta, args.fisher, part, window),
                )
            })
            .collect();
        let fault = &mut args.fault.cast::<u32>()[0];
        for tally in tallies {
            *fault = (*fault).max(tally.fault);
            tally.add_to(counts);
        }
    }

    fn cost(&self, params: &HistogramParams, _: &HistogramArgs) -> Cost {
        let len = u64::from(params.len);
        Cost { bytes: len * self.scores.bytes(), flops: len * self.scores.flops() }
    }
}

#[derive(Clone, Copy)]
struct Window {
    low: u32,
    shift: u32,
    bins: u32,
}

impl Window {
    fn slot(self, bits: u32) -> usize {
        if bits < self.low { 0 } else { ((bits - self.low) >> self.shift).min(self.bins) as usize + 1 }
    }

    /// The first value above the window; a window that reaches beyond all scores ends where they do.
    fn end(self) -> u32 {
        let end = u64::from(self.low) + (u64::from(self.bins) << self.shift);
        u32::try_from(end).unwrap_or(BAD).min(BAD - 1)
    }

    /// Whether every score lies in it.
    fn holds_all(self) -> bool {
        self.low == 0 && self.end() > f32::INFINITY.to_bits()
    }
}

/// Increments of one address wait for each other, so neighbours in memory use different tables.
const TABLES: usize = 4;

/// A window that all scores lie in has bins of this many bits of them, or of several times as many.
const SHIFT: u32 = 20;

/// So many scores differ in the bits above.
const BINS: usize = 1 << (31 - SHIFT);

/// One thread's counts.
struct Tally {
    window: Window,
    /// Where every score lies in the window: tables beside each other, of a size that the compiler knows, so that no
    /// index needs a check.
    tables: Option<Box<[[u32; TABLES]; BINS]>>,
    /// Where few do, and the window is small or many did: a table.
    sparse: Vec<u32>,
    /// Else the slots of those that did. A table of a large window would take longer to make than a chunk to count.
    hits: Vec<u32>,
    /// Scores below the window and above it.
    outside: [u32; 2],
    fault: u32,
    slots: usize,
}

impl Tally {
    #[inline(always)]
    fn of(
        score: Score,
        theta: Slice<'_>,
        fisher: Slice<'_>,
        part: std::ops::Range<usize>,
        window: Window,
    ) -> Self {
        let slots = window.bins as usize + 2;
        let small = window.bins <= LOCAL_BINS;
        let dense = window.holds_all() && small;
        let mut tally = Self {
            window,
            tables: dense.then(|| Box::new([[0; TABLES]; BINS])),
            sparse: vec![0; if small && !dense { slots } else { 0 }],
            hits: Vec::new(),
            outside: [0; 2],
            fault: 0,
            slots,
        };
        let mut scorer = Scorer::default();
        for start in part.clone().step_by(BLOCK) {
            let bits = scorer.load(score, theta, fisher, start, BLOCK.min(part.end - start));
            let mut top = 0;
            for &b in bits {
                top = top.max(b);
            }
            if top == BAD {
                tally.careful(bits, start, window);
            } else if let Some(tables) = &mut tally.tables {
                dense_block(tables, bits);
            } else {
                tally.sparse(bits, window);
            }
        }
        tally
    }

    /// Where few scores lie in the window: only groups that have one are looked at one by one.
    #[inline(always)]
    fn sparse(&mut self, bits: &[u32], window: Window) {
        const GROUP: usize = 64;
        let (low, end) = (window.low, window.end());
        for group in bits.chunks(GROUP) {
            let above: u32 = group.iter().map(|&b| u32::from(b >= end)).sum();
            let from_low: u32 = group.iter().map(|&b| u32::from(b >= low)).sum();
            self.outside[1] += above;
            self.outside[0] += u32::try_from(group.len()).expect("at most 64") - from_low;
            if from_low > above {
                for &b in group.iter().filter(|&&b| low <= b && b < end) {
                    self.hit(window.slot(b));
                }
            }
        }
    }

    fn hit(&mut self, slot: usize) {
        if let Some(count) = self.sparse.get_mut(slot) {
            *count += 1;
            return;
        }
        self.hits.push(u32::try_from(slot).expect("bins are a u32"));
        // As long as a table: it is one from now on.
        if self.hits.len() == self.slots {
            self.sparse = vec![0; self.slots];
            for slot in std::mem::take(&mut self.hits) {
                self.sparse[slot as usize] += 1;
            }
        }
    }

    /// One by one, around what cannot be ordered.
    fn careful(&mut self, bits: &[u32], start: usize, window: Window) {
        for (i, &b) in bits.iter().enumerate() {
            if b == BAD {
                let index = u32::try_from(start + i).expect("the length of a step is a u32");
                self.fault = self.fault.max(!index);
            } else if let Some(tables) = &mut self.tables {
                dense_block(tables, &[b]);
            } else {
                self.hit(window.slot(b));
            }
        }
    }

    fn add_to(&self, counts: &mut [u32]) {
        for (bin, table) in (0..).zip(self.tables.iter().flat_map(|tables| tables.iter())) {
            counts[self.window.slot(bin << SHIFT)] += table.iter().sum::<u32>();
        }
        for (sum, count) in counts.iter_mut().zip(&self.sparse) {
            *sum += count;
        }
        for &slot in &self.hits {
            counts[slot as usize] += 1;
        }
        counts[0] += self.outside[0];
        counts[self.slots - 1] += self.outside[1];
    }
}

/// Scores that all lie in the window.
#[inline(always)]
fn dense_block(tables: &mut [[u32; TABLES]; BINS], bits: &[u32]) {
    // The remainder is the number itself.
    let bin = |b: u32| (b >> SHIFT) as usize % BINS;
    let mut fours = bits.chunks_exact(TABLES);
    for four in &mut fours {
        for (table, &b) in four.iter().enumerate() {
            tables[bin(b)][table] += 1;
        }
    }
    for &b in fours.remainder() {
        tables[bin(b)][0] += 1;
    }
}
