//! `squisher report FISHER|MASK… -o report.html`.

mod data;
mod names;
mod page;
mod roofline;
mod similarity;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;
use squisher::{Error, Interrupt, Progress};

use self::data::Input;
use self::similarity::Similarity;
use crate::args::Global;
use crate::{output, progress, signals};

const EXAMPLES: &str = "\
Examples:
  squisher report fisher.safetensors -o report.html
  squisher report fisher.safetensors squisher.safetensors -o compare.html
  squisher report mask.safetensors -o mask.html
  squisher report benches/record/*/*.csv -o roofline.html";

/// Show Fishers, masks and bench records as one page to look at
///
/// One self-contained HTML file: where the mass lies (a heatmap of layers and modules on a log scale), how
/// the values are distributed, how much the largest hold, the sparsity of masks, how two Fishers agree, and
/// the roofline of what `squisher bench --record` kept. It needs no network and reads in light and dark.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Report {
    /// Fisher files and masks (safetensors), records of `squisher bench` (CSV)
    #[arg(required = true, value_name = "FISHER|MASK|RECORD")]
    inputs: Vec<PathBuf>,

    /// The page to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

impl Report {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        global.device.refuse("report")?;
        check_ending(&self.output)?;
        output::refuse_output(&self.output, global.overwrite, &self.inputs)?;
        let interrupt = signals::listen()?;
        let reporter = progress::reporter(global, "report");
        let written = write(&self.inputs, &self.output, global.dry_run, reporter.as_ref(), &interrupt)?;
        drop(reporter);
        output::report(global, "report", &written)
    }
}

/// A page under another ending would be opened by a program that cannot show it.
fn check_ending(path: &Path) -> Result<(), Error> {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    match ending.as_deref() {
        Some("html" | "htm") => Ok(()),
        _ => {
            let problem =
                format!("-o {}: the page is HTML; give the file the ending .html or .htm", path.display());
            Err(Error::argument("report", problem))
        }
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
    let began = Instant::now();
    let (mut records, mut others) = (Vec::new(), Vec::new());
    for path in inputs {
        match roofline::read(path) {
            Some(record) => records.push(record?),
            None => others.push(Input::read(path, progress, interrupt)?),
        }
    }
    let inputs = others;
    let pair = data::agreement(&inputs)?;
    let similarity = Similarity::of(&inputs, progress, interrupt)?;
    let page = page::page(&inputs, similarity.as_ref(), pair.as_ref(), &records);
    if !dry_run {
        output::write_whole(path, page.as_bytes())?;
    }
    let titles = inputs.iter().map(|input| input.title.clone());
    let titles = titles.chain(records.iter().map(|record| record.adapter.clone())).collect();
    Ok(Written {
        dry_run,
        warnings: Vec::new(),
        seconds: began.elapsed().as_secs_f64(),
        output: path.display().to_string(),
        bytes: page.len() as u64,
        inputs: titles,
        similarity: similarity.and_then(Similarity::matrix),
        rank_correlation: pair.map(|pair| pair.spearman),
    })
}

/// What was written.
#[derive(Serialize)]
pub(crate) struct Written {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
    output: String,
    warnings: Vec<String>,
    seconds: f64,
    bytes: u64,
    inputs: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rank_correlation: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    similarity: Option<Vec<Vec<f64>>>,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(correlation) = self.rank_correlation {
            writeln!(f, "rank correlation {correlation:.4}")?;
        }
        let wrote = if self.dry_run { "would write" } else { "wrote" };
        write!(f, "{wrote} {} ({})", self.output, crate::table::size(self.bytes))
    }
}
