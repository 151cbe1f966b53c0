//! Where the time of a job goes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// Where the time of a job went, in seconds. Stages may overlap, so that the parts add up to more than the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// From start to end.
    pub seconds: f64,
    /// Reading.
    pub read: f64,
    /// Handing what was read over to the device, which may copy it when it computes (next to nothing on the host).
    pub upload: f64,
    /// Recording and starting kernels (on the host: running them).
    pub compute: f64,
    /// Waiting for the device and reading back (next to nothing on the host).
    pub readback: f64,
    /// Writing.
    pub write: f64,
    /// With none of these under way: opening files, planning, waiting for disks to sync.
    pub idle: f64,
}

impl std::ops::AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.seconds += other.seconds;
        self.read += other.read;
        self.upload += other.upload;
        self.compute += other.compute;
        self.readback += other.readback;
        self.write += other.write;
        self.idle += other.idle;
    }
}

/// A stage of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage {
    Read,
    Upload,
    Compute,
    Readback,
    Write,
}

/// Measures the stages of one job, from any number of threads.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    spent: [Duration; 5],
    /// How many stages are under way, and since when not none.
    under_way: u32,
    since: Instant,
    busy: Duration,
}

impl Clock {
    /// A clock that runs.
    pub(crate) fn start() -> Self {
        let started = Instant::now();
        let state = State { spent: [Duration::ZERO; 5], under_way: 0, since: started, busy: Duration::ZERO };
        Self { started, state: Mutex::new(state) }
    }

    /// Does a stage's work, and counts its time.
    pub(crate) fn time<R>(&self, stage: Stage, work: impl FnOnce() -> R) -> R {
        let began = Instant::now();
        self.begin(began);
        let result = work();
        self.end(stage, began, Instant::now());
        result
    }

    fn begin(&self, now: Instant) {
        let mut state = self.state();
        if state.under_way == 0 {
            state.since = now;
        }
        state.under_way += 1;
    }

    fn end(&self, stage: Stage, began: Instant, now: Instant) {
        let mut state = self.state();
        state.spent[stage as usize] += now.saturating_duration_since(began);
        state.under_way -= 1;
        if state.under_way == 0 {
            let since = state.since;
            state.busy += now.saturating_duration_since(since);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was measured until now.
    pub(crate) fn timings(&self) -> Timings {
        self.timings_at(Instant::now())
    }

    fn timings_at(&self, now: Instant) -> Timings {
        let state = self.state();
        let all = now.saturating_duration_since(self.started);
        let [read, upload, compute, readback, write] = state.spent.map(|spent| spent.as_secs_f64());
        let idle = all.saturating_sub(state.busy).as_secs_f64();
        Timings { seconds: all.as_secs_f64(), read, upload, compute, readback, write, idle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// read 1 to 4, compute 3 to 6, write 8 to 9, asked at 10: idle are 0 to 1, 6 to 8 and 9 to 10.
    #[test]
    fn what_overlaps_is_busy_once_and_the_rest_is_idle() {
        let clock = Clock::start();
        let at = |second: u64| clock.started + Duration::from_secs(second);
        clock.begin(at(1));
        clock.begin(at(3));
        clock.end(Stage::Read, at(1), at(4));
        clock.end(Stage::Compute, at(3), at(6));
        clock.begin(at(8));
        clock.end(Stage::Write, at(8), at(9));
        let want =
            Timings { seconds: 10.0, read: 3.0, compute: 3.0, write: 1.0, idle: 4.0, ..Timings::default() };
        assert_eq!(clock.timings_at(at(10)), want);
    }
}
