//! `squisher mask FISHER --keep X -o OUT`.

use std::path::PathBuf;

use clap::Args;
use squisher::methods::mask::{MaskOptions, mask, plan};
use squisher::methods::select::Keep;

use crate::args::Global;
use crate::selection::{Done, Planned, Selection, share};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher mask fisher.safetensors --keep 0.005 -o mask.safetensors
  squisher mask fisher.safetensors --keep 0.005 --always 'classifier*' -o mask.safetensors
  squisher mask fisher.safetensors --keep 0.1 --scope tensor --include '*.weight' \\
      -o mask.safetensors";

/// Make a mask of the parameters with the largest Fisher
///
/// BOOL tensors under the Fisher's own names, true where a parameter is kept. Of equal values the earlier is kept.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Mask {
    /// The Fisher: a safetensors file, a folder, or an index
    fisher: PathBuf,

    /// The share to keep, from 0 to 1
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    keep: f64,

    /// The mask to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    #[command(flatten)]
    selection: Selection,
}

impl Mask {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = MaskOptions {
            scope: self.selection.scope(),
            globs: self.selection.globs(),
            non_finite: self.selection.non_finite(),
            overwrite: global.overwrite,
            ..MaskOptions::new(Keep::Fraction(self.keep))
        };
        let backend = global.device.open()?;
        if global.dry_run {
            let plan = plan(&self.fisher, &options, &global.planning(&backend))?;
            return output::report(global, "mask", &Planned::from(plan));
        }
        let reporter = progress::reporter(global, "mask");
        let run = global.run(&backend, reporter.as_ref())?;
        let report = mask(&self.fisher, &options, &self.output, &run)?;
        drop(reporter);
        let done = Done(report);
        done.warn();
        output::report(global, "mask", &done)
    }
}
