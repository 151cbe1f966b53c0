//! Which bytes are where, when. Pure data: no device, no file.

mod sizes;

use std::fmt;

use serde::{Serialize, Serializer};

use sizes::{Sizes, capacity, slots};

use super::Budget;
use crate::error::{Error, Result};
use crate::shape::DType;

/// Whether a stream is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a file to the kernels.
    Read,
    /// From the kernels to a file.
    Write,
}

/// One sequence of values parallel to the parameters: a model's weights, a Fisher, the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// What it is, for `--dry-run`.
    pub name: String,
    /// Read or written.
    pub direction: Direction,
}

/// A tensor of the virtual flat array.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Its number of elements.
    pub elements: u64,
    /// Its storage in each stream.
    pub dtypes: Vec<DType>,
    /// Tensors of different classes never share a chunk.
    pub class: u32,
}

/// What streams through: the streams and the tensors, in name order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The parallel streams.
    pub streams: Vec<Stream>,
    /// The tensors.
    pub tensors: Vec<TensorSpec>,
    /// Bytes of scratch memory that kernels need for each element of a chunk.
    pub scratch_bytes: u64,
}

/// A range of elements of every stream, all of one combination of storage types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The class of its tensors.
    pub class: u32,
    /// The storage of each stream.
    pub dtypes: Vec<DType>,
    /// Elements, the sum of its segments'.
    pub elements: u64,
    /// Its parts, densely one after the other.
    pub segments: Vec<Segment>,
}

/// A range of one tensor's elements in a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The tensor's place in the layout.
    pub tensor: usize,
    /// First element in the tensor.
    pub start: u64,
    /// Elements.
    pub len: u64,
    /// First element in the chunk.
    pub at: u64,
}

impl Chunk {
    /// Which tensor lies at `at` of this chunk, and which of its elements.
    ///
    /// # Panics
    /// Beyond the chunk: kernels count only elements of theirs.
    pub(crate) fn element(&self, at: u64) -> (usize, u64) {
        let segment = self.segments.iter().find(|s| s.at <= at && at < s.at + s.len);
        let segment = segment.expect("a kernel counts only elements of its chunk");
        (segment.tensor, segment.start + at - segment.at)
    }
}

/// Bytes that a plan moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Bytes read from files.
    pub read: u64,
    /// Bytes written to files.
    pub written: u64,
}

/// A schedule of chunks and what memory it takes. The same input gives the same plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    streams: Vec<Stream>,
    chunks: Vec<Chunk>,
    slots: u32,
    elements: u64,
    scratch_bytes: u64,
    peak_device_bytes: u64,
    peak_host_bytes: u64,
    traffic: Traffic,
}

/// Chunks hold whole groups of eight elements, as kernels load them.
const GRANULE: u64 = 8;

impl Plan {
    /// Plans one pass over `layout` within `budget`.
    ///
    /// All chunks have the same capacity: the largest that both budgets and the binding limit allow, up to 32 MiB a
    /// slot (2 on the host). Each combination of types is then cut into equal chunks of at most that.
    ///
    /// # Errors
    /// [`Error::Budget`] naming the smallest budget that works; [`Error::Shape`] if a tensor's types do not match
    /// the streams in number, or a size exceeds u64.
    pub fn new(layout: &Layout, budget: &Budget) -> Result<Self> {
        Self::cut(layout, budget, &Cuts::default())
    }

    /// The same with chunks that are cut as `cuts` says, too.
    ///
    /// # Errors
    /// As [`Plan::new`]; [`Error::Budget`] also where what must not be cut apart does not fit.
    pub(crate) fn cut(layout: &Layout, budget: &Budget, cuts: &Cuts<'_>) -> Result<Self> {
        check(layout)?;
        let groups = groups(layout);
        let sizes = Sizes::of(layout, &groups);
        let mut chunks = Vec::new();
        // Nothing to stream needs no memory, and fits every budget.
        if let Some(longest) = groups.iter().map(|group| group.elements).max() {
            let capacity = capacity(&sizes, budget, longest)?;
            for group in &groups {
                let unit = (cuts.unit)(group.class).max(1);
                cut(layout, group, (cuts.longest(capacity, unit)?, unit), &mut chunks);
            }
        }
        let largest = chunks.iter().map(|chunk: &Chunk| chunk.elements).max().unwrap_or(0);
        let slots = slots(budget).min(u32::try_from(chunks.len()).unwrap_or(u32::MAX));
        Ok(Self {
            streams: layout.streams.clone(),
            slots,
            elements: groups.iter().map(|group| group.elements).sum(),
            scratch_bytes: sizes.scratch(largest),
            peak_device_bytes: sizes.device(largest, slots, budget.memories),
            peak_host_bytes: sizes.host(largest, slots, budget.memories),
            traffic: traffic(&layout.streams, &chunks),
            chunks,
        })
    }

    /// What is left when the first `chunks` are done.
    ///
    /// # Panics
    /// If there are fewer.
    pub(crate) fn after(&self, chunks: usize) -> Self {
        let chunks = self.chunks[chunks..].to_vec();
        let elements = chunks.iter().map(|chunk| chunk.elements).sum();
        Self { elements, traffic: traffic(&self.streams, &chunks), chunks, ..self.clone() }
    }

    /// The chunks, in order.
    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The streams.
    #[must_use]
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// Depth of the ring: at most as many as there are chunks.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Elements that stream through.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.elements
    }

    /// Bytes of scratch memory for the largest chunk, in whole groups.
    #[must_use]
    pub fn scratch_bytes(&self) -> u64 {
        self.scratch_bytes
    }

    /// The most device memory in use: the ring and the scratch memory; 0 on the host backend.
    #[must_use]
    pub fn peak_device_bytes(&self) -> u64 {
        self.peak_device_bytes
    }

    /// The most host memory in use: the ring, or the mappable buffers before a device with its own memory.
    #[must_use]
    pub fn peak_host_bytes(&self) -> u64 {
        self.peak_host_bytes
    }

    /// Bytes that will move.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }
}

/// Where chunks may be cut, beside what memory says.
pub(crate) struct Cuts<'a> {
    /// A chunk has no more elements than this, unless one unit has.
    pub(crate) most: u64,
    /// Of a class: chunks begin and end at multiples of so many elements of its tensors, which all have whole
    /// multiples of it.
    pub(crate) unit: &'a dyn Fn(u32) -> u64,
}

impl Default for Cuts<'_> {
    fn default() -> Self {
        Self { most: u64::MAX, unit: &|_| 1 }
    }
}

impl Cuts<'_> {
    /// The longest chunk of such units within `capacity`.
    fn longest(&self, capacity: u64, unit: u64) -> Result<u64> {
        if unit > capacity {
            return Err(Error::Budget {
                op: "plan".into(),
                what: "elements that must lie in one chunk".into(),
                need: unit,
                have: capacity,
                flag: "--device-memory or --host-memory".into(),
            });
        }
        Ok((capacity.min(self.most) / unit * unit).max(unit))
    }
}

/// The tensors of one combination of types, in order.
struct Group {
    class: u32,
    dtypes: Vec<DType>,
    tensors: Vec<usize>,
    elements: u64,
}

/// Types and streams match, and all bytes together are few enough that no sum of them overflows.
fn check(layout: &Layout) -> Result<()> {
    let too_many = || Error::shape("plan", "the layout", "fewer than 2^60 bytes in all", "more");
    let mut sum = 0_u64;
    for tensor in &layout.tensors {
        if tensor.dtypes.len() != layout.streams.len() {
            let expected = format!("{} types, one a stream", layout.streams.len());
            return Err(Error::shape("plan", &tensor.name, expected, tensor.dtypes.len().to_string()));
        }
        let streamed: u64 = tensor.dtypes.iter().map(|dtype| dtype.size()).sum();
        let width = streamed.checked_add(layout.scratch_bytes).map(|width| width.max(1));
        let bytes = width.and_then(|width| tensor.elements.checked_mul(width));
        let total = bytes.and_then(|bytes| sum.checked_add(bytes));
        sum = total.filter(|&sum| sum < 1 << 60).ok_or_else(too_many)?;
    }
    Ok(())
}

fn groups(layout: &Layout) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, tensor) in layout.tensors.iter().enumerate().filter(|(_, tensor)| tensor.elements > 0) {
        let same = |group: &&mut Group| group.class == tensor.class && group.dtypes == tensor.dtypes;
        match groups.iter_mut().find(same) {
            Some(group) => {
                group.tensors.push(index);
                group.elements += tensor.elements;
            }
            None => groups.push(Group {
                class: tensor.class,
                dtypes: tensor.dtypes.clone(),
                tensors: vec![index],
                elements: tensor.elements,
            }),
        }
    }
    groups
}

/// Cuts a group into equal chunks of at most `capacity`, a multiple of `unit`.
fn cut(layout: &Layout, group: &Group, (capacity, unit): (u64, u64), chunks: &mut Vec<Chunk>) {
    let count = group.elements.div_ceil(capacity.max(1));
    let step = if unit == 1 { GRANULE } else { unit };
    let length = group.elements.div_ceil(count.max(1)).next_multiple_of(step).min(capacity);
    let fresh =
        || Chunk { class: group.class, dtypes: group.dtypes.clone(), elements: 0, segments: Vec::new() };
    let mut chunk = fresh();
    for &tensor in &group.tensors {
        let mut start = 0;
        let elements = layout.tensors[tensor].elements;
        while start < elements {
            let len = (length - chunk.elements).min(elements - start);
            chunk.segments.push(Segment { tensor, start, len, at: chunk.elements });
            chunk.elements += len;
            start += len;
            if chunk.elements == length {
                chunks.push(std::mem::replace(&mut chunk, fresh()));
            }
        }
    }
    if chunk.elements > 0 {
        chunks.push(chunk);
    }
}

fn traffic(streams: &[Stream], chunks: &[Chunk]) -> Traffic {
    let mut traffic = Traffic::default();
    for chunk in chunks {
        for (stream, dtype) in streams.iter().zip(&chunk.dtypes) {
            let bytes = dtype.size() * chunk.elements;
            match stream.direction {
                Direction::Read => traffic.read += bytes,
                Direction::Write => traffic.written += bytes,
            }
        }
    }
    traffic
}

/// The summary that `--dry-run` prints.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let longest = self.chunks.iter().map(|chunk| chunk.elements).max().unwrap_or(0);
        for (place, stream) in self.streams.iter().enumerate() {
            let verb = if stream.direction == Direction::Read { "read " } else { "write" };
            let occurs = |dtype: &DType| self.chunks.iter().any(|chunk| chunk.dtypes[place] == *dtype);
            let dtypes = DType::ALL.into_iter().filter(occurs);
            let dtypes: Vec<String> = dtypes.map(|dtype| dtype.to_string()).collect();
            writeln!(f, "  {verb} {}: {}", stream.name.escape_debug(), dtypes.join(", "))?;
        }
        match self.chunks.len() {
            1 => writeln!(f, "  {} elements in one chunk", self.elements)?,
            n => writeln!(f, "  {} elements in {n} chunks of at most {longest}", self.elements)?,
        }
        writeln!(f, "  {} read, {} written", mib(self.traffic.read), mib(self.traffic.written))?;
        writeln!(
            f,
            "  {} in flight at a time: {} device memory, {} host memory",
            if self.slots == 1 { "1 chunk".to_owned() } else { format!("{} chunks", self.slots) },
            mib(self.peak_device_bytes),
            mib(self.peak_host_bytes)
        )
    }
}

/// The same numbers, not the chunks: there can be millions.
impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Summary<'a> {
            streams: Vec<&'a str>,
            elements: u64,
            chunks: usize,
            slots: u32,
            bytes_read: u64,
            bytes_written: u64,
            peak_device_bytes: u64,
            peak_host_bytes: u64,
        }
        Summary {
            streams: self.streams.iter().map(|stream| stream.name.as_str()).collect(),
            elements: self.elements,
            chunks: self.chunks.len(),
            slots: self.slots,
            bytes_read: self.traffic.read,
            bytes_written: self.traffic.written,
            peak_device_bytes: self.peak_device_bytes,
            peak_host_bytes: self.peak_host_bytes,
        }
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A tensor of whole units of a class: classes are consecutive, and have a unit and a type each.
    fn layout(tensors: &[(u64, u32)], unit: impl Fn(u32) -> u64) -> Layout {
        let spec = |(i, &(units, class)): (usize, &(u64, u32))| TensorSpec {
            name: format!("t{i}"),
            elements: units * unit(class),
            dtypes: vec![DType::ALL[class as usize % 3]],
            class,
        };
        Layout {
            streams: vec![Stream { name: "scores".into(), direction: Direction::Read }],
            tensors: tensors.iter().enumerate().map(spec).collect(),
            scratch_bytes: 0,
        }
    }

    /// Every element once, in the order of the tensors where the classes are; cuts at whole units; no chunk too long.
    fn check_cuts(
        layout: &Layout,
        plan: &Plan,
        most: u64,
        unit: impl Fn(u32) -> u64,
    ) -> Result<(), TestCaseError> {
        let mut next = (0, 0);
        for chunk in plan.chunks() {
            let unit = unit(chunk.class);
            prop_assert!(
                chunk.elements > 0 && chunk.elements <= most.max(unit),
                "{} of {most}",
                chunk.elements
            );
            prop_assert!(chunk.elements.is_multiple_of(unit));
            prop_assert_eq!(chunk.elements, chunk.segments.iter().map(|segment| segment.len).sum::<u64>());
            for segment in &chunk.segments {
                while next.1 == layout.tensors[next.0].elements {
                    next = (next.0 + 1, 0);
                }
                prop_assert_eq!((segment.tensor, segment.start), next);
                prop_assert_eq!(layout.tensors[segment.tensor].class, chunk.class);
                prop_assert!(segment.start.is_multiple_of(unit));
                next.1 += segment.len;
            }
        }
        while next.0 < layout.tensors.len() && next.1 == layout.tensors[next.0].elements {
            next = (next.0 + 1, 0);
        }
        prop_assert_eq!(next, (layout.tensors.len(), 0), "something is left over");
        Ok(())
    }

    fn sorted(mut tensors: Vec<(u64, u32)>) -> Vec<(u64, u32)> {
        tensors.sort_by_key(|&(_, class)| class);
        tensors
    }

    proptest! {
        #[test]
        fn chunks_hold_whole_units_in_order(
            tensors in prop::collection::vec((0_u64..40, 0_u32..4), 0..12),
            most in 1_u64..60,
        ) {
            let unit = |class: u32| [1, 2, 5, 12][class as usize];
            let layout = layout(&sorted(tensors), unit);
            let plan = Plan::cut(&layout, &Budget::default(), &Cuts { most, unit: &unit }).expect("no limits");
            check_cuts(&layout, &plan, most, unit)?;
        }

        #[test]
        fn selections_beyond_two_to_the_32_are_cut_right(
            tensors in prop::collection::vec((0_u64..1 << 34, 0_u32..3), 1..5),
            most in 1_u64 << 24..1 << 27,
        ) {
            let unit = |class: u32| [1, 4, 36][class as usize];
            let layout = layout(&sorted(tensors), unit);
            let budget = Budget { host_bytes: 256 << 20, ..Budget::default() };
            let plan = Plan::cut(&layout, &budget, &Cuts { most, unit: &unit }).expect("256 MiB hold a chunk");
            check_cuts(&layout, &plan, most, unit)?;
            prop_assert!(plan.peak_host_bytes() <= 256 << 20);
            prop_assert_eq!(plan.elements(), layout.tensors.iter().map(|tensor| tensor.elements).sum::<u64>());
        }
    }

    #[test]
    fn units_that_do_not_fit_are_refused() {
        let unit = |_: u32| 1 << 22;
        let layout = layout(&[(2, 0)], unit);
        let budget = Budget { host_bytes: 8 << 20, ..Budget::default() };
        let refused =
            Plan::cut(&layout, &budget, &Cuts { most: 8, unit: &unit }).expect_err("4 Mi f32 and 8 MiB");
        assert!(refused.to_string().contains("4194304"), "{refused}");
    }
}
