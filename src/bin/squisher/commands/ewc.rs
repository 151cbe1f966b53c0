//! `squisher ewc --model M --anchor A --fisher F --lambda L`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use squisher::Error;
use squisher::methods::ewc::{self as methods, Anchor, EwcOptions, EwcReport};

use crate::args::Global;
use crate::table::count;
use crate::{output, progress, signals};

const EXAMPLES: &str = "\
Examples:
  squisher ewc --model now --anchor task-a --fisher fisher-a.safetensors --lambda 100
  squisher ewc --model now --anchor a --fisher fa.safetensors --anchor b --fisher fb.safetensors --lambda 100
  squisher ewc --model now --anchor b --fisher fa.safetensors --fisher fb.safetensors --gamma 0.9 --lambda 100
  squisher ewc --model now --anchor a --fisher fa.safetensors --lambda 100 --gradient-out gradient.safetensors";

/// The penalty of elastic weight consolidation, ½ λ Σ F (θ − θ*)², and its gradient λ F (θ − θ*)
///
/// As many anchors as Fishers, in order, add up. Several Fishers at one anchor, the oldest first, count as F ← F_new + γ F_old, γ applied
/// once. A tensor without Fisher is free. λ carries over only with the ½, γ, the reduction, B and N: all are stated.
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

    /// γ, what an older Fisher at the same anchor is multiplied by
    #[arg(long, value_name = "G", allow_negative_numbers = true)]
    gamma: Option<f64>,

    /// Write the gradient, f32 under the model's names
    #[arg(long, value_name = "FILE")]
    gradient_out: Option<PathBuf>,
}

impl Ewc {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        output::no_dry_run(global, "ewc")?;
        let options = EwcOptions {
            anchors: anchors(self.anchor, self.fisher)?,
            model: self.model,
            lambda: self.lambda,
            gamma: self.gamma,
            gradient: self.gradient_out,
            overwrite: global.overwrite,
            budget: global.memory.budget(),
        };
        let backend = global.device.open()?;
        let interrupt = signals::listen()?;
        let reporter = progress::reporter(global, "ewc");
        let report = methods::ewc(&options, &backend, reporter.as_ref(), &interrupt)?;
        drop(reporter);
        output::report(global, "ewc", &Done(report))
    }
}

fn anchors(mut anchors: Vec<PathBuf>, fishers: Vec<PathBuf>) -> Result<Vec<Anchor>, Error> {
    if anchors.len() == 1 {
        return Ok(anchors.drain(..).map(|path| Anchor { path, fishers: fishers.clone() }).collect());
    }
    if anchors.len() != fishers.len() {
        let problem = format!(
            "{} anchors and {} Fishers; give one Fisher an anchor, in order",
            anchors.len(),
            fishers.len()
        );
        return Err(Error::argument("ewc", problem));
    }
    Ok(anchors
        .into_iter()
        .zip(fishers)
        .map(|(path, fisher)| Anchor { path, fishers: vec![fisher] })
        .collect())
}

/// The result.
#[derive(Serialize)]
#[serde(transparent)]
struct Done(EwcReport);

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.0;
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
            "over {} parameters on {}; {} tensors are free",
            count(report.elements),
            report.adapter,
            report.free.len()
        )
    }
}
