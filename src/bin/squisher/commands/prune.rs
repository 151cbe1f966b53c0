//! `squisher prune MODEL (--fisher F | --captures C…) (--keep X | --sparsity X | --pattern N:M) -o OUT`.

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use squisher::Error;
use squisher::methods::prune::{Pattern, PruneOptions, Structure, gates, plan, prune};
use squisher::methods::select::Keep;

use crate::args::Global;
use crate::selection::{Done, Planned, Selection, share};
use crate::{output, progress};

const EXAMPLES: &str = "\
Examples:
  squisher prune model --fisher fisher.safetensors --sparsity 0.75 -o pruned
  squisher prune model --fisher fisher.safetensors --pattern 2:4 --exclude '*embed*' \\
      -o pruned
  squisher prune model.safetensors --fisher f.safetensors --keep 0.5 \\
      --structure filter --scope tensor -o p.safetensors
  squisher prune model --captures captures/*.safetensors --score filter-gate \\
      --sparsity 0.3 --exclude '*embed*' -o pruned";

const USAGE: &str = "squisher prune <MODEL> <--fisher <F>|--captures <C>...> \
                     <--keep <X>|--sparsity <X>|--pattern <N:M>> -o <OUT> [OPTIONS]";

/// The flags of which one says how much is removed; which go together is refused in words of its own.
fn amount() -> ArgGroup {
    ArgGroup::new("amount").args(["keep", "sparsity", "pattern"]).required(true).multiple(true)
}

/// Zero the parameters that the loss needs least: the smallest ½ θ² F, or whole filters
///
/// What is kept stays bit for bit; types, names and files are the model's. Of equal scores the earlier element is kept.
#[derive(Args)]
#[command(after_help = EXAMPLES, override_usage = USAGE, group = amount())]
pub(crate) struct Prune {
    /// The model: a safetensors file, a folder, or an index
    model: PathBuf,

    /// Its Fisher: the same names and shapes
    #[arg(long, value_name = "F", required_unless_present = "captures")]
    fisher: Option<PathBuf>,

    /// Captures of the model, which filter-gate is computed from in place of a Fisher. Takes all that follow
    /// up to the next flag, so it stands after MODEL
    #[arg(long, value_name = "C", num_args = 1.., conflicts_with_all = ["fisher", "pattern", "non_finite"])]
    captures: Vec<PathBuf>,

    /// The model to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,

    /// The share to keep, from 0 to 1
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true, conflicts_with = "sparsity")]
    keep: Option<f64>,

    /// The share to remove, from 0 to 1
    #[arg(long, value_name = "X", value_parser = share, allow_negative_numbers = true)]
    sparsity: Option<f64>,

    /// Keep the N best of every M consecutive along the input axis, as 2:4
    #[arg(long, value_name = "N:M")]
    pattern: Option<Pattern>,

    /// Remove whole filters, by filter-sum or the --score that is given
    #[arg(long, value_enum, conflicts_with = "pattern")]
    structure: Option<StructureFlag>,

    /// By what filters are ranked; implies --structure filter
    #[arg(long, value_enum, conflicts_with = "pattern")]
    score: Option<ScoreFlag>,

    #[command(flatten)]
    selection: Selection,

    /// Write the mask too: a safetensors file with one BOOL tensor a tensor
    #[arg(long, value_name = "M")]
    mask_out: Option<PathBuf>,
}

/// The score of a filter.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ScoreFlag {
    /// Σ ½ θ² F over its weights
    FilterSum,
    /// ½ Σ_n (Σ θ g_n over its weights)², from captures (Theis et al. 2018)
    FilterGate,
}

/// What is removed as a whole.
#[derive(Clone, Copy, ValueEnum)]
enum StructureFlag {
    /// Slices of the leading axis
    Filter,
}

/// What scores are computed from.
enum Scores<'a> {
    Fisher(&'a Path),
    Captures(&'a [PathBuf]),
}

impl Prune {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        let options = PruneOptions {
            scope: self.selection.scope(),
            globs: self.selection.globs(),
            non_finite: self.selection.non_finite(),
            mask_out: self.mask_out.clone(),
            overwrite: global.overwrite,
            ..PruneOptions::new(self.structure()?)
        };
        let scores = self.scores()?;
        let backend = global.device.open()?;
        if global.dry_run {
            let plan = match &scores {
                Scores::Fisher(fisher) => plan(&self.model, fisher, &options, &global.planning(&backend))?,
                Scores::Captures(captures) => gates::plan(&self.model, captures, &options)?,
            };
            return output::report(global, "prune", &Planned::from(plan));
        }
        let reporter = progress::reporter(global, "prune");
        let run = global.run(&backend, reporter.as_ref())?;
        let (model, out) = (&self.model, &self.output);
        let report = match &scores {
            Scores::Fisher(fisher) => prune(model, fisher, &options, out, &run)?,
            Scores::Captures(captures) => gates::prune(model, captures, &options, out, &run)?,
        };
        drop(reporter);
        let done = Done(report);
        done.warn();
        output::report(global, "prune", &done)
    }

    /// What the score that was asked for is computed from.
    fn scores(&self) -> Result<Scores<'_>, Error> {
        let refuse = |problem: &str| Err(Error::argument("prune", problem));
        match (&self.fisher, self.score) {
            (Some(fisher), None | Some(ScoreFlag::FilterSum)) => Ok(Scores::Fisher(fisher)),
            (Some(_), Some(ScoreFlag::FilterGate)) => refuse(
                "filter-gate needs per-sample gradients; give captures (--captures) in place of a Fisher",
            ),
            (None, Some(ScoreFlag::FilterGate)) => Ok(Scores::Captures(&self.captures)),
            (None, _) => {
                refuse("captures are for --score filter-gate; give a Fisher (--fisher) for the other scores")
            }
        }
    }

    fn structure(&self) -> Result<Structure, Error> {
        let share = self.keep.or(self.sparsity.map(|sparsity| 1.0 - sparsity));
        match (self.pattern, share) {
            (Some(pattern), Some(share)) if share != f64::from(pattern.keep) / f64::from(pattern.size) => {
                let asked = self.keep.map_or_else(
                    || format!("--sparsity {}", self.sparsity.unwrap_or_default()),
                    |keep| format!("--keep {keep}"),
                );
                let problem = format!(
                    "pattern {pattern} keeps {} of {}, {asked} does not; leave {asked} out",
                    pattern.keep, pattern.size
                );
                Err(Error::argument("prune", problem))
            }
            (Some(pattern), _) => Ok(Structure::Pattern(pattern)),
            (None, share) => {
                let keep = Keep::Fraction(share.unwrap_or(1.0));
                let filters = self.structure.is_some() || self.score.is_some();
                Ok(if filters { Structure::Filters(keep) } else { Structure::Elements(keep) })
            }
        }
    }
}
