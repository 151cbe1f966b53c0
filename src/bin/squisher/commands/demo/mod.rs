//! `squisher demo [FOLDER]`.
//!
//! A base network read handwritten digits a little. Two specialists went on from it: one saw only the top half of every
//! image, the other only the bottom half. Each left what any training run leaves: a model and its optimizer's state.
//! The demo does with them what a user would, one command at a time, and measures the networks that come out.

mod data;
mod network;
mod steps;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use squisher::{Backend, Error};

use self::network::{Accuracy, Digits, Network};
use self::steps::{Place, Step};
use crate::args::Global;
use crate::output;
use crate::table::{Column, Table};

const EXAMPLES: &str = "\
Examples:
  squisher demo
  squisher demo digits
  squisher demo digits --overwrite --json
  squisher demo digits --dry-run";

/// Extract, merge, prune, compare and measure, on small trained networks that come with the tool
///
/// A base and two specialists, trained on the top and on the bottom half of handwritten digits. Everything is written
/// to FOLDER, each step with the command line that does the same.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Demo {
    /// Where to write; must be new or empty, unless --overwrite is given [default: a new temporary folder, kept]
    folder: Option<PathBuf>,
}

impl Demo {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        if global.dry_run {
            let folder = self.folder.unwrap_or_else(|| "FOLDER".into());
            let place = Place::new(folder.clone(), global);
            let commands = lines(&place, &steps::all());
            return output::report(global, "demo", &Planned { dry_run: true, folder, commands });
        }
        let backend = global.device.open()?;
        let folder = prepare(self.folder, global.overwrite)?;
        let done = tell(Place::new(folder, global), global, &backend)?;
        output::report(global, "demo", &done)
    }
}

/// The folder to write to: the one asked for, made where it is not there, or a new temporary one that stays.
fn prepare(folder: Option<PathBuf>, overwrite: bool) -> anyhow::Result<PathBuf> {
    let Some(folder) = folder else {
        let made = tempfile::Builder::new().prefix("squisher-demo-").tempdir();
        return Ok(made.context("cannot make a temporary folder; name one")?.keep());
    };
    let refused = |error: std::io::Error| Error::output(&folder, error.to_string());
    std::fs::create_dir_all(&folder).map_err(refused)?;
    let used = std::fs::read_dir(&folder).map_err(refused)?.next().is_some();
    if used && !overwrite {
        let problem =
            "the folder is not empty; name a new one, or pass --overwrite to replace the demo's files in it";
        return Err(Error::output(&folder, problem).into());
    }
    Ok(folder)
}

/// Every step in its order, then what the networks read.
fn tell(place: Place, global: &Global, backend: &Backend) -> anyhow::Result<Done> {
    let run = global.run(backend, &())?;
    data::unpack(&place.folder)?;
    let steps = steps::all();
    for step in &steps {
        run.interrupt.check()?;
        step.run(&place, &run)?;
    }
    let digits = Digits::read(&place.digits())?;
    let trained = data::NAMES.iter().map(|name| ((*name).to_owned(), place.model(name)));
    let made = steps.iter().filter_map(|step| step.network(&place));
    let accuracies =
        trained.chain(made).map(|(name, path)| measure(name, &path, &digits)).collect::<Result<_, _>>()?;
    let distances = steps::compare(&place, &run)?.matrix;
    Ok(Done {
        commands: lines(&place, &steps),
        folder: place.folder,
        adapter: backend.name(),
        images: digits.len(),
        accuracies,
        distances: Distances { metric: "cosine", networks: data::NAMES, matrix: distances },
    })
}

/// The command lines of everything that is done, in its order.
fn lines(place: &Place, steps: &[Step]) -> Vec<String> {
    let steps = steps.iter().map(|step| step.line(place));
    steps.chain(std::iter::once(steps::compare_line(place))).collect()
}

fn measure(network: String, path: &Path, digits: &Digits) -> Result<Measured, Error> {
    Ok(Measured { network, accuracy: Network::read(path)?.accuracy(digits) })
}

/// What the names in the table mean.
const LEGEND: &str = "\
linear, fisher, ubgm   the two specialists, merged
pruned-N               top with N % of its parameters set to zero: those its Fisher says matter least
random-N               the same number, at random
reset-N                base with the N % of top's parameters that have the largest Fisher";

/// One network and how well it reads.
#[derive(Serialize)]
struct Measured {
    network: String,
    #[serde(flatten)]
    accuracy: Accuracy,
}

/// What was done. Keys are stable.
#[derive(Serialize)]
struct Done {
    #[serde(serialize_with = "squisher::paths::as_text")]
    folder: PathBuf,
    adapter: String,
    commands: Vec<String>,
    images: usize,
    accuracies: Vec<Measured>,
    distances: Distances,
}

/// How far apart the networks' tasks are.
#[derive(Serialize)]
struct Distances {
    metric: &'static str,
    networks: [&'static str; 3],
    /// `[from, to]`.
    matrix: Vec<Vec<f64>>,
}

/// What would be done.
#[derive(Serialize)]
struct Planned {
    dry_run: bool,
    #[serde(serialize_with = "squisher::paths::as_text")]
    folder: PathBuf,
    commands: Vec<String>,
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.commands.join("\n"))
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Handwritten digits: a base network, and two specialists that went on from it,")?;
        writeln!(f, "one on the top half of every image, one on the bottom half.\n")?;
        writeln!(f, "What was done, as commands (their files are there already, hence --overwrite):\n")?;
        self.commands.iter().try_for_each(|command| writeln!(f, "{command}\n"))?;
        writeln!(f, "Share of {} test images read correctly, shown whole or by half:\n", self.images)?;
        writeln!(f, "{}\n", self.table())?;
        writeln!(f, "{LEGEND}\n")?;
        writeln!(f, "Distance between the tasks by their Fishers, 1 − cos:\n")?;
        writeln!(f, "{}\n", self.distances.table())?;
        write!(f, "computed on {}; everything is in {}", self.adapter, self.folder.display())
    }
}

impl Distances {
    fn table(&self) -> Table {
        let [base, top, bottom] = self.networks.map(Column::Right);
        let mut table = Table::new(&[Column::Left(""), base, top, bottom]);
        for (network, row) in self.networks.iter().zip(&self.matrix) {
            let cells = row.iter().map(|distance| format!("{distance:.4}"));
            table.row(std::iter::once((*network).to_owned()).chain(cells));
        }
        table
    }
}

impl Done {
    fn table(&self) -> Table {
        let mut table = Table::new(&[
            Column::Left("NETWORK"),
            Column::Right("WHOLE"),
            Column::Right("TOP"),
            Column::Right("BOTTOM"),
        ]);
        for Measured { network, accuracy: Accuracy { whole, top, bottom } } in &self.accuracies {
            let shares = [whole, top, bottom].map(|share| format!("{share:.4}"));
            table.row(std::iter::once(network.clone()).chain(shares));
        }
        table
    }
}
