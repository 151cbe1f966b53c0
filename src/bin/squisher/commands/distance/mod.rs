//! `squisher distance FISHER…`.

mod files;

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use squisher::Error;
use squisher::methods::task2vec::distance::{
    self as methods, DistanceMetric, DistanceOptions, DistancePlan, DistanceReport, Trivial,
};
use squisher::methods::task2vec::{Group, Metric, Ranking, Scores, rank};

use self::files::Format;
use crate::args::Global;
use crate::non_finite::NonFinite;
use crate::table::{count, counted};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher distance task-a.safetensors task-b.safetensors
  squisher distance fishers/*.safetensors --metric normalized --group row
  squisher distance tasks.safetensors --metric jsd --json
  squisher distance fishers/*.safetensors -o distances.svg
  squisher distance fishers/*.safetensors --scores transfer.csv
  squisher distance a.safetensors b.safetensors --metric asymmetric \\
      --trivial untrained.safetensors";

/// Measure how far apart tasks are, by their Fishers (Task2Vec)
///
/// Takes Fishers of one network, or files of `squisher embed`. cosine is blind to the scale of each Fisher,
/// the others to a common scale only. Rows of the matrix are where from, columns where to; only asymmetric
/// tells them apart.
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
    #[arg(long, value_name = "A", allow_negative_numbers = true, default_value_t = Trivial::ALPHA)]
    alpha: f64,

    /// What to do with Fishers that are NaN, infinite or negative
    #[arg(long, value_enum, default_value = "error")]
    non_finite: NonFinite,

    /// Tell how well the distances rank known scores of transfers: a CSV table, sources down, targets across
    ///
    /// The first row names the targets after a cell of any text; an empty cell is a score that is not known.
    /// Printed are the mean rank of each target's best source, NDCG, and the mean reciprocal rank.
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,

    /// Write the matrix: .csv, .json, or a heatmap as .svg
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
}

/// A distance by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// 1 − cos(F_a, F_b)
    Cosine,
    /// 1 − cos(F_a/(F_a + F_b), F_b/(F_a + F_b)), 0/0 = 0
    Normalized,
    /// Σ over entries of the larger of the two divergences (Kullback-Leibler) between normals of variance 1/F
    Kl,
    /// The mean over entries of the mean divergence of the two such normals from one of their average
    /// variance
    Jsd,
    /// normalized(a, b) − A · normalized(a, trivial)
    Asymmetric,
}

impl Distance {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let format = self.output.as_deref().map(Format::of).transpose()?;
        if let Some(path) = &self.output {
            let inputs: Vec<PathBuf> =
                self.inputs.iter().chain(&self.trivial).chain(&self.scores).cloned().collect();
            output::refuse_output(path, global.overwrite, &inputs)?;
        }
        let options =
            DistanceOptions { metric: self.metric()?, group: self.group, non_finite: self.non_finite.into() };
        let scores = self.scores.map(Scores::read).transpose()?;
        let backend = global.device.open()?;
        // Names that do not fit show in the headers, before anything is computed.
        let plan = || methods::plan(&self.inputs, &options, &global.planning(&backend));
        if let Some(scores) = &scores {
            scores.cover(&plan()?.names)?;
        }
        if global.dry_run {
            let plan = plan()?;
            plan.warnings.iter().for_each(|warning| log::warn!("{warning}"));
            let planned = Planned { dry_run: true, adapter: backend.name(), plan, output: self.output };
            return output::report(global, "distance", &planned);
        }
        let reporter = progress::reporter(global, "distance");
        let run = global.run(&backend, reporter.as_ref())?;
        let report = methods::distance(&self.inputs, &options, &run)?;
        drop(reporter);
        report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let rank = |scores| rank(&report.names, &report.matrix, &scores);
        let ranking = scores.map(rank).transpose()?;
        let done = Done { report, ranking, output: self.output };
        if let (Some(format), Some(path)) = (format, &done.output) {
            let text = match format {
                Format::Csv => files::csv(&done.report),
                Format::Json => output::json("distance", &done)?,
                Format::Svg => files::svg(&done.report),
            };
            output::write_whole(path, text.as_bytes())?;
        }
        output::report(global, "distance", &done)
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

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    adapter: String,
    #[serde(flatten)]
    plan: DistancePlan,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: Option<PathBuf>,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DistancePlan { metric, group, names, entries, passes, .. } = &self.plan;
        let of = group.map_or_else(|| "embeddings".to_owned(), |group| format!("Fishers by {group}"));
        write!(
            f,
            "on {}\n{metric} distances of {} {of}, {} entries each",
            self.adapter,
            names.len(),
            count(*entries)
        )?;
        names.iter().try_for_each(|name| write!(f, "\n  {}", name.escape_debug()))?;
        passes.iter().try_for_each(|plan| write!(f, "\none pass:\n{}", plan.to_string().trim_end()))?;
        self.output.iter().try_for_each(|path| write!(f, "\nwould write {}", path.display()))
    }
}

/// The matrix, and what was made of it.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: DistanceReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranking: Option<Ranking>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: Option<PathBuf>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
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
        if report.non_finite > 0 {
            write!(f, "\n{} that no Fisher can have, counted as 0", counted(report.non_finite, "value"))?;
        }
        if let Some(Ranking { targets, average_rank, ndcg, mean_reciprocal_rank }) = &self.ranking {
            write!(
                f,
                "\nover {targets} targets: average rank {average_rank:.4}, NDCG {ndcg:.4}, mean reciprocal rank {mean_reciprocal_rank:.4}"
            )?;
        }
        self.output.iter().try_for_each(|path| write!(f, "\nwrote {}", path.display()))
    }
}
