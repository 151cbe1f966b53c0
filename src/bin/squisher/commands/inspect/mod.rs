//! `squisher inspect PATH… [--model MODEL]`.

mod capture;
mod contents;
mod optimizer;

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use squisher::checkpoint::{Checkpoint, ModelParams, is_capture};

use self::capture::Layers;
use self::contents::Contents;
use self::optimizer::Optimizer;
use crate::args::Global;
use crate::{output, signals};

const EXAMPLES: &str = "\
Examples:
  squisher inspect model.safetensors
  squisher inspect finetuned/ fisher.safetensors
  squisher inspect checkpoint-500/optimizer.pt --model checkpoint-500
  squisher inspect --json fisher.safetensors | jq '.checkpoints[0].fisher.top_share'";

/// Show tensors and sizes, the values of a Fisher, a capture's layers, the names of an optimizer's state
///
/// Reads headers only, except for Fisher files (those whose metadata name a `squisher.kind`), which are read twice.
/// Optimizer states are files of torch.save; with --model, every PATH is one, and the map from its
/// parameters to the model's is shown with its evidence, or why there is none.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Inspect {
    /// Checkpoints (.safetensors files, folders or index files) and optimizer states (.pt, .pth, .bin, .ckpt)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,

    /// The model to match the optimizer states' parameters against
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
}

impl Inspect {
    pub(crate) fn run(self, global: &Global) -> anyhow::Result<()> {
        global.device.refuse("inspect")?;
        let interrupt = signals::listen()?;
        let model = self.model.as_ref().map(ModelParams::open).transpose()?;
        let mut found = Inspection::default();
        for path in &self.paths {
            if model.is_some() || is_written_by_torch(path) {
                found.optimizers.push(Optimizer::read(path, model.as_ref())?);
                continue;
            }
            let checkpoint = Checkpoint::open(path)?;
            if is_capture(&checkpoint) {
                found.captures.push(Layers::read(path)?);
            } else {
                found.checkpoints.push(Contents::read(&checkpoint, global, &interrupt)?);
            }
        }
        output::report(global, "inspect", &found)
    }
}

fn is_written_by_torch(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_lowercase());
    matches!(extension.as_deref(), Some("pt" | "pth" | "bin" | "ckpt")) && path.is_file()
}

/// The result: what lies at each path, by kind.
#[derive(Default, Serialize)]
struct Inspection {
    checkpoints: Vec<Contents>,
    captures: Vec<Layers>,
    optimizers: Vec<Optimizer>,
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checkpoints = self.checkpoints.iter().map(ToString::to_string);
        let captures = self.captures.iter().map(ToString::to_string);
        let checkpoints = checkpoints.chain(captures);
        let all: Vec<String> = checkpoints.chain(self.optimizers.iter().map(ToString::to_string)).collect();
        f.write_str(&all.join("\n\n"))
    }
}
