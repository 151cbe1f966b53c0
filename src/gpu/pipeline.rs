//! Shader text and override values to a compute pipeline, made once per device.

use std::any::TypeId;
use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::refusals;
use crate::error::{Error, Result};
use crate::kernel::{Access, Binding};

/// A compute pipeline and the layout of its one bind group.
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) layout: wgpu::BindGroupLayout,
}

/// What tells two pipelines apart: the kernel's type, its text (by address: texts are static), its overrides.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PipelineKey {
    pub(crate) kernel: TypeId,
    pub(crate) text: Vec<(usize, usize)>,
    pub(crate) overrides: Vec<(&'static str, u64)>,
}

/// Everything a pipeline is made from.
pub(crate) struct Source<'a> {
    pub(crate) name: &'a str,
    pub(crate) directives: &'a str,
    pub(crate) parts: &'a [&'a str],
    pub(crate) overrides: &'a [(&'static str, f64)],
    pub(crate) bindings: &'a [Binding],
}

/// The pipelines of one device, and the application's cache of what its driver compiled, if it lent one.
#[derive(Default)]
pub(super) struct Cache {
    made: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    pub(super) compiled: OnceLock<wgpu::PipelineCache>,
}

impl Cache {
    pub(super) fn get(
        &self,
        device: &wgpu::Device,
        key: PipelineKey,
        source: &Source<'_>,
    ) -> Result<Arc<Pipeline>> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = made.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(build(device, source, self.compiled.get())?);
        made.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }
}

fn build(
    device: &wgpu::Device,
    source: &Source<'_>,
    compiled: Option<&wgpu::PipelineCache>,
) -> Result<Pipeline> {
    match refusals(device, || make(device, source, compiled)) {
        (pipeline, None) => Ok(pipeline),
        (_, Some(error)) => Err(Error::Shader { kernel: source.name.into(), message: error_chain(&error) }),
    }
}

fn make(device: &wgpu::Device, source: &Source<'_>, compiled: Option<&wgpu::PipelineCache>) -> Pipeline {
    let layout = bind_group_layout(device, source);
    let text = source.directives.to_owned() + &source.parts.join("\n");
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: Some(source.name),
        source: wgpu::ShaderSource::Wgsl(text.into()),
    });
    let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(source.name),
        bind_group_layouts: &[Some(&layout)],
        ..Default::default()
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: Some(source.name),
        layout: Some(&pipeline_layout),
        module: &module,
        entry_point: Some("main"),
        compilation_options: wgpu::PipelineCompilationOptions {
            constants: source.overrides,
            // Kernels set what they read: compilers of DX12 and Metal take long to zero it, one invocation at a time.
            zero_initialize_workgroup_memory: false,
        },
        cache: compiled,
    });
    Pipeline { pipeline, layout }
}

/// An error with all its causes: wgpu's outermost message names only the call.
pub(crate) fn error_chain(error: &wgpu::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

fn bind_group_layout(device: &wgpu::Device, source: &Source<'_>) -> wgpu::BindGroupLayout {
    let entry = |binding: u32, ty: wgpu::BufferBindingType| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let mut entries = vec![entry(0, wgpu::BufferBindingType::Uniform)];
    for (binding, spec) in (1..).zip(source.bindings) {
        let read_only = spec.access == Access::Read;
        entries.push(entry(binding, wgpu::BufferBindingType::Storage { read_only }));
    }
    device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(source.name),
        entries: &entries,
    })
}
