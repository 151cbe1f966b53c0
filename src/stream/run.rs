//! Running a plan: read, upload, compute, bring back, write, all five at once over a ring of slots.

use std::fmt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, Sender, channel};

use rayon::prelude::*;

use super::lane::{Lane, Room, StripSize};
use super::timings::{Clock, Stage, Timings};
use super::{Chunk, Plan, Run, Segment};
use crate::error::Result;
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::shape::usize_of;

/// Where a stream's elements come from.
pub trait Source: Sync {
    /// Fills `out` with the elements of `tensor` (its place in the layout) from element `start`, as the layout's type.
    ///
    /// # Errors
    /// Naming file and tensor.
    fn read(&self, tensor: usize, start: u64, out: &mut [u8]) -> Result<()>;
}

/// Where a stream's elements go.
pub trait Sink: Sync {
    /// Stores the elements of `tensor` from element `start`.
    ///
    /// # Errors
    /// Naming the output.
    fn write(&self, tensor: usize, start: u64, bytes: &[u8]) -> Result<()>;
}

/// One end of a stream.
pub enum End<'a> {
    /// Of a stream that is read.
    Source(&'a dyn Source),
    /// Of a stream that is written.
    Sink(&'a dyn Sink),
}

impl fmt::Debug for End<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source(_) => "Source",
            Self::Sink(_) => "Sink",
        })
    }
}

/// The buffers of one chunk, as its kernels see them.
#[derive(Clone, Debug)]
pub struct Buffers {
    /// One view a stream, in the layout's order.
    pub streams: Vec<View>,
    /// The scratch memory, shared by all chunks: a chunk finds in it what the last one left.
    pub scratch: Option<View>,
    /// The chunk's results, zeroed before.
    pub results: Option<View>,
}

/// One pass over all parameters that never needs two chunks at once.
pub trait Sweep: Send + Sync {
    /// Words of results that a chunk leaves, 0 for none.
    fn result_words(&self) -> u64 {
        0
    }

    /// Appends a chunk's kernels.
    ///
    /// # Errors
    /// What the kernels refuse.
    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()>;

    /// Takes a chunk's results, in the order of the plan.
    ///
    /// # Errors
    /// What they show to be wrong with the input; the run then ends and writes no more.
    fn absorb(&mut self, _chunk: &Chunk, _results: &[u32]) -> Result<()> {
        Ok(())
    }

    /// Hears that a chunk, and so every chunk before it, is absorbed and written.
    ///
    /// # Errors
    /// Any; the run then ends.
    fn written(&mut self, _chunk: &Chunk) -> Result<()> {
        Ok(())
    }
}

/// Everything a run needs besides its sweep.
#[derive(Debug)]
pub struct Job<'a> {
    /// Where it runs, who hears of it and who may end it. The plan has taken the budget into account.
    pub run: &'a Run<'a>,
    /// Which bytes are where, when.
    pub plan: &'a Plan,
    /// One end a stream, in the layout's order.
    pub ends: Vec<End<'a>>,
}

/// Runs one pass.
///
/// # Errors
/// The first error of any stage; the other stages then end after their chunk.
pub fn run(job: &Job<'_>, sweep: &mut dyn Sweep) -> Result<Timings> {
    let clock = Clock::start();
    let plan = job.plan;
    if plan.chunks().is_empty() {
        return Ok(Timings::default());
    }
    let lanes: Vec<Lane> = (0..plan.slots())
        .map(|_| Lane::new(job.run.backend, &strip_sizes(plan), sweep.result_words()))
        .collect::<Result<_>>()?;
    let scratch = match plan.scratch_bytes() {
        0 => None,
        bytes => Some(job.run.backend.alloc(bytes.div_ceil(4), Element::U32)?),
    };
    let ring = Ring::new(&lanes);
    let sweep = Mutex::new(sweep);
    let (filled_in, filled) = channel();
    let (launched_in, launched) = channel();
    let ended = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_chunks(job, &ring, filled_in, &clock));
        let computer = scope.spawn(|| compute_chunks(job, &sweep, scratch, filled, launched_in, &clock));
        let writer = {
            let _closes = CloseAtEnd(&ring);
            write_chunks(job, &sweep, &ring, launched, &clock)
        };
        let join = |stage: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            stage.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        // A later stage's error is the cause when an earlier one merely found its channel closed, which is
        // not an error.
        writer.and(join(computer)).and(join(reader))
    });
    ended.map(|()| clock.timings())
}

/// The largest chunk of each stream.
fn strip_sizes(plan: &Plan) -> Vec<StripSize> {
    let streams = plan.streams().iter().enumerate();
    streams
        .map(|(stream, spec)| {
            let largest = plan.chunks().iter().map(|c| c.dtypes[stream].padded_bytes(c.elements)).max();
            StripSize { bytes: largest.unwrap_or(0), direction: spec.direction }
        })
        .collect()
}

/// A chunk in a slot.
struct Loaded<'a> {
    chunk: usize,
    lane: &'a Lane,
}

/// The free slots. Closed when the last stage ends, so that the first one stops waiting.
struct Ring<'a> {
    give: Mutex<Option<Sender<&'a Lane>>>,
    take: Mutex<Receiver<&'a Lane>>,
}

impl<'a> Ring<'a> {
    fn new(lanes: &'a [Lane]) -> Self {
        let (give, take) = channel();
        for lane in lanes {
            give.send(lane).expect("the receiver is alive: it was made two lines above");
        }
        Self { give: Mutex::new(Some(give)), take: Mutex::new(take) }
    }

    fn take(&self) -> Option<&'a Lane> {
        self.take.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
    }

    fn give(&self, lane: &'a Lane) {
        if let Some(give) = &*self.give.lock().unwrap_or_else(PoisonError::into_inner) {
            // The reader ended early, with its own error.
            let _reader_gone = give.send(lane);
        }
    }

    fn close(&self) {
        self.give.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Closes the ring however the last stage ends: were it to panic with the ring open, the first stage would
/// wait for ever.
struct CloseAtEnd<'r, 'a>(&'r Ring<'a>);

impl Drop for CloseAtEnd<'_, '_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

fn read_chunks<'a>(job: &Job<'_>, ring: &Ring<'a>, filled: Sender<Loaded<'a>>, clock: &Clock) -> Result<()> {
    for (index, chunk) in job.plan.chunks().iter().enumerate() {
        job.run.interrupt.check()?;
        let Some(lane) = ring.take() else { return Ok(()) };
        clock.time(Stage::Read, || read_chunk(job, chunk, lane))?;
        if filled.send(Loaded { chunk: index, lane }).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn read_chunk(job: &Job<'_>, chunk: &Chunk, lane: &Lane) -> Result<()> {
    for (stream, end) in job.ends.iter().enumerate() {
        if let End::Source(source) = end {
            let size = chunk.dtypes[stream].size();
            lane.fill(stream, chunk.elements * size, |bytes| read_stream(*source, chunk, size, bytes))?;
        }
    }
    Ok(())
}

/// One stream's share of a chunk.
fn read_stream(source: &dyn Source, chunk: &Chunk, size: u64, room: Room<'_>) -> Result<()> {
    match room {
        Room::Host(bytes) => read_in_place(source, chunk, size, bytes),
        Room::Mapped(range) => read_through(source, chunk, size, range),
    }
}

/// Large segments are read and written in pieces, so that all cores copy.
const PIECE: u64 = 1 << 20;

fn read_in_place(source: &dyn Source, chunk: &Chunk, size: u64, bytes: &mut [u8]) -> Result<()> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for segment in &chunk.segments {
        for (start, len) in pieces_of(segment, size) {
            let (piece, after) = rest.split_at_mut(usize_of(len * size));
            pieces.push((segment.tensor, start, piece));
            rest = after;
        }
    }
    pieces.into_par_iter().try_for_each(|(tensor, start, piece)| source.read(tensor, start, piece))
}

/// What is read at a time on the way to mapped memory: it is still in a core's cache when it is copied there.
/// Files cannot be read to that memory itself, because safe code reads only to memory that it may look at.
const NEAR: usize = 128 << 10;

fn read_through(
    source: &dyn Source,
    chunk: &Chunk,
    size: u64,
    range: wgpu::WriteOnly<'_, [u8]>,
) -> Result<()> {
    let (parts, mut tail) = range.into_chunks::<NEAR>();
    let parts: Vec<_> = parts.into_iter().enumerate().collect();
    let whole = parts.len() * NEAR;
    let near = || vec![0; NEAR];
    parts.into_par_iter().try_for_each_init(near, |near, (place, part)| {
        read_part(source, chunk, size, place * NEAR, near)?;
        wgpu::WriteOnly::<[u8]>::from(part).copy_from_slice(near);
        Ok(())
    })?;
    let mut near = vec![0; tail.len()];
    read_part(source, chunk, size, whole, &mut near)?;
    tail.copy_from_slice(&near);
    Ok(())
}

/// Bytes of a chunk from `at` on, whichever segments they lie in.
fn read_part(source: &dyn Source, chunk: &Chunk, size: u64, at: usize, mut out: &mut [u8]) -> Result<()> {
    let mut at = at as u64 / size;
    let first = chunk.segments.partition_point(|segment| segment.at + segment.len <= at);
    for segment in &chunk.segments[first..] {
        if out.is_empty() {
            break;
        }
        let skipped = at - segment.at;
        let len = (segment.len - skipped).min(out.len() as u64 / size);
        let (piece, after) = out.split_at_mut(usize_of(len * size));
        source.read(segment.tensor, segment.start + skipped, piece)?;
        (out, at) = (after, at + len);
    }
    Ok(())
}

fn write_stream(sink: &dyn Sink, chunk: &Chunk, size: u64, bytes: &[u8]) -> Result<()> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    for segment in &chunk.segments {
        for (start, len) in pieces_of(segment, size) {
            let (piece, after) = rest.split_at(usize_of(len * size));
            pieces.push((segment.tensor, start, piece));
            rest = after;
        }
    }
    pieces.into_par_iter().try_for_each(|(tensor, start, piece)| sink.write(tensor, start, piece))
}

/// A segment as (first element in its tensor, elements) of at most [`PIECE`] bytes. Segments lie densely in a chunk.
fn pieces_of(segment: &Segment, size: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
    let (start, len) = (segment.start, segment.len);
    let step = PIECE / size;
    (0..len.div_ceil(step)).map(move |i| (start + i * step, step.min(len - i * step)))
}

fn compute_chunks<'a>(
    job: &Job<'_>,
    sweep: &Mutex<&mut dyn Sweep>,
    scratch: Option<View>,
    filled: Receiver<Loaded<'a>>,
    launched: Sender<Loaded<'a>>,
    clock: &Clock,
) -> Result<()> {
    for loaded in filled {
        let chunk = &job.plan.chunks()[loaded.chunk];
        clock.time(Stage::Upload, || loaded.lane.upload())?;
        clock.time(Stage::Compute, || compute_chunk(job, chunk, loaded.lane, sweep, &scratch))?;
        if launched.send(loaded).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

fn compute_chunk(
    job: &Job<'_>,
    chunk: &Chunk,
    lane: &Lane,
    sweep: &Mutex<&mut dyn Sweep>,
    scratch: &Option<View>,
) -> Result<()> {
    let buffers = Buffers {
        streams: lane.views(&chunk.dtypes, chunk.elements)?,
        scratch: scratch.clone(),
        results: lane.results().cloned(),
    };
    let mut recording = Recording::new(job.run.backend);
    if let Some(results) = &buffers.results {
        recording.clear(results);
    }
    sweep.lock().unwrap_or_else(PoisonError::into_inner).record(&mut recording, chunk, &buffers)?;
    let bytes: Vec<u64> = chunk.dtypes.iter().map(|dtype| dtype.size() * chunk.elements).collect();
    lane.launch(&recording, &bytes)
}

fn write_chunks<'a>(
    job: &Job<'_>,
    sweep: &Mutex<&mut dyn Sweep>,
    ring: &Ring<'a>,
    launched: Receiver<Loaded<'a>>,
    clock: &Clock,
) -> Result<()> {
    job.run.progress.begin(job.plan.traffic().read);
    for loaded in launched {
        let chunk = &job.plan.chunks()[loaded.chunk];
        let results = clock.time(Stage::Readback, || loaded.lane.wait())?;
        sweep.lock().unwrap_or_else(PoisonError::into_inner).absorb(chunk, &results)?;
        clock.time(Stage::Write, || {
            write_chunk(job, chunk, loaded.lane)?;
            sweep.lock().unwrap_or_else(PoisonError::into_inner).written(chunk)
        })?;
        ring.give(loaded.lane);
        job.run.progress.advance(read_bytes(job, chunk));
    }
    Ok(())
}

fn write_chunk(job: &Job<'_>, chunk: &Chunk, lane: &Lane) -> Result<()> {
    for (stream, end) in job.ends.iter().enumerate() {
        if let End::Sink(sink) = end {
            let size = chunk.dtypes[stream].size();
            lane.collect(stream, chunk.elements * size, |bytes| write_stream(*sink, chunk, size, bytes))?;
        }
    }
    Ok(())
}

fn read_bytes(job: &Job<'_>, chunk: &Chunk) -> u64 {
    let ends = job.ends.iter().zip(&chunk.dtypes).filter(|(end, _)| matches!(end, End::Source(_)));
    ends.map(|(_, dtype)| dtype.size() * chunk.elements).sum()
}
