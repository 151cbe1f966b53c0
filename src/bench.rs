//! Measured times, to be held against what the same backend can do in the same run.
//!
//! A [`Job`] is one kernel's bench with its buffers filled, or a plain copy, which is the ceiling of everything that moves
//! memory. The kernel's cases are checked before it is timed: a wrong result has no speed. Times are the median of several
//! runs, by the device's own clock where it has timestamps ([`Clock`] says which): the host's clock adds submission and waiting.

use std::hint::black_box;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::gpu::Gpu;
use crate::kernel::{Args, Bench, CaseBuffer, Checked, Cost, Fill, noise};
use crate::memory::{Element, View};
use crate::record::Recording;
use crate::shape::DType;
use crate::verify;

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
    /// The kernel, or `copy`, and its sizes.
    pub name: String,
    /// The least work of one run.
    pub cost: Cost,
    backend: Backend,
    work: Work,
}

enum Work {
    Steps(Recording),
    HostCopy { from: Vec<u8>, to: Mutex<Vec<u8>> },
    HostProducts { factor: Mat<f32>, products: Mutex<Vec<Mat<f32>>> },
}

/// Rows and columns of the products that measure the host's arithmetic: three fit a core's second-level cache.
const PRODUCT: usize = 256;

/// Bytes that one thread copies at a time: they fit its second-level cache.
const COPIED: usize = 256 << 10;
/// Values that fill a bench's buffer, over and over.
const PATTERN: usize = 1 << 16;
/// Fewer runs than this have no median worth the name.
const RUNS: usize = 5;

impl Job {
    /// The bench of kernel `K` with about `elements` elements in its largest buffer, after its cases held on `backend`.
    ///
    /// # Errors
    /// [`Error::Device`] if a case does not hold; what the kernel or the backend refuses.
    pub fn kernel<K: Checked>(backend: &Backend, elements: u64) -> Result<Self> {
        if let Some(failure) = verify::kernel(backend, K::cases()).failures.first() {
            let message = format!("wrong result on {}: {failure}", backend.name());
            return Err(Error::Device { op: K::NAME.into(), message });
        }
        let Bench { name, kernel, params, buffers } = K::bench(elements);
        let views: Vec<View> = buffers
            .iter()
            .map(|&(element, len, fill)| filled(backend, element, len, fill))
            .collect::<Result<_>>()?;
        let mut recording = Recording::new(backend);
        recording.dispatch(&kernel, params, K::Args::from_views(views))?;
        let cost = recording.cost();
        let name = format!("{} {name}", K::NAME);
        Ok(Self { name, cost, backend: backend.clone(), work: Work::Steps(recording) })
    }

    /// A copy of `bytes` bytes, on the device or by all of the host's threads.
    ///
    /// # Errors
    /// As [`Backend::alloc`].
    pub fn copy(backend: &Backend, bytes: u64) -> Result<Self> {
        let len = bytes.div_ceil(4);
        let work = match backend {
            Backend::Host => {
                let len = usize::try_from(4 * len).map_err(|_| Error::argument("copy", "too many bytes"))?;
                Work::HostCopy { from: vec![1; len], to: Mutex::new(vec![0; len]) }
            }
            Backend::Gpu(_) => {
                let (from, to) = (backend.alloc(len, Element::U32)?, backend.alloc(len, Element::U32)?);
                let mut recording = Recording::new(backend);
                recording.copy(&from, &to)?;
                Work::Steps(recording)
            }
        };
        let cost = Cost { bytes: 2 * 4 * len, flops: 0 };
        Ok(Self { name: format!("copy {bytes} bytes"), cost, backend: backend.clone(), work })
    }

    /// Matrix products that stay in cache, one a thread at a time: the ceiling of the host's arithmetic. None for a device,
    /// whose ceiling is not measured yet.
    #[must_use]
    pub fn products(backend: &Backend) -> Option<Self> {
        const EACH: usize = 16;
        if !matches!(backend, Backend::Host) {
            return None;
        }
        let count = EACH * rayon::current_num_threads();
        let factor = Mat::from_fn(PRODUCT, PRODUCT, |row, column| (row + 2 * column) as f32 * 1e-3);
        let products = Mutex::new(vec![Mat::zeros(PRODUCT, PRODUCT); count]);
        let cost = Cost { bytes: 0, flops: 2 * (PRODUCT * PRODUCT * PRODUCT * count) as u64 };
        let work = Work::HostProducts { factor, products };
        Some(Self { name: format!("{count} products of {PRODUCT}²"), cost, backend: backend.clone(), work })
    }

    /// Does the work once, and waits for it.
    ///
    /// # Errors
    /// [`Error::Device`] after a loss.
    pub fn run(&self) -> Result<()> {
        match &self.work {
            Work::Steps(recording) => self.backend.run(recording),
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
        }
    }

    /// Runs the job for at least this long, and at least five times, after one run that warms up.
    ///
    /// # Errors
    /// As [`Job::run`].
    pub fn time(&self, at_least: Duration) -> Result<Timing> {
        self.run()?;
        let clock = self.device_clock()?;
        let mut times = Vec::new();
        let start = Instant::now();
        while times.len() < RUNS || start.elapsed() < at_least {
            times.push(match &clock {
                Some((clock, recording)) => clock.time(recording)?,
                None => {
                    let start = Instant::now();
                    self.run()?;
                    start.elapsed().as_secs_f64()
                }
            });
        }
        times.sort_by(f64::total_cmp);
        let clock = if clock.is_some() { Clock::Device } else { Clock::Host };
        Ok(Timing { seconds: times[times.len() / 2], clock })
    }

    /// The device's clock, if it has one and the work is dispatches only: timestamps are written around passes.
    fn device_clock(&self) -> Result<Option<(DeviceClock<'_>, &Recording)>> {
        match (&self.backend, &self.work) {
            (Backend::Gpu(gpu), Work::Steps(recording))
                if gpu.caps().timestamps && recording.is_one_pass() =>
            {
                Ok(Some((DeviceClock::new(gpu)?, recording)))
            }
            _ => Ok(None),
        }
    }
}

impl Timing {
    /// Bytes that a job of this cost moved in a second.
    #[must_use]
    pub fn bytes_per_second(&self, cost: &Cost) -> f64 {
        cost.bytes as f64 / self.seconds
    }

    /// Operations that a job of this cost did in a second.
    #[must_use]
    pub fn flops_per_second(&self, cost: &Cost) -> f64 {
        cost.flops as f64 / self.seconds
    }
}

/// Two timestamps and the buffers by which they come back.
struct DeviceClock<'a> {
    gpu: &'a Gpu,
    queries: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

impl<'a> DeviceClock<'a> {
    fn new(gpu: &'a Gpu) -> Result<Self> {
        let buffer = |usage| {
            let descriptor = wgpu::BufferDescriptor {
                label: Some("squisher.clock"),
                size: 16,
                usage,
                mapped_at_creation: false,
            };
            gpu.device().create_buffer(&descriptor)
        };
        gpu.scoped("bench", || Self {
            gpu,
            queries: gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("squisher.clock"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC),
            staging: buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST),
        })
    }

    /// Seconds from the beginning to the end of the recording's pass.
    fn time(&self, recording: &Recording) -> Result<f64> {
        let mut encoder = self.gpu.device().create_command_encoder(&Default::default());
        let writes = wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        };
        recording.encode_timed(&mut encoder, Some(writes))?;
        self.gpu.scoped("bench", || {
            encoder.resolve_query_set(&self.queries, 0..2, &self.resolved, 0);
            encoder.copy_buffer_to_buffer(&self.resolved, 0, &self.staging, 0, 16);
            self.gpu.queue().submit([encoder.finish()]);
        })?;
        let mut ticks = [0_u64; 2];
        self.gpu.read_mapped(&self.staging, bytemuck::cast_slice_mut(&mut ticks))?;
        let period = f64::from(self.gpu.queue().get_timestamp_period()) * 1e-9;
        Ok(ticks[1].saturating_sub(ticks[0]) as f64 * period)
    }
}

/// A buffer as a bench asks for it. Values repeat after a while: their number does not matter to speed.
fn filled(backend: &Backend, element: Element, len: u64, fill: Fill) -> Result<View> {
    let view = backend.alloc(len, element)?;
    let pattern = pattern(element, len, fill);
    let bytes = usize::try_from(view.bytes()).expect("a view lies inside memory, so its size fits usize");
    let all: Vec<u8> = pattern.iter().copied().cycle().take(bytes).collect();
    backend.upload(&view, &all)?;
    Ok(view)
}

fn pattern(element: Element, len: u64, fill: Fill) -> Vec<u8> {
    let noise = || noise(1, PATTERN);
    let floats = |values: Vec<f64>| CaseBuffer::floats(element.dtype().unwrap_or(DType::F32), &values).bytes;
    match fill {
        Fill::Zero => vec![0; element.bytes() * PATTERN],
        Fill::Noise => floats(noise()),
        Fill::Positive => floats(noise().iter().map(|v| v.abs()).collect()),
        Fill::Count => {
            CaseBuffer::words(&(0..u32::try_from(len).unwrap_or(u32::MAX)).collect::<Vec<_>>()).bytes
        }
        Fill::Below(end) => {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below a u32")]
            let words: Vec<u32> = noise().iter().map(|v| (v.abs() * f64::from(end)) as u32).collect();
            CaseBuffer::words(&words).bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::optimizer::Ema;

    #[test]
    fn a_job_states_its_work_and_takes_time() {
        let copy = Job::copy(&Backend::Host, 1 << 20).expect("a small buffer");
        assert_eq!(copy.cost.bytes, 2 << 20);
        let ema = Job::kernel::<Ema>(&Backend::Host, 1 << 16).expect("its cases hold");
        assert_eq!(ema.cost.bytes, 12 << 16);
        let timing = ema.time(Duration::ZERO).expect("the host is there");
        assert_eq!(timing.clock, Clock::Host);
        assert!(timing.seconds > 0.0 && timing.bytes_per_second(&ema.cost) > 0.0);
    }

    #[test]
    fn words_stay_below_their_bound() {
        let words = pattern(Element::U32, 0, Fill::Below(7));
        assert!(bytemuck::cast_slice::<u8, u32>(&words).iter().all(|word| *word < 7));
    }
}
