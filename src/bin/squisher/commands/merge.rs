//! `squisher merge RECIPE.yml -o OUT`, and the same with flags.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use squisher::Error;
use squisher::methods::merge::{self as methods, MergeOptions, MergePlan, MergeReport};
use squisher::stream::parse_size;

use crate::args::Global;
use crate::merge_request::{self, MergeRequest, Method};
use crate::model_groups::ModelGroups;
use crate::repeats::repeats;
use crate::table::{count, size};
use crate::{output, progress, recipe};

const EXAMPLES: &str = "\
Examples:
  squisher merge recipe.yml -o merged
  squisher merge --method fisher --model a --fisher fa.safetensors \\
      --model b --fisher fb.safetensors -o merged
  squisher merge --method linear --model a --weight 0.7 \\
      --model b --weight 0.3 -o merged.safetensors
  squisher merge --method ubgm --base m0 --base-fisher f0.safetensors \\
      --model a --fisher fa.safetensors -o merged
  squisher merge recipe.yml -o merged --device-memory 64MiB --host-memory 128MiB --dry-run";

const RECIPE: &str = "\
A recipe says the same in YAML; its paths are relative to its own folder:
  merge_method: fisher            # linear, fisher or ubgm
  models:
    - model: finetuned-a
      parameters: { weight: 0.6, fisher: fisher-a.safetensors }
    - model: finetuned-b
      parameters: { weight: 0.4, fisher: fisher-b.safetensors }
  parameters: { normalize: mean, floor: 1.0e-6, missing: average }
  dtype: bfloat16
ubgm has base_model, and base_fisher and delta among the parameters; non_finite and allow_mixed are parameters of all.";

/// Merge any number of models into one, weighted by their Fishers
///
/// linear: Σ λ θ / Σ λ. fisher: Σ λ F θ / Σ λ F, the linear average where that is 0/0. ubgm: θ₀ + Σ λ (F₀ +
/// F)(θ − θ₀) / (F₀ + Σ λ F). All models stream through once, whatever their size. The output has the first
/// model's files, its configuration and its tokenizer; -v names what of the folder is not copied (other
/// files, and folders).
#[derive(Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{RECIPE}"))]
pub(crate) struct Merge {
    /// A recipe in YAML, shaped like mergekit's, in place of the flags
    #[arg(conflicts_with_all = ["method", "model", "fisher", "weight", "base", "base_fisher", "normalize", "floor", "missing", "dtype"])]
    recipe: Option<PathBuf>,

    /// How models are averaged
    #[arg(long, value_enum, required_unless_present = "recipe")]
    method: Option<Method>,

    #[command(flatten)]
    models: ModelGroups,

    /// θ₀ of ubgm: the model that the others were trained from
    #[arg(long, value_name = "M0", help_heading = "Models")]
    base: Option<PathBuf>,

    /// F₀ of ubgm: the Fisher of the base
    #[arg(long, value_name = "F0", help_heading = "Models")]
    base_fisher: Option<PathBuf>,

    #[command(flatten)]
    options: merge_request::Options,

    /// Split the output into files of at most this size, such as 5GB [default: like the first model]
    #[arg(long, value_name = "S", allow_negative_numbers = true, value_parser = parse_size)]
    shard_size: Option<u64>,

    /// The merged model: a folder if the first model is one (or with --shard-size), else a file
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// Keep what is done if the merge is interrupted or killed, and go on from what the same merge has kept
    ///
    /// The result has the same bytes. Inputs, options, memory limits and device must be those of the first run.
    #[arg(long)]
    resume: bool,
}

/// Bytes of the result between two marks that a later run can go on from: a second or less of work.
const MARK_BYTES: u64 = 256 << 20;

impl Merge {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let output = self.output.clone();
        let options = self.options(global)?;
        let fishers = options.models.iter().filter_map(|model| model.fisher.as_deref());
        let repeats = repeats(fishers, "Fisher", "two models are weighted alike");
        let backend = global.device.open()?;
        if global.dry_run {
            let plan = methods::plan(&options, &global.planning(&backend))?;
            plan.warnings.iter().chain(&repeats).for_each(|warning| log::warn!("{warning}"));
            return output::report(
                global,
                "merge",
                &Planned { dry_run: true, adapter: backend.name(), plan },
            );
        }
        let reporter = progress::reporter(global, "merge");
        let run = global.run(&backend, reporter.as_ref())?;
        let mut report = methods::merge(&options, &output, &run)?;
        drop(reporter);
        report.warnings.extend(repeats);
        report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        output::report(global, "merge", &Done { report, output })
    }

    fn options(self, global: &Global) -> Result<MergeOptions, Error> {
        let request = match (&self.recipe, self.method) {
            (Some(recipe), _) => {
                let mut request = recipe::read(recipe)?;
                let said = &mut request.options;
                said.delta = self.options.delta.or(said.delta);
                said.non_finite = self.options.non_finite.or(said.non_finite);
                said.allow_mixed |= self.options.allow_mixed;
                request.check().map_err(|problem| Error::argument("merge", problem))?;
                request
            }
            (None, method) => {
                let method = method.ok_or_else(|| Error::argument("merge", "no --method and no recipe"))?;
                let request = MergeRequest {
                    method,
                    models: self.models.0,
                    base: self.base,
                    base_fisher: self.base_fisher,
                    options: self.options,
                };
                request.check().map_err(|problem| Error::argument("merge", problem))?;
                request
            }
        };
        request.unused().into_iter().for_each(|warning| log::warn!("{warning}"));
        let base = request.base.zip(request.base_fisher);
        Ok(MergeOptions {
            method: request.method.into(),
            models: request
                .models
                .into_iter()
                .map(|m| methods::Model { path: m.model, fisher: m.fisher, weight: m.weight })
                .collect(),
            base: base.map(|(path, fisher)| methods::Base {
                path,
                fisher,
                delta: request.options.delta.unwrap_or(0.0),
            }),
            normalize: request.options.normalize.map_or(methods::Normalize::None, Into::into),
            floor: request.options.floor.unwrap_or(0.0),
            missing: request.options.missing.map_or(methods::Missing::Error, Into::into),
            non_finite: request.options.non_finite.map_or(methods::NonFinite::Error, Into::into),
            allow_mixed: request.options.allow_mixed,
            dtype: request.options.dtype,
            shard_bytes: self.shard_size,
            overwrite: global.overwrite,
            resume: self.resume.then_some(MARK_BYTES),
        })
    }
}

/// What was done.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: MergeReport,
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: PathBuf,
}

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    adapter: String,
    #[serde(flatten)]
    plan: MergePlan,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "on {}", self.adapter)?;
        write!(f, "{}", self.plan.to_string().trim_end())
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        writeln!(f, "merged {} parameters on {}", count(report.elements), report.adapter)?;
        let mut line = |number: u64, what: &str| {
            if number > 0 { writeln!(f, "  {} {what}", count(number)) } else { Ok(()) }
        };
        line(report.dominated, "decided by one model alone (more than 99 % of the weight)")?;
        line(report.fallback, "without weight in any model: the fallback")?;
        line(report.floored, "decided by the floor")?;
        line(report.averaged, "averaged linearly (no Fisher)")?;
        line(report.non_finite, "impossible in a Fisher, counted as 0")?;
        line(report.copied, "copied (not floating-point)")?;
        let rate = report.bytes_read as f64 / report.seconds.max(1e-9);
        write!(
            f,
            "read {}, wrote {} in {:.2} s ({:.2} GB/s)",
            size(report.bytes_read),
            size(report.bytes_written),
            report.seconds,
            rate * 1e-9
        )
    }
}
