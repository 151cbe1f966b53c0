//! How often a job is run, and what runs between.
//!
//! A machine's speed changes within seconds, by a factor of two on shared ones: a ceiling that was measured a
//! minute before says little of what a kernel could have reached. So the two take turns. A turn is as many
//! runs of the kernel as take as long as the ceiling, and then the ceiling once; the kernel is held against
//! the ceiling of that turn, and the median of the turns counts.

use std::time::{Duration, Instant};

use super::clock::DeviceClock;
use super::job::{Clock, Job, Timing};
use crate::error::Result;
use crate::interrupt::Interrupt;
use crate::record::Recording;

/// Fewer runs than this have no median worth the name.
pub(super) const RUNS: usize = 3;

/// More runs than this say nothing new.
const MOST_RUNS: usize = 10_000;

/// The job's median over at least three runs, after one that warms up.
pub(super) fn alone(job: &Job, budget: Duration, interrupt: &Interrupt) -> Result<Timing> {
    let start = Instant::now();
    let watch = Watch::warm(job)?;
    let mut times = Vec::new();
    while is_short(times.len(), start, budget) {
        interrupt.check()?;
        times.push(watch.seconds()?);
    }
    Ok(watch.timing(times))
}

/// The job's median, and the median over at least three turns of how often a run of it fits into one of the ceiling.
pub(super) fn beside(
    job: &Job,
    ceiling: &Job,
    budget: Duration,
    interrupt: &Interrupt,
) -> Result<(Timing, f64)> {
    let start = Instant::now();
    let (watch, other) = (Watch::warm(job)?, Watch::warm(ceiling)?);
    let is_short = |turns| is_short(turns, start, budget);
    let (times, ratios) = take_turns(|| watch.seconds(), || other.seconds(), is_short, interrupt)?;
    Ok((watch.timing(times), median(ratios)))
}

/// Times of the one, and of each turn how often one of its runs fits into the other's.
fn take_turns(
    mut run: impl FnMut() -> Result<f64>,
    mut ceiling: impl FnMut() -> Result<f64>,
    is_short: impl Fn(usize) -> bool,
    interrupt: &Interrupt,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut pace = ceiling()?;
    let (mut times, mut ratios) = (Vec::new(), Vec::new());
    while is_short(ratios.len()) {
        let first = times.len();
        let mut turn = 0.0;
        while times.len() == first || (turn < pace && times.len() - first < MOST_RUNS) {
            interrupt.check()?;
            let seconds = run()?;
            times.push(seconds);
            turn += seconds;
        }
        pace = ceiling()?;
        ratios.push(pace * (times.len() - first) as f64 / turn.max(LEAST));
    }
    Ok((times, ratios))
}

fn is_short(runs: usize, start: Instant, budget: Duration) -> bool {
    runs < RUNS || (start.elapsed() < budget && runs < MOST_RUNS)
}

/// Seconds that stand for a clock which is coarser than the work and says 0.
const LEAST: f64 = 1e-9;

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2].max(LEAST)
}

/// A job and the clock that times it.
struct Watch<'a> {
    job: &'a Job,
    device: Option<(DeviceClock<'a>, &'a Recording)>,
}

impl<'a> Watch<'a> {
    /// After a first run.
    fn warm(job: &'a Job) -> Result<Self> {
        job.run()?;
        Ok(Self { job, device: job.device_clock()? })
    }

    /// One run.
    fn seconds(&self) -> Result<f64> {
        if let Some((clock, recording)) = &self.device {
            return clock.time(recording);
        }
        let start = Instant::now();
        self.job.run()?;
        Ok(start.elapsed().as_secs_f64())
    }

    fn timing(&self, times: Vec<f64>) -> Timing {
        let clock = if self.device.is_some() { Clock::Device } else { Clock::Host };
        Timing { seconds: median(times), clock }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::backend::Backend;

    /// A machine that is half as fast from its eighth second on: a run takes 1 second, or 2, the ceiling 4, or 8.
    #[test]
    fn a_ratio_is_that_of_its_own_turn() {
        let now = Cell::new(0.0);
        let taking = |seconds: f64| {
            let slowed = if now.get() < 8.0 { seconds } else { 2.0 * seconds };
            now.set(now.get() + slowed);
            Ok(slowed)
        };
        let (times, ratios) =
            take_turns(|| taking(1.0), || taking(4.0), |turns| turns < 3, &Interrupt::default())
                .expect("no clock fails");
        // The ceiling, four runs; the ceiling, slow from here on: two runs are a turn once, then four.
        assert_eq!(times, [&[1.0; 4][..], &[2.0; 8]].concat());
        assert_eq!(ratios, [8.0, 4.0, 4.0]);
        assert_eq!(median(ratios), 4.0);
    }

    #[test]
    fn turns_end_when_asked_to() {
        let interrupt = Interrupt::default();
        interrupt.request(2);
        let copy = Job::copy(&Backend::Host, 1 << 10).expect("a small buffer");
        assert!(beside(&copy, &copy, Duration::ZERO, &interrupt).is_err());
    }
}
