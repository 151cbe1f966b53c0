//! A matrix of distances as a file: a table for programs, or a heatmap for people.

use std::path::Path;

use squisher::Error;
use squisher::methods::task2vec::Metric;
use squisher::methods::task2vec::distance::{DistanceMetric, DistanceReport};

use crate::charts::Heatmap;

/// What a file's extension says it should hold.
#[derive(Clone, Copy)]
pub(super) enum Format {
    Csv,
    Json,
    Svg,
}

impl Format {
    pub(super) fn of(path: &Path) -> Result<Self, Error> {
        let extension =
            path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("csv") => Ok(Self::Csv),
            Some("json") => Ok(Self::Json),
            Some("svg") => Ok(Self::Svg),
            _ => {
                let problem = format!(
                    "-o {}: distances are written as .csv, .json or .svg; give the file one of these endings",
                    path.display()
                );
                Err(Error::argument("distance", problem))
            }
        }
    }
}

/// One row and one column a task, each under its name; distances with all their digits.
pub(super) fn csv(report: &DistanceReport) -> String {
    let names: Vec<String> = report.names.iter().map(|name| cell(name)).collect();
    let mut text = format!("from,{}\n", names.join(","));
    for (name, row) in names.iter().zip(&report.matrix) {
        let row: Vec<String> = row.iter().map(|distance| format!("{distance:?}")).collect();
        text.push_str(&format!("{name},{}\n", row.join(",")));
    }
    text
}

/// A name as RFC 4180 writes it.
fn cell(name: &str) -> String {
    if name.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", name.replace('"', "\"\""))
    } else {
        name.to_owned()
    }
}

/// A heatmap that stands alone, with its values.
pub(super) fn svg(report: &DistanceReport) -> String {
    let bounded = matches!(report.metric, DistanceMetric::Symmetric(Metric::Cosine | Metric::Normalized));
    let map = Heatmap {
        rows: report.names.clone(),
        columns: report.names.clone(),
        cells: report.matrix.iter().map(|row| row.iter().copied().map(Some).collect()).collect(),
        log: false,
        range: bounded.then_some((0.0, 1.0)),
        digits: 3,
        title: format!("distances between {} tasks, {}", report.names.len(), report.metric),
    };
    map.file()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_table_are_quoted() {
        assert_eq!(cell("plain name"), "plain name");
        assert_eq!(cell("a,b"), "\"a,b\"");
        assert_eq!(cell("say \"a\""), "\"say \"\"a\"\"\"");
    }

    #[test]
    fn only_known_endings_are_taken() {
        for known in ["a.csv", "b.JSON", "c.d.svg"] {
            assert!(Format::of(Path::new(known)).is_ok(), "{known}");
        }
        for unknown in ["a", "a.txt", ".svg", "a.safetensors"] {
            assert!(Format::of(Path::new(unknown)).is_err(), "{unknown}");
        }
    }
}
