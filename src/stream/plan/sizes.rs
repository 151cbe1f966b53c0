//! What memory a plan takes by the length of its chunks, and the longest that fits.

use super::{Direction, GRANULE, Group, Layout};
use crate::error::{Error, Result};
use crate::shape::DType;
use crate::stream::{Budget, Memories};

/// Bytes of one slot beyond which larger chunks gain nothing on a device: a chunk of this size takes
/// milliseconds to move, and its fixed costs (a dispatch, a file call) microseconds.
const DEVICE_SLOT: u64 = 32 << 20;

/// The same on the host, where a chunk that stays in the cores' caches from its read to its write spares the
/// memory. Measured with slots of 1 to 32 MiB: a merge takes a quarter less processor time at 1 to 3 MiB than
/// at 32, and no less below.
const HOST_SLOT: u64 = 2 << 20;

/// Chunks are no smaller, unless the data are: below, fixed costs would rule.
const MIN_ELEMENTS: u64 = 16 << 10;

/// A combination of types makes no more chunks than this: a plan is a list, and must stay small beside the data.
const MAX_CHUNKS: u64 = 1 << 20;

/// Bytes of memory by the length of a chunk. A slot's buffers serve every combination of types, so each
/// stream counts with its widest.
pub(super) struct Sizes {
    read: Vec<DType>,
    written: Vec<DType>,
    scratch: u64,
}

impl Sizes {
    pub(super) fn of(layout: &Layout, groups: &[Group]) -> Self {
        let widest = |stream: usize| {
            let dtypes = groups.iter().map(|group| group.dtypes[stream]);
            dtypes.max_by_key(|dtype| dtype.size()).unwrap_or(DType::F32)
        };
        let of = |direction| {
            let streams = layout.streams.iter().enumerate().filter(move |(_, s)| s.direction == direction);
            streams.map(|(stream, _)| widest(stream)).collect()
        };
        Self { read: of(Direction::Read), written: of(Direction::Write), scratch: layout.scratch_bytes }
    }

    /// No buffers at all for a plan of no chunks.
    fn bytes(dtypes: &[DType], elements: u64) -> u64 {
        if elements == 0 {
            return 0;
        }
        dtypes.iter().map(|dtype| dtype.padded_bytes(elements)).sum()
    }

    fn slot(&self, elements: u64) -> u64 {
        Self::bytes(&self.read, elements) + Self::bytes(&self.written, elements)
    }

    /// Saturating, as is all that follows: depth and scratch are the caller's, and what no budget holds is refused.
    fn ring(&self, elements: u64, slots: u32) -> u64 {
        u64::from(slots).saturating_mul(self.slot(elements))
    }

    pub(super) fn scratch(&self, elements: u64) -> u64 {
        self.scratch.saturating_mul(elements.next_multiple_of(GRANULE))
    }

    /// The ring and the scratch memory, where kernels work.
    fn work(&self, elements: u64, slots: u32) -> u64 {
        self.ring(elements, slots).saturating_add(self.scratch(elements))
    }

    pub(super) fn device(&self, elements: u64, slots: u32, memories: Memories) -> u64 {
        match memories {
            Memories::Host => 0,
            Memories::Shared | Memories::Separate => self.work(elements, slots),
        }
    }

    /// Before a device with its own memory, each of its buffers in the ring has one that is mapped.
    pub(super) fn host(&self, elements: u64, slots: u32, memories: Memories) -> u64 {
        match memories {
            Memories::Host => self.work(elements, slots),
            Memories::Shared => 0,
            Memories::Separate => self.ring(elements, slots),
        }
    }

    fn largest_buffer(&self, elements: u64) -> u64 {
        let streams = self.read.iter().chain(&self.written).map(|dtype| dtype.padded_bytes(elements));
        streams.chain([self.scratch(elements)]).max().unwrap_or(0)
    }
}

/// A ring of no slots would never move.
pub(super) fn slots(budget: &Budget) -> u32 {
    budget.slots.max(1)
}

/// The longest chunk that everything allows, in whole granules.
pub(super) fn capacity(sizes: &Sizes, budget: &Budget, longest: u64) -> Result<u64> {
    let slots = slots(budget);
    // The search below starts here, and the errors ask for as much.
    let least = longest.min(MIN_ELEMENTS.max(longest.div_ceil(MAX_CHUNKS))).next_multiple_of(GRANULE);
    let refuse = |what: &str, need: u64, have: u64, flag: &str| {
        Err(Error::Budget { op: "plan".into(), what: what.into(), need, have, flag: flag.into() })
    };
    let device = sizes.device(least, slots, budget.memories);
    if device > budget.device_bytes {
        return refuse("device memory", device, budget.device_bytes, "--device-memory");
    }
    let host = sizes.host(least, slots, budget.memories);
    if host > budget.host_bytes {
        return refuse("host memory", host, budget.host_bytes, "--host-memory");
    }
    let buffer = sizes.largest_buffer(least);
    if buffer > budget.max_binding_bytes {
        let limit = "max_storage_buffer_binding_size".to_owned();
        return Err(Error::Limit { op: "plan".into(), limit, max: budget.max_binding_bytes, asked: buffer });
    }
    let target = if budget.memories == Memories::Host { HOST_SLOT } else { DEVICE_SLOT };
    let fits = |elements: u64| {
        sizes.slot(elements) <= target.max(sizes.slot(least))
            && sizes.device(elements, slots, budget.memories) <= budget.device_bytes
            && sizes.host(elements, slots, budget.memories) <= budget.host_bytes
            && sizes.largest_buffer(elements) <= budget.max_binding_bytes
    };
    // Every condition is monotone in the length: halve the range between one that fits and one that is too long.
    let mut fitting = least / GRANULE;
    let mut beyond = target.max(least) / GRANULE + 1;
    while fitting + 1 < beyond {
        let middle = fitting.midpoint(beyond);
        if fits(middle * GRANULE) {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    Ok(fitting * GRANULE)
}
