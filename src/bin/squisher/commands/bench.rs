//! `squisher bench`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use squisher::bench::{self, Bound, Options, Record, Row};
use squisher::{Backend, Error};

use crate::args::Global;
use crate::table::{Column, Table, counted};
use crate::{output, signals};

const EXAMPLES: &str = "\
Examples:
  squisher bench --backend host
  squisher bench --only merge --size 4096 --size 67108864
  squisher bench --adapter 0 --seconds 300 --device-memory 16GiB --record
  squisher report benches/record/*/*.csv -o roofline.html";

/// Time every kernel against what this device can do
///
/// First the ceilings, measured in the same run: a large copy, multiply-adds in registers (on the host matrix
/// products in cache too), the way to the device and back, and the smallest step. Then every kernel, checked
/// before it is timed, at sizes from those that a launch dominates to 256 Mi elements, and products at the
/// sizes of real layers. OF ROOF is the share that it reaches of what the ceilings allow: the copy's rate or
/// the arithmetic's, whichever its fewest bytes and operations meet first. A kernel and its ceiling take
/// turns, since machines change their speed. A share above 100 % says something about the ceiling: small
/// sizes stay in a cache.
///
/// Sizes whose buffers exceed the memory (--device-memory, on the host --host-memory; 2 GiB without), or the
/// time, are left out.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bench {
    /// Only kernels with this in their name
    #[arg(long, value_name = "KERNEL")]
    only: Option<String>,

    /// Elements of each kernel's largest buffer, about; may be repeated [default: 4 Ki to 256 Mi]
    #[arg(long = "size", value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..1 << 31))]
    sizes: Vec<u64>,

    /// Seconds to spend on all measurements together, about
    #[arg(long, value_name = "S", allow_negative_numbers = true, default_value_t = 60.0)]
    seconds: f64,

    /// Print the measurements as CSV
    #[arg(long, conflicts_with = "json")]
    csv: bool,

    /// Keep the measurements as FOLDER/<adapter>/<date>.csv
    #[arg(long, value_name = "FOLDER", num_args = 0..=1, default_missing_value = "benches/record")]
    record: Option<PathBuf>,
}

impl Bench {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        if global.dry_run {
            let problem = "has no --dry-run; without --record it writes nothing";
            return Err(Error::argument("bench", problem).into());
        }
        let backend = global.device.open()?;
        let options = self.options(global, &backend)?;
        // Before anything is measured, not minutes later.
        let file = self.record.map(|folder| place(&folder, &backend, global.overwrite)).transpose()?;
        let interrupt = signals::listen()?;
        let record = bench::run(&backend, &options, &interrupt)?;
        file.iter().try_for_each(|file| output::write_whole(file, record.to_csv().as_bytes()))?;
        if self.csv {
            return output::write(record.to_csv().as_bytes());
        }
        let file = file.map(|file| file.display().to_string());
        output::report(global, "bench", &Measured { record, file })
    }

    fn options(&self, global: &Global, backend: &Backend) -> Result<Options, Error> {
        let defaults = Options::default();
        let mut sizes = if self.sizes.is_empty() { defaults.sizes } else { self.sizes.clone() };
        sizes.sort_unstable();
        sizes.dedup();
        let budget = Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Error::argument("bench", format!("--seconds {} is not a duration", self.seconds)))?;
        let given = global.memory.budget();
        let given = if matches!(backend, Backend::Host) { given.host_bytes } else { given.device_bytes };
        let memory_bytes = if given == u64::MAX { defaults.memory_bytes } else { given };
        Ok(Options { only: self.only.clone(), sizes, budget, memory_bytes })
    }
}

/// The record's file, whose folder is there then.
fn place(folder: &Path, backend: &Backend, overwrite: bool) -> Result<PathBuf, Error> {
    let file = folder.join(Record::file_of(&backend.name()));
    let folder = file.parent().unwrap_or(folder);
    std::fs::create_dir_all(folder).map_err(|error| Error::output(folder, error.to_string()))?;
    output::refuse_output(&file, overwrite, &[])?;
    Ok(file)
}

/// The result.
#[derive(Serialize)]
struct Measured {
    #[serde(flatten)]
    record: Record,
    /// Where it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

/// Seconds as people read them.
fn time(seconds: f64) -> String {
    if seconds < 1e-3 { format!("{:.2} us", 1e6 * seconds) } else { format!("{:.2} ms", 1e3 * seconds) }
}

/// Billions a second; a dash for nothing.
fn rate(per_second: f64) -> String {
    if per_second == 0.0 { "-".into() } else { format!("{:.2}", 1e-9 * per_second) }
}

fn cells(row: &Row) -> [String; 9] {
    let bound = row.roof.map(|roof| roof.bound);
    [
        row.kernel.clone(),
        row.shape.clone(),
        time(row.seconds),
        rate(row.bytes_per_second()),
        rate(row.flops_per_second()),
        row.share().map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
        bound.map_or("-", |bound| if bound == Bound::Bandwidth { "copy" } else { "arithmetic" }).into(),
        if row.clock == bench::Clock::Device { "device" } else { "host" }.into(),
        row.first_seconds.map_or(String::new(), time),
    ]
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            Column::Left("KERNEL"),
            Column::Left("SIZE"),
            Column::Right("TIME"),
            Column::Right("GB/s"),
            Column::Right("GFLOP/s"),
            Column::Right("OF ROOF"),
            Column::Left("LIMIT"),
            Column::Left("CLOCK"),
            Column::Right("FIRST RUN"),
        ]);
        let record = &self.record;
        record.ceilings.rows().chain(&record.rows).for_each(|row| table.row(cells(row)));
        write!(f, "{}\n{table}", record.adapter)?;
        if !record.skipped.is_empty() {
            let left_out = counted(record.skipped.len() as u64, "measurement");
            write!(f, "\n{left_out} left out (too little memory or time); -v or --json says which")?;
        }
        if let Some(file) = &self.file {
            write!(f, "\nkept as {file}")?;
        }
        Ok(())
    }
}
