//! `squisher extract OPTIMIZER --model MODEL -o OUT`.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use squisher::Backend;
use squisher::checkpoint::{ModelParams, OptimizerState, Scale};
use squisher::error::printable;
use squisher::methods::squisher::{
    self as methods, ExtractOptions, ExtractPlan, ExtractReport, Extracted, Warning,
};
use squisher::shape::shape_text;
use squisher::stream::Timings;

use crate::args::{Global, at_least_one};
use crate::table::{Column, Table, count, counted, size, word};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher extract checkpoint-500/optimizer.pt --model checkpoint-500 \\
      -o fisher.safetensors
  squisher extract optimizer.pt --model model --names parameters.json \\
      -o fisher.safetensors
  squisher extract optimizer.pt --model model --scale mean --batch-size 32 --dry-run \\
      -o f.safetensors";

/// Read a Fisher diagonal out of an optimizer's state
///
/// Adam and its kin keep a moving average of squared gradients; at the end of training it stands in for the empirical
/// Fisher. Nothing in the file is executed. Which parameter an entry belongs to must be certain: the evidence is
/// shown, and where there is none the command refuses and says how to write a names file.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Extract {
    /// The optimizer's state: a file of torch.save, or a folder with one
    optimizer: PathBuf,

    /// The model it was trained on, for names and shapes
    #[arg(long, value_name = "MODEL")]
    model: PathBuf,

    /// The Fisher file to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// A JSON list of parameter names in the optimizer's order
    #[arg(long, value_name = "FILE")]
    names: Option<PathBuf>,

    /// raw v, unbiased v̂ = v/(1−β^step), mean B·v̂, sum N·B·v̂, or paper N·v
    ///
    /// raw is right for merging models that were trained alike, pruning and masks, where a common factor
    /// cancels; unbiased where step counts differ; mean estimates the mean empirical Fisher and can be
    /// compared across batch sizes; sum estimates the sum, and paper is what Li et al. (2025) take for weight
    /// consolidation.
    #[arg(long, default_value = "raw")]
    scale: Scale,

    /// B, the samples of one optimizer step over all devices and accumulated micro-batches
    #[arg(long, value_name = "B", allow_negative_numbers = true, value_parser = at_least_one)]
    batch_size: Option<u64>,

    /// N, the samples of the training set
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = at_least_one)]
    samples: Option<u64>,

    /// Take AMSGrad's maximum in place of the moving average
    #[arg(long)]
    max_exp_avg_sq: bool,
}

impl Extract {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        global.device.refuse("extract")?;
        let state = OptimizerState::open(&self.optimizer)?;
        let model = ModelParams::open(&self.model)?;
        let options = self.options(global.overwrite);
        if global.dry_run {
            let map = NamedState::from(methods::plan(&state, &model, &options)?);
            map.warn();
            return output::report(global, "extract", &Planned { dry_run: true, map });
        }
        let reporter = progress::reporter(global, "extract");
        let run = global.run(&Backend::Host, reporter.as_ref())?;
        let report = methods::extract(&state, &model, &options, &self.output, &run)?;
        drop(reporter);
        let done = Done::from(report);
        done.map.warn();
        output::report(global, "extract", &done)
    }

    fn options(&self, overwrite: bool) -> ExtractOptions {
        ExtractOptions {
            scale: self.scale,
            batch_size: self.batch_size,
            samples: self.samples,
            max_exp_avg_sq: self.max_exp_avg_sq,
            names_file: self.names.clone(),
            overwrite,
            ..ExtractOptions::default()
        }
    }
}

/// What was done.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    map: NamedState,
    scale: Scale,
    /// The smallest and the largest.
    scale_factor: (f64, f64),
    bytes_written: u64,
    #[serde(serialize_with = "squisher::paths::as_text")]
    output: PathBuf,
    seconds: f64,
    timings: Timings,
}

impl From<ExtractReport> for Done {
    fn from(report: ExtractReport) -> Self {
        Self {
            scale: report.scale,
            scale_factor: report.scale_factor,
            bytes_written: report.bytes_written,
            output: report.output.clone(),
            seconds: report.timings.seconds,
            timings: report.timings,
            map: report.into(),
        }
    }
}

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    #[serde(flatten)]
    map: NamedState,
}

/// An optimizer's parameters under the model's names, with the evidence and with what is read of each.
#[derive(Serialize)]
pub(crate) struct NamedState {
    tensors: Vec<Extracted>,
    evidence: String,
    renamed: Vec<(String, String)>,
    absent: Vec<String>,
    warnings: Vec<Warning>,
    elements: u64,
}

impl From<ExtractPlan> for NamedState {
    fn from(plan: ExtractPlan) -> Self {
        Self {
            elements: plan.tensors.iter().map(|tensor| tensor.elements).sum(),
            tensors: plan.tensors,
            evidence: plan.names.source.to_string(),
            renamed: plan.names.renamed,
            absent: plan.names.absent,
            warnings: plan.warnings,
        }
    }
}

impl From<ExtractReport> for NamedState {
    fn from(report: ExtractReport) -> Self {
        Self {
            tensors: report.tensors,
            evidence: report.evidence.to_string(),
            renamed: report.renamed,
            absent: report.absent,
            warnings: report.warnings,
            elements: report.elements,
        }
    }
}

impl NamedState {
    /// What looks suspicious, on standard error.
    pub(crate) fn warn(&self) {
        self.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            Column::Left("PARAMETER"),
            Column::Right("ID"),
            Column::Left("SHAPE"),
            Column::Left("ACCUMULATOR"),
            Column::Left("DTYPE"),
            Column::Right("STEP"),
            Column::Right("FACTOR"),
        ]);
        self.tensors.iter().for_each(|tensor| table.row(cells(tensor)));
        table
    }
}

fn cells(tensor: &Extracted) -> [String; 7] {
    [
        word(&tensor.name),
        tensor.id.escape_debug().to_string(),
        shape_text(&tensor.shape),
        tensor.accumulator.key().to_owned(),
        tensor.dtype.to_owned(),
        tensor.step.map_or_else(|| "-".to_owned(), |step| step.to_string()),
        factor(tensor.factor),
    ]
}

fn factor(factor: f64) -> String {
    match factor {
        whole if whole.fract() == 0.0 => whole.to_string(),
        // Adagrad's is 1/step.
        small if small.abs() < 1e-2 => format!("{small:.3e}"),
        other => format!("{other:.4}"),
    }
}

impl fmt::Display for NamedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.table())?;
        write!(f, "names: {}", self.evidence)?;
        if !self.renamed.is_empty() {
            write!(f, "\n{} without a wrapper's part", counted(self.renamed.len() as u64, "name"))?;
        }
        self.absent.iter().try_for_each(|name| write!(f, "\nabsent: {}", printable(name)))
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = counted(self.map.tensors.len() as u64, "tensor");
        let (elements, bytes) = (count(self.map.elements), size(self.bytes_written));
        write!(f, "{}\nwrote {tensors}, {elements} elements, {bytes} to {}", self.map, self.output.display())
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tensors = counted(self.map.tensors.len() as u64, "tensor");
        write!(f, "{}\nwould write {tensors}, {} elements", self.map, count(self.map.elements))
    }
}
