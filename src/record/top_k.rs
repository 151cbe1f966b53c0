//! The k best of a buffer, without sorting: threshold, mask, or pairs, recorded into the caller's encoder.
//!
//! # Contract
//!
//! **Which items.** Exactly k. Every item whose score is above the k-th largest, and of those equal to the k-th
//! largest the ones with the smallest indices, as many as are missing. −0 equals 0. So a score decides, then the index;
//! nothing else does.
//!
//! **In what order.** A mask has no order. Pairs come by ascending index, not by score: whoever wants them by score
//! sorts k items instead of p. The threshold is the score of the last item kept.
//!
//! **How repeatable.**
//!
//! | | same backend | other backends, `Score::Fish` | other backends, `Score::Prune` |
//! |---|---|---|---|
//! | threshold, mask, pairs (the only mode) | bit for bit | bit for bit | bit for bit where f32 products are rounded to nearest and subnormals are kept; WGSL lets a device flush these to 0, which makes ties of scores below 1.2e-38 |
//!
//! It does not depend on the number of threads or on the order in which workgroups run: all sums are of integers.
//! There is no faster, less repeatable mode, because repeatability costs one prefix sum over the blocks.
//!
//! An example: scores `10 8 8 8 6 5`, k = 3. Kept are the items 0, 1, 2; the threshold is 8; the pairs are
//! (0, 10), (1, 8), (2, 8). A selection that promised less might keep 1 and 3, or 2 and 3.
//!
//! **What is refused.** A score that is NaN, or that comes from a Fisher that is negative or infinite, has no
//! place in an order. [`TopK::cut`] names the first. A recording cannot stop half-way: until `cut` was asked,
//! the outputs are in bounds but mean nothing. k above the number of items is refused when the operation is
//! made. k = 0 keeps nothing, and then there is no threshold.
//!
//! **What it costs.** Each input is read three times for the threshold (11, 10 and 10 bits of the score),
//! once more to count ties, once more for each output. Memory: 8 KiB, and 8 bytes for every 4096 items.
//!
//! Steps: histogram → narrow, three times; then count → scan → mask or gather
//! (see [`kernels::select`](crate::kernels::select)). For what does not fit in memory see
//! `methods::select`, which keeps the same promises.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::kernels::Owner;
use crate::kernels::select::{
    BLOCK_LEN, Count, CountArgs, CountParams, Gather, GatherArgs, GatherParams, Histogram, HistogramArgs,
    HistogramParams, LOCAL_BINS, Mask, MaskArgs, MaskParams, Narrow, NarrowArgs, NarrowParams, STATE_WORDS,
    Scan, ScanArgs, ScanParams, Score, Scores,
};
use crate::memory::{Element, View};
use crate::record::Recording;

const OP: &str = "top_k";

/// Bins of a window and the width of a bin as a power of two: 31 bits of a score, the highest first.
const LEVELS: [(u32, u32); 3] = [(LOCAL_BINS, 20), (1024, 10), (1024, 0)];

/// A selection of the k best items of a buffer: its inputs and the memory it needs. See the module's text for
/// what it promises.
#[derive(Clone, Debug)]
pub struct TopK {
    scores: Scores,
    theta: View,
    fisher: View,
    len: u32,
    k: u32,
    start: View,
    state: View,
    counts: View,
    fault: View,
    above: View,
    ties: View,
}

/// Where the kept items end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// The k-th largest score.
    pub score: f32,
    /// How many of the items equal to it are kept.
    pub ties: u32,
}

impl TopK {
    /// The `k` items with the largest Fisher F, `[p]`.
    ///
    /// # Errors
    /// [`Error::Argument`] for k above p, [`Error::Limit`] above 2³² − 1 items, [`Error::Shape`] for words.
    pub fn of_fisher(backend: &Backend, fisher: &View, k: u64) -> Result<Self> {
        Self::new(backend, Score::Fish, fisher, fisher, k)
    }

    /// The `k` items with the largest ½ θ² F.
    ///
    /// # Errors
    /// As [`TopK::of_fisher`]; [`Error::Shape`] also where θ and F differ in length.
    pub fn of_saliency(backend: &Backend, theta: &View, fisher: &View, k: u64) -> Result<Self> {
        Self::new(backend, Score::Prune, theta, fisher, k)
    }

    fn new(backend: &Backend, score: Score, theta: &View, fisher: &View, k: u64) -> Result<Self> {
        theta.check(OP, "theta", fisher.len(), None)?;
        let scores = Scores { score, theta: theta.float(OP, "theta")?, fisher: fisher.float(OP, "fisher")? };
        let max = u64::from(u32::MAX);
        let len = u32::try_from(fisher.len()).map_err(|_| Error::Limit {
            op: OP.into(),
            limit: "the most items of one recorded selection".into(),
            max,
            asked: fisher.len(),
        })?;
        let k = u32::try_from(k).ok().filter(|&k| k <= len);
        let k = k.ok_or_else(|| Error::argument(OP, format!("k is above the number of items, {len}")))?;
        let words = |len: u64| backend.alloc(len, Element::U32);
        let blocks = u64::from(len).div_ceil(BLOCK_LEN) + 1;
        // With k = 0 the threshold is one that no score reaches.
        let start = if k == 0 { [u32::MAX, 0] } else { [0, k] };
        Ok(Self {
            scores,
            theta: theta.clone(),
            fisher: fisher.clone(),
            len,
            k,
            start: backend.buffer(&start, Element::U32)?,
            state: words(STATE_WORDS)?,
            counts: words(u64::from(LOCAL_BINS) + 2)?,
            fault: words(1)?,
            above: words(blocks)?,
            ties: words(blocks)?,
        })
    }

    /// Records the search for the threshold. Everything else needs it before.
    ///
    /// # Errors
    /// As [`Recording::dispatch`].
    pub fn threshold(&self, recording: &mut Recording) -> Result<()> {
        recording.copy(&self.start, &self.state)?;
        recording.clear(&self.fault);
        // The first level also looks for bad scores, so it is counted for k = 0 too.
        let levels = if self.k == 0 { 1 } else { LEVELS.len() };
        for (bins, shift) in LEVELS.into_iter().take(levels) {
            let counts = self.counts.first(u64::from(bins) + 2)?;
            recording.clear(&counts);
            let args = HistogramArgs {
                theta: self.theta.clone(),
                fisher: self.fisher.clone(),
                state: self.state.clone(),
                counts: counts.clone(),
                fault: self.fault.clone(),
            };
            let params = HistogramParams { len: self.len, shift, bins };
            let sparse = bins != LOCAL_BINS;
            recording.dispatch(&Histogram { scores: self.scores, local: true, sparse }, params, args)?;
            if self.k > 0 {
                let args = NarrowArgs { counts, state: self.state.clone() };
                recording.dispatch(&Narrow, NarrowParams { shift, bins }, args)?;
            }
        }
        self.number(recording)
    }

    /// How many items before each block are above the threshold, and equal to it.
    fn number(&self, recording: &mut Recording) -> Result<()> {
        let args = CountArgs {
            theta: self.theta.clone(),
            fisher: self.fisher.clone(),
            state: self.state.clone(),
            above: self.above.clone(),
            ties: self.ties.clone(),
        };
        recording.dispatch(&Count { scores: self.scores }, CountParams { len: self.len }, args)?;
        let blocks = u32::try_from(self.above.len() - 1).expect("fewer blocks than items");
        for counts in [self.above.clone(), self.ties.clone()] {
            recording.dispatch(&Scan, ScanParams { len: blocks }, ScanArgs { counts })?;
        }
        Ok(())
    }

    /// Records the mask: one byte an item, 1 where it is kept, in words
    /// ([`mask_words`](crate::kernels::select::mask_words)).
    ///
    /// # Errors
    /// As [`Recording::dispatch`].
    pub fn mask(&self, recording: &mut Recording, mask: &View) -> Result<()> {
        let args = MaskArgs {
            theta: self.theta.clone(),
            fisher: self.fisher.clone(),
            state: self.state.clone(),
            ties: self.ties.clone(),
            mask: mask.clone(),
        };
        let kernel = Mask { scores: self.scores, owner: Owner::of(recording.caps()) };
        recording.dispatch(&kernel, MaskParams { len: self.len }, args)?;
        Ok(())
    }

    /// Records the pairs: `indices` `[k]`, words, ascending, and their scores `values` `[k]`, f32.
    ///
    /// # Errors
    /// As [`Recording::dispatch`].
    pub fn pairs(&self, recording: &mut Recording, indices: &View, values: &View) -> Result<()> {
        let args = GatherArgs {
            theta: self.theta.clone(),
            fisher: self.fisher.clone(),
            state: self.state.clone(),
            above: self.above.clone(),
            ties: self.ties.clone(),
            indices: indices.clone(),
            values: values.clone(),
        };
        let params = GatherParams { len: self.len, room: self.k };
        let kernel = Gather { scores: self.scores, owner: Owner::of(recording.caps()) };
        recording.dispatch(&kernel, params, args)?;
        Ok(())
    }

    /// Reads back where the kept items end, after the recording ran; nothing for k = 0.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first item whose score has no place in an order; [`Error::Device`] after a loss.
    pub fn cut(&self, backend: &Backend) -> Result<Option<Threshold>> {
        let fault = backend.download::<u32>(&self.fault)?[0];
        if fault != 0 {
            let problem = format!(
                "item {} has a score that cannot be ordered: it is NaN, or its Fisher is negative or infinite",
                !fault
            );
            return Err(Error::argument(OP, problem));
        }
        let state = backend.download::<u32>(&self.state)?;
        Ok((self.k > 0).then(|| Threshold { score: f32::from_bits(state[0]), ties: state[1] }))
    }
}
