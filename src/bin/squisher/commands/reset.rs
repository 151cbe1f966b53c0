//! `squisher reset --mask M --model FINETUNED --base PRETRAINED -o OUT`.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;
use squisher::Backend;
use squisher::methods::reset::{ResetOptions, ResetPlan, ResetReport, Unmasked, plan, reset};

use crate::args::Global;
use crate::selection::selected;
use crate::table::{count, counted, size};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher reset --mask mask.safetensors --model finetuned --base pretrained -o reset
  squisher reset --mask mask.safetensors --model finetuned --base pretrained \\
      --unmasked base -o reset";

/// Take a fine-tuned model back to the pretrained one everywhere but in a mask
///
/// The result is mask ? fine-tuned : pretrained, bit for bit.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Reset {
    /// The mask: BOOL tensors under the model's names
    #[arg(long, value_name = "M")]
    mask: PathBuf,

    /// The fine-tuned model
    #[arg(long, value_name = "FINETUNED")]
    model: PathBuf,

    /// The model it was fine-tuned from
    #[arg(long, value_name = "PRETRAINED")]
    base: PathBuf,

    /// The model to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// Where tensors come from that the mask does not have
    #[arg(long, value_enum, default_value = "equal")]
    unmasked: UnmaskedFlag,
}

#[derive(Clone, Copy, ValueEnum)]
enum UnmaskedFlag {
    /// They must be equal in both models
    Equal,
    /// The fine-tuned model
    Model,
    /// The pretrained model
    Base,
}

impl Reset {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        global.device.refuse("reset")?;
        let unmasked = match self.unmasked {
            UnmaskedFlag::Equal => Unmasked::Equal,
            UnmaskedFlag::Model => Unmasked::Model,
            UnmaskedFlag::Base => Unmasked::Base,
        };
        let options = ResetOptions { unmasked, overwrite: global.overwrite };
        let Self { mask, model, base, .. } = &self;
        if global.dry_run {
            let plan = plan(mask, model, base)?;
            return output::report(global, "reset", &Planned { dry_run: true, plan });
        }
        let reporter = progress::reporter(global, "reset");
        let run = global.run(&Backend::Host, reporter.as_ref())?;
        let report = reset(mask, model, base, &options, &self.output, &run)?;
        drop(reporter);
        output::report(global, "reset", &Done { report, warnings: Vec::new() })
    }
}

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    #[serde(flatten)]
    plan: ResetPlan,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ResetPlan { masked, copied, elements, .. } = &self.plan;
        let (masked, copied) = (counted(masked.len() as u64, "tensor"), copied.len());
        write!(f, "would choose in {masked}, {} elements; {copied} are not in the mask", count(*elements))
    }
}

/// What was done.
#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    report: ResetReport,
    /// A key that every job has.
    warnings: Vec<String>,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = &self.report;
        writeln!(f, "{}", selected(&report.tensors))?;
        write!(f, "kept {} of {} elements", count(report.kept), count(report.elements))?;
        if !report.copied.is_empty() {
            write!(f, "; {} not in the mask", counted(report.copied.len() as u64, "tensor"))?;
        }
        write!(f, "\nwrote {} to {}", size(report.bytes_written), report.output.display())
    }
}
