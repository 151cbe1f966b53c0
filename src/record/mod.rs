//! Recordings: ordered steps over buffers, of which nothing has run.
//!
//! A [`Recording`] is what this library hands to an application: [`Recording::encode`] writes its steps into
//! the application's own `CommandEncoder`, in one compute pass per run of dispatches, and neither submits nor
//! polls. The same recording made for the host backend runs on the host's threads instead. Memory is the
//! caller's, decided before: steps hold cheaply cloned views, so there is nothing to allocate while running
//! but one small uniform buffer.

mod encode;
pub mod fisher;
mod host;
pub mod likelihood;
mod merge;
pub mod ops;
pub mod top_k;

pub use merge::MergeStep;

use std::any::TypeId;
use std::fmt;
use std::sync::Arc;

use crate::backend::{Backend, wrong_backend};
use crate::error::{Error, Result};
use crate::gpu::{Caps, Gpu, MatrixUnits, Pipeline, PipelineKey, Source};
use crate::kernel::{Access, Args, Cost, Kernel, Params};
use crate::memory::{Memory, View};

/// Ordered steps. Nothing has run.
pub struct Recording {
    backend: Backend,
    caps: Caps,
    steps: Vec<Step>,
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (steps, cost) = (self.len(), self.cost());
        f.debug_struct("Recording").field("steps", &steps).field("cost", &cost).finish_non_exhaustive()
    }
}

enum Step {
    Dispatch(Dispatch),
    Host(host::HostStep),
    Clear(View),
    Copy { from: View, to: View },
}

impl Step {
    fn cost(&self) -> Cost {
        match self {
            Self::Dispatch(dispatch) => dispatch.cost,
            Self::Host(step) => step.cost(),
            Self::Clear(view) => Cost { bytes: view.bytes(), flops: 0 },
            Self::Copy { from, .. } => Cost { bytes: 2 * from.bytes(), flops: 0 },
        }
    }
}

struct Dispatch {
    label: String,
    pipeline: Arc<Pipeline>,
    params: Vec<u8>,
    views: Vec<View>,
    groups: [u32; 3],
    cost: Cost,
}

impl Recording {
    /// An empty recording for `backend`.
    #[must_use]
    pub fn new(backend: &Backend) -> Self {
        Self { backend: backend.clone(), caps: backend.caps(), steps: Vec::new() }
    }

    /// An empty recording for an application's device.
    #[must_use]
    pub fn on(gpu: &Gpu) -> Self {
        Self::new(&Backend::Gpu(gpu.clone()))
    }

    /// What the backend allows.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Appends one step of `kernel`. A step over nothing is left out.
    ///
    /// # Errors
    /// What [`Kernel::launch`] refuses; [`Error::Limit`] for a view that one binding can't hold or a loop that the
    /// driver would cut short; [`Error::Argument`] for a form that exchanges values where subgroups are not of its
    /// size, one for matrix units that were not lent, memory of another backend or memory that is written and
    /// used twice; [`Error::Shader`] if the device refuses the shader.
    pub fn dispatch<K: Kernel>(&mut self, kernel: &K, params: K::Params, args: K::Args) -> Result<&mut Self> {
        let groups = kernel.launch(&params, &args, &self.caps)?;
        check_views::<K>(&args, &self.backend, &self.caps)?;
        check_subgroup::<K>(kernel.subgroup(), &self.caps)?;
        check_matrix_units::<K>(kernel.matrix_units(), &self.caps)?;
        check_iterations::<K>(kernel.iterations(&params, &args), &self.caps)?;
        if groups.contains(&0) {
            return Ok(self);
        }
        let cost = kernel.cost(&params, &args);
        let step = match &self.backend {
            Backend::Host => Step::Host(host::HostStep::new(kernel, params, &args, cost)),
            Backend::Gpu(gpu) => Step::Dispatch(Dispatch {
                label: K::NAME.into(),
                pipeline: pipeline(gpu, kernel)?,
                params: params.bytes(),
                views: args.views().into_iter().cloned().collect(),
                groups,
                cost,
            }),
        };
        self.steps.push(step);
        Ok(self)
    }

    /// Appends the zeroing of a view and of the padding behind it.
    pub fn clear(&mut self, view: &View) -> &mut Self {
        self.steps.push(Step::Clear(view.clone()));
        self
    }

    /// Appends a copy of one view to another of the same length and type.
    ///
    /// # Errors
    /// [`Error::Shape`] if they differ.
    pub fn copy(&mut self, from: &View, to: &View) -> Result<&mut Self> {
        to.check("copy", "the target", from.len(), Some(from.element()))?;
        self.steps.push(Step::Copy { from: from.clone(), to: to.clone() });
        Ok(self)
    }

    /// Number of steps.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether the steps are dispatches only, which one compute pass holds.
    pub(crate) fn is_one_pass(&self) -> bool {
        !self.is_empty() && self.steps.iter().all(|step| matches!(step, Step::Dispatch(_)))
    }

    /// The least work of all steps.
    #[must_use]
    pub fn cost(&self) -> Cost {
        let mut total = Cost::default();
        for cost in self.steps.iter().map(Step::cost) {
            total.bytes += cost.bytes;
            total.flops += cost.flops;
        }
        total
    }
}

/// One line a step: what, how many workgroups, the least bytes and operations.
impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            match step {
                Step::Dispatch(d) => {
                    let [x, y, z] = d.groups;
                    writeln!(
                        f,
                        "{} {x}x{y}x{z} groups, {} bytes, {} flop",
                        d.label, d.cost.bytes, d.cost.flops
                    )?;
                }
                Step::Host(s) => {
                    writeln!(
                        f,
                        "{} on the host, {} bytes, {} flop",
                        s.label(),
                        s.cost().bytes,
                        s.cost().flops
                    )?;
                }
                Step::Clear(view) => writeln!(f, "clear {} bytes", view.padded_bytes())?,
                Step::Copy { from, .. } => writeln!(f, "copy {} bytes", from.bytes())?,
            }
        }
        Ok(())
    }
}

/// The kernel's pipeline on this device, built on first use.
fn pipeline<K: Kernel>(gpu: &Gpu, kernel: &K) -> Result<Arc<Pipeline>> {
    let parts = kernel.wgsl();
    let overrides = kernel.overrides();
    let key = PipelineKey {
        kernel: TypeId::of::<K>(),
        text: parts.iter().map(|part| (part.as_ptr() as usize, part.len())).collect(),
        overrides: overrides.iter().map(|&(name, value)| (name, value.to_bits())).collect(),
    };
    let source = Source {
        name: K::NAME,
        directives: kernel.directives(),
        parts: &parts,
        overrides: &overrides,
        bindings: K::Args::BINDINGS,
    };
    gpu.pipeline(key, &source)
}

/// What wgpu would refuse (or, worse, accept silently) is refused here by the argument's name.
fn check_views<K: Kernel>(args: &K::Args, backend: &Backend, caps: &Caps) -> Result<()> {
    let views = args.views();
    for (view, binding) in views.iter().zip(K::Args::BINDINGS) {
        let op = || format!("{} {}", K::NAME, binding.name);
        match (backend, view.memory()) {
            (Backend::Host, Memory::Host(_)) | (Backend::Gpu(_), Memory::Device(_)) => {}
            _ => return Err(wrong_backend(&op())),
        }
        if view.padded_bytes() > caps.max_binding_bytes {
            let limit = match caps.is_host {
                true => "the most bytes of one argument",
                false => "max_storage_buffer_binding_size",
            };
            return Err(Error::Limit {
                op: op(),
                limit: limit.into(),
                max: caps.max_binding_bytes,
                asked: view.padded_bytes(),
            });
        }
        if !view.offset().is_multiple_of(caps.offset_alignment) {
            let problem = format!("offset {} is not a multiple of {}", view.offset(), caps.offset_alignment);
            return Err(Error::argument(op(), problem));
        }
    }
    for (i, (view, binding)) in views.iter().zip(K::Args::BINDINGS).enumerate() {
        let written =
            |other: &crate::kernel::Binding| binding.access == Access::Write || other.access == Access::Write;
        for (other, other_binding) in views.iter().zip(K::Args::BINDINGS).skip(i + 1) {
            let refused = |problem: &str| {
                Error::argument(K::NAME, format!("{} and {} {problem}", binding.name, other_binding.name))
            };
            if written(other_binding) && overlap(view, other) {
                return Err(refused("share memory and one is written"));
            }
            if binding.access != other_binding.access && same_buffer(view, other) {
                return Err(refused(
                    "are ranges of one buffer, and one is written: a device wants two buffers",
                ));
            }
        }
    }
    Ok(())
}

/// With another subgroup size the shader would read another invocation's values.
fn check_subgroup<K: Kernel>(asked: u32, caps: &Caps) -> Result<()> {
    if caps.is_host || asked == 0 || asked == caps.subgroup {
        return Ok(());
    }
    let problem = format!(
        "a form for subgroups of {asked} on a device that has {}; Form::of takes one that suits it",
        if caps.subgroup == 0 {
            "none of a fixed size".into()
        } else {
            format!("those of {}", caps.subgroup)
        }
    );
    Err(Error::argument(K::NAME, problem))
}

/// A driver need not say that it has no matrices of a size: it may compute anything.
fn check_matrix_units<K: Kernel>(asked: Option<MatrixUnits>, caps: &Caps) -> Result<()> {
    if caps.is_host || asked.is_none() || asked == caps.matrix_units {
        return Ok(());
    }
    let problem = "a form for matrix units that were not lent with the device (Gpu::with_matrix_units); \
                   Form::for_matrix_units takes those that were";
    Err(Error::argument(K::NAME, problem))
}

/// A driver that leaves a loop early gives wrong numbers and no error.
fn check_iterations<K: Kernel>(asked: u64, caps: &Caps) -> Result<()> {
    if asked <= caps.max_iterations {
        return Ok(());
    }
    let limit = "loop iterations of one invocation (this driver leaves longer loops early; the host backend has no such limit)".into();
    Err(Error::Limit { op: K::NAME.into(), limit, max: caps.max_iterations, asked })
}

/// Whether two views are of one device buffer, which a dispatch can't bind for reading and for writing, whatever the
/// ranges.
fn same_buffer(a: &View, b: &View) -> bool {
    matches!((a.memory(), b.memory()), (Memory::Device(a), Memory::Device(b)) if a == b)
}

/// Whether two views share memory. On the host, one lock covers a whole buffer, so there any two views of it do.
fn overlap(a: &View, b: &View) -> bool {
    match (a.memory(), b.memory()) {
        (Memory::Device(x), Memory::Device(y)) => {
            let apart =
                a.offset() + a.padded_bytes() <= b.offset() || b.offset() + b.padded_bytes() <= a.offset();
            x == y && !apart
        }
        (Memory::Host(x), Memory::Host(y)) => std::ptr::eq(x.words(), y.words()),
        _ => false,
    }
}
