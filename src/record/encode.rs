//! Writes a recording's steps into a command encoder.

use super::{Dispatch, Recording, Step};
use crate::backend::{Backend, wrong_backend};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, allows};
use crate::kernel::Cost;
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
        encode(self.gpu()?, &self.steps, encoder, clock)
    }

    /// Calls `submit` with an encoder for every few steps. Devices that draw a screen give up on work that takes longer
    /// than a second or two, and what they measure may be all that was submitted together.
    ///
    /// # Errors
    /// As [`Recording::encode`], and of `submit`. What was submitted before runs.
    pub(crate) fn encode_apart(
        &self,
        mut submit: impl FnMut(wgpu::CommandEncoder) -> Result<()>,
    ) -> Result<()> {
        let gpu = self.gpu()?;
        let mut rest = self.steps.as_slice();
        loop {
            let (steps, later) = rest.split_at(together(rest));
            let mut encoder = gpu.device().create_command_encoder(&Default::default());
            encode(gpu, steps, &mut encoder, None)?;
            submit(encoder)?;
            if later.is_empty() {
                return Ok(());
            }
            rest = later;
        }
    }

    fn gpu(&self) -> Result<&Gpu> {
        match &self.backend {
            Backend::Gpu(gpu) => Ok(gpu),
            Backend::Host => Err(wrong_backend("encode")),
        }
    }
}

/// How many of the steps to submit at once: 0.1 s of the slowest device that has a watchdog, or one step.
fn together(steps: &[Step]) -> usize {
    const FLOPS: u64 = 20_000_000_000;
    const BYTES: u64 = 2_000_000_000;
    let mut sum = Cost::default();
    let fits = steps.iter().take_while(|step| {
        let cost = step.cost();
        (sum.flops, sum.bytes) = (sum.flops.saturating_add(cost.flops), sum.bytes.saturating_add(cost.bytes));
        sum.flops <= FLOPS && sum.bytes <= BYTES
    });
    fits.count().clamp(1.min(steps.len()), steps.len())
}

/// Writes steps into an encoder, one compute pass per run of dispatches.
fn encode(
    gpu: &Gpu,
    steps: &[Step],
    encoder: &mut wgpu::CommandEncoder,
    clock: Option<wgpu::ComputePassTimestampWrites<'_>>,
) -> Result<()> {
    for step in steps {
        check_transfer(step)?;
    }
    let mut groups = gpu.scoped("encode", || bind_all(gpu, steps))?.into_iter();
    let mut clock = clock;
    let mut rest = steps;
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
fn bind_all(gpu: &Gpu, steps: &[Step]) -> Vec<wgpu::BindGroup> {
    let uniforms = uniforms(gpu, steps);
    let dispatches = steps.iter().filter_map(|step| match step {
        Step::Dispatch(dispatch) => Some(dispatch),
        _ => None,
    });
    let offsets = (0..).step_by(usize::try_from(UNIFORM_STRIDE).expect("256 fits usize"));
    dispatches.zip(offsets).map(|(dispatch, offset)| bind(gpu, dispatch, &uniforms, offset)).collect()
}

/// All uniform blocks in one buffer.
fn uniforms(gpu: &Gpu, steps: &[Step]) -> wgpu::Buffer {
    let mut bytes = Vec::new();
    for step in steps {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Element;

    #[test]
    fn steps_are_submitted_together_up_to_a_tenth_of_a_second_s_work() {
        let view = Backend::Host.alloc(1 << 20, Element::F32).expect("a small buffer");
        let steps = |count: usize| -> Vec<Step> { (0..count).map(|_| Step::Clear(view.clone())).collect() };
        // A step moves 4 MiB, and 2 GB are 476 of them.
        for (count, at_once) in [(0, 0), (1, 1), (476, 476), (477, 476), (2000, 476)] {
            assert_eq!(together(&steps(count)), at_once, "{count}");
        }
    }
}
