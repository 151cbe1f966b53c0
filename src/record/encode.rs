//! Writes a recording's steps into a command encoder.

use super::{Dispatch, Recording, Step};
use crate::backend::{Backend, wrong_backend};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, allows};
use crate::memory::{Memory, View};
use wgpu::BufferUsages;

/// Uniform blocks start at multiples of this on every device.
const UNIFORM_STRIDE: u64 = 256;

impl Recording {
    /// Writes the steps into the caller's encoder, one compute pass per run of dispatches. Neither submits nor polls.
    ///
    /// # Errors
    /// [`Error::Argument`] if the recording was made for the host, or for a transfer that a buffer does not allow;
    /// [`Error::Device`] if wgpu refuses to bind a buffer. The encoder is then as it was.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.encode_timed(encoder, None)
    }

    /// As [`Recording::encode`], with timestamps around the first compute pass where a query set is given: around all
    /// dispatches, if no clear or copy stands between two of them.
    pub(crate) fn encode_timed(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        clock: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) -> Result<()> {
        let Backend::Gpu(gpu) = &self.backend else { return Err(wrong_backend("encode")) };
        for step in &self.steps {
            check_transfer(step)?;
        }
        let mut groups = gpu.scoped("encode", || self.bind(gpu))?.into_iter();
        let mut clock = clock;
        let mut rest = self.steps.as_slice();
        while let Some(first) = rest.first() {
            let run = rest.iter().take_while(|step| matches!(step, Step::Dispatch(_))).count();
            if run > 0 {
                let descriptor =
                    wgpu::ComputePassDescriptor { label: Some("squisher"), timestamp_writes: clock.take() };
                let mut pass = encoder.begin_compute_pass(&descriptor);
                for (step, group) in rest[..run].iter().zip(&mut groups) {
                    if let Step::Dispatch(dispatch) = step {
                        record(&mut pass, dispatch, &group);
                    }
                }
            } else {
                transfer(encoder, first);
            }
            rest = &rest[run.max(1)..];
        }
        Ok(())
    }

    /// The bind group of each dispatch, in order. All are made before the first command is written, so that a refused
    /// buffer leaves the caller's encoder as it was.
    fn bind(&self, gpu: &Gpu) -> Vec<wgpu::BindGroup> {
        let uniforms = self.uniforms(gpu);
        let dispatches = self.steps.iter().filter_map(|step| match step {
            Step::Dispatch(dispatch) => Some(dispatch),
            _ => None,
        });
        let offsets = (0..).step_by(usize::try_from(UNIFORM_STRIDE).expect("256 fits usize"));
        dispatches.zip(offsets).map(|(dispatch, offset)| bind(gpu, dispatch, &uniforms, offset)).collect()
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
            usage: BufferUsages::UNIFORM | BufferUsages::COPY_DST,
            mapped_at_creation: true,
        });
        if let Ok(mut mapped) = buffer.get_mapped_range_mut(..bytes.len() as u64) {
            mapped.copy_from_slice(&bytes);
        }
        buffer.unmap();
        buffer
    }
}

fn bind(gpu: &Gpu, dispatch: &Dispatch, uniforms: &wgpu::Buffer, offset: u64) -> wgpu::BindGroup {
    let size = wgpu::BufferSize::new(dispatch.params.len() as u64);
    let params = wgpu::BufferBinding { buffer: uniforms, offset, size };
    let mut entries =
        vec![wgpu::BindGroupEntry { binding: 0, resource: wgpu::BindingResource::Buffer(params) }];
    for (binding, view) in (1..).zip(&dispatch.views) {
        entries.push(wgpu::BindGroupEntry { binding, resource: resource(view) });
    }
    gpu.device().create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(&dispatch.label),
        layout: &dispatch.pipeline.layout,
        entries: &entries,
    })
}

fn record(pass: &mut wgpu::ComputePass<'_>, dispatch: &Dispatch, group: &wgpu::BindGroup) {
    let [x, y, z] = dispatch.groups;
    pass.push_debug_group(&dispatch.label);
    pass.set_pipeline(&dispatch.pipeline.pipeline);
    pass.set_bind_group(0, group, &[]);
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

/// What wgpu would refuse only when the caller finishes the encoder.
fn check_transfer(step: &Step) -> Result<()> {
    match step {
        Step::Clear(view) => allows(device_buffer(view, "clear")?, BufferUsages::COPY_DST, "clear"),
        Step::Copy { from, to } => {
            let (source, target) = (device_buffer(from, "copy")?, device_buffer(to, "copy")?);
            if source == target {
                return Err(Error::argument("copy", "source and target are one buffer"));
            }
            allows(source, BufferUsages::COPY_SRC, "copy")?;
            allows(target, BufferUsages::COPY_DST, "copy")
        }
        Step::Dispatch(_) | Step::Host(_) => Ok(()),
    }
}

fn device_buffer<'a>(view: &'a View, op: &str) -> Result<&'a wgpu::Buffer> {
    match view.memory() {
        Memory::Device(buffer) => Ok(buffer),
        Memory::Host(_) => Err(wrong_backend(op)),
    }
}

/// A step that [`check_transfer`] accepted.
fn transfer(encoder: &mut wgpu::CommandEncoder, step: &Step) {
    match step {
        Step::Clear(view) => {
            if let Memory::Device(buffer) = view.memory() {
                encoder.clear_buffer(buffer, view.offset(), Some(view.padded_bytes()));
            }
        }
        Step::Copy { from, to } => {
            if let (Memory::Device(source), Memory::Device(target)) = (from.memory(), to.memory()) {
                let bytes = from.padded_bytes();
                encoder.copy_buffer_to_buffer(source, from.offset(), target, to.offset(), bytes);
            }
        }
        Step::Dispatch(_) | Step::Host(_) => {}
    }
}
