//! One thing to be timed.

use std::fmt;
use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use super::clock::DeviceClock;
use super::fill::filled;
use super::{models, turns};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::gpu::{DeviceClass, Gpu};
use crate::interrupt::Interrupt;
use crate::kernel::{Args, Bench, Checked, Cost, Fill, Kernel};
use crate::kernels::optimizer::Ema;
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::record::top_k::TopK;

/// Which clock measured a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The device's timestamps, around the dispatches alone.
    Device,
    /// The host's, around submission and waiting too.
    Host,
}

/// How long one run of a job takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// The median.
    pub seconds: f64,
    /// By which clock.
    pub clock: Clock,
}

/// Something to be timed.
pub struct Job {
    /// What it is.
    pub name: String,
    /// Its sizes.
    pub shape: String,
    /// The least work of one run.
    pub cost: Cost,
    backend: Backend,
    work: Work,
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, shape, cost, backend, .. } = self;
        let mut shown = f.debug_struct("Job");
        shown.field("name", name).field("shape", shape).field("cost", cost).field("backend", &backend.name());
        shown.finish_non_exhaustive()
    }
}

enum Work {
    Steps(Recording),
    /// Steps whose start is what is timed.
    Start(Recording),
    HostCopy {
        from: Vec<u8>,
        to: Mutex<Vec<u8>>,
    },
    HostProducts {
        factor: Mat<f32>,
        products: Mutex<Vec<Mat<f32>>>,
    },
    Upload {
        view: View,
        bytes: Vec<u8>,
    },
    Readback {
        view: View,
        bytes: Mutex<Vec<u8>>,
    },
}

/// Rows and columns of the products that measure the host's arithmetic: three fit a core's second-level cache.
const PRODUCT: usize = 256;

/// Products for each thread.
const PRODUCTS: usize = 16;

/// Bytes that one thread copies at a time: they fit its second-level cache.
const COPIED: usize = 256 << 10;

impl Job {
    /// One step of a kernel, with its buffers filled. Its cases are not checked: [`run`](super::run) does that first.
    ///
    /// # Errors
    /// What the kernel or the backend refuses.
    pub fn step<K: Kernel>(backend: &Backend, step: Bench<K>) -> Result<Self> {
        let views = views(backend, &step)?;
        let Bench { name, kernel, params, .. } = step;
        let mut recording = Recording::new(backend);
        recording.dispatch(&kernel, params, K::Args::from_views(views))?;
        let cost = recording.cost();
        Ok(Self {
            name: K::NAME.into(),
            shape: name,
            cost,
            backend: backend.clone(),
            work: Work::Steps(recording),
        })
    }

    /// The largest 0.5 % of `elements`, as pairs of index and value. The fewest bytes: each element once, and
    /// the pairs.
    ///
    /// # Errors
    /// What the selection or the backend refuses.
    pub fn top_k(backend: &Backend, elements: u64) -> Result<Self> {
        let kept = elements / 200;
        let scores = filled(backend, Element::F32, elements, Fill::Positive)?;
        let (indices, values) = (backend.alloc(kept, Element::U32)?, backend.alloc(kept, Element::F32)?);
        let selection = TopK::of_fisher(backend, &scores, kept)?;
        let mut recording = Recording::new(backend);
        selection.threshold(&mut recording)?;
        selection.pairs(&mut recording, &indices, &values)?;
        Ok(Self {
            name: "record.top_k".into(),
            shape: format!("{elements} f32, the largest 0.5 %"),
            cost: Cost { bytes: 4 * elements + 8 * kept, flops: 0 },
            backend: backend.clone(),
            work: Work::Steps(recording),
        })
    }

    /// `models` models with their Fishers, of `elements` parameters each, merged in chunks. The fewest bytes:
    /// each input once, and the result.
    ///
    /// # Errors
    /// What the kernel or the backend refuses.
    pub fn models(backend: &Backend, models: usize, elements: u64) -> Result<Self> {
        let (recording, cost) = models::recording(backend, models, elements)?;
        Ok(Self {
            name: "merge.models".into(),
            shape: format!("{models} models, {elements} f32 in chunks"),
            cost,
            backend: backend.clone(),
            work: Work::Steps(recording),
        })
    }

    /// Copies of `bytes` bytes: on the host by all threads, on a device so many in a row that starting them
    /// does not count.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn copy(backend: &Backend, bytes: u64) -> Result<Self> {
        let len = bytes.div_ceil(4);
        let (work, times) = match backend {
            Backend::Host => {
                let len = usize_of("copy", 4 * len)?;
                (Work::HostCopy { from: vec![1; len], to: Mutex::new(vec![0; len]) }, 1)
            }
            Backend::Gpu(gpu) => {
                let times = if gpu.caps().class == DeviceClass::Gpu { 16 } else { 2 };
                let (from, to) = (backend.alloc(len, Element::U32)?, backend.alloc(len, Element::U32)?);
                let mut recording = Recording::new(backend);
                for _ in 0..times {
                    recording.copy(&from, &to)?;
                }
                (Work::Steps(recording), times)
            }
        };
        let cost = Cost { bytes: 2 * 4 * len * times, flops: 0 };
        Ok(Self::ceiling(backend, "copy", format!("{} bytes x {times}", 4 * len), cost, work))
    }

    /// Matrix products that stay in cache, one a thread at a time: what the host's arithmetic comes to in
    /// products. None for a device.
    #[must_use]
    pub fn products(backend: &Backend) -> Option<Self> {
        let Backend::Host = backend else { return None };
        let count = PRODUCTS * rayon::current_num_threads();
        let factor = Mat::from_fn(PRODUCT, PRODUCT, |row, column| (row + 2 * column) as f32 * 1e-3);
        let products = Mutex::new(vec![Mat::zeros(PRODUCT, PRODUCT); count]);
        let cost = Cost { bytes: 0, flops: 2 * (PRODUCT * PRODUCT * PRODUCT * count) as u64 };
        let work = Work::HostProducts { factor, products };
        Some(Self::ceiling(backend, "products", format!("{count} of {PRODUCT}x{PRODUCT} f32"), cost, work))
    }

    /// Bytes to a device, waited for. None for the host, where kernels work in the memory that files are read to.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn upload(backend: &Backend, bytes: u64) -> Result<Option<Self>> {
        let Backend::Gpu(_) = backend else { return Ok(None) };
        let view = backend.alloc(bytes / 4, Element::U32)?;
        let cost = Cost { bytes: view.bytes(), flops: 0 };
        let work = Work::Upload { bytes: vec![1; usize_of("upload", view.bytes())?], view };
        Ok(Some(Self::ceiling(backend, "upload", format!("{} bytes", cost.bytes), cost, work)))
    }

    /// Bytes back from a device. None for the host.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn readback(backend: &Backend, bytes: u64) -> Result<Option<Self>> {
        let Backend::Gpu(_) = backend else { return Ok(None) };
        let view = backend.alloc(bytes / 4, Element::U32)?;
        let cost = Cost { bytes: view.bytes(), flops: 0 };
        let work = Work::Readback { bytes: Mutex::new(vec![0; usize_of("readback", view.bytes())?]), view };
        Ok(Some(Self::ceiling(backend, "readback", format!("{} bytes", cost.bytes), cost, work)))
    }

    /// The smallest step, from submission to its end: by the host's clock, as the device's does not see its start.
    ///
    /// # Errors
    /// As [`Job::step`].
    pub fn latency(backend: &Backend) -> Result<Self> {
        let Self { work, cost, .. } = Self::step(backend, Ema::bench(1))?;
        let Work::Steps(recording) = work else { unreachable!("a step's work is steps") };
        let shape = format!("{} bytes", cost.bytes);
        Ok(Self::ceiling(backend, "latency", shape, cost, Work::Start(recording)))
    }

    fn ceiling(backend: &Backend, name: &str, shape: String, cost: Cost, work: Work) -> Self {
        Self { name: format!("ceiling.{name}"), shape, cost, backend: backend.clone(), work }
    }

    /// Does the work once, and waits for it.
    ///
    /// # Errors
    /// [`Error::Device`] after a loss.
    pub fn run(&self) -> Result<()> {
        match &self.work {
            Work::Steps(recording) | Work::Start(recording) => self.backend.run(recording),
            Work::HostCopy { from, to } => {
                let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
                let pieces = to.par_chunks_mut(COPIED).zip(from.par_chunks(COPIED));
                pieces.for_each(|(to, from)| to.copy_from_slice(from));
                black_box(to.as_slice());
                Ok(())
            }
            Work::HostProducts { factor, products } => {
                let mut products = products.lock().unwrap_or_else(PoisonError::into_inner);
                products.par_iter_mut().for_each(|product| {
                    matmul(product.as_mut(), Accum::Replace, factor.as_ref(), factor.as_ref(), 1.0, Par::Seq);
                });
                black_box(products.as_slice());
                Ok(())
            }
            Work::Upload { view, bytes } => {
                self.backend.upload(view, bytes)?;
                self.backend.submit(&Recording::new(&self.backend))?;
                self.wait()
            }
            Work::Readback { view, bytes } => {
                let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                self.backend.download_into(view, &mut bytes)
            }
        }
    }

    fn wait(&self) -> Result<()> {
        match &self.backend {
            Backend::Host => Ok(()),
            Backend::Gpu(gpu) => gpu.wait(),
        }
    }

    /// Runs the job, after one run that warms up, until `budget` is used up, but at least three times.
    ///
    /// # Errors
    /// As [`Job::run`]; [`Error::Interrupted`].
    pub fn time(&self, budget: Duration, interrupt: &Interrupt) -> Result<Timing> {
        turns::alone(self, budget, interrupt)
    }

    /// The device's clock, if it has one and the work is dispatches only: timestamps are written around passes.
    pub(super) fn device_clock(&self) -> Result<Option<(DeviceClock<'_>, &Recording)>> {
        match (&self.backend, &self.work) {
            (Backend::Gpu(gpu), Work::Steps(recording)) if recording.is_one_pass() => {
                Ok(DeviceClock::new(gpu)?.map(|clock| (clock, recording)))
            }
            _ => Ok(None),
        }
    }
}

/// A step's buffers, filled.
fn views<K: Kernel>(backend: &Backend, step: &Bench<K>) -> Result<Vec<View>> {
    let mut views: Vec<View> = Vec::with_capacity(step.buffers.len());
    for &(element, len, fill) in &step.buffers {
        let view = match fill {
            Fill::Same(binding) => views[binding].clone(),
            _ => filled(backend, element, len, fill)?,
        };
        views.push(view);
    }
    Ok(views)
}

/// Seconds from a kernel's description to the end of its first run on a device: making its pipeline, and
/// whatever the driver puts off until a pipeline runs. A driver that keeps compiled shaders in files has them
/// from there.
pub(super) fn first_run<K: Kernel>(gpu: &Gpu, step: Bench<K>) -> Result<f64> {
    // With its own pipelines: checking the kernel has made the others.
    let fresh = gpu.anew();
    let backend = Backend::Gpu(fresh.clone());
    let args = K::Args::from_views(views(&backend, &step)?);
    fresh.wait()?;
    let start = Instant::now();
    let mut recording = Recording::new(&backend);
    recording.dispatch(&step.kernel, step.params, args)?;
    backend.run(&recording)?;
    let seconds = start.elapsed().as_secs_f64();
    gpu.check("bench").map(|()| seconds)
}

fn usize_of(op: &str, bytes: u64) -> Result<usize> {
    usize::try_from(bytes).map_err(|_| Error::argument(op, "more bytes than this machine can address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_states_its_work_and_takes_time() {
        let copy = Job::copy(&Backend::Host, 1 << 20).expect("a small buffer");
        assert_eq!(copy.cost.bytes, 2 << 20);
        let ema = Job::step(&Backend::Host, Ema::bench(1 << 16)).expect("a small buffer");
        assert_eq!(ema.cost.bytes, 12 << 16);
        let timing = ema.time(Duration::ZERO, &Interrupt::default()).expect("the host is there");
        assert_eq!(timing.clock, Clock::Host);
        assert!(timing.seconds > 0.0);
    }

    #[test]
    fn a_request_to_end_ends_the_timing() {
        let interrupt = Interrupt::default();
        interrupt.request(2);
        let copy = Job::copy(&Backend::Host, 1 << 10).expect("a small buffer");
        assert!(matches!(copy.time(Duration::ZERO, &interrupt), Err(Error::Interrupted { signal: 2 })));
    }
}
