//! Finding an adapter: which are here, which one a name or number means, and opening it.

use super::MatrixUnits;
use super::caps::{full_name, shares_memory};
use crate::error::{Error, Result};

/// Which adapter to use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdapterChoice {
    /// An index into the list of [`adapters`], or part of a name as [`Caps`](super::Caps) has it (case does
    /// not matter).
    pub wanted: Option<String>,
    /// Only adapters of these backends.
    pub backends: Option<wgpu::Backends>,
    /// Software adapters count too, though no name asks for one. They are slower than the host backend.
    pub software: bool,
}

/// One adapter of this machine.
#[derive(Clone, Debug)]
pub struct AdapterReport {
    /// Its place in the list, by which `--adapter` can name it.
    pub index: usize,
    /// Name, driver, backend and kind, as wgpu reports them.
    pub info: wgpu::AdapterInfo,
    /// Its own limits.
    pub limits: wgpu::Limits,
    /// Its own features.
    pub features: wgpu::Features,
    /// Its matrix units, where it has some that kernels can use.
    pub matrix_units: Option<MatrixUnits>,
}

impl AdapterReport {
    /// Whether this is a program and not a device: Mesa's lavapipe, SwiftShader, WARP.
    #[must_use]
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }
}

fn instance(backends: wgpu::Backends) -> wgpu::Instance {
    let descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..descriptor })
}

/// Every adapter of this machine, in wgpu's order, those of OpenGL last.
pub async fn adapters() -> Vec<AdapterReport> {
    list(true).await.into_iter().map(|(_, report)| report).collect()
}

/// OpenGL is looked at only where it is wanted: its drivers write to standard error and take their time.
async fn list(with_gl: bool) -> Vec<(wgpu::Adapter, AdapterReport)> {
    let others = wgpu::Backends::all() - wgpu::Backends::GL;
    let mut found = instance(others).enumerate_adapters(others).await;
    if with_gl {
        found.extend(instance(wgpu::Backends::GL).enumerate_adapters(wgpu::Backends::GL).await);
    }
    found
        .into_iter()
        .enumerate()
        .map(|(index, adapter)| {
            let report = AdapterReport {
                index,
                info: adapter.get_info(),
                limits: adapter.limits(),
                features: adapter.features(),
                matrix_units: MatrixUnits::of(&adapter),
            };
            (adapter, report)
        })
        .collect()
}

/// The adapter that `choice` means. Without a name: discrete before integrated before the rest, software last
/// and only if asked for.
pub(super) async fn find(choice: &AdapterChoice) -> Result<(wgpu::Adapter, AdapterReport)> {
    let wants_gl = choice.backends.is_some_and(|backends| backends.contains(wgpu::Backends::GL));
    // Which numbers are places in the list is known once all of them are there.
    let is_number = choice.wanted.as_ref().is_some_and(|wanted| wanted.parse::<usize>().is_ok());
    let with_gl = wants_gl || is_number;
    match find_among(list(with_gl).await, choice) {
        // Only the adapters of OpenGL, last in the list, are left to have that name.
        Err(_) if !with_gl && choice.wanted.is_some() => find_among(list(true).await, choice),
        found => found,
    }
}

fn find_among(
    all: Vec<(wgpu::Adapter, AdapterReport)>,
    choice: &AdapterChoice,
) -> Result<(wgpu::Adapter, AdapterReport)> {
    let names: Vec<String> =
        all.iter().map(|(_, r)| format!("{} {} ({:?})", r.index, r.info.name, r.info.backend)).collect();
    let count = all.len();
    let fits = |report: &AdapterReport| {
        let backend = choice.backends.is_none_or(|b| b.contains(report.info.backend.into()));
        let named = match &choice.wanted {
            None => choice.software || !report.is_software(),
            Some(wanted) => match wanted.parse::<usize>() {
                // A larger number is part of a name, as of an RTX 4090.
                Ok(index) if index < count => report.index == index,
                _ => full_name(&report.info).to_lowercase().contains(&wanted.to_lowercase()),
            },
        };
        backend && named
    };
    all.into_iter().filter(|(_, report)| fits(report)).min_by_key(|(_, report)| rank(report)).ok_or_else(
        || {
            let asked = asked(choice);
            let here = if names.is_empty() { "none".into() } else { names.join(", ") };
            let message = format!(
                "{asked} was not found; here: {here}; the host backend (--backend host) needs none, and \
                 Mesa's software Vulkan comes with mesa-vulkan-drivers"
            );
            Error::Adapter { message }
        },
    )
}

/// What was looked for, in words.
fn asked(choice: &AdapterChoice) -> String {
    let of = choice.backends.map(|backends| {
        backends.iter_names().map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>().join(" or ")
    });
    let of = of.map(|names| format!(" of {names}")).unwrap_or_default();
    match &choice.wanted {
        Some(wanted) => format!("\"{wanted}\"{of}"),
        None if choice.software => format!("an adapter{of}"),
        None => format!("a hardware adapter{of}"),
    }
}

/// The adapter that is taken where nothing is asked for; nothing where all are software, which the host outruns, or
/// OpenGL's, which have to be asked for.
#[must_use]
pub fn default_adapter(reports: &[AdapterReport]) -> Option<&AdapterReport> {
    let counts = |report: &&AdapterReport| !report.is_software() && report.info.backend != wgpu::Backend::Gl;
    reports.iter().filter(counts).min_by_key(|report| rank(report))
}

fn rank(report: &AdapterReport) -> (u8, u8, usize) {
    let kind = match report.info.device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 3,
        wgpu::DeviceType::Cpu => 4,
    };
    let backend = u8::from(report.info.backend == wgpu::Backend::Gl);
    (kind, backend, report.index)
}

pub(super) async fn open(
    adapter: &wgpu::Adapter,
    experimental_features: wgpu::ExperimentalFeatures,
) -> Result<(wgpu::Device, wgpu::Queue)> {
    let mut optional = wgpu::Features::TIMESTAMP_QUERY | wgpu::Features::SUBGROUP;
    optional.set(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS, shares_memory(adapter.get_info().device_type));
    if experimental_features.is_enabled() {
        optional |= MatrixUnits::FEATURES;
    }
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("squisher"),
        required_features: adapter.features() & optional,
        required_limits: adapter.limits(),
        experimental_features,
        ..Default::default()
    };
    adapter
        .request_device(&descriptor)
        .await
        .map_err(|e| Error::Adapter { message: format!("{} refused a device: {e}", adapter.get_info().name) })
}
