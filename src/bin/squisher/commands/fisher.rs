//! `squisher fisher CAPTURE… -o OUT`.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use squisher::methods::fisher::{self as methods, FisherOptions, FisherPlan, FisherReport, Kind};

use crate::args::Global;
use crate::repeats::repeats;
use crate::table::{Table, count, counted, size};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher fisher capture-*.safetensors -o fisher.safetensors
  squisher fisher capture-*.safetensors --kind ief --reduction mean -o ief.safetensors
  squisher fisher capture-*.safetensors --kind accumulator --beta 0.99 -o adam.safetensors
Captures are written by a few hooks in PyTorch: see examples/pytorch/capture.py.";

/// Compute a Fisher diagonal from captured activations and gradients
///
/// Every capture holds one batch: each layer's input and the gradient at its output, taken in evaluation
/// mode. The positions of a sample (tokens, pixels, uses of a shared layer) are added before its gradient is
/// squared.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Fisher {
    /// Capture files, one a batch
    #[arg(required = true, value_name = "CAPTURE")]
    captures: Vec<PathBuf>,

    /// The Fisher file to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// empirical, minibatch-joint, joint, ief, ema (of per-sample squares), accumulator (of squared batch means)
    ///
    /// For Monte Carlo or exact Fishers, use empirical on captures that were made with labels="sampled" or
    /// "all".
    #[arg(long, default_value = "empirical")]
    kind: Kind,

    /// β of ema and accumulator
    #[arg(long, value_name = "B", allow_negative_numbers = true)]
    beta: Option<f64>,

    /// Multiply each sample's square by its sample_weight
    #[arg(long)]
    weighted: bool,

    /// Divide the sum over samples by nothing, or by their number
    #[arg(long, value_enum, default_value_t)]
    reduction: Reduction,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Reduction {
    #[default]
    Sum,
    Mean,
}

impl Fisher {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = self.options(global)?;
        let captures = self.captures.iter().map(PathBuf::as_path);
        let mut warnings = repeats(captures, "capture", "its samples count twice");
        let backend = global.device.open()?;
        if global.dry_run {
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
            let plan = methods::plan(&self.captures, &options, &global.planning(&backend))?;
            let planned = Planned { dry_run: true, adapter: backend.name(), plan, output: self.output };
            return output::report(global, "fisher", &planned);
        }
        let reporter = progress::reporter(global, "fisher");
        let run = global.run(&backend, reporter.as_ref())?;
        let report = methods::fisher(&self.captures, &options, &self.output, &run)?;
        drop(reporter);
        if report.zero_loss_samples > 0 {
            let samples = counted(report.zero_loss_samples, "sample");
            warnings.push(format!("{samples} with a logit gradient of 0 added nothing"));
        }
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let seconds = report.timings.seconds;
        output::report(global, "fisher", &Done { report, warnings, seconds, verbose: global.verbose > 0 })
    }

    fn options(&self, global: &Global) -> Result<FisherOptions, squisher::Error> {
        let averages = matches!(self.kind, Kind::Ema | Kind::Accumulator);
        if self.beta.is_some() != averages {
            let problem = match averages {
                true => format!("--kind {} needs --beta, as --beta 0.999", self.kind),
                false => format!("--beta has no meaning for --kind {}", self.kind),
            };
            return Err(squisher::Error::argument("fisher", problem));
        }
        let reduction = match self.reduction {
            Reduction::Sum => methods::Reduction::Sum,
            Reduction::Mean => methods::Reduction::Mean,
        };
        let beta = self.beta.unwrap_or(FisherOptions::default().beta);
        let overwrite = global.overwrite;
        Ok(FisherOptions { kind: self.kind, beta, weighted: self.weighted, reduction, overwrite })
    }
}

/// What was done.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: FisherReport,
    warnings: Vec<String>,
    seconds: f64,
    #[serde(skip)]
    verbose: bool,
}

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    adapter: String,
    #[serde(flatten)]
    plan: FisherPlan,
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: PathBuf,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let (samples, batches) = (counted(report.samples, "sample"), counted(report.batches as u64, "file"));
        let (elements, bytes) = (count(report.elements), size(report.bytes_written));
        if self.verbose {
            writeln!(f, "{}", Table::of_tensors(&report.tensors))?;
        }
        writeln!(f, "{} Fisher of {samples} in {batches}, on {}", report.kind, report.adapter)?;
        if report.passes > 1 {
            writeln!(
                f,
                "read the captures of the largest layer {} times, to stay within the budget",
                report.passes
            )?;
        }
        write!(f, "wrote {elements} elements, {bytes} to {}", report.output.display())
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        let (samples, bytes) = (counted(plan.samples, "sample"), size(plan.bytes_to_read));
        writeln!(f, "{}", Table::of_tensors(&plan.tensors))?;
        writeln!(f, "{} Fisher on {}", plan.kind, self.adapter)?;
        write!(f, "would read {samples}, {bytes} from {}", counted(plan.batches as u64, "file"))?;
        if plan.passes > 1 {
            write!(f, ", of the largest layer {} times, to stay within the budget", plan.passes)?;
        }
        write!(f, "\nwould write {} elements to {}", count(plan.elements), self.output.display())
    }
}
