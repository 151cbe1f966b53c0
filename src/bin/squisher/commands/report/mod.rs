//! `squisher report FISHER|MASK… -o report.html`.

mod data;
mod names;
mod page;

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use squisher::{Error, Interrupt, Progress};

use self::data::Input;
use crate::args::Global;
use crate::{output, progress, signals};

const EXAMPLES: &str = "\
Examples:
  squisher report fisher.safetensors -o report.html
  squisher report fisher.safetensors squisher.safetensors -o compare.html
  squisher report mask.safetensors -o mask.html";

/// Show Fishers and masks as one page to look at
///
/// One self-contained HTML file: where the mass lies (a heatmap of layers and modules on a log scale), how the values are
/// distributed, how much the largest hold, the sparsity of masks, and how two Fishers agree. It needs no network and
/// reads in light and dark.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Report {
    /// Fisher files and masks (safetensors)
    #[arg(required = true, value_name = "FISHER|MASK")]
    inputs: Vec<PathBuf>,

    /// The page to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

impl Report {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        output::refuse_existing(&self.output, global.overwrite)?;
        let interrupt = signals::listen()?;
        let reporter = progress::reporter(global, "report");
        let written = write(&self.inputs, &self.output, global.dry_run, reporter.as_ref(), &interrupt)?;
        drop(reporter);
        output::report(global, "report", &written)
    }
}

/// Makes the page of `inputs`, and writes it unless this is a dry run.
pub(crate) fn write(
    inputs: &[PathBuf],
    path: &Path,
    dry_run: bool,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Written, Error> {
    let inputs =
        inputs.iter().map(|path| Input::read(path, progress, interrupt)).collect::<Result<Vec<_>, _>>()?;
    let pair = data::agreement(&inputs)?;
    let page = page::page(&inputs, pair.as_ref());
    if !dry_run {
        output::write_whole(path, page.as_bytes())?;
    }
    Ok(Written {
        output: path.display().to_string(),
        bytes: page.len() as u64,
        inputs: inputs.iter().map(|input| input.title.clone()).collect(),
        rank_correlation: pair.map(|pair| pair.spearman),
    })
}

/// What was written.
#[derive(Serialize)]
pub(crate) struct Written {
    output: String,
    bytes: u64,
    inputs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank_correlation: Option<f64>,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(correlation) = self.rank_correlation {
            writeln!(f, "rank correlation {correlation:.4}")?;
        }
        write!(f, "wrote {} ({})", self.output, crate::table::size(self.bytes))
    }
}
