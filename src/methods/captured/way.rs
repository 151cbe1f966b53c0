//! How what is read of files comes to where kernels work.
//!
//! | kernels work in | way |
//! |---|---|
//! | memory of the host | files are read to it |
//! | a device's buffers that lie in the host's memory | a buffer is made mapped, and pieces are copied to it |
//! | a device's own memory | pieces are uploaded, which copies them twice |

use wgpu::BufferUsages;

use crate::backend::{Backend, STORAGE, device_buffer, wrong_backend};
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::memory::{Element, Memory, View};
use crate::shape::usize_of;

/// The way to a view that is being filled.
pub(super) enum Way<'a> {
    /// The memory that kernels work in.
    Host(&'a mut [u8]),
    /// A mapped buffer, which may be slow to read, and is not to be.
    Mapped(wgpu::WriteOnly<'a, [u8]>),
    /// A buffer in a device's own memory.
    Upload(&'a Gpu, &'a wgpu::Buffer),
}

impl Way<'_> {
    /// Bytes that are put at a time: whole groups of elements of every type. An upload submits pieces of this
    /// size as they come; smaller ones wait in memory of the host, all of them, for the next submission.
    pub(super) fn piece(&self) -> usize {
        match self {
            Self::Host(_) | Self::Mapped(_) => 1 << 20,
            Self::Upload(..) => Gpu::UPLOAD_PIECE,
        }
    }

    /// Puts bytes at an offset, which is a multiple of 4.
    pub(super) fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let range = usize_of(offset)..usize_of(offset) + bytes.len();
        match self {
            Self::Host(all) => all[range].copy_from_slice(bytes),
            Self::Mapped(all) => all.slice(range).copy_from_slice(bytes),
            Self::Upload(gpu, buffer) => gpu.upload(buffer, offset, bytes)?,
        }
        Ok(())
    }
}

/// A new view, which `fill` fills; also gives what that returns.
pub(super) fn filled<R>(
    backend: &Backend,
    len: u64,
    element: Element,
    fill: impl FnOnce(Way<'_>) -> Result<R>,
) -> Result<(View, R)> {
    let bytes = usize_of(len * element.bytes() as u64);
    if let Backend::Gpu(gpu) = backend
        && gpu.caps().mappable_storage
    {
        let usage = STORAGE | BufferUsages::MAP_WRITE;
        let buffer = device_buffer(gpu, element.padded_bytes(len), usage, true)?;
        let filled = fill_mapped(gpu, &buffer, bytes, fill)?;
        return Ok((View::new(Memory::Device(buffer), 0, len, element)?, filled));
    }
    let view = backend.alloc(len, element)?;
    let filled = match (backend, view.memory()) {
        (_, Memory::Host(memory)) => memory.write(|all| fill(Way::Host(&mut all[..bytes])))??,
        (Backend::Gpu(gpu), Memory::Device(buffer)) => fill(Way::Upload(gpu, buffer))?,
        (Backend::Host, Memory::Device(_)) => return Err(wrong_backend("read")),
    };
    Ok((view, filled))
}

fn fill_mapped<R>(
    gpu: &Gpu,
    buffer: &wgpu::Buffer,
    bytes: usize,
    fill: impl FnOnce(Way<'_>) -> Result<R>,
) -> Result<R> {
    let refused =
        |error: wgpu::MapRangeError| Error::Device { op: "read".into(), message: error.to_string() };
    let mut range = buffer.get_mapped_range_mut(..).map_err(refused)?;
    let filled = fill(Way::Mapped(range.slice(..bytes)))?;
    drop(range);
    gpu.scoped("read", || buffer.unmap())?;
    gpu.check("read")?;
    Ok(filled)
}
