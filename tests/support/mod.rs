//! What test files share: the adapter that shader tests run on, the tool as a process, files, captures, and
//! how near is near.

#![allow(dead_code, reason = "no test file uses all of it")]

pub(crate) mod capture_files;
pub(crate) mod close;
pub(crate) mod files;
pub(crate) mod tool;

use std::sync::OnceLock;

use squisher::gpu::{AdapterChoice, Gpu};
use squisher::{Backend, wgpu};

/// The device for shader tests: a hardware adapter, or software Vulkan. Its absence is a failure.
pub(crate) fn gpu() -> Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    let open = || {
        let wanted = std::env::var("SQUISHER_TEST_ADAPTER").ok();
        let choice = AdapterChoice { wanted, backends: None, software: true };
        pollster::block_on(Gpu::request_with(&choice, experimental()))
            .expect("an adapter (`cargo xtask test` installs a software one)")
    };
    GPU.get_or_init(open).clone()
}

/// With `SQUISHER_TEST_MATRIX_UNITS` set, devices have the adapter's matrix units.
fn experimental() -> wgpu::ExperimentalFeatures {
    if std::env::var_os("SQUISHER_TEST_MATRIX_UNITS").is_none() {
        return wgpu::ExperimentalFeatures::disabled();
    }
    // SAFETY: whoever sets the variable means it.
    #[allow(unsafe_code, reason = "wgpu has no other way to ask for an experiment")]
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// Both executions, the host first.
pub(crate) fn backends() -> [Backend; 2] {
    [Backend::Host, Backend::Gpu(gpu())]
}

/// Another device of the same adapter, lent with these limits and no feature.
pub(crate) fn device_with(limits: wgpu::Limits) -> Gpu {
    let (device, queue) = lend(limits);
    Gpu::from_wgpu(device, queue)
}

/// A device and its queue as an application makes them: these limits, no feature.
pub(crate) fn lend(limits: wgpu::Limits) -> (wgpu::Device, wgpu::Queue) {
    let descriptor = wgpu::DeviceDescriptor { required_limits: limits, ..Default::default() };
    pollster::block_on(adapter().request_device(&descriptor)).expect("limits below the adapter's own")
}

/// The adapter of [`gpu`], opened anew.
pub(crate) fn adapter() -> wgpu::Adapter {
    let wanted = gpu().device().adapter_info();
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let found = pollster::block_on(instance.enumerate_adapters(wanted.backend.into()));
    found.into_iter().find(|adapter| adapter.get_info().name == wanted.name).expect("it was here before")
}
