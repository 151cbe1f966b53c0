//! Progress of long jobs, on standard error.
//!
//! On a terminal a bar with bytes, rate and what is left of the time. Elsewhere, where a bar would fill a log file,
//! nothing; with `-v` a line at the start of each pass and every few seconds. `--quiet` silences both.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use squisher::Progress;

use crate::args::Global;
use crate::table;

/// Every bar is one of these, so that a line of the log can step between them.
static BARS: std::sync::LazyLock<MultiProgress> = std::sync::LazyLock::new(MultiProgress::new);

const BAR: &str =
    "{msg}: {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Whoever shows how far the job called `label` has come.
pub(crate) fn reporter(global: &Global, label: &'static str) -> Box<dyn Progress> {
    if global.quiet {
        Box::new(())
    } else if std::io::stderr().is_terminal() {
        Box::new(Bar::new(label))
    } else {
        Box::new(Lines { label, pass: Mutex::new(Pass::new(0)) })
    }
}

/// Run `print` with no bar on the screen.
pub(crate) fn between_bars<T>(print: impl FnOnce() -> T) -> T {
    BARS.suspend(print)
}

/// A bar, which leaves the screen with the job.
struct Bar(ProgressBar);

impl Bar {
    fn new(label: &'static str) -> Self {
        let style = ProgressStyle::with_template(BAR).expect("the template above is well formed");
        let bar = BARS.add(ProgressBar::new(0).with_style(style).with_message(label));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }
}

impl Progress for Bar {
    fn begin(&self, bytes: u64) {
        self.0.reset();
        self.0.set_length(bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Lines in the log.
struct Lines {
    label: &'static str,
    pass: Mutex<Pass>,
}

/// One pass over the input.
struct Pass {
    total: u64,
    done: u64,
    began: Instant,
    told: Instant,
}

impl Pass {
    fn new(total: u64) -> Self {
        let now = Instant::now();
        Self { total, done: 0, began: now, told: now }
    }

    /// What there is to say at a moment.
    fn line(&self, now: Instant) -> String {
        let rate = self.done as f64 / (now - self.began).as_secs_f64();
        let (done, total) = (table::size(self.done), table::size(self.total));
        let left = (self.total.saturating_sub(self.done)) as f64 / rate;
        format!("{done} of {total}, {}/s, {left:.0} s left", table::size(rate as u64))
    }
}

impl Progress for Lines {
    fn begin(&self, bytes: u64) {
        log::info!("{}: reading {}", self.label, table::size(bytes));
        if let Ok(mut pass) = self.pass.lock() {
            *pass = Pass::new(bytes);
        }
    }

    fn advance(&self, bytes: u64) {
        let Ok(mut pass) = self.pass.lock() else { return };
        pass.done += bytes;
        let now = Instant::now();
        if now - pass.told >= LINE_EVERY {
            pass.told = now;
            log::info!("{}: {}", self.label, pass.line(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_well_formed() {
        Bar::new("test").begin(10);
    }

    #[test]
    fn a_line_tells_what_is_done_how_fast_and_what_is_left() {
        let began = Instant::now();
        let pass = Pass { total: 8 << 20, done: 2 << 20, began, told: began };
        assert_eq!(pass.line(began + Duration::from_secs(2)), "2.0 MiB of 8.0 MiB, 1.0 MiB/s, 6 s left");
    }
}
