//! `squisher verify`.

use std::fmt;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use squisher::Error;
use squisher::verify::{self, Verdict};

use crate::args::Global;
use crate::output;
use crate::table::{Column, Table, count};

const EXAMPLES: &str = "\
Examples:
  squisher verify
  squisher verify --backend host
  squisher verify --adapter nvidia --json > verdict.json";

/// Check every kernel against its f64 definition on this device
///
/// Each kernel runs on small inputs whose results are known, with sizes around every edge. Every element must lie
/// within the error bound that follows from the kernel's own order of operations. WORST is the largest error as a
/// share of that bound: above 1 the device, its driver or the kernel is wrong, and the exit code is 1. SKIPPED are the
/// cases of forms that this device lacks something for; nothing takes those forms here.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Verify {}

impl Verify {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        if global.dry_run {
            return Err(Error::argument("verify", "has no --dry-run; it writes nothing").into());
        }
        let backend = global.device.open()?;
        let mut kernels = Vec::new();
        verify::all(&backend, |verdict| {
            log::info!("{} done", verdict.kernel);
            kernels.push(Kernel::from(verdict));
        });
        let wrong = kernels.iter().filter(|kernel| !kernel.failures.is_empty()).count();
        let verdicts = Verdicts { adapter: backend.name(), passed: wrong == 0, kernels };
        output::report(global, "verify", &verdicts)?;
        if wrong > 0 {
            bail!("{wrong} of {} kernels are wrong on {}", verdicts.kernels.len(), verdicts.adapter);
        }
        Ok(())
    }
}

/// The result.
#[derive(Serialize)]
struct Verdicts {
    adapter: String,
    passed: bool,
    kernels: Vec<Kernel>,
}

#[derive(Serialize)]
struct Kernel {
    kernel: &'static str,
    cases: usize,
    skipped: usize,
    elements: u64,
    worst: f64,
    failures: Vec<Failure>,
}

#[derive(Serialize)]
struct Failure {
    case: String,
    problem: String,
}

impl From<Verdict> for Kernel {
    fn from(verdict: Verdict) -> Self {
        let failure = |failure: verify::Failure| Failure { case: failure.case, problem: failure.problem };
        Self {
            kernel: verdict.kernel,
            cases: verdict.cases,
            skipped: verdict.skipped,
            elements: verdict.elements,
            worst: verdict.worst,
            failures: verdict.failures.into_iter().map(failure).collect(),
        }
    }
}

impl Kernel {
    fn cells(&self) -> [String; 6] {
        // A form that this device lacks something for, so that nothing ever runs it here.
        let ran = self.cases > 0;
        let worst = if ran { format!("{:.2}", self.worst) } else { "-".into() };
        let failures = if ran { count(self.failures.len() as u64) } else { "not run".into() };
        let [cases, skipped, elements] = [self.cases as u64, self.skipped as u64, self.elements].map(count);
        [self.kernel.to_owned(), cases, skipped, elements, worst, failures]
    }
}

impl fmt::Display for Verdicts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            Column::Left("KERNEL"),
            Column::Right("CASES"),
            Column::Right("SKIPPED"),
            Column::Right("ELEMENTS"),
            Column::Right("WORST"),
            Column::Right("WRONG"),
        ]);
        self.kernels.iter().for_each(|kernel| table.row(kernel.cells()));
        write!(f, "{}\n{table}", self.adapter)?;
        for kernel in &self.kernels {
            for Failure { case, problem } in &kernel.failures {
                write!(f, "\n{}: {case}: {problem}", kernel.kernel)?;
            }
        }
        Ok(())
    }
}
