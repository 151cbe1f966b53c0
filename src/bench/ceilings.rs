//! What a device can do.

use std::time::Duration;

use super::job::Job;
use super::record::{Bound, Row};
use crate::backend::Backend;
use crate::error::Result;
use crate::gpu::DeviceClass;
use crate::interrupt::Interrupt;
use crate::kernel::{Checked, Cost};
use crate::kernels::ceiling::Fma;

/// The measured ceilings of one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// A copy that no cache holds: the ceiling of all that moves memory.
    pub copy: Row,
    /// Multiply-adds in registers.
    pub fma: Row,
    /// Matrix products in cache, on the host: what a well-kept library makes of its multiply-adds.
    pub products: Option<Row>,
    /// Bytes to the device; nothing where kernels work in the host's memory.
    pub upload: Option<Row>,
    /// Bytes back.
    pub readback: Option<Row>,
    /// The smallest step, from recording to its end.
    pub latency: Row,
}

/// Bytes of the copy: twice as many are in use, more than a cache holds.
const COPY: u64 = 256 << 20;

/// Bytes that go to a device and back.
const TRANSFER: u64 = 64 << 20;

impl Ceilings {
    /// Measures all of them, in about `budget`, with at most `memory_bytes` in use at a time.
    ///
    /// # Errors
    /// What the backend refuses; [`Error::Interrupted`](crate::Error::Interrupted).
    pub fn measure(
        backend: &Backend,
        budget: Duration,
        memory_bytes: u64,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let most = most_bytes(backend, memory_bytes);
        let time = |job: Job| Row::measured(&job, budget / 6, interrupt);
        Ok(Self {
            copy: time(copy(backend, memory_bytes)?)?,
            fma: time(multiply_adds(backend)?)?,
            products: Job::products(backend).map(time).transpose()?,
            upload: Job::upload(backend, TRANSFER.min(most))?.map(time).transpose()?,
            readback: Job::readback(backend, TRANSFER.min(most))?.map(time).transpose()?,
            latency: time(Job::latency(backend)?)?,
        })
    }

    /// The better of two measurements: what else a machine does in the meantime can only make a ceiling too low.
    #[must_use]
    pub fn or_faster(self, other: Self) -> Self {
        let faster = |a: Row, b: Row| if b.seconds < a.seconds { b } else { a };
        let optional = |a: Option<Row>, b: Option<Row>| Some(faster(a?, b?));
        Self {
            copy: faster(self.copy, other.copy),
            fma: faster(self.fma, other.fma),
            products: optional(self.products, other.products),
            upload: optional(self.upload, other.upload),
            readback: optional(self.readback, other.readback),
            latency: faster(self.latency, other.latency),
        }
    }

    /// Bytes a second that a kernel can move.
    #[must_use]
    pub fn bandwidth(&self) -> f64 {
        self.copy.bytes_per_second()
    }

    /// Operations a second that a kernel can do: those of products where they were measured, of multiply-adds
    /// elsewhere.
    #[must_use]
    pub fn arithmetic(&self) -> f64 {
        self.products.as_ref().unwrap_or(&self.fma).flops_per_second()
    }

    /// Which of them `cost` meets first.
    #[must_use]
    pub fn bound(&self, cost: Cost) -> Bound {
        let [moving, computing] =
            [cost.bytes as f64 / self.bandwidth(), cost.flops as f64 / self.arithmetic()];
        if computing > moving { Bound::Arithmetic } else { Bound::Bandwidth }
    }

    /// All that were measured.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        let optional = [&self.products, &self.upload, &self.readback].into_iter().flatten();
        [&self.copy, &self.fma].into_iter().chain(optional).chain([&self.latency])
    }
}

/// The two ceilings of kernels, kept to be run beside each of them.
pub(super) struct Beside {
    copy: Job,
    arithmetic: Job,
}

impl Beside {
    /// With at most `memory_bytes` in use.
    pub(super) fn new(backend: &Backend, memory_bytes: u64) -> Result<Self> {
        let arithmetic = Job::products(backend).map_or_else(|| multiply_adds(backend), Ok)?;
        Ok(Self { copy: copy(backend, memory_bytes)?, arithmetic })
    }

    /// The one that is met first.
    pub(super) fn of(&self, bound: Bound) -> &Job {
        match bound {
            Bound::Bandwidth => &self.copy,
            Bound::Arithmetic => &self.arithmetic,
        }
    }
}

fn copy(backend: &Backend, memory_bytes: u64) -> Result<Job> {
    Job::copy(backend, COPY.min(most_bytes(backend, memory_bytes)))
}

fn multiply_adds(backend: &Backend) -> Result<Job> {
    // So many elements that each thread of the device has several.
    let elements = if backend.caps().class == DeviceClass::Gpu { 1 << 22 } else { 1 << 16 };
    Job::step(backend, Fma::bench(elements))
}

/// The most bytes of each of two buffers.
fn most_bytes(backend: &Backend, memory_bytes: u64) -> u64 {
    let caps = backend.caps();
    (memory_bytes / 2).min(caps.max_binding_bytes).min(caps.max_buffer_bytes) / 32 * 32
}
