//! The device's own clock.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::record::Recording;

/// Two timestamps and the buffers by which they come back.
pub(super) struct DeviceClock<'a> {
    gpu: &'a Gpu,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

/// Runs of which one has a time.
const TRIES: usize = 3;

impl<'a> DeviceClock<'a> {
    /// None where the device has no timestamps.
    pub(super) fn new(gpu: &'a Gpu) -> Result<Option<Self>> {
        if !gpu.caps().timestamps {
            return Ok(None);
        }
        let buffer = |usage| {
            let descriptor = wgpu::BufferDescriptor {
                label: Some("squisher.clock"),
                size: 16,
                usage,
                mapped_at_creation: false,
            };
            gpu.device().create_buffer(&descriptor)
        };
        let clock = gpu.scoped("bench", || Self {
            gpu,
            queries: gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("squisher.clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        });
        clock.map(Some)
    }

    /// Seconds from the beginning to the end of the recording's one pass.
    ///
    /// # Errors
    /// What wgpu refuses, and a device whose clock runs backwards.
    pub(super) fn time(&self, recording: &Recording) -> Result<f64> {
        for _ in 0..TRIES {
            // A counter of few bits begins again now and then.
            if let Some(ticks) = self.ticks(recording)? {
                return Ok(ticks as f64 * f64::from(self.gpu.queue().get_timestamp_period()) * 1e-9);
            }
        }
        Err(Error::Device { op: "bench".into(), message: "its timestamps run backwards".into() })
    }

    /// Nothing where the end came before the beginning.
    fn ticks(&self, recording: &Recording) -> Result<Option<u64>> {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        let writes = wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        };
        recording.encode_timed(&mut encoder, Some(writes))?;
        self.gpu.scoped("bench", || {
            encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, 16);
            self.gpu.queue().submit([encoder.finish()]);
        })?;
        let mut ticks = [0_u64; 2];
        self.gpu.read_mapped(&self.staging, bytemuck::cast_slice_mut(&mut ticks))?;
        Ok(ticks[1].checked_sub(ticks[0]))
    }
}
