//! `squisher step CAPTURE… --kind ef|ief --damping L -o OUT`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use squisher::methods::step::{self as methods, StepKind, StepOptions, StepPlan, StepReport};

use crate::args::Global;
use crate::repeats::repeats;
use crate::table::{Table, count, counted, size};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher step capture-*.safetensors --kind ief --damping 1e-3 -o step.safetensors
  squisher step capture-*.safetensors --kind ef --damping 1e-3 -o step.safetensors \\
      --gram gram.safetensors
  squisher step capture-*.safetensors --kind ief --damping 1e-3 -o step.safetensors \\
      --indicator exact-*.safetensors
The step is to be subtracted from the parameters, times a learning rate. The improved empirical Fisher needs logit_grad
in the captures: see examples/pytorch/README.md.";

const USAGE: &str = "squisher step <CAPTURE>... --kind <KIND> --damping <L> -o <OUT> [OPTIONS]";

/// Compute a natural-gradient step Δ = Jᵀ (K + λI)⁻¹ s from captured activations and gradients
///
/// J are the per-sample gradients, K = J Jᵀ their Gram matrix. The empirical Fisher (ef) has s = 1, the
/// improved one (ief) s_n = ‖∂ℓ_n/∂z_n‖², z being the logits. Nothing of the size of J is ever in memory; K
/// has 8·N² bytes for N samples.
#[derive(Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE)]
pub(crate) struct Step {
    /// Capture files, one a batch
    #[arg(required = true, value_name = "CAPTURE")]
    captures: Vec<PathBuf>,

    /// The step to write, under the parameters' names
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// ef (empirical Fisher) or ief (improved)
    #[arg(long)]
    kind: StepKind,

    /// λ, in units of a squared gradient norm
    #[arg(long, value_name = "L", allow_negative_numbers = true)]
    damping: f64,

    /// Also write the Gram matrix: one tensor "gram" [N, N], samples in the order of the files
    #[arg(long, value_name = "FILE")]
    gram: Option<PathBuf>,

    /// Also tell how good the step is, by γ = √(Δᵀ F Δ) / |Δᵀ ∇L| with the exact Fisher F: captures of the
    /// same samples with all classes, or with drawn labels for an estimate. Lower is better. Takes all
    /// that follow up to the next flag, so it stands after CAPTURE
    #[arg(long, value_name = "CAPTURE", num_args = 1..)]
    indicator: Vec<PathBuf>,
}

impl Step {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = StepOptions {
            kind: self.kind,
            damping: self.damping,
            gram: self.gram.clone(),
            indicator: self.indicator.clone(),
            overwrite: global.overwrite,
        };
        let captures = self.captures.iter().map(PathBuf::as_path);
        let warnings = repeats(captures, "capture", "its samples count twice, and K is singular");
        let backend = global.device.open()?;
        if global.dry_run {
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
            let plan = methods::plan(&self.captures, &options, &global.planning(&backend))?;
            let planned = Planned { dry_run: true, adapter: backend.name(), plan, output: self.output };
            return output::report(global, "step", &planned);
        }
        let reporter = progress::reporter(global, "step");
        let run = global.run(&backend, reporter.as_ref())?;
        let report = methods::step(&self.captures, &options, &self.output, &run)?;
        drop(reporter);
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let seconds = report.timings.seconds;
        output::report(global, "step", &Done { report, warnings, seconds, verbose: global.verbose > 0 })
    }
}

/// What was done.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: StepReport,
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
    plan: StepPlan,
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: PathBuf,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        let (samples, batches) = (counted(report.samples, "sample"), counted(report.batches as u64, "file"));
        if self.verbose {
            writeln!(f, "{}", Table::of_tensors(&report.tensors))?;
        }
        writeln!(
            f,
            "{} step of {samples} in {batches}, damping {}, on {}",
            report.kind,
            if report.damping == 0.0 { "0".to_owned() } else { format!("{:e}", report.damping) },
            report.adapter
        )?;
        let mut norms = report.gradient_norms.clone();
        norms.sort_by(f64::total_cmp);
        if let (Some(least), Some(most)) = (norms.first(), norms.last()) {
            let median = norms[norms.len() / 2];
            writeln!(
                f,
                "gradient norms of samples: {least:.3e} least, {median:.3e} median, {most:.3e} most"
            )?;
        }
        writeln!(
            f,
            "norm of the step {:.3e}, slope of the loss along it {:.3e}",
            report.step_norm, report.slope
        )?;
        if let Some(indicator) = report.indicator {
            writeln!(f, "γ = √(Δᵀ F Δ) / |Δᵀ ∇L| of the step {:.4e}", indicator.gamma)?;
        }
        let (elements, bytes) = (count(report.elements), size(report.bytes_written));
        write!(f, "wrote {elements} elements, {bytes} to {}", report.output.display())?;
        match &report.gram {
            Some(gram) => write!(f, " and {}", gram.display()),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = &self.plan;
        let (samples, bytes) = (counted(plan.samples, "sample"), size(plan.bytes_to_read));
        writeln!(f, "{}", Table::of_tensors(&plan.tensors))?;
        writeln!(f, "{} step, damping {:e}, on {}", plan.kind, plan.damping, self.adapter)?;
        write!(f, "would read {samples}, {bytes} from {}", counted(plan.batches as u64, "file"))?;
        write!(f, "; their Gram matrix has {}", size(plan.gram_bytes))?;
        write!(f, "\nwould write {}", self.output.display())
    }
}
