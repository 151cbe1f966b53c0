//! Fishers as vectors: means over rows or tensors.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use safetensors::Dtype;
use serde::Serialize;

use super::inputs::Fishers;
use super::{Group, STRIDE};
use crate::checkpoint::{Checkpoint, Output, OutputLayout, OutputTensor};
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::kernels::task2vec::{RowMean, RowMeanArgs, RowMeanParams, RowPart};
use crate::memory::{Element, View};
use crate::methods::source::{CheckpointSource, FISHER_VALUES, NonFinite};
use crate::record::Recording;
use crate::stream::{
    Budget, Buffers, Chunk, Direction, End, Job, Layout, Plan, Run, Segment, Stream, Sweep, TensorSpec,
    Timings, run,
};

const OP: &str = "embed";

/// What is embedded, and how.
#[derive(Clone, Debug)]
pub struct EmbedOptions {
    /// What one entry is: [`Group::Tensor`] or [`Group::Row`].
    pub group: Group,
    /// What to do with Fishers that are NaN, infinite or negative.
    pub non_finite: NonFinite,
    /// Replace an output that exists.
    pub overwrite: bool,
}

/// What was embedded. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EmbedReport {
    /// What the Fishers are called.
    pub names: Vec<String>,
    /// What one entry is.
    pub group: Group,
    /// Entries of a vector.
    pub groups: u64,
    /// Parameters of one Fisher.
    pub elements: u64,
    /// Fishers that were NaN, infinite or negative and counted as 0.
    pub non_finite: u64,
    /// Bytes read from all inputs.
    pub bytes_read: u64,
    /// Bytes of the output.
    pub bytes_written: u64,
    /// Seconds from start to synced output.
    pub seconds: f64,
    /// Where the time of the passes went.
    pub timings: Timings,
    /// The host or the adapter that kernels ran on.
    pub adapter: String,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// What [`embed`] would do, from headers alone. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct EmbedPlan {
    /// What the Fishers are called.
    pub names: Vec<String>,
    /// What one entry is.
    pub group: Group,
    /// Entries of a vector.
    pub groups: u64,
    /// Parameters of one Fisher.
    pub elements: u64,
    /// How each Fisher would stream.
    pub passes: Vec<Plan>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The result of a `--dry-run`.
///
/// # Errors
/// What headers and budgets alone show to be wrong, as [`embed`].
pub fn plan(fishers: &[PathBuf], options: &EmbedOptions, run: &Run<'_>) -> Result<EmbedPlan> {
    let fishers = open(fishers, options)?;
    let rows = Rows::of(&fishers, options.group);
    let one = |fisher| pass_over(&fishers, fisher, run);
    Ok(EmbedPlan {
        group: options.group,
        groups: rows.len() as u64,
        elements: fishers.elements(),
        passes: (0..fishers.names.len()).map(one).collect::<Result<_>>()?,
        names: fishers.names,
        warnings: fishers.warnings,
    })
}

fn open(fishers: &[PathBuf], options: &EmbedOptions) -> Result<Fishers> {
    if options.group == Group::Element {
        let problem = "an embedding of every element is the Fisher itself; the groups are row and tensor";
        return Err(Error::argument(OP, problem));
    }
    let opened = fishers.iter().map(Checkpoint::open).collect::<Result<Vec<_>>>()?;
    Fishers::of(OP, opened, fishers)
}

/// Writes the vectors of `fishers`, files of one network, as one tensor `embedding` `[fisher, group]` in f64,
/// with `names` and `groups` as JSON lists in the metadata (a row is called `TENSOR[ROW]`).
///
/// Reads each file once; holds one number a group and Fisher.
///
/// # Errors
/// [`Error::Mismatch`] if the Fishers are of different networks, [`Error::Tensor`] for a value that no Fisher can have,
/// [`Error::Argument`] for [`Group::Element`], and everything files and devices do.
pub fn embed(fishers: &[PathBuf], options: &EmbedOptions, out: &Path, run: &Run<'_>) -> Result<EmbedReport> {
    let started = Instant::now();
    let fishers = open(fishers, options)?;
    let rows = Rows::of(&fishers, options.group);
    let inputs: Vec<&Path> = fishers.checkpoints.iter().map(Checkpoint::path).collect();
    let output = Output::create(out, rows.layout(&fishers, options.group)?, options.overwrite, &inputs)?;
    let zeroed = AtomicU64::new(0);
    let (vectors, timings) = means(&fishers, &rows, options.non_finite.counted(&zeroed), run)?;
    for (fisher, vector) in (0..).zip(&vectors) {
        let bytes: Vec<u8> = vector.iter().flat_map(|mean| mean.to_le_bytes()).collect();
        output.write(0, fisher * bytes.len() as u64, &bytes)?;
    }
    fishers.checkpoints.iter().try_for_each(Checkpoint::verify_unchanged)?;
    let bytes_written = output.total_bytes();
    output.finish()?;
    Ok(EmbedReport {
        group: options.group,
        groups: rows.len() as u64,
        elements: fishers.elements(),
        non_finite: zeroed.into_inner(),
        bytes_read: fishers.checkpoints.iter().map(Checkpoint::total_bytes).sum(),
        bytes_written,
        seconds: started.elapsed().as_secs_f64(),
        timings,
        adapter: run.backend.name(),
        warnings: fishers.warnings,
        names: fishers.names,
    })
}

/// How tensors are cut into rows: runs of elements beside each other, of which a row has one, or, where its
/// outputs lie along the second axis, one for each index of the first.
pub(super) struct Rows {
    /// Elements of a run of each tensor.
    widths: Vec<u64>,
    /// Elements of a row of each tensor.
    elements: Vec<u64>,
    /// The place of each tensor's first row among all, and in the end their number.
    starts: Vec<usize>,
}

impl Rows {
    pub(super) fn of(fishers: &Fishers, group: Group) -> Self {
        let mut all = Self { widths: Vec::new(), elements: Vec::new(), starts: vec![0] };
        for index in 0..fishers.places.len() {
            let tensor = fishers.tensor(0, index);
            let (runs, rows) = match (group, tensor.shape.as_slice()) {
                (Group::Tensor, _) | (_, []) => (1, 1),
                (_, &[inputs, outputs, ..]) if fishers.transposed.contains(&tensor.name) => {
                    (inputs * outputs, outputs)
                }
                (_, &[outputs, ..]) => (outputs, outputs),
            };
            all.widths.push(tensor.elements() / runs);
            all.elements.push(tensor.elements() / rows);
            let rows = usize::try_from(rows).expect("a file's rows fit the address space");
            all.starts.push(all.starts[index] + rows);
        }
        all
    }

    /// The place of a tensor's run among all rows.
    fn place(&self, tensor: usize, run: u64) -> usize {
        let rows = self.starts[tensor]..self.starts[tensor + 1];
        let run = usize::try_from(run).expect("runs fit the address space");
        rows.start + run % rows.len()
    }

    pub(super) fn len(&self) -> usize {
        *self.starts.last().expect("made with one entry")
    }

    /// What each entry is called.
    pub(super) fn names(&self, fishers: &Fishers, group: Group) -> Vec<String> {
        let rows = |index: usize| {
            let tensor = fishers.tensor(0, index);
            let whole = group == Group::Tensor || tensor.shape.is_empty();
            let rows = 0..self.starts[index + 1] - self.starts[index];
            rows.map(move |row| if whole { tensor.name.clone() } else { format!("{}[{row}]", tensor.name) })
        };
        (0..self.widths.len()).flat_map(rows).collect()
    }

    fn layout(&self, fishers: &Fishers, group: Group) -> Result<OutputLayout> {
        let json = |list: &[String]| serde_json::Value::from(list.to_vec()).to_string();
        let metadata = [
            ("names", json(&fishers.names)),
            ("groups", json(&self.names(fishers, group))),
            ("squisher.kind", "embedding".to_owned()),
            ("squisher.group", group.to_string()),
            ("squisher.version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        let shape = [fishers.names.len() as u64, self.len() as u64];
        let tensor = OutputTensor::new("embedding", Dtype::F64, shape);
        tensor.bytes()?;
        Ok(OutputLayout::single(vec![tensor], metadata.map(|(key, value)| (key.to_owned(), value)).into()))
    }
}

/// The means of every Fisher's rows, and where the time went. Values that no Fisher can have are read as 0 if
/// there is somewhere to count them.
pub(super) fn means(
    fishers: &Fishers,
    rows: &Rows,
    zeroed: Option<&AtomicU64>,
    with: &Run<'_>,
) -> Result<(Vec<Vec<f64>>, Timings)> {
    let mut timings = Timings::default();
    let one = |fisher: usize| {
        let plan = pass_over(fishers, fisher, with)?;
        let source = CheckpointSource::new(&fishers.checkpoints[fisher], fishers.places.clone());
        let source = source.zeroing(zeroed);
        let mut sweep = RowSweep {
            rows,
            source: &source,
            caps: with.backend.caps(),
            words: 0,
            sums: vec![0.0; rows.len()],
        };
        sweep.words = plan.chunks().iter().map(|chunk| sweep.words_of(chunk)).max().unwrap_or(0);
        let job = Job { run: with, plan: &plan, ends: vec![End::Source(&source)] };
        timings += run(&job, &mut sweep)?;
        let mut means = sweep.sums;
        for (index, elements) in rows.elements.iter().enumerate() {
            means[rows.starts[index]..rows.starts[index + 1]]
                .iter_mut()
                .for_each(|sum| *sum /= *elements as f64);
        }
        Ok(means)
    };
    let means = (0..fishers.checkpoints.len()).map(one).collect::<Result<_>>()?;
    Ok((means, timings))
}

/// How one Fisher streams.
pub(super) fn pass_over(fishers: &Fishers, fisher: usize, run: &Run<'_>) -> Result<Plan> {
    /// Rows of one f16 leave records of six times their size, and a device's are read back: room for both.
    const SHARE: u64 = 16;
    let spec = |index: usize| {
        let tensor = fishers.tensor(fisher, index);
        let dtypes = vec![fishers.dtype(fisher, index)];
        TensorSpec { name: tensor.name.clone(), elements: tensor.elements(), dtypes, class: 0 }
    };
    let name = fishers.checkpoints[fisher].path().display().to_string();
    let layout = Layout {
        streams: vec![Stream { name, direction: Direction::Read }],
        tensors: (0..fishers.places.len()).map(spec).collect(),
        scratch_bytes: 0,
    };
    let budget = run.budget.within(&run.backend.caps());
    let left = Budget {
        device_bytes: budget.device_bytes / SHARE,
        host_bytes: budget.host_bytes / SHARE,
        max_binding_bytes: budget.max_binding_bytes / SHARE,
        ..budget
    };
    Plan::new(&layout, &left).map_err(|error| of_the_whole(error, &budget, SHARE))
}

/// A budget's refusal in numbers of the whole budget, of which the plan has one part in `share`.
fn of_the_whole(error: Error, budget: &Budget, share: u64) -> Error {
    let Error::Budget { op, what, need, flag, .. } = error else { return error };
    let have = if flag == "--device-memory" { budget.device_bytes } else { budget.host_bytes };
    Error::Budget { op, what, need: need.saturating_mul(share), have, flag }
}

/// Whole rows of a segment, or what it has of one.
struct Block {
    tensor: usize,
    /// The first row, and the block's first element in it.
    row: u64,
    column: u64,
    rows: u64,
    width: u64,
    /// The block's first element in the chunk.
    at: u64,
}

/// A segment as the end of a row, whole rows, and the beginning of one, of which any may be missing.
fn blocks(segment: &Segment, width: u64) -> impl Iterator<Item = Block> {
    let (start, len) = (segment.start, segment.len);
    let before = start % width;
    let head = if before == 0 { 0 } else { len.min(width - before) };
    let rows = (len - head) / width;
    let tail = len - head - rows * width;
    let block = move |offset: u64, rows: u64, width_here: u64| Block {
        tensor: segment.tensor,
        row: (start + offset) / width,
        column: (start + offset) % width,
        rows,
        width: width_here,
        at: segment.at + offset,
    };
    [
        block(0, u64::from(head > 0), head),
        block(head, rows, width),
        block(len - tail, u64::from(tail > 0), tail),
    ]
    .into_iter()
    .filter(|block| block.rows > 0)
}

struct RowSweep<'a> {
    rows: &'a Rows,
    source: &'a CheckpointSource<'a>,
    caps: Caps,
    words: u64,
    sums: Vec<f64>,
}

impl RowSweep<'_> {
    /// A chunk's blocks, each with its kernel, the first word of its records, and their number.
    fn steps(&self, chunk: &Chunk) -> impl Iterator<Item = (Block, RowMean, u64, u64)> {
        let blocks =
            chunk.segments.iter().flat_map(|segment| blocks(segment, self.rows.widths[segment.tensor]));
        let dtype = chunk.dtypes[0];
        blocks.scan(0, move |next, block| {
            let kernel = RowMean::for_width(dtype, block.width, &self.caps);
            let (at, words) = (*next, kernel.records(block.rows, block.width));
            *next += words.next_multiple_of(STRIDE);
            Some((block, kernel, at, words))
        })
    }

    fn words_of(&self, chunk: &Chunk) -> u64 {
        self.steps(chunk).last().map_or(0, |(_, _, at, words)| at + words)
    }
}

impl Sweep for RowSweep<'_> {
    fn result_words(&self) -> u64 {
        self.words
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let results = buffers.results.as_ref().expect("this sweep asks for results");
        let word = |n: u64| u32::try_from(n).expect("a chunk's buffers are below the binding limit");
        for (block, kernel, at, words) in self.steps(chunk) {
            let params = RowMeanParams {
                start: word(block.at),
                rows: word(block.rows),
                width: word(block.width),
                parts: word(kernel.parts(block.width)),
            };
            let records =
                View::new(results.memory().clone(), results.offset() + 4 * at, words, Element::F32)?;
            recording.dispatch(
                &kernel,
                params,
                RowMeanArgs { values: buffers.streams[0].clone(), records },
            )?;
        }
        Ok(())
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        let records: &[f32] = bytemuck::cast_slice(results);
        let steps: Vec<_> = self.steps(chunk).collect();
        for (block, kernel, at, words) in steps {
            let at = usize::try_from(at).expect("a chunk's records lie in memory");
            let records = &records[at..at + usize::try_from(words).expect("a chunk's records lie in memory")];
            let parts = kernel.parts(block.width);
            for (index, record) in (0..).zip(records.as_chunks::<{ RowPart::WORDS }>().0) {
                let part = RowPart::of(*record);
                let row = block.row + index / parts;
                if let Some(bad) = part.first_bad {
                    let column = block.column + index % parts * kernel.part() + bad;
                    let index = row * self.rows.widths[block.tensor] + column;
                    return Err(self.source.bad_value(block.tensor, index, FISHER_VALUES));
                }
                self.sums[self.rows.place(block.tensor, row)] += part.sum;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_segment_once_and_in_order() {
        for width in [1, 3, 7, 100] {
            for start in 0..12 {
                for len in 0..25 {
                    let segment = Segment { tensor: 0, start, len, at: 5 };
                    let mut next = start;
                    for block in blocks(&segment, width) {
                        assert_eq!(block.row * width + block.column, next);
                        assert_eq!(block.at - 5, next - start);
                        assert!(block.column + block.width <= width, "a block has parts of two rows");
                        next += block.rows * block.width;
                    }
                    assert_eq!(next, start + len, "{width} {start} {len}");
                }
            }
        }
    }
}
