//! What `prune` and `mask` have in common: flags, and how a report is shown.

use std::fmt;

use clap::{Args, ValueEnum};
use serde::Serialize;
use squisher::error::printable;
use squisher::methods::Globs;
use squisher::methods::select::Scope;
use squisher::methods::select::{SelectPlan, SelectReport, Selected};
use squisher::shape::shape_text;

use crate::non_finite::NonFinite;
use crate::table::{Column, Table, count, counted, size, word};

/// Which tensors, and among what.
#[derive(Args)]
pub(crate) struct Selection {
    /// Among what the best are kept
    #[arg(long, value_enum, default_value = "global")]
    scope: ScopeFlag,

    /// Select only from tensors with such names; may be repeated
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,

    /// Leave tensors with such names as they are, and out of the count; may be repeated
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,

    /// Keep tensors with such names whole, and count them; may be repeated
    #[arg(long, value_name = "GLOB")]
    always: Vec<String>,

    /// What to do with Fishers that are NaN, infinite or negative
    #[arg(long, value_enum, default_value = "error")]
    non_finite: NonFinite,
}

/// Among what the best are kept.
#[derive(Clone, Copy, ValueEnum)]
enum ScopeFlag {
    /// The elements of all tensors
    Global,
    /// Each tensor's own
    Tensor,
}

impl Selection {
    pub(crate) fn scope(&self) -> Scope {
        match self.scope {
            ScopeFlag::Global => Scope::Global,
            ScopeFlag::Tensor => Scope::Tensor,
        }
    }

    pub(crate) fn non_finite(&self) -> squisher::methods::NonFinite {
        self.non_finite.into()
    }

    pub(crate) fn globs(&self) -> Globs {
        let Self { include, exclude, always, .. } = self;
        Globs { include: include.clone(), exclude: exclude.clone(), always: always.clone() }
    }
}

/// A share from 0 to 1.
pub(crate) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

/// A selection's report.
#[derive(Serialize)]
#[serde(transparent)]
pub(crate) struct Done(pub(crate) SelectReport);

impl Done {
    /// What the user should look at, on standard error.
    pub(crate) fn warn(&self) {
        self.0.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.0;
        writeln!(f, "{}", selected(&report.tensors))?;
        write!(f, "kept {} of {} elements", count(report.kept), count(report.elements))?;
        if let Some(threshold) = report.threshold {
            write!(f, ", the last with a score of {threshold:.3e}")?;
        }
        if !report.copied.is_empty() {
            write!(f, "; {} not selected from", counted(report.copied.len() as u64, "tensor"))?;
        }
        if report.non_finite > 0 {
            write!(f, "\n{} that no Fisher can have, counted as 0", counted(report.non_finite, "value"))?;
        }
        write!(f, "\nwrote {} to {}", size(report.bytes_written), report.output.display())?;
        report.mask.iter().try_for_each(|mask| write!(f, " and {}", mask.display()))
    }
}

/// What a selection would do.
#[derive(Serialize)]
pub(crate) struct Planned {
    dry_run: bool,
    #[serde(flatten)]
    plan: SelectPlan,
}

impl From<SelectPlan> for Planned {
    fn from(plan: SelectPlan) -> Self {
        Self { dry_run: true, plan }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SelectPlan { ranked, always, copied, elements, kept, .. } = &self.plan;
        let kept = kept.map_or_else(|| "some".to_owned(), count);
        let groups = [("select from", ranked), ("keep whole", always), ("leave as it is", copied)];
        for (what, names) in groups {
            names.iter().try_for_each(|name| writeln!(f, "{what}: {}", printable(name)))?;
        }
        write!(f, "would keep {kept} of {} elements", count(*elements))
    }
}

/// One row a tensor.
pub(crate) fn selected(tensors: &[Selected]) -> Table {
    let mut table = Table::new(&[
        Column::Left("TENSOR"),
        Column::Left("SHAPE"),
        Column::Right("ELEMENTS"),
        Column::Right("KEPT"),
        Column::Right("SPARSITY"),
    ]);
    for tensor in tensors {
        table.row([
            word(&tensor.name),
            shape_text(&tensor.shape),
            count(tensor.elements),
            count(tensor.kept),
            format!("{:.2} %", 100.0 * tensor.sparsity),
        ]);
    }
    table
}
