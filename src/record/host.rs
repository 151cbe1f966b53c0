//! Runs a recording on the host's threads.

use std::sync::{RwLockReadGuard, RwLockWriteGuard};

use bytemuck::{cast_slice, cast_slice_mut};

use super::merge::{self, MergeStep};
use super::{Recording, Step};
use crate::backend::wrong_backend;
use crate::error::Result;
use crate::kernel::{Access, Args, Binding, Cost, Kernel, Slice, SliceMut, Slot};
use crate::kernels::merge::{Fisher, FisherArgs, HostStep as MergeOnHost, Words, add_to, merge_on_host};
use crate::memory::{Memory, View, busy};
use crate::shape::usize_of;

/// One kernel's host execution with its arguments bound.
pub(super) struct HostStep {
    label: &'static str,
    cost: Cost,
    run: Box<dyn Fn() -> Result<()> + Send + Sync>,
}

impl HostStep {
    pub(super) fn new<K: Kernel>(kernel: &K, params: K::Params, args: &K::Args, cost: Cost) -> Self {
        let kernel = kernel.clone();
        let views: Vec<View> = args.views().into_iter().cloned().collect();
        let run = move || {
            let mut guards = lock(&views, K::Args::BINDINGS)?;
            let slots = views.iter().zip(&mut guards).map(|(view, guard)| guard.slot(view)).collect();
            kernel.host(&params, K::Args::slices(slots));
            Ok(())
        };
        Self { label: K::NAME, cost, run: Box::new(run) }
    }

    /// The steps of one merge, block by block.
    pub(super) fn merge(steps: Vec<MergeStep>, cost: Cost) -> Self {
        Self { label: Fisher::NAME, cost, run: Box::new(move || run_merge(&steps)) }
    }

    pub(super) fn label(&self) -> &'static str {
        self.label
    }

    pub(super) fn cost(&self) -> Cost {
        self.cost
    }
}

impl Recording {
    /// Runs the steps in order.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) if the recording was made for a device, or if other steps
    /// use the same memory at the same time.
    pub(crate) fn run_on_host(&self) -> Result<()> {
        let kernels = self.steps.iter().filter(|step| matches!(step, Step::Host(_))).count();
        if kernels < 2 {
            return self.run_steps();
        }
        // From inside of the pool: a thread outside of it sleeps through every step, and waking it takes as
        // long as a short one.
        let mut result = Ok(());
        rayon::scope(|_| result = self.run_steps());
        result
    }

    fn run_steps(&self) -> Result<()> {
        for step in &self.steps {
            match step {
                Step::Host(step) => (step.run)()?,
                Step::Clear(view) => clear(view)?,
                Step::Copy { from, to } => copy(from, to)?,
                Step::Dispatch(_) => return Err(wrong_backend("run on the host")),
            }
        }
        Ok(())
    }
}

fn run_merge(steps: &[MergeStep]) -> Result<()> {
    // Steps may count in the same place, or side by side in one.
    for (MergeStep { args, .. }, words) in steps.iter().zip(merge_blocks(steps)?) {
        let Memory::Host(memory) = args.counts.memory() else { return Err(wrong_backend("run on the host")) };
        memory.write(|bytes| add_to(cast_slice_mut(&mut bytes[range(&args.counts)]), words))?;
    }
    Ok(())
}

/// Writes the result, and tells what each step counts.
fn merge_blocks(steps: &[MergeStep]) -> Result<Vec<Words>> {
    let views: Vec<[View; 5]> = steps.iter().map(|step| merge::inputs(&step.args)).collect();
    let mut guards =
        views.iter().map(|views| lock(views, FisherArgs::BINDINGS)).collect::<Result<Vec<_>>>()?;
    let MergeStep { params, args: FisherArgs { merged, .. }, .. } = &steps[steps.len() - 1];
    let len = params.len;
    let binding = Binding { name: "merged", access: Access::Write };
    let mut written = lock(std::slice::from_ref(merged), &[binding])?;
    let mut bound = Vec::with_capacity(steps.len());
    for ((MergeStep { kernel, params, .. }, views), guards) in steps.iter().zip(&views).zip(&mut guards) {
        let mut slots = views.iter().zip(guards).map(|(view, guard)| guard.slot(view).read());
        let inputs = std::array::from_fn(|_| slots.next().expect("as many guards as inputs"));
        bound.push(MergeOnHost::new(*kernel, params, inputs));
    }
    Ok(merge_on_host(usize_of(len.into()), &bound, written[0].slot(merged).write()))
}

/// A lock on one argument's memory, as long as the step runs.
enum Guard<'a> {
    Read(RwLockReadGuard<'a, Vec<u128>>),
    Write(RwLockWriteGuard<'a, Vec<u128>>),
}

impl Guard<'_> {
    fn slot(&mut self, view: &View) -> Slot<'_> {
        let range = range(view);
        match self {
            Self::Read(words) => Slot::Read(Slice::new(&cast_slice(words)[range], view.element())),
            Self::Write(words) => {
                Slot::Write(SliceMut::new(&mut cast_slice_mut(words)[range], view.element()))
            }
        }
    }
}

fn range(view: &View) -> std::ops::Range<usize> {
    let start = usize::try_from(view.offset()).expect("a host view's offset fits usize");
    let bytes = usize::try_from(view.bytes()).expect("a host view's size fits usize");
    start..start + bytes
}

/// Locks without waiting: a lock that is taken means a step that shares memory it should not.
fn lock<'a>(views: &'a [View], bindings: &[Binding]) -> Result<Vec<Guard<'a>>> {
    let one = |(view, binding): (&'a View, &Binding)| {
        let Memory::Host(memory) = view.memory() else { return Err(wrong_backend("run on the host")) };
        match binding.access {
            Access::Read => memory.words().try_read().map(Guard::Read).map_err(|_| busy()),
            Access::Write => memory.words().try_write().map(Guard::Write).map_err(|_| busy()),
        }
    };
    views.iter().zip(bindings).map(one).collect()
}

fn clear(view: &View) -> Result<()> {
    let Memory::Host(memory) = view.memory() else { return Err(wrong_backend("clear")) };
    memory.write(|bytes| bytes[range(view)].fill(0))
}

fn copy(from: &View, to: &View) -> Result<()> {
    let (Memory::Host(source), Memory::Host(target)) = (from.memory(), to.memory()) else {
        return Err(wrong_backend("copy"));
    };
    source.read(|source| target.write(|target| target[range(to)].copy_from_slice(&source[range(from)])))?
}
