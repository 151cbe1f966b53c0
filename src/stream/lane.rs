//! A slot of the ring: the memory that one chunk passes through, on either backend.
//!
//! On the host the kernels work where the files were read to. On a device each stream has a mappable buffer,
//! and files are read to it, or written from it, where it is mapped. Kernels work in that very buffer where
//! the device's memory is the host's; elsewhere the device copies between it and its own buffer, in the
//! submission of the kernels. The runner sees none of this: it fills, launches, waits and collects.
//!
//! A buffer is mapped exactly while the host may use it: of a stream that is read from the start until the
//! launch, and again when the launched kernels have ended; of one that is written from their end until it is
//! collected.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use wgpu::{BufferUsages, MapMode};

use super::Direction;
use crate::backend::{Backend, STORAGE, device_buffer};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{Element, HostMemory, Memory, View};
use crate::record::Recording;
use crate::shape::{DType, usize_of};

/// A slot of the ring.
pub(super) struct Lane {
    strips: Vec<Strip>,
    results: Option<(Strip, View)>,
    backend: Backend,
    launched: Mutex<Option<Launched>>,
}

/// One stream's memory in a slot, or that of its results.
enum Strip {
    /// Where files are read to and written from, and where kernels work.
    Host(HostMemory),
    /// A device's.
    Device(DeviceStrip),
}

struct DeviceStrip {
    /// Where kernels work.
    work: wgpu::Buffer,
    /// Where files are read to or written from: `work` itself, or memory of the host that the device copies.
    mappable: wgpu::Buffer,
    direction: Direction,
}

/// What a device does for a slot.
struct Launched {
    submission: wgpu::SubmissionIndex,
    /// One message for each buffer, when it is mapped again.
    mapped: Receiver<Mapped>,
}

type Mapped = std::result::Result<(), wgpu::BufferAsyncError>;

/// What a lane needs of one stream: bytes of its largest chunk, and its direction.
pub(super) struct StripSize {
    pub(super) bytes: u64,
    pub(super) direction: Direction,
}

/// Where the bytes of a stream go.
pub(super) enum Room<'a> {
    /// Memory of the host.
    Host(&'a mut [u8]),
    /// Mapped memory, which may be slow to read, and is not to be.
    Mapped(wgpu::WriteOnly<'a, [u8]>),
}

impl Lane {
    pub(super) fn new(backend: &Backend, strips: &[StripSize], result_words: u64) -> Result<Self> {
        let strips = strips.iter().map(|size| Strip::new(backend, size)).collect::<Result<_>>()?;
        let results = match result_words {
            0 => None,
            words => Some(results(backend, words)?),
        };
        Ok(Self { strips, results, backend: backend.clone(), launched: Mutex::new(None) })
    }

    /// Lets `fill` write a stream's bytes of a chunk.
    pub(super) fn fill(
        &self,
        stream: usize,
        bytes: u64,
        fill: impl FnOnce(Room<'_>) -> Result<()>,
    ) -> Result<()> {
        let bytes = usize_of(bytes);
        match &self.strips[stream] {
            Strip::Host(memory) => memory.write(|all| fill(Room::Host(&mut all[..bytes])))?,
            Strip::Device(strip) => {
                let mut range = strip.mappable.get_mapped_range_mut(..).map_err(unmapped)?;
                fill(Room::Mapped(range.slice(..bytes)))
            }
        }
    }

    /// The views that a chunk's kernels are recorded with.
    pub(super) fn views(&self, dtypes: &[DType], elements: u64) -> Result<Vec<View>> {
        let strips = self.strips.iter().zip(dtypes);
        strips.map(|(strip, &dtype)| View::new(strip.work(), 0, elements, dtype.into())).collect()
    }

    /// The chunk's results.
    pub(super) fn results(&self) -> Option<&View> {
        self.results.as_ref().map(|(_, view)| view)
    }

    /// Hands what was filled over to the device.
    pub(super) fn upload(&self) -> Result<()> {
        let Backend::Gpu(gpu) = &self.backend else { return Ok(()) };
        gpu.scoped("upload", || {
            self.device_strips(Direction::Read).for_each(|(_, strip)| strip.mappable.unmap());
        })?;
        gpu.check("upload")
    }

    /// Starts a chunk's kernels, and the ways to them and back; `bytes` has each stream's of the chunk.
    pub(super) fn launch(&self, recording: &Recording, bytes: &[u64]) -> Result<()> {
        let Backend::Gpu(gpu) = &self.backend else { return self.backend.run(recording) };
        let launched = gpu.scoped("stream", || self.submit(gpu, recording, bytes))??;
        *self.launched.lock().unwrap_or_else(PoisonError::into_inner) = Some(launched);
        gpu.check("stream")
    }

    fn submit(&self, gpu: &Gpu, recording: &Recording, bytes: &[u64]) -> Result<Launched> {
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        for (place, strip) in self.device_strips(Direction::Read) {
            strip.copy(&mut encoder, &strip.mappable, &strip.work, bytes[place]);
        }
        recording.encode(&mut encoder)?;
        let bytes = [bytes, &[self.results().map_or(0, View::bytes)]].concat();
        for (place, strip) in self.device_strips(Direction::Write) {
            strip.copy(&mut encoder, &strip.work, &strip.mappable, bytes[place]);
        }
        let submission = gpu.queue().submit([encoder.finish()]);
        let (done, mapped) = channel();
        for direction in [Direction::Read, Direction::Write] {
            self.device_strips(direction).for_each(|(_, strip)| strip.map(done.clone()));
        }
        Ok(Launched { submission, mapped })
    }

    /// The streams' buffers of a device, by their places; the results come after the last.
    fn device_strips(&self, direction: Direction) -> impl Iterator<Item = (usize, &DeviceStrip)> {
        let results = self.results.iter().map(|(strip, _)| strip);
        self.strips.iter().chain(results).enumerate().filter_map(move |(place, strip)| match strip {
            Strip::Device(strip) if strip.direction == direction => Some((place, strip)),
            _ => None,
        })
    }

    /// Waits for the chunk's kernels, and gives its results.
    pub(super) fn wait(&self) -> Result<Vec<u32>> {
        let launched = self.launched.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let (Backend::Gpu(gpu), Some(launched)) = (&self.backend, launched) {
            launched.wait(gpu)?;
        }
        let Some((strip, view)) = &self.results else { return Ok(Vec::new()) };
        let mut words = vec![0_u32; usize_of(view.len())];
        strip.collect(view.bytes(), |bytes| {
            bytemuck::cast_slice_mut(&mut words).copy_from_slice(bytes);
            Ok(())
        })?;
        Ok(words)
    }

    /// Lets `take` read a written stream's bytes of a chunk.
    pub(super) fn collect(
        &self,
        stream: usize,
        bytes: u64,
        take: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.strips[stream].collect(bytes, take)
    }
}

fn results(backend: &Backend, words: u64) -> Result<(Strip, View)> {
    let strip = Strip::new(
        backend,
        &StripSize { bytes: Element::U32.padded_bytes(words), direction: Direction::Write },
    )?;
    let view = View::new(strip.work(), 0, words, Element::U32)?;
    Ok((strip, view))
}

impl Strip {
    fn new(backend: &Backend, size: &StripSize) -> Result<Self> {
        let memory = Element::U32.padded_bytes(size.bytes.div_ceil(4));
        Ok(match backend {
            Backend::Host => Self::Host(HostMemory::zeroed(memory)),
            Backend::Gpu(gpu) => Self::Device(DeviceStrip::new(gpu, memory, size.direction)?),
        })
    }

    fn work(&self) -> Memory {
        match self {
            Self::Host(memory) => Memory::Host(memory.clone()),
            Self::Device(strip) => Memory::Device(strip.work.clone()),
        }
    }

    fn collect(&self, bytes: u64, take: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        let bytes = usize_of(bytes);
        match self {
            Self::Host(memory) => memory.read(|all| take(&all[..bytes]))?,
            Self::Device(strip) => {
                let range = strip.mappable.get_mapped_range(..).map_err(unmapped)?;
                take(&range[..bytes])?;
                drop(range);
                strip.mappable.unmap();
                Ok(())
            }
        }
    }
}

impl DeviceStrip {
    fn new(gpu: &Gpu, bytes: u64, direction: Direction) -> Result<Self> {
        let (mapping, copied) = match direction {
            Direction::Read => (BufferUsages::MAP_WRITE, BufferUsages::COPY_SRC),
            Direction::Write => (BufferUsages::MAP_READ, BufferUsages::COPY_DST),
        };
        let to_fill = direction == Direction::Read;
        if gpu.caps().mappable_storage {
            let both = device_buffer(gpu, bytes, STORAGE | mapping, to_fill)?;
            return Ok(Self { work: both.clone(), mappable: both, direction });
        }
        let work = device_buffer(gpu, bytes, STORAGE, false)?;
        let mappable = device_buffer(gpu, bytes, mapping | copied, to_fill)?;
        Ok(Self { work, mappable, direction })
    }

    /// Copies what kernels do not find, or leave, where it is mapped.
    fn copy(&self, encoder: &mut wgpu::CommandEncoder, from: &wgpu::Buffer, to: &wgpu::Buffer, bytes: u64) {
        if from != to {
            encoder.copy_buffer_to_buffer(from, 0, to, 0, bytes.next_multiple_of(4));
        }
    }

    fn map(&self, done: Sender<Mapped>) {
        let mode = if self.direction == Direction::Read { MapMode::Write } else { MapMode::Read };
        self.mappable.map_async(mode, .., move |mapped| {
            let _waiter_gone = done.send(mapped);
        });
    }
}

impl Launched {
    /// Returns when the submission has ended and the buffers are mapped, not waiting for what was submitted later.
    fn wait(self, gpu: &Gpu) -> Result<()> {
        gpu.wait_for(Some(self.submission))?;
        // The iterator ends when every buffer's callback was called, or dropped with its device.
        for mapped in self.mapped {
            mapped.map_err(|error| Error::Device { op: "map".into(), message: error.to_string() })?;
        }
        gpu.check("map")
    }
}

fn unmapped(error: impl std::fmt::Display) -> Error {
    Error::Device { op: "stream".into(), message: error.to_string() }
}
