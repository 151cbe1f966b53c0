//! Warnings and notes on standard error, one line each, in the way errors are printed.

use std::io::Write;

use env_logger::{Builder, Target};
use log::{Level, LevelFilter, Record};

use crate::args::Global;
use crate::progress::between_bars;

/// Start the log: warnings, with `-v` notes, with `-vv` everything; `RUST_LOG` overrides.
pub(crate) fn start(global: &Global) {
    let own = match (global.quiet, global.verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, _) => LevelFilter::Debug,
    };
    // Drivers and wgpu complain about what no user can change (a missing display); what matters comes back as an error.
    let others = if global.verbose > 1 { LevelFilter::Info } else { LevelFilter::Off };
    Builder::new()
        .filter_level(others)
        .filter_module("squisher", own)
        .parse_default_env()
        .target(Target::Pipe(Box::new(BesideBars)))
        .format(line)
        .init();
}

fn line(to: &mut env_logger::fmt::Formatter, record: &Record<'_>) -> std::io::Result<()> {
    let kind = match record.level() {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info => "",
        Level::Debug | Level::Trace => "debug: ",
    };
    writeln!(to, "squisher: {kind}{}", record.args())
}

/// Standard error, with no progress bar in the way of a line.
struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        between_bars(|| std::io::stderr().write(line))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
