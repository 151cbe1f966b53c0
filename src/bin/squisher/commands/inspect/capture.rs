//! What a capture file says of its layers.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use squisher::checkpoint::{Capture, Labels, LossReduction, Tied};
use squisher::error::printable;
use squisher::shape::shape_text;

use crate::table::{Column, Table, counted, size, word};

/// One capture.
#[derive(Serialize)]
pub(super) struct Layers {
    #[serde(serialize_with = "squisher::paths::as_text")]
    path: PathBuf,
    samples: u64,
    loss_reduction: LossReduction,
    labels: Labels,
    bytes: u64,
    layers: Vec<Layer>,
}

#[derive(Serialize)]
struct Layer {
    name: String,
    kind: &'static str,
    weight: Vec<u64>,
    bias: bool,
    /// Whose weight and bias are the layer's, if not its own.
    tied: Tied,
    uses: usize,
    input: Vec<u64>,
    grad_output: Vec<u64>,
    bytes: u64,
}

impl Layers {
    /// Opens and describes the capture at `path`; values are not read.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let capture = Capture::open(path)?;
        let layers = capture.layers().iter().map(|layer| Layer {
            name: layer.name.clone(),
            kind: layer.kind_name(),
            weight: layer.weight.clone(),
            bias: layer.bias,
            tied: layer.tied.clone(),
            uses: layer.uses.len(),
            input: layer.uses[0].input.shape.clone(),
            grad_output: layer.uses[0].grad_output.shape.clone(),
            bytes: layer.bytes(),
        });
        Ok(Self {
            path: path.to_owned(),
            samples: capture.samples(),
            loss_reduction: capture.loss_reduction(),
            labels: capture.labels(),
            bytes: capture.checkpoint().total_bytes(),
            layers: layers.collect(),
        })
    }

    fn table(&self) -> Table {
        let mut table = Table::new(&[
            Column::Left("LAYER"),
            Column::Left("KIND"),
            Column::Left("WEIGHT"),
            Column::Left("INPUT"),
            Column::Left("GRAD OUTPUT"),
            Column::Right("USES"),
            Column::Right("SIZE"),
        ]);
        for layer in &self.layers {
            table.row([
                word(&layer.name),
                layer.kind.to_owned(),
                weight_text(layer),
                shape_text(&layer.input),
                shape_text(&layer.grad_output),
                layer.uses.to_string(),
                size(layer.bytes),
            ]);
        }
        table
    }
}

/// The shape, or whose it is.
fn weight_text(layer: &Layer) -> String {
    match &layer.tied.weight {
        None => shape_text(&layer.weight),
        Some(owner) => format!("that of {}", printable(owner)),
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.path.display(), self.table())?;
        let (layers, samples) = (counted(self.layers.len() as u64, "layer"), counted(self.samples, "sample"));
        let loss = match self.loss_reduction {
            LossReduction::Sum => "summed",
            LossReduction::Mean => "mean",
        };
        write!(f, "a capture of {layers}, {samples}, {loss} loss, {}", size(self.bytes))
    }
}
