//! How a layer's data of all files are read: several files together where one buffer takes them, or some
//! samples of a file at a time.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::PerSample;
use crate::backend::Backend;
use crate::checkpoint::{Capture, CaptureLayer};
use crate::error::Result;
use crate::methods::captured::{Batch, InFile, Portion, joinable, ranges};
use crate::shape::usize_of;

/// Bytes of a layer's data that are held without a budget, beside those of one file.
const HELD: u64 = 1 << 30;

/// Files whose data lie in one buffer (of each size, where the layer is used at several), or some samples of one file.
pub(super) struct Chunk<'a> {
    sizes: Vec<Vec<InFile<'a>>>,
    pub(super) samples: Range<usize>,
    /// Of one file, counted in it.
    some: Option<Range<u64>>,
    /// Its data, where they stay in memory.
    pub(super) held: RefCell<Option<Rc<Vec<Batch>>>>,
}

impl Chunk<'_> {
    /// Its data, one batch for each size and part: never none, and one alone but where channels come before
    /// positions or a sample is divided.
    pub(super) fn read(&self, backend: &Backend, divided: bool) -> Result<Vec<Batch>> {
        let of_size = |files: &Vec<InFile<'_>>| match &self.some {
            None => Batch::load(backend, files, &[]).map(|batch| vec![batch]),
            Some(samples) => read_some(backend, files[0], samples, divided),
        };
        let batches = self.sizes.iter().map(of_size).collect::<Result<Vec<Vec<Batch>>>>()?;
        Ok(batches.into_iter().flatten().collect())
    }
}

/// Some samples of a file: what a range of several is taken in is further samples, not parts of one.
fn read_some(backend: &Backend, file: InFile<'_>, samples: &Range<u64>, divided: bool) -> Result<Vec<Batch>> {
    let portions = if divided && samples.end - samples.start == 1 {
        file.portions(&backend.caps(), samples.clone())
    } else {
        vec![Portion::whole(file.layer.clone(), samples.clone())]
    };
    portions.iter().map(|portion| Batch::load_portion(backend, file.capture, portion, &[])).collect()
}

/// Bytes of a layer's data that may be held.
pub(super) fn hold_bytes(job: &PerSample<'_>) -> u64 {
    let device = if job.run.backend.caps().is_host { u64::MAX } else { job.run.budget.device_bytes / 2 };
    HELD.min(job.run.budget.host_bytes / 2).min(device)
}

/// The chunks of a layer, or of those that share a parameter, and whether a sample of some file is taken in
/// parts. `parts`: the layers of each file, by size.
pub(super) fn chunks<'a>(
    job: &'a PerSample<'a>,
    members: &[usize],
    parts: &'a [Vec<CaptureLayer>],
) -> (Vec<Chunk<'a>>, bool) {
    let mut chunks = Chunks { job, members, all: Vec::new(), last: None, divided: false };
    for ((capture, parts), samples) in job.captures.iter().zip(parts).zip(job.first.windows(2)) {
        if samples[0] < samples[1] {
            let sizes = parts.iter().map(|layer| InFile { capture, layer }).collect();
            chunks.add(capture, sizes, samples[0]..samples[1]);
        }
    }
    (chunks.all, chunks.divided)
}

/// Chunks, file after file.
struct Chunks<'a, 'm> {
    job: &'a PerSample<'a>,
    members: &'m [usize],
    all: Vec<Chunk<'a>>,
    /// The last chunk's first file and its bytes, where it has whole files, which others may join.
    last: Option<(InFile<'a>, u64)>,
    divided: bool,
}

impl<'a> Chunks<'a, '_> {
    fn add(&mut self, capture: &'a Capture, sizes: Vec<InFile<'a>>, samples: Range<usize>) {
        let this = InFile { capture, layer: &capture.layers()[self.members[0]] };
        let bytes = self.members.iter().map(|&at| capture.layers()[at].bytes()).sum();
        if self.joins(this, bytes) {
            return self.join(&sizes, samples.end, bytes);
        }
        let sizes: Vec<_> = sizes.into_iter().map(|file| vec![file]).collect();
        let chunk = |samples, some| Chunk { sizes: sizes.clone(), samples, some, held: RefCell::new(None) };
        match self.samples_at_a_time(capture) {
            None => {
                self.all.push(chunk(samples, None));
                self.last = Some((this, bytes));
            }
            Some(most) => {
                let place = |at: u64| samples.start + usize_of(at);
                let some = |range: Range<u64>| chunk(place(range.start)..place(range.end), Some(range));
                self.all.extend(ranges(capture.samples(), most).map(some));
                self.last = None;
            }
        }
    }

    /// Whether a file's data may lie in the buffer of those before it.
    fn joins(&self, this: InFile<'a>, bytes: u64) -> bool {
        let most = hold_bytes(self.job).min(self.job.run.backend.caps().max_binding_bytes);
        let fits = |(last, together): (InFile<'_>, u64)| together + bytes <= most && joinable(last, this);
        self.members.len() == 1 && self.last.is_some_and(fits)
    }

    fn join(&mut self, sizes: &[InFile<'a>], end: usize, bytes: u64) {
        let (Some(chunk), Some((_, together))) = (self.all.last_mut(), &mut self.last) else { return };
        chunk.sizes.iter_mut().zip(sizes).for_each(|(files, &file)| files.push(file));
        chunk.samples.end = end;
        *together += bytes;
    }

    /// How many samples of a file are taken at a time, where they are not all taken at once and whole.
    fn samples_at_a_time(&mut self, capture: &'a Capture) -> Option<u64> {
        let caps = self.job.run.backend.caps();
        let members: Vec<_> =
            self.members.iter().map(|&at| InFile { capture, layer: &capture.layers()[at] }).collect();
        if !members.iter().all(|file| file.takes_whole_samples(&caps)) {
            self.divided = true;
            return Some(1);
        }
        let most = members.iter().map(|file| file.samples_within_bindings(&caps)).min();
        most.filter(|&most| most < capture.samples())
    }
}
