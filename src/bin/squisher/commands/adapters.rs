//! `squisher adapters`.

use std::fmt;

use clap::Args;
use serde::Serialize;
use squisher::gpu::{AdapterReport, default_adapter};

use crate::args::Global;
use crate::table::{Column, Table, size};
use crate::{device, output};

const EXAMPLES: &str = "\
Examples:
  squisher adapters
  squisher adapters --json | jq -r '.adapters[] | select(.software | not) | .name'
  squisher verify --adapter 1";

/// Show where kernels can run: the host, and every adapter with its driver and limits
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Adapters {}

impl Adapters {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let reports = device::list();
        let default = default_adapter(&reports).map(|report| report.index);
        let listing = Listing {
            host: Host { threads: rayon::current_num_threads(), default: default.is_none() },
            adapters: reports.iter().map(|report| Adapter::new(report, default)).collect(),
        };
        output::report(global, "adapters", &listing)
    }
}

/// The result.
#[derive(Serialize)]
struct Listing {
    host: Host,
    adapters: Vec<Adapter>,
}

#[derive(Serialize)]
struct Host {
    threads: usize,
    default: bool,
}

#[derive(Serialize)]
struct Adapter {
    index: usize,
    name: String,
    backend: String,
    kind: String,
    driver: String,
    software: bool,
    default: bool,
    max_buffer_bytes: u64,
    max_binding_bytes: u64,
    max_workgroup_bytes: u32,
    max_workgroup_invocations: u32,
    timestamps: bool,
    mappable_storage: bool,
    /// The side of its matrices, where it has such as kernels can use.
    matrix_units: Option<u32>,
}

impl Adapter {
    fn new(report: &AdapterReport, default: Option<usize>) -> Self {
        let AdapterReport { index, info, limits, features, matrix_units } = report;
        let driver = [info.driver.as_str(), info.driver_info.as_str()];
        Self {
            index: *index,
            name: info.name.clone(),
            backend: info.backend.to_string(),
            kind: kind(info.device_type).to_owned(),
            driver: driver.join(" ").trim().to_owned(),
            software: report.is_software(),
            default: default == Some(*index),
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroup_invocations: limits.max_compute_invocations_per_workgroup,
            timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
            mappable_storage: features.contains(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS),
            matrix_units: matrix_units.map(|units| units.side),
        }
    }

    fn cells(&self) -> [String; 9] {
        [
            mark(self.default),
            self.index.to_string(),
            self.name.clone(),
            self.kind.clone(),
            self.backend.clone(),
            self.driver.clone(),
            size(self.max_buffer_bytes),
            size(self.max_binding_bytes),
            self.matrix_units.map_or_else(|| "-".to_owned(), |side| format!("{side}x{side}")),
        ]
    }
}

fn kind(device: wgpu::DeviceType) -> &'static str {
    match device {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

fn mark(default: bool) -> String {
    if default { "*" } else { "" }.to_owned()
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            Column::Left(""),
            Column::Right("INDEX"),
            Column::Left("NAME"),
            Column::Left("KIND"),
            Column::Left("BACKEND"),
            Column::Left("DRIVER"),
            Column::Right("BUFFER"),
            Column::Right("BINDING"),
            Column::Right("MATRIX"),
        ]);
        let Host { threads, default } = self.host;
        let none = || "-".to_owned();
        let name = format!("{threads} threads");
        table.row([mark(default), none(), name, none(), "host".to_owned(), none(), none(), none(), none()]);
        self.adapters.iter().for_each(|adapter| table.row(adapter.cells()));
        write!(f, "{table}\n* is taken when no flag says otherwise")
    }
}
