//! How alike several Fishers are, as a matrix with values.

use std::path::PathBuf;

use squisher::methods::NonFinite;
use squisher::methods::task2vec::distance::{DistanceMetric, DistanceOptions, distance};
use squisher::methods::task2vec::{Group, Metric};
use squisher::{Backend, Error, Interrupt, Progress, Run};

use super::data::{Input, Kind};
use super::page::figure;
use crate::charts::{Heatmap, escape};

/// What comes of comparing all Fishers of a report.
pub(super) enum Similarity {
    /// The cosine of every two, and what they are called.
    Matrix(Vec<String>, Vec<Vec<f64>>),
    /// Why they cannot be compared.
    None(String),
}

impl Similarity {
    /// Compares the Fishers among `inputs`, side by side in one pass; nothing where there are fewer than two.
    pub(super) fn of(
        inputs: &[Input],
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Option<Self>, Error> {
        let fishers: Vec<&Input> =
            inputs.iter().filter(|input| matches!(input.kind, Kind::Fisher(_))).collect();
        if fishers.len() < 2 {
            return Ok(None);
        }
        let paths: Vec<PathBuf> = fishers.iter().map(|fisher| fisher.checkpoint.path().to_owned()).collect();
        let options = DistanceOptions {
            metric: DistanceMetric::Symmetric(Metric::Cosine),
            group: Group::Element,
            non_finite: NonFinite::Error,
        };
        let run = Run { progress, interrupt: interrupt.clone(), ..Run::new(&Backend::Host) };
        match distance(&paths, &options, &run) {
            Ok(report) => {
                let cosines = |row: Vec<f64>| row.into_iter().map(|distance| 1.0 - distance).collect();
                Ok(Some(Self::Matrix(report.names, report.matrix.into_iter().map(cosines).collect())))
            }
            Err(error @ Error::Mismatch { .. }) => Ok(Some(Self::None(error.to_string()))),
            Err(error) => Err(error),
        }
    }

    /// The matrix as `--json` has it.
    pub(super) fn matrix(self) -> Option<Vec<Vec<f64>>> {
        match self {
            Self::Matrix(_, cells) => Some(cells),
            Self::None(_) => None,
        }
    }

    pub(super) fn section(&self) -> String {
        let content = match self {
            Self::None(reason) => format!("<p>The Fishers are not compared: {}</p>", escape(reason)),
            Self::Matrix(names, cells) => {
                let map = Heatmap {
                    rows: names.clone(),
                    columns: names.clone(),
                    cells: cells.iter().map(|row| row.iter().copied().map(Some).collect()).collect(),
                    log: false,
                    range: Some((0.0, 1.0)),
                    digits: 3,
                    title: format!("similarity of {} Fishers", names.len()),
                };
                let caption = "The cosine between every two Fishers over all parameters: 1 where they differ by a factor at most, 0 where no \
                               parameter matters to both.";
                figure(&map.svg(), caption)
            }
        };
        format!("<section><h2>Similarity</h2>{content}</section>")
    }
}
