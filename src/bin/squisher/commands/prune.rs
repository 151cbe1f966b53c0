//! `squisher prune MODEL --fisher F (--keep X | --sparsity X | --pattern N:M) -o OUT`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use squisher::Error;
use squisher::checkpoint::Checkpoint;
use squisher::methods::prune::{Pattern, PruneOptions, Structure, plan, prune};
use squisher::methods::select::{Keep, piece_elements};

use crate::args::Global;
use crate::selection::{Done, Planned, Selection, share};
use crate::{output, progress, signals};

const EXAMPLES: &str = "\
Examples:
  squisher prune model --fisher fisher.safetensors --sparsity 0.75 -o pruned
  squisher prune model --fisher fisher.safetensors --pattern 2:4 --exclude '*embed*' -o pruned
  squisher prune model.safetensors --fisher f.safetensors --keep 0.5 --structure filter --scope tensor -o p.safetensors";

/// Set to zero what the loss misses least: the smallest ½ θ² F
///
/// What is kept stays bit for bit; types, names and files are the model's. Of equal scores the earlier element is kept.
#[derive(Args)]
#[command(after_help = EXAMPLES, group = ArgGroup::new("amount").args(["keep", "sparsity", "pattern"]).required(true).multiple(true))]
pub(crate) struct Prune {
    /// The model: a safetensors file, a folder, or an index
    model: PathBuf,

    /// Its Fisher: the same names and shapes
    #[arg(long, value_name = "F")]
    fisher: PathBuf,

    /// The model to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// The share to keep, from 0 to 1
    #[arg(long, value_name = "X", value_parser = share, conflicts_with = "sparsity")]
    keep: Option<f64>,

    /// The share to remove, from 0 to 1
    #[arg(long, value_name = "X", value_parser = share)]
    sparsity: Option<f64>,

    /// Keep the N best of every M consecutive along the input axis, as 2:4
    #[arg(long, value_name = "N:M")]
    pattern: Option<Pattern>,

    /// Remove whole filters, by the sum of their scores
    #[arg(long, value_enum, conflicts_with = "pattern")]
    structure: Option<StructureFlag>,

    #[command(flatten)]
    selection: Selection,

    /// Write the mask too: a safetensors file with one BOOL tensor a tensor
    #[arg(long, value_name = "M")]
    mask_out: Option<PathBuf>,
}

/// What is removed as a whole.
#[derive(Clone, Copy, ValueEnum)]
enum StructureFlag {
    /// Slices of the leading axis
    Filter,
}

impl Prune {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = PruneOptions {
            scope: self.selection.scope(),
            globs: self.selection.globs(),
            non_finite: self.selection.non_finite(),
            mask_out: self.mask_out.clone(),
            overwrite: global.overwrite,
            piece_elements: piece_elements(&global.memory.budget())?,
            ..PruneOptions::new(self.structure()?)
        };
        let (model, fisher) = (Checkpoint::open(&self.model)?, Checkpoint::open(&self.fisher)?);
        if global.dry_run {
            return output::report(global, "prune", &Planned::from(plan(&model, &fisher, &options)?));
        }
        let backend = global.device.open()?;
        let interrupt = signals::listen()?;
        let reporter = progress::reporter(global, "prune");
        let report = prune(&backend, &model, &fisher, &options, &self.output, reporter.as_ref(), &interrupt)?;
        drop(reporter);
        let done = Done(report);
        done.warn();
        output::report(global, "prune", &done)
    }

    fn structure(&self) -> Result<Structure, Error> {
        let share = self.keep.or(self.sparsity.map(|sparsity| 1.0 - sparsity));
        match (self.pattern, share) {
            (Some(pattern), Some(share)) if share != f64::from(pattern.keep) / f64::from(pattern.size) => {
                let problem =
                    format!("pattern {pattern} does not keep {share}; leave --keep and --sparsity out");
                Err(Error::argument("prune", problem))
            }
            (Some(pattern), _) => Ok(Structure::Pattern(pattern)),
            (None, share) => {
                let keep = Keep::Fraction(share.unwrap_or(1.0));
                Ok(match self.structure {
                    Some(StructureFlag::Filter) => Structure::Filters(keep),
                    None => Structure::Elements(keep),
                })
            }
        }
    }
}
