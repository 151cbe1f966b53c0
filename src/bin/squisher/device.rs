//! Which device the flags mean.

use clap::{Args, ValueEnum};
use squisher::gpu::{AdapterChoice, AdapterReport, adapters};
use squisher::stream::{Budget, parse_size};
use squisher::{Backend, Error, Gpu};

/// Where kernels run.
#[derive(Args)]
pub(crate) struct DeviceFlags {
    /// The adapter with this number in `squisher adapters`, or with this in its name
    #[arg(long, global = true, value_name = "NAME|INDEX", help_heading = "Device options")]
    adapter: Option<String>,

    /// The host's own threads, or adapters of one graphics interface [default: a hardware adapter, else the host]
    #[arg(long, global = true, value_enum, help_heading = "Device options")]
    backend: Option<Interface>,

    /// Let products use the adapter's matrix units, which wgpu has as an experiment; nobody has timed that yet
    #[arg(long, global = true, help_heading = "Device options")]
    matrix_units: bool,
}

/// What memory a job may use.
#[derive(Args)]
pub(crate) struct MemoryFlags {
    /// The most device memory to use, such as 64MiB or 8GB; does not apply to the host backend
    #[arg(long, global = true, value_name = "SIZE", allow_negative_numbers = true, value_parser = parse_size, help_heading = "Device options")]
    device_memory: Option<u64>,

    /// The most host memory to use for data in flight
    #[arg(long, global = true, value_name = "SIZE", allow_negative_numbers = true, value_parser = parse_size, help_heading = "Device options")]
    host_memory: Option<u64>,
}

impl MemoryFlags {
    /// The flags as a budget; what is not said is not limited.
    pub(crate) fn budget(&self) -> Budget {
        let unlimited = Budget::default();
        Budget {
            device_bytes: self.device_memory.unwrap_or(unlimited.device_bytes),
            host_bytes: self.host_memory.unwrap_or(unlimited.host_bytes),
            ..unlimited
        }
    }
}

/// How a device is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Interface {
    /// The host's threads and memory; needs no driver
    Host,
    Vulkan,
    Metal,
    Dx12,
    Gl,
}

impl DeviceFlags {
    /// The backend that the flags ask for. Without any, the best hardware adapter, or the host where there is none.
    ///
    /// A software adapter is taken only where a flag leaves nothing else: the host's threads do the same work faster.
    pub(crate) fn open(&self) -> Result<Backend, Error> {
        match (&self.adapter, self.backend) {
            (None, Some(Interface::Host)) if self.matrix_units => {
                let problem = "--matrix-units and --backend host exclude each other; the host has none";
                Err(Error::argument("device", problem))
            }
            (None, Some(Interface::Host)) => Ok(Backend::Host),
            (Some(adapter), Some(Interface::Host)) => {
                let problem = format!("--adapter {adapter} and --backend host exclude each other");
                Err(Error::argument("device", problem))
            }
            (None, None) if self.matrix_units => self.request(&AdapterChoice::default()),
            (None, None) => {
                let backend = Backend::detect();
                log::info!("running on {}", backend.name());
                Ok(backend)
            }
            (adapter, interface) => self.request(&AdapterChoice {
                wanted: adapter.clone(),
                backends: interface.map(Interface::backends),
                software: true,
            }),
        }
    }

    /// Refuses a device that a command has no use for, since it runs on the host.
    pub(crate) fn refuse(&self, command: &str) -> Result<(), Error> {
        let flag = match (&self.adapter, self.backend) {
            (Some(_), _) => "--adapter",
            (None, Some(backend)) if backend != Interface::Host => "--backend but host",
            _ if self.matrix_units => "--matrix-units",
            _ if self.matrix_units => "--matrix-units",
            _ => return Ok(()),
        };
        Err(Error::argument(command, format!("has no {flag}; it runs on the host's threads")))
    }

    fn request(&self, choice: &AdapterChoice) -> Result<Backend, Error> {
        let experimental =
            if self.matrix_units { experimental() } else { wgpu::ExperimentalFeatures::disabled() };
        let gpu = pollster::block_on(Gpu::request_with(choice, experimental))?;
        if gpu.device().adapter_info().device_type == wgpu::DeviceType::Cpu {
            log::warn!("{} is a software adapter; --backend host is faster", gpu.caps().name);
        }
        log::info!("running on {}", gpu.caps().name);
        Ok(gpu.into())
    }

    /// The flags as they are written on a command line.
    pub(crate) fn words(&self) -> Vec<String> {
        let backend = self.backend.and_then(|interface| interface.to_possible_value());
        let backend = backend.map(|value| ("--backend", value.get_name().to_owned()));
        let adapter = self.adapter.clone().map(|name| ("--adapter", name));
        let mut words: Vec<_> =
            backend.into_iter().chain(adapter).flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        words.extend(self.matrix_units.then(|| "--matrix-units".to_owned()));
        words
    }
}

impl Interface {
    fn backends(self) -> wgpu::Backends {
        match self {
            Self::Host => wgpu::Backends::empty(),
            Self::Vulkan => wgpu::Backends::VULKAN,
            Self::Metal => wgpu::Backends::METAL,
            Self::Dx12 => wgpu::Backends::DX12,
            Self::Gl => wgpu::Backends::GL,
        }
    }
}

/// Every adapter of this machine.
pub(crate) fn list() -> Vec<AdapterReport> {
    pollster::block_on(adapters())
}

/// What `--matrix-units` agrees to.
#[allow(
    unsafe_code,
    reason = "wgpu warns in this way that its experiments may break its own promises of safety"
)]
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: the user asks for it by a flag that calls it an experiment; no shader comes from outside, and all of them
    // stay inside their buffers and are held to their definitions by tests.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}
