//! A recording into a command encoder.

use super::{Dispatch, Recording, Step};
use crate::backend::{Backend, wrong_backend};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, error_chain};
use crate::memory::{Memory, View};

/// Uniform blocks start at multiples of this on every device.
const UNIFORM_STRIDE: u64 = 256;

impl Recording {
    /// Writes the steps into the caller's encoder, one compute pass per run of dispatches. Neither submits nor polls.
    ///
    /// # Errors
    /// [`Error::Argument`] if the recording was made for the host, [`Error::Device`] if wgpu refuses a step.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.encode_timed(encoder, None)
    }

    /// The same, with the device's clock written before the first and after the last dispatch, where a query set is given.
    ///
    /// # Errors
    /// As [`Recording::encode`].
    pub fn encode_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        clock: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) -> Result<()> {
        let Backend::Gpu(gpu) = &self.backend else { return Err(wrong_backend("encode")) };
        let scope = gpu.device().push_error_scope(wgpu::ErrorFilter::Validation);
        let uniforms = self.uniforms(gpu);
        let mut clock = clock;
        let mut uniform = 0;
        let mut rest = self.steps.as_slice();
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|step| matches!(step, Step::Dispatch(_))).count();
            if run > 0 {
                let descriptor =
                    wgpu::ComputePassDescriptor { label: Some("squisher"), timestamp_writes: clock.take() };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                for step in &rest[..run] {
                    if let Step::Dispatch(dispatch) = step {
                        record(gpu, &mut pass, dispatch, &uniforms, uniform);
                        uniform += UNIFORM_STRIDE;
                    }
                }
            } else {
                transfer(encoder, first)?;
            }
            rest = &rest[run.max(1)..];
        }
        match pollster::block_on(scope.pop()) {
            None => Ok(()),
            Some(error) => Err(Error::Device { op: "encode".into(), message: error_chain(&error) }),
        }
    }

    /// All uniform blocks in one buffer.
    fn uniforms(&self, gpu: &Gpu) -> wgpu::Buffer {
        let mut bytes = Vec::new();
        for step in &self.steps {
            if let Step::Dispatch(dispatch) = step {
                let stride = usize::try_from(UNIFORM_STRIDE).expect("256 fits usize");
                let next = bytes.len() + stride;
                bytes.extend_from_slice(&dispatch.params);
                bytes.resize(next, 0);
            }
        }
        let buffer = gpu.device().create_buffer(&wgpu::BufferDescriptor {
            label: Some("squisher.params"),
            size: (bytes.len() as u64).max(UNIFORM_STRIDE),
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: true,
        });
        if let Ok(mut mapped) = buffer.get_mapped_range_mut(..bytes.len() as u64) {
            mapped.copy_from_slice(&bytes);
        }
        buffer.unmap();
        buffer
    }
}

fn record(
    gpu: &Gpu,
    pass: &mut wgpu::ComputePass<'_>,
    dispatch: &Dispatch,
    uniforms: &wgpu::Buffer,
    uniform: u64,
) {
    let params = wgpu::BufferBinding {
        buffer: uniforms,
        offset: uniform,
        size: wgpu::BufferSize::new(dispatch.params.len() as u64),
    };
    let mut entries =
        vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(params) }];
    for (binding, view) in (1..).zip(&dispatch.views) {
        entries.push(wgpu::BindGroupEntry { binding, resource: resource(view) });
    }
    let group = gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(&dispatch.label),
        layout: &dispatch.pipeline.layout,
        entries: &entries,
    });
    let [x, y, z] = dispatch.groups;
    pass.push_debug_group(&dispatch.label);
    pass.set_pipeline(&dispatch.pipeline.pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(x, y, z);
    pass.pop_debug_group();
}

fn resource(view: &View) -> wgpu::BindingResource<'_> {
    let Memory::Device(buffer) = view.memory() else {
        unreachable!("dispatch accepted only views of the recording's backend")
    };
    wgpu::BindingResource::Buffer(wgpu::BufferBinding {
        buffer,
        offset: view.offset(),
        size: wgpu::BufferSize::new(view.padded_bytes()),
    })
}

fn transfer(encoder: &mut wgpu::CommandEncoder, step: &Step) -> Result<()> {
    match step {
        Step::Clear(view) => {
            let Memory::Device(buffer) = view.memory() else { return Err(wrong_backend("clear")) };
            encoder.clear_buffer(buffer, view.offset(), Some(view.padded_bytes()));
        }
        Step::Copy { from, to } => {
            let (Memory::Device(source), Memory::Device(target)) = (from.memory(), to.memory()) else {
                return Err(wrong_backend("copy"));
            };
            let bytes = from.padded_bytes();
            encoder.copy_buffer_to_buffer(source, from.offset(), target, to.offset(), bytes);
        }
        Step::Dispatch(_) | Step::Host(_) => {}
    }
    Ok(())
}
