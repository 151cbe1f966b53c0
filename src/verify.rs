//! Every kernel against its f64 definition, on this machine: what `squisher verify` and the oracle tests run.
//!
//! Drivers are wrong in ways that show as numbers, not as faults. So each registered kernel's cases can be run on
//! any backend at any time, and each element is compared with the bound that its case computed from the
//! kernel's own order of operations. Nothing here is a tolerance somebody chose.

use std::fmt;

use crate::backend::Backend;
use crate::error::Result;
use crate::kernel::{Args, Case, CaseBuffer, Checked, Kernel, Visitor, Want};
use crate::kernels;
use crate::memory::View;
use crate::record::Recording;
use crate::shape::DType;

/// What one kernel's cases gave.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The kernel.
    pub kernel: &'static str,
    /// How many cases ran: all, or those whose shader the device can take.
    pub cases: usize,
    /// How many the device can never run: another subgroup size, matrix units that were not lent with it, or
    /// more buffers than it binds.
    pub skipped: usize,
    /// How many elements were compared.
    pub elements: u64,
    /// The largest error as a share of its bound, over all elements: below 1 if all are right.
    pub worst: f64,
    /// The first element of each wrong case, and each case that could not run.
    pub failures: Vec<Failure>,
}

/// A case that did not give what its definition says.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// What went wrong: the first wrong element with its error in units of u = 2⁻²⁴, or the refusal.
    pub problem: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.problem)
    }
}

/// Runs every registered kernel's cases on `backend`, telling `report` after each kernel.
pub fn all(backend: &Backend, report: impl FnMut(Verdict)) {
    struct Run<'a, F> {
        backend: &'a Backend,
        report: F,
    }
    impl<F: FnMut(Verdict)> Visitor for Run<'_, F> {
        fn kernel<K: Checked>(&mut self) {
            (self.report)(kernel(self.backend, K::cases()));
        }
    }
    kernels::visit_all(&mut Run { backend, report });
}

/// Runs one kernel's cases but those that this device can never run.
#[must_use]
pub fn kernel<K: Kernel>(backend: &Backend, mut cases: Vec<Case<K>>) -> Verdict {
    let caps = backend.caps();
    let of_all = cases.len();
    cases.retain(|case| caps.is_host || [0, caps.subgroup].contains(&case.kernel.subgroup()));
    cases.retain(|case| caps.is_host || [None, caps.matrix_units].contains(&case.kernel.matrix_units()));
    cases.retain(|_| K::Args::BINDINGS.len() <= caps.max_storage_buffers as usize);
    let mut verdict = Verdict {
        kernel: K::NAME,
        cases: cases.len(),
        skipped: of_all - cases.len(),
        elements: 0,
        worst: 0.0,
        failures: Vec::new(),
    };
    for case in cases {
        let problem = match run_case(backend, &case) {
            Ok(buffers) => compare(&case, &buffers, &mut verdict),
            Err(error) => Some(error.to_string()),
        };
        verdict.failures.extend(problem.map(|problem| Failure { case: case.name, problem }));
    }
    verdict
}

/// Runs one case and returns all its buffers as they are afterwards.
///
/// # Errors
/// What the kernel or the backend refuses.
pub fn run_case<K: Kernel>(backend: &Backend, case: &Case<K>) -> Result<Vec<CaseBuffer>> {
    let views: Vec<View> = case
        .buffers
        .iter()
        .map(|buffer| {
            let view = backend.alloc(buffer.len() as u64, buffer.element)?;
            backend.upload(&view, &buffer.bytes)?;
            Ok(view)
        })
        .collect::<Result<_>>()?;
    let mut recording = Recording::new(backend);
    recording.dispatch(&case.kernel, case.params, K::Args::from_views(views.clone()))?;
    backend.run(&recording)?;
    views
        .iter()
        .map(|view| Ok(CaseBuffer { element: view.element(), bytes: backend.download::<u8>(view)? }))
        .collect()
}

/// Compares the checked buffers, and that buffers the kernel only reads are as they were.
fn compare<K: Kernel>(case: &Case<K>, after: &[CaseBuffer], verdict: &mut Verdict) -> Option<String> {
    for (i, binding) in K::Args::BINDINGS.iter().enumerate() {
        if binding.access == crate::kernel::Access::Read && after[i] != case.buffers[i] {
            return Some(format!("{} is only read, but changed", binding.name));
        }
    }
    let mut first = None;
    for (buffer, want) in &case.want {
        let got = after[*buffer].values();
        if got.len() != want.len() {
            return Some(format!("buffer {buffer} has {} elements, {} wanted", got.len(), want.len()));
        }
        verdict.elements += want.len() as u64;
        for (index, (got, want)) in got.into_iter().zip(want).enumerate() {
            if want.bound > 0.0 {
                verdict.worst = verdict.worst.max((got - want.value).abs() / want.bound);
            }
            if !want.accepts(got) && first.is_none() {
                first = Some(describe(K::Args::BINDINGS[*buffer].name, index, got, want));
            }
        }
    }
    first
}

fn describe(buffer: &str, index: usize, got: f64, want: &Want) -> String {
    let u = DType::F32.unit_roundoff() * want.value.abs().max(f64::MIN_POSITIVE);
    let error = (got - want.value).abs();
    format!(
        "{buffer}[{index}]: got {got:e}, want {:e}, error {:.1} u, allowed {:.1} u",
        want.value,
        error / u,
        want.bound / u
    )
}
