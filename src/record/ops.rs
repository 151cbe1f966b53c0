//! Operations made of more than one step, that run and read back at once.

use crate::backend::Backend;
use crate::error::Result;
use crate::kernels::Owner;
use crate::kernels::stats::{Stats, Summary, SummaryArgs, SummaryParams};
use crate::memory::{Element, View};
use crate::record::Recording;

/// The most values of one step: below what an index in u32 can name, a whole number of shares.
const STEP: u64 = 1 << 30;

/// Sums, extremes, zeros and bad values (NaN, infinite, negative) of a Fisher diagonal on any backend.
///
/// Reads each value once, submits, and waits. To keep working meanwhile, record [`Summary`] and fold its
/// records with [`Stats::fold`].
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the elements are not floats,
/// [`Error::Device`](crate::Error::Device) after a loss.
pub fn summary(backend: &Backend, values: &View) -> Result<Stats> {
    let kernel = Summary { values: values.float("summary", "values")?, owner: Owner::of(&backend.caps()) };
    let step = step(backend, kernel);
    let mut stats = Stats::default();
    while stats.elements < values.len() {
        let len = step.min(values.len() - stats.elements);
        let offset = values.offset() + stats.elements * values.element().bytes() as u64;
        let piece = View::new(values.memory().clone(), offset, len, values.element())?;
        stats = stats.followed_by(&summary_of_step(backend, kernel, piece)?);
    }
    Ok(stats)
}

/// Values of one step: whole shares that one binding can hold.
fn step(backend: &Backend, kernel: Summary) -> u64 {
    let (bound, share) = (backend.caps().max_binding_bytes / kernel.values.size(), kernel.share());
    (bound / share * share).clamp(share, STEP)
}

fn summary_of_step(backend: &Backend, kernel: Summary, values: View) -> Result<Stats> {
    let len = values.len();
    let (sums, counts) = kernel.records(len);
    let (sums, counts) = (backend.alloc(sums, Element::F32)?, backend.alloc(counts, Element::U32)?);
    let params = SummaryParams { len: u32::try_from(len).expect("a step is at most 2^30 values") };
    let args = SummaryArgs { values, sums: sums.clone(), counts: counts.clone() };
    let mut recording = Recording::new(backend);
    recording.dispatch(&kernel, params, args)?;
    backend.run(&recording)?;
    let (sums, counts) = (backend.download::<f32>(&sums)?, backend.download::<u32>(&counts)?);
    Ok(Stats::fold(&kernel, len, (&sums, &counts)))
}
