//! Every registered kernel against a copy on the same backend: `cargo bench --bench kernels`.
//!
//! For following one kernel's speed from change to change; `squisher bench` holds all of them against their ceilings.
//! `squisher verify` checks them. `SQUISHER_BENCH_ADAPTER=NAME` runs on that adapter instead of the host,
//! `SQUISHER_BENCH_ELEMENTS` sets the size (4 Mi by default).

use criterion::{Criterion, Throughput};
use squisher::bench::{Job, steps};
use squisher::gpu::AdapterChoice;
use squisher::kernel::{Checked, Visitor};
use squisher::{Backend, Gpu, Result, kernels};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let backend = backend()?;
    let elements = std::env::var("SQUISHER_BENCH_ELEMENTS").ok().and_then(|n| n.parse().ok());
    let elements = elements.unwrap_or(4 << 20);
    time(&mut criterion, &Job::copy(&backend, 4 * elements)?);
    let mut run = Run { criterion: &mut criterion, backend, elements, problem: None };
    kernels::visit_all(&mut run);
    run.problem.map_or(Ok(()), Err)?;
    criterion.final_summary();
    Ok(())
}

fn backend() -> Result<Backend> {
    let Ok(wanted) = std::env::var("SQUISHER_BENCH_ADAPTER") else { return Ok(Backend::Host) };
    let choice = AdapterChoice { wanted: Some(wanted), ..AdapterChoice::default() };
    Ok(Backend::Gpu(pollster::block_on(Gpu::request(&choice))?))
}

struct Run<'a> {
    criterion: &'a mut Criterion,
    backend: Backend,
    elements: u64,
    problem: Option<squisher::Error>,
}

impl Visitor for Run<'_> {
    fn kernel<K: Checked>(&mut self) {
        for step in steps::<K>(&self.backend.caps(), &[self.elements]) {
            match Job::step(&self.backend, step) {
                Ok(job) => time(self.criterion, &job),
                Err(error) => self.problem = Some(error),
            }
        }
    }
}

/// Bytes a second, to be read beside the copy's.
fn time(criterion: &mut Criterion, job: &Job) {
    let mut group = criterion.benchmark_group("kernels");
    group.throughput(Throughput::Bytes(job.cost.bytes)).sample_size(10);
    group.bench_function(format!("{} {}", job.name, job.shape), |bencher| {
        bencher.iter(|| job.run().expect("it ran when it was checked"));
    });
    group.finish();
}
