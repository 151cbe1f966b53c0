//! `squisher bench`.

use std::fmt;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use squisher::bench::{Clock, Job};
use squisher::kernel::{Checked, Visitor};
use squisher::{Backend, Error, kernels};

use crate::args::Global;
use crate::output;
use crate::table::{Column, Table};

const EXAMPLES: &str = "\
Examples:
  squisher bench --backend host
  squisher bench --only merge --size 67108864
  squisher bench --adapter 0 --json > bench.json";

/// Time every kernel against what this device can do
///
/// First the ceilings, measured in the same run: a large copy, and on the host matrix products that stay in cache. Then every kernel,
/// checked before it is timed, with the share of the ceiling that its fewest bytes or operations reach. A share above 100 %
/// says something about the ceiling: small sizes stay in a cache.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    /// Only kernels with this in their name
    #[arg(long, value_name = "KERNEL")]
    only: Option<String>,

    /// Elements of each kernel's largest buffer, about
    #[arg(long, value_name = "N", default_value_t = 4 << 20, value_parser = clap::value_parser!(u64).range(1..1 << 31))]
    size: u64,

    /// Seconds to spend on each kernel, at least
    #[arg(long, value_name = "S", default_value_t = 0.3)]
    seconds: f64,
}

impl Bench {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let backend = global.device.open()?;
        let at_least = Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Error::argument("bench", format!("--seconds {} is no duration", self.seconds)))?;
        let copy = measure(&Job::copy(&backend, 4 * self.size)?, at_least)?;
        let products = Job::products(&backend).map(|job| measure(&job, at_least)).transpose()?;
        let mut timings = Timings {
            backend: &backend,
            only: self.only,
            size: self.size,
            at_least,
            found: Vec::new(),
            problem: None,
        };
        kernels::visit_all(&mut timings);
        if let Some(problem) = timings.problem {
            return Err(problem.into());
        }
        if timings.found.is_empty() {
            return Err(Error::argument(
                "bench",
                "no kernel has that in its name; `squisher verify` lists them",
            )
            .into());
        }
        let kernels = timings.found.into_iter().map(|row| row.shares(&copy, products.as_ref())).collect();
        let measured = Measured { adapter: backend.name(), copy, products, kernels };
        output::report(global, "bench", &measured)
    }
}

/// Walks the registry.
struct Timings<'a> {
    backend: &'a Backend,
    only: Option<String>,
    size: u64,
    at_least: Duration,
    found: Vec<Row>,
    problem: Option<Error>,
}

impl Visitor for Timings<'_> {
    fn kernel<K: Checked>(&mut self) {
        let wanted = self.only.as_ref().is_none_or(|only| K::NAME.contains(only.as_str()));
        if !wanted || self.problem.is_some() {
            return;
        }
        let timed = Job::kernel::<K>(self.backend, self.size).and_then(|job| measure(&job, self.at_least));
        match timed {
            Ok(row) => self.found.push(row),
            Err(error) => self.problem = Some(error),
        }
    }
}

fn measure(job: &Job, at_least: Duration) -> Result<Row, Error> {
    let timing = job.time(at_least)?;
    Ok(Row {
        name: job.name.clone(),
        bytes: job.cost.bytes,
        flops: job.cost.flops,
        seconds: timing.seconds,
        clock: if timing.clock == Clock::Device { "device" } else { "host" },
        share_of_copy: None,
        share_of_products: None,
    })
}

/// The result.
#[derive(Serialize)]
struct Measured {
    adapter: String,
    copy: Row,
    #[serde(skip_serializing_if = "Option::is_none")]
    products: Option<Row>,
    kernels: Vec<Row>,
}

/// One measured time with the least work that it stands for.
#[derive(Serialize)]
struct Row {
    name: String,
    bytes: u64,
    flops: u64,
    seconds: f64,
    clock: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_copy: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    share_of_products: Option<f64>,
}

impl Row {
    fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    fn flops_per_second(&self) -> f64 {
        self.flops as f64 / self.seconds
    }

    fn shares(self, copy: &Self, products: Option<&Self>) -> Self {
        Self {
            share_of_copy: Some(self.bytes_per_second() / copy.bytes_per_second()),
            share_of_products: products.map(|products| self.flops_per_second() / products.flops_per_second()),
            ..self
        }
    }

    fn cells(&self) -> [String; 7] {
        let percent =
            |share: Option<f64>| share.map_or_else(|| "-".to_owned(), |s| format!("{:.0} %", 100.0 * s));
        [
            self.name.clone(),
            format!("{:.3} ms", 1e3 * self.seconds),
            format!("{:.1}", 1e-9 * self.bytes_per_second()),
            percent(self.share_of_copy),
            format!("{:.1}", 1e-9 * self.flops_per_second()),
            percent(self.share_of_products),
            self.clock.to_owned(),
        ]
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            Column::Left("KERNEL"),
            Column::Right("TIME"),
            Column::Right("GB/s"),
            Column::Right("OF COPY"),
            Column::Right("GFLOP/s"),
            Column::Right("OF PRODUCTS"),
            Column::Left("CLOCK"),
        ]);
        for row in [&self.copy].into_iter().chain(&self.products).chain(&self.kernels) {
            table.row(row.cells());
        }
        write!(f, "{}\n{table}", self.adapter)
    }
}
