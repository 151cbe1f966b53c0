//! A kernel inside an application that has its own wgpu device, buffers, encoder, submission and waiting.
//!
//! The device has default limits and no features: nothing more is needed. The application records a copy, then the
//! library's step, then a copy back, all into one encoder, and submits once. The library neither submits nor
//! polls, and sets no handler.

use std::error::Error;

use squisher::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use squisher::wgpu::{self, BufferUsages};
use squisher::{DType, Gpu, Recording, View};

fn main() -> Result<(), Box<dyn Error>> {
    let (device, queue) = pollster::block_on(open())?;
    let exp_avg_sq = accumulate(&device, &queue, &[0.5, -2.0, 1e-3], &[1.0, 0.0, 0.0])?;
    println!("{}: exp_avg_sq {exp_avg_sq:?}", device.adapter_info().name);
    Ok(())
}

/// The application's device: any adapter, default limits, no features.
async fn open() -> Result<(wgpu::Device, wgpu::Queue), Box<dyn Error>> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = instance.request_adapter(&Default::default()).await?;
    Ok(adapter.request_device(&wgpu::DeviceDescriptor::default()).await?)
}

/// One Adam step of the squared-gradient accumulator, between the application's own commands.
pub fn accumulate(
    device: &wgpu::Device,
    queue: &wgpu::Queue,
    gradient: &[f32],
    exp_avg_sq: &[f32],
) -> Result<Vec<f32>, Box<dyn Error>> {
    let len = u32::try_from(gradient.len())?;
    // Kernels load whole groups of 32 bytes, so buffers are rounded up to them.
    let size = DType::F32.padded_bytes(len.into());
    let buffer = |usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    let upload = buffer(BufferUsages::COPY_SRC | BufferUsages::COPY_DST);
    let g = buffer(BufferUsages::STORAGE | BufferUsages::COPY_DST);
    let v = buffer(BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC);
    let back = buffer(BufferUsages::MAP_READ | BufferUsages::COPY_DST);
    queue.write_buffer(&upload, 0, bytemuck::cast_slice(gradient));
    queue.write_buffer(&v, 0, bytemuck::cast_slice(exp_avg_sq));

    // Lent: clones of the application's handles. Made once, kept as long as the device: it holds the pipelines.
    let gpu = Gpu::from_wgpu(device.clone(), queue.clone());
    let kernel = Ema { gradient: DType::F32, accumulator: DType::F32 };
    let params = EmaParams { len, decay: 0.999, gain: 0.001, gradient_scale: 1.0 };
    let mut recording = Recording::on(&gpu);
    let args = EmaArgs {
        gradient: View::of_buffer(&g, len.into(), DType::F32)?,
        exp_avg_sq: View::of_buffer(&v, len.into(), DType::F32)?,
    };
    recording.dispatch(&kernel, params, args)?;

    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(&upload, 0, &g, 0, size);
    recording.encode(&mut encoder)?;
    encoder.copy_buffer_to_buffer(&v, 0, &back, 0, size);
    queue.submit([encoder.finish()]);

    back.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("a new buffer, mapped once"));
    device.poll(wgpu::PollType::wait_indefinitely())?;
    let bytes = back.get_mapped_range(..)?;
    Ok(bytemuck::cast_slice(&bytes)[..gradient.len()].to_vec())
}
