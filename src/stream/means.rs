//! The means of a job: where it runs, within what memory, who hears of it, and who may end it.

use std::fmt;

use super::Budget;
use crate::backend::Backend;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

/// With what a job runs. What is computed does not depend on it, how sums are rounded may.
///
/// ```
/// use squisher::stream::Budget;
/// use squisher::{Backend, Run};
///
/// let run = Run::new(&Backend::Host);
/// let small = Run { budget: Budget { host_bytes: 64 << 20, ..Budget::default() }, ..run };
/// # assert_eq!(small.budget.host_bytes, 64 << 20);
/// ```
#[derive(Clone)]
pub struct Run<'a> {
    /// Where kernels run.
    pub backend: &'a Backend,
    /// What memory may be used.
    pub budget: Budget,
    /// Hears how far the job has come; `&()` hears nothing.
    pub progress: &'a dyn Progress,
    /// Asked between two pieces of work whether to go on.
    pub interrupt: Interrupt,
}

impl<'a> Run<'a> {
    /// On `backend`, in as much memory as is useful; nobody hears of it and nobody ends it.
    #[must_use]
    pub fn new(backend: &'a Backend) -> Self {
        Self { backend, budget: Budget::default(), progress: &(), interrupt: Interrupt::default() }
    }
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, budget, interrupt, .. } = self;
        let mut shown = f.debug_struct("Run");
        shown.field("backend", &backend.name()).field("budget", budget).field("interrupt", interrupt);
        shown.finish_non_exhaustive()
    }
}
