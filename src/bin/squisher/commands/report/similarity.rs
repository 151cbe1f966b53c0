//! How alike several Fishers are, as a matrix with values.

use squisher::methods::NonFinite;
use squisher::methods::task2vec::{DistanceMetric, DistanceOptions, Group, Metric, distance};
use squisher::stream::Budget;
use squisher::{Backend, Error, Interrupt, Progress};

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
        let options = DistanceOptions {
            inputs: fishers.iter().map(|fisher| fisher.checkpoint.path().to_owned()).collect(),
            metric: DistanceMetric::Symmetric(Metric::Cosine),
            group: Group::Element,
            non_finite: NonFinite::Error,
            budget: Budget::default(),
        };
        match distance(&options, &Backend::Host, progress, interrupt) {
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
