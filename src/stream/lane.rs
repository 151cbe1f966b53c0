//! A slot of the ring: the memory that one chunk passes through, on either backend.
//!
//! On the host the kernels work where the files were read to. On a device a slot has staging memory on the host,
//! the device's buffers, and mappable buffers for the way back. The runner sees neither: it fills,
//! launches and collects.

use std::sync::{Mutex, PoisonError};

use crate::backend::Backend;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::memory::{Element, HostMemory, Memory, View};
use crate::record::Recording;
use crate::shape::DType;

/// One stream's memory in a slot.
struct Strip {
    /// Where files are read to and written from.
    host: HostMemory,
    /// Where kernels work; the same memory on the host backend.
    work: Memory,
    /// For the way back from a device.
    readback: Option<wgpu::Buffer>,
}

/// A slot of the ring.
pub(super) struct Lane {
    strips: Vec<Strip>,
    results: Option<View>,
    results_readback: Option<wgpu::Buffer>,
    backend: Backend,
    submitted: Mutex<Option<wgpu::SubmissionIndex>>,
}

/// What a lane needs of one stream: bytes of its largest chunk, and whether it is written.
pub(super) struct StripSize {
    pub(super) bytes: u64,
    pub(super) written: bool,
}

impl Lane {
    pub(super) fn new(backend: &Backend, strips: &[StripSize], result_words: u64) -> Result<Self> {
        let strips = strips.iter().map(|size| Strip::new(backend, size)).collect::<Result<_>>()?;
        let results = match result_words {
            0 => None,
            words => Some(backend.alloc(words, Element::U32)?),
        };
        let results_readback = match (backend, &results) {
            (Backend::Gpu(gpu), Some(view)) => Some(readback(gpu, view.padded_bytes())),
            _ => None,
        };
        Ok(Self { strips, results, results_readback, backend: backend.clone(), submitted: Mutex::new(None) })
    }

    /// Lets `fill` write a stream's bytes of a chunk.
    pub(super) fn fill(
        &self,
        stream: usize,
        bytes: u64,
        fill: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.strips[stream].host.write(|all| fill(&mut all[..usize_of(bytes)]))?
    }

    /// The views that a chunk's kernels are recorded with.
    pub(super) fn views(&self, dtypes: &[DType], elements: u64) -> Result<Vec<View>> {
        let strips = self.strips.iter().zip(dtypes);
        strips.map(|(strip, &dtype)| View::new(strip.work.clone(), 0, elements, dtype.into())).collect()
    }

    /// The chunk's results.
    pub(super) fn results(&self) -> Option<&View> {
        self.results.as_ref()
    }

    /// Moves what was filled to where kernels work.
    pub(super) fn upload(&self, stream: usize, bytes: u64) -> Result<()> {
        let strip = &self.strips[stream];
        if let (Backend::Gpu(gpu), Memory::Device(buffer)) = (&self.backend, &strip.work) {
            return strip.host.read(|all| gpu.upload(buffer, 0, &all[..usize_of(bytes)]))?;
        }
        Ok(())
    }

    /// Starts a chunk's kernels and the way back of the streams `written` (with their bytes).
    pub(super) fn launch(&self, recording: &Recording, written: &[(usize, u64)]) -> Result<()> {
        let Backend::Gpu(gpu) = &self.backend else { return self.backend.run(recording) };
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        recording.encode(&mut encoder)?;
        let ways = written.iter().map(|&(stream, bytes)| {
            let strip = &self.strips[stream];
            (&strip.work, strip.readback.as_ref(), bytes.next_multiple_of(4))
        });
        let results = self.results.as_ref();
        let ways =
            ways.chain(results.map(|v| (v.memory(), self.results_readback.as_ref(), v.padded_bytes())));
        for (work, readback, bytes) in ways {
            if let (Memory::Device(buffer), Some(readback)) = (work, readback) {
                encoder.copy_buffer_to_buffer(buffer, 0, readback, 0, bytes);
            }
        }
        let index = gpu.queue().submit([encoder.finish()]);
        *self.submitted.lock().unwrap_or_else(PoisonError::into_inner) = Some(index);
        gpu.check("stream")
    }

    /// Waits for the chunk's kernels and brings the streams `written` back to the host.
    pub(super) fn wait(&self, written: &[(usize, u64)]) -> Result<Vec<u32>> {
        let Backend::Gpu(gpu) = &self.backend else {
            return self.results.as_ref().map_or(Ok(Vec::new()), |view| self.backend.download(view));
        };
        let index = self.submitted.lock().unwrap_or_else(PoisonError::into_inner).take();
        gpu.wait_for(index)?;
        for &(stream, bytes) in written {
            let strip = &self.strips[stream];
            if let Some(readback) = &strip.readback {
                strip.host.write(|all| gpu.read_mapped(readback, &mut all[..usize_of(bytes)]))??;
            }
        }
        let Some(view) = &self.results else { return Ok(Vec::new()) };
        let mut words = vec![0_u32; usize_of(view.len())];
        if let Some(readback) = &self.results_readback {
            gpu.read_mapped(readback, bytemuck::cast_slice_mut(&mut words))?;
        }
        Ok(words)
    }

    /// Lets `take` read a stream's bytes of a chunk.
    pub(super) fn collect(
        &self,
        stream: usize,
        bytes: u64,
        take: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.strips[stream].host.read(|all| take(&all[..usize_of(bytes)]))?
    }
}

impl Strip {
    fn new(backend: &Backend, size: &StripSize) -> Result<Self> {
        let host = HostMemory::zeroed(size.bytes);
        let Backend::Gpu(gpu) = backend else {
            return Ok(Self { work: Memory::Host(host.clone()), host, readback: None });
        };
        let bytes = host.bytes();
        let work = backend.alloc(bytes / 4, Element::U32)?.memory().clone();
        let readback = size.written.then(|| readback(gpu, bytes));
        Ok(Self { host, work, readback })
    }
}

fn readback(gpu: &Gpu, size: u64) -> wgpu::Buffer {
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("squisher.readback"),
        size,
        usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    })
}

fn usize_of(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a slot lies in memory, so its size fits usize")
}
