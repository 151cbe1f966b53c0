//! The few limits and features on which kernels and plans depend.

use super::MatrixUnits;

/// What a device allows, as it was created (not what its adapter could).
#[derive(Clone, Debug)]
pub struct Caps {
    /// The adapter's name, with its driver.
    pub name: String,
    /// The host backend: kernels work in the memory that files are read to.
    pub is_host: bool,
    /// Which forms of a kernel suit it.
    pub class: DeviceClass,
    /// The most bytes of one storage binding.
    pub max_binding_bytes: u64,
    /// The most bytes of one buffer.
    pub max_buffer_bytes: u64,
    /// The most storage buffers of one dispatch. WebGPU guarantees 8, enough for every kernel but
    /// [`FisherFour`](crate::kernels::merge::FisherFour).
    pub max_storage_buffers: u32,
    /// The most workgroups of one dimension of a dispatch.
    pub max_groups: u32,
    /// The most invocations of one workgroup.
    pub max_invocations: u32,
    /// The most bytes of workgroup memory.
    pub max_workgroup_bytes: u32,
    /// The most iterations of one invocation, all its loops together. Mesa's software driver leaves every
    /// loop after 65 535, without a word (`LP_MAX_TGSI_LOOP_ITERATIONS`), so a longer step is cut or refused
    /// there. A loop counts one more than it turns.
    pub max_iterations: u64,
    /// Invocations of a subgroup, if kernels may exchange values inside one and all have this size; else 0.
    pub subgroup: u32,
    /// Matrix units, if an application lent them ([`Gpu::with_matrix_units`](super::Gpu::with_matrix_units)).
    pub matrix_units: Option<MatrixUnits>,
    /// Storage bindings start at multiples of this.
    pub offset_alignment: u64,
    /// Dispatches can be timed by the device's own clock.
    pub timestamps: bool,
    /// Storage buffers can be mapped, and lie in the host's memory: kernels can work where files are read to.
    pub mappable_storage: bool,
}

/// Which form of a product kernel suits a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceClass {
    /// A processor's cores behind a graphics interface: no workgroup memory, long register tiles.
    Software,
    /// Everything else.
    Gpu,
}

/// An adapter's name with its interface and driver.
pub(super) fn full_name(info: &wgpu::AdapterInfo) -> String {
    format!("{} ({:?} {})", info.name, info.backend, info.driver_info).replace(" )", ")")
}

/// Other devices may map their storage too, but over a bus that kernels would wait for.
pub(super) fn shares_memory(kind: wgpu::DeviceType) -> bool {
    matches!(kind, wgpu::DeviceType::Cpu | wgpu::DeviceType::IntegratedGpu)
}

/// The size of every subgroup, 0 where a driver may choose.
fn subgroup_size(info: &wgpu::AdapterInfo) -> u32 {
    if info.subgroup_min_size == info.subgroup_max_size { info.subgroup_max_size } else { 0 }
}

impl Caps {
    /// Reads a device's limits, features and name.
    #[must_use]
    pub fn of(device: &wgpu::Device) -> Self {
        let limits = device.limits();
        let features = device.features();
        let info = device.adapter_info();
        let class =
            if info.device_type == wgpu::DeviceType::Cpu { DeviceClass::Software } else { DeviceClass::Gpu };
        Self {
            name: full_name(&info),
            is_host: false,
            class,
            // Sizes and indices inside of a shader are 32-bit numbers; Metal binds more.
            max_binding_bytes: limits.max_storage_buffer_binding_size.min(u64::from(u32::MAX) & !255),
            max_buffer_bytes: limits.max_buffer_size,
            max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
            max_groups: limits.max_compute_workgroups_per_dimension,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_iterations: if class == DeviceClass::Software { 65_535 } else { u64::MAX },
            subgroup: if features.contains(wgpu::Features::SUBGROUP) { subgroup_size(&info) } else { 0 },
            matrix_units: None,
            offset_alignment: u64::from(limits.min_storage_buffer_offset_alignment),
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            mappable_storage: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
                && shares_memory(info.device_type),
        }
    }

    /// Whether this is a device whose kernels run on a processor's cores: there a load, a barrier or a loop's end costs
    /// more than arithmetic. The host backend, which has the same cores without an interface between, is none.
    #[must_use]
    pub fn is_software_device(&self) -> bool {
        self.class == DeviceClass::Software && !self.is_host
    }

    /// What the host backend allows: any size that fits in memory, of which one argument of a kernel is less
    /// than 4 GiB. That limit is the library's: sizes and indices inside a kernel are 32-bit numbers, on the
    /// host as in a shader.
    #[must_use]
    pub fn host() -> Self {
        Self {
            name: "host".into(),
            is_host: true,
            class: DeviceClass::Software,
            max_binding_bytes: u64::from(u32::MAX),
            max_buffer_bytes: u64::from(u32::MAX),
            max_storage_buffers: u32::MAX,
            max_groups: u32::MAX,
            max_invocations: u32::MAX,
            max_workgroup_bytes: u32::MAX,
            max_iterations: u64::MAX,
            subgroup: 0,
            matrix_units: None,
            offset_alignment: crate::shape::GROUP_BYTES,
            timestamps: false,
            mappable_storage: true,
        }
    }
}
