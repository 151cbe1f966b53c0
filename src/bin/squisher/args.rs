//! What every subcommand understands, and the list of subcommands.

use clap::{Args, Parser, Subcommand};
use squisher::{Backend, Progress, Run};

use crate::commands;
use crate::device::{DeviceFlags, MemoryFlags};
use crate::signals;

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failure
  2    usage
  3    an input file is damaged, missing or of a kind that is not read
  4    the inputs are sound but do not fit together, or not what is asked of them
  5    no adapter matches the request
  6    the device was lost or is out of memory, or a step exceeds a limit of the device or the kernels
  7    the output cannot be written
  130  interrupted (SIGINT); 143 terminated (SIGTERM)

Standard output carries the result only; progress, warnings and errors go to standard error.
Environment: RUST_LOG overrides the log level, NO_COLOR turns colours off.";

/// Find which parameters of a neural network matter; merge, prune, mask and compare models by them
///
/// Computes Fisher information on any GPU or on the host, or recycles the squared-gradient accumulator that Adam
/// left in the optimizer state, and merges, prunes, masks and compares models with it.
#[derive(Parser)]
#[command(name = "squisher", version, after_help = EXIT_CODES, propagate_version = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The flags that every subcommand takes, before or after its name.
#[derive(Args)]
pub(crate) struct Global {
    #[command(flatten)]
    pub(crate) device: DeviceFlags,

    #[command(flatten)]
    pub(crate) memory: MemoryFlags,

    /// Replace an output that exists
    #[arg(long, global = true, help_heading = "Output options")]
    pub(crate) overwrite: bool,

    /// Show what would be done, from headers alone, and write nothing
    #[arg(long, global = true, help_heading = "Output options")]
    pub(crate) dry_run: bool,

    /// Print the result as one JSON object with stable keys
    #[arg(long, global = true, help_heading = "Output options")]
    pub(crate) json: bool,

    /// Print only errors on standard error
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Output options")]
    pub(crate) quiet: bool,

    /// Say more on standard error; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output options")]
    pub(crate) verbose: u8,
}

impl Global {
    /// With what a job of `backend` runs: within the memory that the flags give, until a signal ends it.
    pub(crate) fn run<'a>(
        &self,
        backend: &'a Backend,
        progress: &'a dyn Progress,
    ) -> anyhow::Result<Run<'a>> {
        Ok(Run { backend, budget: self.memory.budget(), progress, interrupt: signals::listen()? })
    }

    /// The same for a plan, which is done in a moment.
    pub(crate) fn planning<'a>(&self, backend: &'a Backend) -> Run<'a> {
        Run { budget: self.memory.budget(), ..Run::new(backend) }
    }
}

/// A count of what there must be some of.
pub(crate) fn at_least_one(text: &str) -> Result<u64, String> {
    let count = text.parse().ok().filter(|count| *count > 0);
    count.ok_or_else(|| "expected a whole number of at least 1".to_owned())
}

/// The subcommands, in the order of `--help`.
#[derive(Subcommand)]
pub(crate) enum Command {
    Adapters(commands::adapters::Adapters),
    Verify(commands::verify::Verify),
    Bench(commands::bench::Bench),
    Inspect(commands::inspect::Inspect),
    Extract(commands::extract::Extract),
    Fisher(commands::fisher::Fisher),
    Step(commands::step::Step),
    Merge(commands::merge::Merge),
    Embed(commands::embed::Embed),
    Distance(commands::distance::Distance),
    Ewc(commands::ewc::Ewc),
    Prune(commands::prune::Prune),
    Mask(commands::mask::Mask),
    Reset(commands::reset::Reset),
    Report(commands::report::Report),
    Demo(commands::demo::Demo),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
}

impl Command {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        match self {
            Self::Adapters(args) => args.run(global),
            Self::Verify(args) => args.run(global),
            Self::Bench(args) => args.run(global),
            Self::Inspect(args) => args.run(global),
            Self::Extract(args) => args.run(global),
            Self::Fisher(args) => args.run(global),
            Self::Step(args) => args.run(global),
            Self::Merge(args) => args.run(global),
            Self::Embed(args) => args.run(global),
            Self::Distance(args) => args.run(global),
            Self::Ewc(args) => args.run(global),
            Self::Prune(args) => args.run(global),
            Self::Mask(args) => args.run(global),
            Self::Reset(args) => args.run(global),
            Self::Report(args) => args.run(global),
            Self::Demo(args) => args.run(global),
            Self::Completions(args) => args.run(),
            Self::Man(args) => args.run(),
        }
    }
}
