//! `squisher ewc --model M --anchor A --fisher F --lambda L`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use squisher::Error;
use squisher::error::printable;
use squisher::methods::ewc::{self as methods, Anchor, EwcOptions, EwcPlan, EwcReport};

use crate::args::Global;
use crate::non_finite::NonFinite;
use crate::repeats::repeats;
use crate::table::counted;
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher ewc --model now --anchor task-a --fisher fisher-a.safetensors --lambda 100
  squisher ewc --model now --anchor a --fisher fa.safetensors \\
      --anchor b --fisher fb.safetensors --lambda 100
  squisher ewc --model now --anchor b --fisher fa.safetensors --fisher fb.safetensors \\
      --gamma 0.9 --lambda 100
  squisher ewc --model now --anchor a --fisher fa.safetensors --lambda 100 \\
      --gradient-out gradient.safetensors";

/// The penalty of elastic weight consolidation, ½ λ Σ F (θ − θ*)², and its gradient λ F (θ − θ*)
///
/// With one anchor for each Fisher, they are paired in order and their penalties add up. Several Fishers at one
/// anchor, the oldest first, count as F ← F_new + γ F_old, once for each newer one. Tensors without a Fisher are
/// not penalised. Two λ can be compared only for the same ½, γ, reduction, B and N, which the output states.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Ewc {
    /// θ, the model as it is
    #[arg(long, value_name = "M")]
    model: PathBuf,

    /// θ*, the model as an earlier task left it; repeat
    #[arg(long, value_name = "A", required = true)]
    anchor: Vec<PathBuf>,

    /// F, that task's Fisher; repeat
    #[arg(long, value_name = "F", required = true)]
    fisher: Vec<PathBuf>,

    /// λ, how much leaving costs
    #[arg(long, value_name = "L", allow_negative_numbers = true)]
    lambda: f64,

    /// γ, what an older Fisher at the same anchor is multiplied by, once for each newer one
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    gamma: Option<f64>,

    /// What to do with Fishers that are NaN, infinite or negative
    #[arg(long, value_enum, default_value = "error")]
    non_finite: NonFinite,

    /// Write the gradient, f32 under the model's names
    #[arg(long, value_name = "FILE")]
    gradient_out: Option<PathBuf>,
}

impl Ewc {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = EwcOptions {
            anchors: anchors(self.anchor, self.fisher)?,
            model: self.model,
            lambda: self.lambda,
            gamma: self.gamma,
            non_finite: self.non_finite.into(),
            gradient: self.gradient_out,
            overwrite: global.overwrite,
        };
        let fishers = options.anchors.iter().flat_map(|anchor| &anchor.fishers).map(PathBuf::as_path);
        let repeats = repeats(fishers, "Fisher", "two terms have the same weights");
        let backend = global.device.open()?;
        if global.dry_run {
            let plan = methods::plan(&options, &global.planning(&backend))?;
            plan.warnings.iter().chain(&repeats).for_each(|warning| log::warn!("{warning}"));
            let planned =
                Planned { dry_run: true, adapter: backend.name(), plan, gradient: options.gradient };
            return output::report(global, "ewc", &planned);
        }
        let reporter = progress::reporter(global, "ewc");
        let run = global.run(&backend, reporter.as_ref())?;
        let mut report = methods::ewc(&options, &run)?;
        drop(reporter);
        report.warnings.extend(repeats);
        report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        output::report(global, "ewc", &Done { report, output: options.gradient })
    }
}

fn anchors(mut anchors: Vec<PathBuf>, fishers: Vec<PathBuf>) -> Result<Vec<Anchor>, Error> {
    if anchors.len() == 1 {
        return Ok(anchors.drain(..).map(|path| Anchor { path, fishers: fishers.clone() }).collect());
    }
    if anchors.len() != fishers.len() {
        let problem = format!(
            "{} and {}; give one Fisher for each anchor, in order",
            counted(anchors.len() as u64, "anchor"),
            counted(fishers.len() as u64, "Fisher")
        );
        return Err(Error::argument("ewc", problem));
    }
    Ok(anchors
        .into_iter()
        .zip(fishers)
        .map(|(path, fisher)| Anchor { path, fishers: vec![fisher] })
        .collect())
}

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    adapter: String,
    #[serde(flatten)]
    plan: EwcPlan,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "squisher::paths::as_text")]
    gradient: Option<PathBuf>,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let EwcPlan { formula, lambda, gamma, terms, elements, free, passes, .. } = &self.plan;
        let gamma = gamma.map_or("none".into(), |gamma| gamma.to_string());
        writeln!(f, "on {}\n{formula}\nfactor 1/2, lambda {lambda}, gamma {gamma}", self.adapter)?;
        for term in terms {
            writeln!(f, "  {} at {}: weight {}", term.fisher.display(), term.anchor.display(), term.weight)?;
        }
        passes.iter().try_for_each(|plan| write!(f, "one pass:\n{plan}"))?;
        write!(f, "over {}; free: {}", counted(*elements, "parameter"), without_fisher(free))?;
        self.gradient.iter().try_for_each(|path| write!(f, "\nwould write {}", path.display()))
    }
}

/// The result.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: EwcReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: Option<PathBuf>,
}

/// The tensors without a Fisher: how many, and the first three.
fn without_fisher(free: &[String]) -> String {
    let names: Vec<String> = free.iter().take(3).map(|name| printable(name)).collect();
    let more = if free.len() > 3 { ", …" } else { "" };
    let names = if free.is_empty() { String::new() } else { format!(" ({}{more})", names.join(", ")) };
    format!("{}{names}", counted(free.len() as u64, "tensor"))
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let said = |value: &Option<String>| {
            value.clone().unwrap_or_else(|| "not stated".into()).escape_debug().to_string()
        };
        writeln!(f, "penalty {:?}", report.penalty)?;
        writeln!(f, "{}", report.formula)?;
        let gamma = report.gamma.map_or("none".into(), |gamma| gamma.to_string());
        writeln!(f, "factor 1/2, lambda {}, gamma {gamma}", report.lambda)?;
        for term in &report.terms {
            writeln!(
                f,
                "  {} at {}: {:?}, weight {}, kind {}, reduction {}, scale {}, B {}, N {}",
                term.fisher.display(),
                term.anchor.display(),
                term.penalty,
                term.weight,
                said(&term.kind),
                said(&term.reduction),
                said(&term.scale),
                said(&term.batch_size),
                said(&term.samples)
            )?;
        }
        write!(
            f,
            "over {} on {}; free: {}",
            counted(report.elements, "parameter"),
            report.adapter,
            without_fisher(&report.free)
        )?;
        if report.non_finite > 0 {
            write!(f, "\n{} that no Fisher can have, counted as 0", counted(report.non_finite, "value"))?;
        }
        Ok(())
    }
}
