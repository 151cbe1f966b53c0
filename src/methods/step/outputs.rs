//! The outputs of a step: Δ under the parameters' names, and K, if it was asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::StepOptions;
use crate::checkpoint::{Capture, CaptureLayer, Dtype, Output, OutputLayout, OutputTensor};
use crate::error::{Error, Result};

/// The outputs being written.
pub(super) struct Outputs {
    pub(super) step: Output,
    pub(super) gram: Option<Output>,
}

impl Outputs {
    pub(super) fn create(
        out: &Path,
        captures: &[Capture],
        samples: u64,
        options: &StepOptions,
        inputs: &[&Path],
    ) -> Result<Self> {
        let parameters = captures[0].layers().iter().flat_map(CaptureLayer::parameters);
        let slots = parameters.map(|(name, shape)| OutputTensor::new(&name, Dtype::F32, shape)).collect();
        let layout = OutputLayout::single(slots, metadata("step", samples, options));
        let step = Output::create(out, layout, options.overwrite, inputs)?;
        let gram = |path: &PathBuf| {
            if step.is_at(path)? {
                return Err(Error::output(path, "is the output of the step too; give K another name"));
            }
            let slot = OutputTensor::new("gram", Dtype::F64, vec![samples, samples]);
            let layout = OutputLayout::single(vec![slot], metadata("gram", samples, options));
            Output::create(path, layout, options.overwrite, inputs)
        };
        let gram = options.gram.as_ref().map(gram).transpose()?;
        Ok(Self { step, gram })
    }

    /// Writes K, if it was asked for.
    pub(super) fn write_gram(&self, values: &[f64]) -> Result<()> {
        self.gram.as_ref().map_or(Ok(()), |gram| gram.write(0, 0, bytemuck::cast_slice(values)))
    }

    /// Writes a parameter's values of Δ from a flat index on.
    pub(super) fn write_step(&self, name: &str, first: u64, values: &[f32]) -> Result<()> {
        let slot = self.step.position(name).expect("the layout has every parameter");
        self.step.write(slot, 4 * first, bytemuck::cast_slice(values))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.step.total_bytes() + self.gram.as_ref().map_or(0, Output::total_bytes)
    }

    pub(super) fn finish(self) -> Result<()> {
        self.gram.map_or(Ok(()), Output::finish)?;
        self.step.finish()
    }
}

fn metadata(what: &str, samples: u64, options: &StepOptions) -> BTreeMap<String, String> {
    let mut entries = vec![
        ("kind", if what == "gram" { what.to_owned() } else { format!("{}-step", options.kind) }),
        ("samples", samples.to_string()),
        ("loss", "sum".into()),
        ("version", env!("CARGO_PKG_VERSION").into()),
    ];
    if what != "gram" {
        entries.push(("damping", options.damping.to_string()));
    }
    entries.into_iter().map(|(key, value)| (format!("squisher.{key}"), value)).collect()
}
