//! `squisher embed FISHER… -o OUT`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use squisher::methods::task2vec::Group;
use squisher::methods::task2vec::embed::{self as methods, EmbedOptions, EmbedPlan, EmbedReport};

use crate::args::Global;
use crate::non_finite::NonFinite;
use crate::table::{count, counted, size};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher embed task-a.safetensors task-b.safetensors -o tasks.safetensors
  squisher embed fishers/*.safetensors --group row -o tasks.safetensors";

/// Turn Fishers of one network into vectors of tasks (Task2Vec)
///
/// The output holds one tensor `embedding` [fisher, group] in f64, with the names of both as JSON in its metadata.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Embed {
    /// Fisher files of one network, one a task
    #[arg(required = true, value_name = "FISHER")]
    fishers: Vec<PathBuf>,

    /// What one entry is: the mean of a tensor, or of a row (one output filter: all but the first axis)
    #[arg(long, default_value = "tensor", value_name = "tensor|row")]
    group: Group,

    /// What to do with Fishers that are NaN, infinite or negative
    #[arg(long, value_enum, default_value = "error")]
    non_finite: NonFinite,

    /// The embedding file to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

impl Embed {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = EmbedOptions {
            group: self.group,
            non_finite: self.non_finite.into(),
            overwrite: global.overwrite,
        };
        let backend = global.device.open()?;
        if global.dry_run {
            let plan = methods::plan(&self.fishers, &options, &global.planning(&backend))?;
            plan.warnings.iter().for_each(|warning| log::warn!("{warning}"));
            let planned = Planned { dry_run: true, adapter: backend.name(), plan, output: self.output };
            return output::report(global, "embed", &planned);
        }
        let reporter = progress::reporter(global, "embed");
        let run = global.run(&backend, reporter.as_ref())?;
        let report = methods::embed(&self.fishers, &options, &self.output, &run)?;
        drop(reporter);
        report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        output::report(global, "embed", &Done { report, output: self.output })
    }
}

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    adapter: String,
    #[serde(flatten)]
    plan: EmbedPlan,
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: PathBuf,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EmbedPlan { names, group, groups, elements, passes, .. } = &self.plan;
        writeln!(f, "on {}", self.adapter)?;
        for (name, plan) in names.iter().zip(passes) {
            write!(f, "{}:\n{plan}", name.escape_debug())?;
        }
        let fishers = counted(names.len() as u64, "Fisher");
        write!(
            f,
            "would embed {fishers} of {} parameters as {} means by {group}",
            count(*elements),
            count(*groups)
        )?;
        write!(f, "\nwould write {}", self.output.display())
    }
}

/// What was done.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: EmbedReport,
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: PathBuf,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        write!(
            f,
            "embedded {} of {} parameters as {} means by {} on {}\nread {}, wrote {}",
            counted(report.names.len() as u64, "Fisher"),
            count(report.elements),
            count(report.groups),
            report.group,
            report.adapter,
            size(report.bytes_read),
            size(report.bytes_written)
        )?;
        if report.non_finite > 0 {
            write!(f, "\n{} that no Fisher can have, counted as 0", counted(report.non_finite, "value"))?;
        }
        Ok(())
    }
}
