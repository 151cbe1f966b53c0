//! A model or Fisher in safetensors, as `squisher inspect` shows it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;
use squisher::Interrupt;
use squisher::checkpoint::{self, Checkpoint, Statistics, Summary, TensorInfo};
use squisher::error::printable;
use squisher::shape::shape_text;

use crate::args::Global;
use crate::progress;
use crate::table::{Column, Table, count, counted, size, value, word};

/// How many of the largest values are asked what they hold: the fraction that FISH masks keep.
const TOP: f64 = 0.005;

/// One checkpoint.
#[derive(Serialize)]
pub(super) struct Contents {
    #[serde(serialize_with = "squisher::paths::as_text")]
    path: PathBuf,
    files: usize,
    elements: u64,
    bytes: u64,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    fisher: Option<FisherTotals>,
}

#[derive(Serialize)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    elements: u64,
    bytes: u64,
    #[serde(serialize_with = "squisher::paths::as_text")]
    file: PathBuf,
    fisher: Option<Values>,
}

/// What the values of a Fisher look like.
#[derive(Serialize)]
struct Values {
    min: Option<f32>,
    max: Option<f32>,
    mean: Option<f64>,
    sum: f64,
    zeros: u64,
    invalid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_invalid: Option<u64>,
}

#[derive(Serialize)]
struct FisherTotals {
    #[serde(flatten)]
    values: Values,
    top_fraction: f64,
    top_elements: Option<u64>,
    top_threshold: Option<f32>,
    top_share: Option<f64>,
}

impl Contents {
    /// Describes `checkpoint`; a Fisher's values are read, twice.
    pub(super) fn read(
        checkpoint: &Checkpoint,
        global: &Global,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Self> {
        if !checkpoint.metadata().contains_key("squisher.kind") {
            return Ok(Self::new(checkpoint, None));
        }
        let reporter = progress::reporter(global, "inspect");
        let statistics = checkpoint::statistics(checkpoint, TOP, reporter.as_ref(), interrupt)?;
        Ok(Self::new(checkpoint, Some(&statistics)))
    }

    fn new(checkpoint: &Checkpoint, statistics: Option<&Statistics>) -> Self {
        let mut tensors: Vec<Tensor> =
            checkpoint.tensors().iter().map(|tensor| Tensor::new(checkpoint, tensor)).collect();
        for (at, summary) in statistics.iter().flat_map(|statistics| &statistics.tensors) {
            tensors[*at].fisher = Some(summary.into());
        }
        Self {
            path: checkpoint.path().to_owned(),
            files: checkpoint.shards().len(),
            elements: tensors.iter().map(|tensor| tensor.elements).sum(),
            bytes: checkpoint.total_bytes(),
            metadata: checkpoint.metadata().clone(),
            tensors,
            fisher: statistics.map(FisherTotals::from),
        }
    }

    /// Where the values are that no Fisher can have.
    fn invalid(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tensor in &self.tensors {
            let Some(Values { invalid, first_invalid: Some(first), .. }) = tensor.fisher else { continue };
            let (name, values) = (printable(&tensor.name), counted(invalid, "such value"));
            write!(f, "\n  {name} has {values}, the first at index {first}")?;
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut columns = vec![
            Column::Left("TENSOR"),
            Column::Left("DTYPE"),
            Column::Left("SHAPE"),
            Column::Right("ELEMENTS"),
            Column::Right("SIZE"),
        ];
        if self.fisher.is_some() {
            columns.extend(["MIN", "MEAN", "MAX", "ZEROS"].map(Column::Right));
        }
        let mut table = Table::new(&columns);
        self.tensors.iter().for_each(|tensor| table.row(tensor.cells()));
        table
    }
}

impl Tensor {
    fn new(checkpoint: &Checkpoint, tensor: &TensorInfo) -> Self {
        Self {
            name: tensor.name.clone(),
            dtype: tensor.dtype.to_string(),
            shape: tensor.shape.clone(),
            elements: tensor.elements(),
            bytes: tensor.bytes,
            file: checkpoint.file_of(tensor).to_owned(),
            fisher: None,
        }
    }

    fn cells(&self) -> Vec<String> {
        let shape = shape_text(&self.shape);
        let mut cells =
            vec![word(&self.name), self.dtype.clone(), shape, count(self.elements), size(self.bytes)];
        if let Some(Values { min, mean, max, zeros, .. }) = &self.fisher {
            cells.extend([value(min.map(f64::from)), value(*mean), value(max.map(f64::from)), count(*zeros)]);
        }
        cells
    }
}

impl From<&Summary> for Values {
    fn from(summary: &Summary) -> Self {
        let &Summary { min, max, sum, zeros, invalid, first_invalid, .. } = summary;
        Self { min, max, mean: summary.mean(), sum, zeros, invalid, first_invalid }
    }
}

impl From<&Statistics> for FisherTotals {
    fn from(statistics: &Statistics) -> Self {
        let top = statistics.top;
        Self {
            // An index counts within a tensor.
            values: Values { first_invalid: None, ..(&statistics.total).into() },
            top_fraction: TOP,
            top_elements: top.map(|top| top.kept),
            top_threshold: top.map(|top| top.threshold),
            top_share: top.map(|top| top.share),
        }
    }
}

impl fmt::Display for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        for (key, text) in self.metadata.iter().filter(|(key, _)| key.starts_with("squisher.")) {
            writeln!(f, "{}: {}", key.escape_debug(), text.escape_debug())?;
        }
        writeln!(f, "{}", self.table())?;
        let (tensors, files) =
            (counted(self.tensors.len() as u64, "tensor"), counted(self.files as u64, "file"));
        write!(f, "{tensors}, {}, {} in {files}", counted(self.elements, "element"), size(self.bytes))?;
        self.fisher.iter().try_for_each(|fisher| write!(f, "\n{fisher}"))?;
        self.invalid(f)
    }
}

impl fmt::Display for FisherTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Values { min, max, mean, sum, zeros, invalid, .. } = &self.values;
        let (min, max) = (value(min.map(f64::from)), value(max.map(f64::from)));
        write!(
            f,
            "values {min} to {max}, mean {}, sum {sum:.3e}, {}",
            value(*mean),
            counted(*zeros, "zero")
        )?;
        if *invalid > 0 {
            write!(f, ", {} negative, infinite, not numbers or beyond f32", count(*invalid))?;
        }
        let (Some(elements), Some(share)) = (self.top_elements, self.top_share) else { return Ok(()) };
        let (fraction, share) = (100.0 * self.top_fraction, 100.0 * share);
        write!(f, "\nthe largest {fraction} % ({}) hold {share:.2} % of the sum", counted(elements, "value"))
    }
}
