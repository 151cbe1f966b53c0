//! What a kernel is: one description with two executions, WGSL on a device and a function on the host.
//!
//! A kernel's **value** is its specialisation: tile sizes, storage types, switches. On a device they become
//! the shader's `override` constants. Its [`Params`] are the numbers of one step (the uniform block at
//! binding 0) and its [`Args`] are that step's named buffers (storage bindings from 1). [`Kernel::launch`] is
//! pure: it checks shapes and says how many workgroups. [`Kernel::host`] does the same step over slices.
//!
//! Both executions are held to the same f64 definition by the cases that a kernel brings along
//! ([`Checked`]); tests, benches and `squisher verify` walk the registry and need no other list.

mod args;
mod case;
mod grid;
mod host;
mod params;

pub use args::{Access, Args, Binding, Slice, SliceMut, Slot};
pub(crate) use case::FLUSHED;
pub use case::{Bench, Case, CaseBuffer, Checked, Fill, Visitor, Want, noise};
pub use grid::{groups_for, groups_of};
pub use host::{BLOCK, Floats, for_blocks, narrow, narrow_into, widen, widen_into};
pub(crate) use host::{task_len, vectorised};
pub use params::{Field, Params};

use crate::error::Result;
use crate::gpu::{Caps, MatrixUnits};

/// One step that a device or the host can run. See the module's text.
pub trait Kernel: Clone + Send + Sync + 'static {
    /// The dotted name, `family.quantity`: label, report line, and the path of its two files.
    const NAME: &'static str;

    /// The uniform block at binding 0.
    type Params: Params;

    /// The storage buffers, from binding 1.
    type Args: Args;

    /// The shader: the kernel's own text first, so that line numbers in messages are the file's, then shared parts.
    fn wgsl(&self) -> Vec<&'static str>;

    /// The values of the shader's `override` constants.
    fn overrides(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }

    /// The subgroup size that the shader relies on (also its workgroup size); 0 if none. Devices with another
    /// [`Caps::subgroup`](crate::gpu::Caps::subgroup) refuse it.
    fn subgroup(&self) -> u32 {
        0
    }

    /// The matrix units that the shader is for, if it needs any. Devices that lent no such refuse it.
    fn matrix_units(&self) -> Option<MatrixUnits> {
        None
    }

    /// What stands before the shader's text, on its first line, so that line numbers stay the file's: the language's
    /// extensions that it needs.
    fn directives(&self) -> &'static str {
        match self.matrix_units() {
            Some(_) => "enable f16; enable wgpu_cooperative_matrix; ",
            None => "",
        }
    }

    /// Checks shapes and limits, and says how many workgroups to start. Pure: no device call.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) and [`Error::Limit`](crate::Error::Limit), naming the argument.
    fn launch(&self, params: &Self::Params, args: &Self::Args, caps: &Caps) -> Result<[u32; 3]>;

    /// The most iterations of one invocation of this step, all its loops together, where data and not the shader's text
    /// set their number. A recording holds it against [`Caps::max_iterations`](crate::gpu::Caps::max_iterations).
    fn iterations(&self, _params: &Self::Params, _args: &Self::Args) -> u64 {
        0
    }

    /// The same step on the host's threads. Called only after [`Kernel::launch`] accepted the arguments.
    fn host(&self, params: &Self::Params, args: <Self::Args as Args>::Slices<'_>);

    /// The fewest bytes this step must move and the fewest operations it must do.
    fn cost(&self, params: &Self::Params, args: &Self::Args) -> Cost;
}

/// The least work of one step, to hold measured times against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read plus bytes written, each element once.
    pub bytes: u64,
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
}

#[doc(hidden)]
pub mod private {
    //! What the macros of this module expand to.
    pub use super::params::Scalar;
}
