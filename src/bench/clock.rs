//! The device's own clock.

use crate::error::Result;
use crate::gpu::Gpu;
use crate::record::Recording;

/// Two timestamps and the buffers by which they come back.
pub(super) struct DeviceClock<'a> {
    gpu: &'a Gpu,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

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
    pub(super) fn time(&self, recording: &Recording) -> Result<f64> {
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
        let period = f64::from(self.gpu.queue().get_timestamp_period()) * 1e-9;
        // A counter of few bits has begun again: a run without a time, which is no least one and no median.
        let ticks = ticks[1].checked_sub(ticks[0]).map(|ticks| ticks as f64);
        Ok(ticks.map_or(f64::INFINITY, |ticks| ticks * period))
    }
}
