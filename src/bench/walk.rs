//! The whole registry, timed within a budget.

use std::time::{Duration, Instant};

use super::Ceilings;
use super::ceilings::Beside;
use super::job::{Job, first_run};
use super::models;
use super::record::{Record, Row, Skipped};
use super::turns::RUNS;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::gpu::Caps;
use crate::interrupt::Interrupt;
use crate::kernel::{Bench, Checked, Fill, Kernel, Visitor};
use crate::kernels;
use crate::kernels::ceiling::Fma;
use crate::verify;

/// What is measured, and within what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Only kernels with this in their name.
    pub only: Option<String>,
    /// Elements of each kernel's largest buffer, ascending.
    pub sizes: Vec<u64>,
    /// How long all measurements may take together, the checking of the kernels not counted. Each runs at
    /// least three times.
    pub budget: Duration,
    /// The most memory that one measurement's buffers may take.
    pub memory_bytes: u64,
}

impl Default for Options {
    /// From sizes that a launch dominates to 256 Mi elements, in a minute and 2 GiB.
    fn default() -> Self {
        Self {
            only: None,
            sizes: [12, 16, 20, 22, 24, 26, 28].map(|bits| 1 << bits).into(),
            budget: Duration::from_secs(60),
            memory_bytes: 2 << 30,
        }
    }
}

/// Measures the ceilings, then every kernel that `options` ask for.
///
/// # Errors
/// [`Error::Device`] for a kernel of which a case does not hold; [`Error::Argument`] if no kernel has the
/// name; what the backend refuses; [`Error::Interrupted`].
pub fn run(backend: &Backend, options: &Options, interrupt: &Interrupt) -> Result<Record> {
    let mut wanted = Wanted { only: options.only.as_deref(), kernels: 0 };
    kernels::visit_all(&mut wanted);
    let is_operation_wanted =
        |name: &str| options.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let (with_models, with_top_k) = (is_operation_wanted(MODELS), is_operation_wanted(TOP_K));
    wanted.kernels += u32::from(with_top_k) + if with_models { models::MODELS.len() as u32 } else { 0 };
    if wanted.kernels == 0 {
        let only = options.only.as_deref().unwrap_or_default();
        let problem = format!("no kernel has \"{only}\" in its name; `squisher verify` lists them");
        return Err(Error::argument("bench", problem));
    }
    check::<Fma>(backend)?;
    let ceilings = || Ceilings::measure(backend, options.budget / 10, options.memory_bytes, interrupt);
    let mut walk = Walk {
        backend,
        options,
        interrupt,
        budget: options.budget * 8 / 10,
        kernels: wanted.kernels,
        record: Record::new(backend.name(), ceilings()?),
        beside: Beside::new(backend, options.memory_bytes / BESIDE)?,
        problem: None,
    };
    kernels::visit_all(&mut walk);
    if let Some(problem) = walk.problem {
        return Err(problem);
    }
    if with_models {
        models::MODELS.into_iter().try_for_each(|models| walk.models_steps(models))?;
    }
    if with_top_k {
        walk.top_k_steps()?;
    }
    // Before and after: a machine is seldom quiet all the time.
    let mut record = walk.record;
    record.ceilings = record.ceilings.or_faster(ceilings()?);
    Ok(record)
}

/// The steps by which a kernel is timed on a device: those of real layers if it has any, else one a size.
#[must_use]
pub fn steps<K: Checked>(caps: &Caps, sizes: &[u64]) -> Vec<Bench<K>> {
    let mut steps = K::layers(caps);
    if steps.is_empty() {
        steps = sizes.iter().map(|&elements| K::bench(elements)).collect();
        // A kernel that has a smallest or a largest size says the same for several.
        steps.dedup_by(|a, b| a.name == b.name);
    }
    steps
}

/// The part of the memory that the ceiling beside the kernels takes.
const BESIDE: u64 = 4;

/// The name of the selection, by the module that records it.
const TOP_K: &str = "record.top_k";

/// The name of merges in several steps.
const MODELS: &str = "merge.models";

fn is_wanted<K: Kernel>(only: Option<&str>) -> bool {
    // The ceilings come first, by themselves.
    !K::NAME.starts_with("ceiling.") && only.is_none_or(|only| K::NAME.contains(only))
}

/// Counts.
struct Wanted<'a> {
    only: Option<&'a str>,
    kernels: u32,
}

impl Visitor for Wanted<'_> {
    fn kernel<K: Checked>(&mut self) {
        self.kernels += u32::from(is_wanted::<K>(self.only));
    }
}

/// Measures.
struct Walk<'a> {
    backend: &'a Backend,
    options: &'a Options,
    interrupt: &'a Interrupt,
    /// What is left of the time, and of the kernels.
    budget: Duration,
    kernels: u32,
    record: Record,
    beside: Beside,
    problem: Option<Error>,
}

impl Visitor for Walk<'_> {
    fn kernel<K: Checked>(&mut self) {
        if self.problem.is_none() && is_wanted::<K>(self.options.only.as_deref()) {
            self.problem = self.kernel_steps::<K>().err();
        }
    }
}

/// One measurement to come.
struct Step<'a> {
    shape: String,
    /// Of its buffers.
    bytes: u64,
    make: Box<dyn FnOnce() -> Result<Job> + 'a>,
}

impl Walk<'_> {
    /// A kernel of the registry, checked first.
    fn kernel_steps<K: Checked>(&mut self) -> Result<()> {
        self.interrupt.check()?;
        check::<K>(self.backend)?;
        let backend = self.backend;
        let caps = backend.caps();
        let of_layers = !K::layers(&caps).is_empty();
        let first = self.first_run::<K>(&caps)?;
        let steps = steps::<K>(&caps, &self.options.sizes).into_iter().map(|step| Step {
            shape: step.name.clone(),
            bytes: step
                .buffers
                .iter()
                .filter(|(.., fill)| !matches!(fill, Fill::Same(_)))
                .map(|(element, len, _)| element.padded_bytes(*len))
                .sum(),
            make: Box::new(move || Job::step(backend, step)),
        });
        self.measure(K::NAME, steps.collect(), of_layers, first)
    }

    /// How long the kernel's first run takes, at its smallest size.
    fn first_run<K: Checked>(&self, caps: &Caps) -> Result<Option<f64>> {
        let smallest = steps::<K>(caps, &self.options.sizes).into_iter().next();
        match (self.backend, smallest) {
            (Backend::Gpu(gpu), Some(step)) => first_run(gpu, step).map(Some),
            _ => Ok(None),
        }
    }

    /// A merge of more models than one step takes.
    fn models_steps(&mut self, models: usize) -> Result<()> {
        let backend = self.backend;
        let steps = self.options.sizes.iter().map(|&elements| Step {
            shape: format!("{models} models, {elements} f32 in chunks"),
            bytes: models::width(models) * elements,
            make: Box::new(move || Job::models(backend, models, elements)),
        });
        self.measure(MODELS, steps.collect(), false, None)
    }

    /// The exact selection, which is made of several kernels.
    fn top_k_steps(&mut self) -> Result<()> {
        let backend = self.backend;
        let steps = self.options.sizes.iter().map(|&elements| Step {
            shape: format!("{elements} f32, the largest 0.5 %"),
            bytes: 4 * elements,
            make: Box::new(move || Job::top_k(backend, elements)),
        });
        self.measure(TOP_K, steps.collect(), false, None)
    }

    /// All sizes of one kernel, in its share of the time that is left; `first` is how long its first run took.
    fn measure(
        &mut self,
        kernel: &str,
        steps: Vec<Step<'_>>,
        of_layers: bool,
        mut first: Option<f64>,
    ) -> Result<()> {
        let started = Instant::now();
        let share = self.budget / self.kernels.max(1);
        self.kernels -= 1;
        let count = steps.len();
        let mut last: Option<(u64, Duration)> = None;
        for (place, step) in steps.into_iter().enumerate() {
            self.interrupt.check()?;
            let left = share.saturating_sub(started.elapsed());
            let Step { shape, bytes, make } = step;
            if let Some(reason) = self.too_large(bytes, last, left) {
                self.skip(kernel, shape, reason);
                continue;
            }
            let began = Instant::now();
            let each = left / u32::try_from(count - place).unwrap_or(u32::MAX);
            let timed = make().and_then(|job| {
                let making = began.elapsed();
                Ok((making, self.time(&job, each.saturating_sub(making))?))
            });
            match timed {
                Ok((making, row)) => {
                    log::info!("{kernel} {shape}: {:.3} ms", 1e3 * row.seconds);
                    // What grows with the size; the ceiling's turns then take as long as the kernel's.
                    let runs = Duration::from_secs_f64(2.0 * (RUNS + 1) as f64 * row.seconds);
                    // Real layers are few, and all of them are timed.
                    last = (!of_layers).then_some((bytes, making + runs));
                    self.record.rows.push(Row { first_seconds: first.take(), ..row });
                }
                Err(limit @ Error::Limit { .. }) => self.skip(kernel, shape, limit.to_string()),
                Err(error) => return Err(error),
            }
        }
        // What real layers take beyond their share is not taken from the kernels after them.
        self.budget = self.budget.saturating_sub(started.elapsed().min(share));
        Ok(())
    }

    fn time(&self, job: &Job, budget: Duration) -> Result<Row> {
        let bound = self.record.ceilings.bound(job.cost);
        Row::beside(job, (bound, self.beside.of(bound)), budget, self.interrupt)
    }

    /// Why a step is not tried: its buffers, or the time it would take by that of the size before it.
    fn too_large(&self, bytes: u64, last: Option<(u64, Duration)>, left: Duration) -> Option<String> {
        let most = self.options.memory_bytes - self.options.memory_bytes / BESIDE;
        if bytes > most {
            let flag = if matches!(self.backend, Backend::Host) { "host" } else { "device" };
            return Some(format!("its buffers take {bytes} bytes of {most}; --{flag}-memory allows more"));
        }
        let (before, took) = last?;
        let ratio = bytes as f64 / before.max(1) as f64;
        (took.mul_f64(ratio) > left).then(|| "there was no time for it; --seconds allows more".to_owned())
    }

    fn skip(&mut self, kernel: &str, shape: String, reason: String) {
        log::info!("{kernel} {shape} left out: {reason}");
        self.record.skipped.push(Skipped { kernel: kernel.into(), shape, reason });
    }
}

/// A wrong result has no speed.
fn check<K: Checked>(backend: &Backend) -> Result<()> {
    match verify::kernel(backend, K::cases()).failures.first() {
        None => Ok(()),
        Some(failure) => {
            let message = format!("wrong result on {}: {failure}", backend.name());
            Err(Error::Device { op: K::NAME.into(), message })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            only: Some("optimizer.".into()),
            sizes: vec![1 << 10, 1 << 12, 1 << 20],
            budget: Duration::ZERO,
            memory_bytes: 64 << 10,
        }
    }

    #[test]
    fn every_wanted_kernel_is_measured_and_what_is_left_out_says_why() {
        let record = run(&Backend::Host, &options(), &Interrupt::default()).expect("the host is there");
        let of = |kernel: &str| record.rows.iter().filter(|row| row.kernel == kernel).count();
        for kernel in ["optimizer.ema", "optimizer.amsgrad", "optimizer.scale"] {
            let skipped = record.skipped.iter().filter(|skipped| skipped.kernel == kernel);
            assert_eq!(of(kernel) + skipped.count(), 3, "{kernel}");
            // The first is tried whatever the time, the last is too large.
            assert!((1..=2).contains(&of(kernel)), "{kernel}");
        }
        assert!(record.skipped.iter().any(|skipped| skipped.reason.contains("--host-memory")));
        assert!(record.ceilings.rows().all(|row| row.seconds > 0.0));
    }

    #[test]
    fn an_operation_of_several_kernels_is_measured_too() {
        let only = Options { only: Some("top_k".into()), ..options() };
        let record = run(&Backend::Host, &only, &Interrupt::default()).expect("the host is there");
        assert_eq!((record.rows[0].kernel.as_str(), record.rows[0].bytes), (TOP_K, 4096 + 8 * 5));
        let only = Options { only: Some("merge.models".into()), memory_bytes: 1 << 20, ..options() };
        let record = run(&Backend::Host, &only, &Interrupt::default()).expect("the host is there");
        let first: Vec<_> = record.rows.iter().filter(|row| row.shape.contains(" 1024 ")).collect();
        assert_eq!(first.iter().map(|row| row.bytes).collect::<Vec<_>>(), [28 << 10, 36 << 10, 68 << 10]);
    }

    #[test]
    fn a_name_that_no_kernel_has_and_a_request_to_end_are_errors() {
        let unknown = Options { only: Some("nothing".into()), ..options() };
        let refused = run(&Backend::Host, &unknown, &Interrupt::default());
        assert!(refused.is_err_and(|error| error.to_string().contains("no kernel has \"nothing\"")));
        let interrupt = Interrupt::default();
        interrupt.request(15);
        let ended = run(&Backend::Host, &options(), &interrupt);
        assert!(matches!(ended, Err(Error::Interrupted { signal: 15 })));
    }
}
