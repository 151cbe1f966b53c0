//! `squisher report FISHER|MASK… -o report.html`.

mod charts;
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
        if self.output.exists() && !global.overwrite {
            let problem = "exists; pass --overwrite to replace it, or choose another name";
            return Err(Error::output(&self.output, problem).into());
        }
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
    output: &Path,
    dry_run: bool,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<Written, Error> {
    let inputs =
        inputs.iter().map(|path| Input::read(path, progress, interrupt)).collect::<Result<Vec<_>, _>>()?;
    let pair = data::agreement(&inputs)?;
    let page = page::page(&inputs, pair.as_ref());
    if !dry_run {
        write_whole(output, page.as_bytes())?;
    }
    Ok(Written {
        output: output.display().to_string(),
        bytes: page.len() as u64,
        inputs: inputs.iter().map(|input| input.title.clone()).collect(),
        rank_correlation: pair.map(|pair| pair.spearman),
    })
}

/// Writes a file beside its place and then moves it there, so that it is whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let refused = |error: std::io::Error| Error::output(path, error.to_string());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut partial = tempfile::NamedTempFile::new_in(folder.unwrap_or(".".as_ref())).map_err(refused)?;
    std::io::Write::write_all(&mut partial, bytes).map_err(refused)?;
    partial.as_file().sync_all().map_err(refused)?;
    readable(partial.as_file()).map_err(refused)?;
    partial.persist(path).map(|_| ()).map_err(|error| refused(error.error))
}

/// A temporary file is its owner's alone; a report is for others too.
#[cfg(unix)]
fn readable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_: &std::fs::File) -> std::io::Result<()> {
    Ok(())
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
