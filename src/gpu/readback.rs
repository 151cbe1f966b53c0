//! Moving bytes between the host and a device, in pieces that keep staging memory small.

use std::sync::mpsc;

use super::Gpu;
use crate::error::{Error, Result};

impl Gpu {
    /// One piece of an upload. Pieces of 4 to 16 MiB, each submitted, are four times as fast as one large
    /// `write_buffer`, which allocates (and touches) a staging buffer of its whole size.
    pub(crate) const UPLOAD_PIECE: usize = 8 << 20;

    /// Writes `bytes` to `buffer` at `offset` (a multiple of 4; a tail is padded with zeros to four bytes).
    ///
    /// # Errors
    /// [`Error::Argument`] for a buffer without `COPY_DST`, [`Error::Device`] after the device was lost.
    pub fn upload(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check("upload")?;
        allows(buffer, wgpu::BufferUsages::COPY_DST, "upload")?;
        self.scoped("upload", || self.write_pieces(buffer, offset, bytes))?;
        self.check("upload")
    }

    fn write_pieces(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) {
        let whole = bytes.len() / 4 * 4;
        let mut at = offset;
        for piece in bytes[..whole].chunks(Self::UPLOAD_PIECE) {
            self.queue().write_buffer(buffer, at, piece);
            at += piece.len() as u64;
            if piece.len() == Self::UPLOAD_PIECE {
                self.queue().submit([]);
            }
        }
        if whole < bytes.len() {
            let mut tail = [0_u8; 4];
            tail[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            self.queue().write_buffer(buffer, at, &tail);
        }
    }

    /// Reads `out.len()` bytes of `buffer` from `offset` (a multiple of 4). Submits, and waits for everything
    /// submitted before.
    ///
    /// # Errors
    /// [`Error::Argument`] for a buffer without `COPY_SRC`, [`Error::Device`] if the device was lost, also in
    /// the meantime.
    pub fn download(&self, buffer: &wgpu::Buffer, offset: u64, out: &mut [u8]) -> Result<()> {
        self.check("download")?;
        allows(buffer, wgpu::BufferUsages::COPY_SRC, "download")?;
        if out.is_empty() {
            return Ok(());
        }
        let size = (out.len() as u64).next_multiple_of(4);
        let staging = self.scoped("download", || self.copy_to_staging(buffer, offset, size))?;
        self.read_mapped(&staging, out)
    }

    fn copy_to_staging(&self, buffer: &wgpu::Buffer, offset: u64, size: u64) -> wgpu::Buffer {
        let staging = self.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("squisher.readback"),
            size,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let mut encoder = self.device().create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, offset, &staging, 0, size);
        self.queue().submit([encoder.finish()]);
        staging
    }

    /// Maps a staging buffer, waits, and copies its first bytes out.
    pub(crate) fn read_mapped(&self, staging: &wgpu::Buffer, out: &mut [u8]) -> Result<()> {
        let failed = |message: String| Error::Device { op: "readback".into(), message };
        let (send, receive) = mpsc::channel();
        self.scoped("readback", || {
            staging.map_async(wgpu::MapMode::Read, .., move |result| {
                let _receiver_gone = send.send(result);
            });
        })?;
        self.wait()?;
        let mapped = receive.recv().map_err(|_| failed("the map callback was dropped".into()))?;
        mapped.map_err(|e| failed(e.to_string()))?;
        self.check("readback")?;
        let view = staging.get_mapped_range(..).map_err(|e| failed(e.to_string()))?;
        out.copy_from_slice(&view[..out.len()]);
        drop(view);
        staging.unmap();
        Ok(())
    }

    /// Blocks until all submitted work is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device was lost.
    pub fn wait(&self) -> Result<()> {
        self.wait_for(None)
    }

    /// Blocks until one submission is done, or all of them.
    pub(crate) fn wait_for(&self, submission_index: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let polled = self.device().poll(wgpu::PollType::Wait { submission_index, timeout: None });
        polled.map_err(|e| Error::Device { op: "wait".into(), message: e.to_string() })?;
        self.check("wait")
    }
}

/// An error in our words where wgpu would refuse a copy only when the encoder is finished.
pub(crate) fn allows(buffer: &wgpu::Buffer, usage: wgpu::BufferUsages, op: &str) -> Result<()> {
    if buffer.usage().contains(usage) {
        return Ok(());
    }
    let name = if usage == wgpu::BufferUsages::COPY_SRC { "COPY_SRC" } else { "COPY_DST" };
    Err(Error::argument(op, format!("the buffer was created without BufferUsages::{name}")))
}
