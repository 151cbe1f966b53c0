//! `squisher distance FISHER…`.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use squisher::Error;
use squisher::methods::task2vec::{
    self as methods, DistanceMetric, DistanceOptions, DistanceReport, Group, Metric, Trivial,
};

use crate::args::Global;
use crate::{output, progress, signals};

const EXAMPLES: &str = "\
Examples:
  squisher distance task-a.safetensors task-b.safetensors
  squisher distance fishers/*.safetensors --metric normalized --group row
  squisher distance tasks.safetensors --metric jsd --json
  squisher distance a.safetensors b.safetensors --metric asymmetric --trivial untrained.safetensors";

/// Tell how far apart tasks are by their Fishers (Task2Vec)
///
/// Takes Fishers of one network, or files of `squisher embed`. cosine is blind to the scale of each Fisher, the others to a common
/// scale only. Rows of the matrix are where from, columns where to; only asymmetric tells them apart.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Distance {
    /// Fisher files of one network, one a task, or embedding files
    #[arg(required = true, value_name = "FISHER")]
    inputs: Vec<PathBuf>,

    /// The distance
    #[arg(long, value_enum, default_value = "cosine")]
    metric: Name,

    /// What is compared: every element, or means of rows (output filters) or tensors
    #[arg(long, default_value = "element", value_name = "element|row|tensor")]
    group: Group,

    /// The trivial task's Fisher, which asymmetric measures complexity by
    #[arg(long, value_name = "FISHER")]
    trivial: Option<PathBuf>,

    /// The weight of the distance to the trivial task in asymmetric
    #[arg(long, value_name = "A", default_value_t = Trivial::ALPHA)]
    alpha: f64,
}

/// A distance by its name; v = 1/F.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// 1 − cos(F_a, F_b)
    Cosine,
    /// 1 − cos(F_a/(F_a + F_b), F_b/(F_a + F_b)), 0/0 = 0
    Normalized,
    /// The sum of the larger divergence between normals of variance v
    Kl,
    /// The mean divergence to the average variance
    Jsd,
    /// normalized(a, b) − A · normalized(a, trivial)
    Asymmetric,
}

impl Distance {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = DistanceOptions {
            metric: self.metric()?,
            inputs: self.inputs,
            group: self.group,
            budget: global.memory.budget(),
        };
        let backend = global.device.open()?;
        let interrupt = signals::listen()?;
        let reporter = progress::reporter(global, "distance");
        let report = methods::distance(&options, &backend, reporter.as_ref(), &interrupt)?;
        drop(reporter);
        report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        output::report(global, "distance", &Done(report))
    }

    fn metric(&self) -> Result<DistanceMetric, Error> {
        let refuse = |problem: &str| Err(Error::argument("distance", problem));
        let metric = match (self.metric, &self.trivial) {
            (Name::Asymmetric, Some(path)) => {
                return Ok(DistanceMetric::Asymmetric(Trivial { path: path.clone(), alpha: self.alpha }));
            }
            (Name::Asymmetric, None) => {
                return refuse(
                    "asymmetric measures each task against the trivial one; give its Fisher with --trivial",
                );
            }
            (_, Some(_)) => return refuse("--trivial is for --metric asymmetric alone"),
            (Name::Cosine, None) => Metric::Cosine,
            (Name::Normalized, None) => Metric::Normalized,
            (Name::Kl, None) => Metric::Kl,
            (Name::Jsd, None) => Metric::Jsd,
        };
        Ok(DistanceMetric::Symmetric(metric))
    }
}

/// The matrix.
#[derive(Serialize)]
#[serde(transparent)]
struct Done(DistanceReport);

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.0;
        let cells = |row: &[f64]| row.iter().map(|distance| format!("{distance:.6}")).collect::<Vec<_>>();
        let names: Vec<String> = report.names.iter().map(|name| name.escape_debug().to_string()).collect();
        let rows: Vec<Vec<String>> = report.matrix.iter().map(|row| cells(row)).collect();
        let first = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..names.len())
            .map(|i| rows.iter().map(|row| row[i].len()).max().unwrap_or(0).max(names[i].chars().count()))
            .collect();
        write!(f, "{:first$}", "")?;
        names.iter().zip(&widths).try_for_each(|(name, &width)| write!(f, "  {name:>width$}"))?;
        for (name, row) in names.iter().zip(&rows) {
            write!(f, "\n{name:first$}")?;
            row.iter().zip(&widths).try_for_each(|(cell, &width)| write!(f, "  {cell:>width$}"))?;
        }
        Ok(())
    }
}
