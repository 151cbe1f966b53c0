//! One layer of a capture: its tensors, and the shapes that they give its weight and bias.

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::kinds::Shapes;
use super::metadata::Described;
use super::{LayerKind, wrong_type};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::shape::shape_text;

/// One layer of a capture.
#[derive(Clone, Debug)]
pub struct CaptureLayer {
    /// Its name, to which `.weight` and `.bias` are added.
    pub name: String,
    /// What it is.
    pub kind: LayerKind,
    /// Whether it has a bias.
    pub bias: bool,
    /// Its uses in the order of the forward pass.
    pub uses: Vec<LayerUse>,
    /// The shape of its weight.
    pub weight: Vec<u64>,
    /// The shape of its bias, if it has one.
    pub bias_shape: Vec<u64>,
    /// Batch norm's running mean and variance.
    pub running: Option<(TensorInfo, TensorInfo)>,
    /// Which of its parameters are other layers'.
    pub tied: Tied,
}

/// The names of the layers whose parameters a layer shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tied {
    /// Whose weight is its weight, if not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<String>,
    /// Whose bias is its bias, if not its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<String>,
}

/// One use of a layer.
#[derive(Clone, Debug)]
pub struct LayerUse {
    /// What it was given.
    pub input: TensorInfo,
    /// ∂loss/∂output.
    pub grad_output: TensorInfo,
}

impl CaptureLayer {
    /// Its tensors: the names of weight and bias, if it has one, with their shapes. Those that are another
    /// layer's are left out.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<u64>)> {
        let mut parameters = Vec::new();
        if self.tied.weight.is_none() {
            parameters.push((format!("{}.weight", self.name), self.weight.clone()));
        }
        if self.bias && self.tied.bias.is_none() {
            parameters.push((format!("{}.bias", self.name), self.bias_shape.clone()));
        }
        parameters
    }

    /// Kind, weight and bias, for comparison and for tables.
    #[must_use]
    pub fn describe(&self) -> String {
        let bias = if self.bias { " with bias" } else { "" };
        let tie = |what: &str, owner: &Option<String>| match owner {
            Some(owner) => format!(", its {what} {}'s", printable(owner)),
            None => String::new(),
        };
        let ties = tie("weight", &self.tied.weight) + &tie("bias", &self.tied.bias);
        format!("{:?} {}{bias}{ties}", self.kind, shape_text(&self.weight))
    }

    /// Bytes of all its uses.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.uses.iter().map(|one| one.input.bytes + one.grad_output.bytes).sum()
    }

    /// The kind's name, as in the file.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        self.kind.name()
    }

    /// Finds a layer's tensors and checks their shapes.
    pub(super) fn find(checkpoint: &Checkpoint, name: String, described: Described) -> Result<Self> {
        let Described { kind, bias, tied } = described;
        let uses = uses(checkpoint, &name)?;
        let running = match kind {
            LayerKind::BatchNorm { .. } => Some(running(checkpoint, &name)?),
            _ => None,
        };
        let weight = weight_of_all(checkpoint, &kind, &uses)?;
        if let Some((mean, var)) = &running {
            check_running(checkpoint, [mean, var], &weight)?;
        }
        let bias_shape = kind.bias_shape(&weight);
        Ok(Self { name, kind, bias, uses, weight, bias_shape, running, tied })
    }
}

/// `{layer}.input` and `{layer}.grad_output`, or the numbered ones of several uses.
fn uses(checkpoint: &Checkpoint, name: &str) -> Result<Vec<LayerUse>> {
    let pair = |suffix: &str| {
        let get = |what: &str| checkpoint.get(&format!("{name}.{what}{suffix}")).cloned();
        (get("input"), get("grad_output"))
    };
    let missing = |what: &str, suffix: &str| {
        let problem = "is missing; a layer has an input and a grad_output for every use";
        Err(Error::tensor(checkpoint.path(), format!("{name}.{what}{suffix}"), problem))
    };
    let mut found = Vec::new();
    for suffix in std::iter::once(String::new()).chain((0..).map(|at| format!(".{at}"))) {
        match pair(&suffix) {
            (Some(input), Some(grad_output)) => found.push(LayerUse { input, grad_output }),
            (Some(_), None) => return missing("grad_output", &suffix),
            (None, Some(_)) => return missing("input", &suffix),
            // The numbered ones follow the plain name.
            (None, None) if suffix.is_empty() => {}
            (None, None) => break,
        }
    }
    if found.is_empty() { missing("input", "") } else { Ok(found) }
}

/// Batch norm's running statistics.
fn running(checkpoint: &Checkpoint, name: &str) -> Result<(TensorInfo, TensorInfo)> {
    let get = |what: &str| {
        let full = format!("{name}.{what}");
        checkpoint.get(&full).cloned().ok_or_else(|| {
            let problem = "is missing: batch norm needs its running statistics; in training mode samples mix and there is \
                           no per-sample gradient, so capture in evaluation mode (`net.eval()`)";
            Error::tensor(checkpoint.path(), full.clone(), problem)
        })
    };
    Ok((get("running_mean")?, get("running_var")?))
}

/// The statistics are floats, one for each channel.
fn check_running(checkpoint: &Checkpoint, running: [&TensorInfo; 2], weight: &[u64]) -> Result<()> {
    for tensor in running {
        if tensor.shape != weight || tensor.float().is_none() {
            let (got, expected) = (shape_text(&tensor.shape), shape_text(weight));
            let problem = format!("is {} {got}, expected floats of {expected}", tensor.dtype);
            return Err(Error::tensor(checkpoint.path(), &tensor.name, problem));
        }
    }
    Ok(())
}

/// The shape of the weight, which all uses must agree on.
fn weight_of_all(checkpoint: &Checkpoint, kind: &LayerKind, uses: &[LayerUse]) -> Result<Vec<u64>> {
    let weights = uses.iter().map(|one| weight_of(checkpoint, kind, one)).collect::<Result<Vec<_>>>()?;
    let types = |one: &LayerUse| (one.input.dtype, one.grad_output.dtype);
    for (one, weight) in uses.iter().zip(&weights) {
        if *weight != weights[0] || types(one) != types(&uses[0]) {
            let problem = format!(
                "this use is of a weight {} of {:?}, the first of {} of {:?}",
                shape_text(weight),
                types(one),
                shape_text(&weights[0]),
                types(&uses[0])
            );
            return Err(Error::tensor(checkpoint.path(), &one.input.name, problem));
        }
    }
    Ok(weights[0].clone())
}

/// The shape of the weight of which one use is.
fn weight_of(checkpoint: &Checkpoint, kind: &LayerKind, one: &LayerUse) -> Result<Vec<u64>> {
    check_types(checkpoint, kind, one)?;
    let shapes = Shapes { input: &one.input.shape, grad_output: &one.grad_output.shape };
    kind.weight_shape(shapes).map_err(|problem| {
        let (input, grad) = (shape_text(shapes.input), shape_text(shapes.grad_output));
        let problem = format!("{problem} (input {input}, grad_output {grad})");
        Error::tensor(checkpoint.path(), &one.grad_output.name, problem)
    })
}

fn check_types(checkpoint: &Checkpoint, kind: &LayerKind, one: &LayerUse) -> Result<()> {
    const FLOAT: &str = "f32, f16 or bf16";
    if one.grad_output.float().is_none() {
        return Err(wrong_type(checkpoint, &one.grad_output, FLOAT));
    }
    match kind {
        LayerKind::Embedding { .. } if one.input.dtype == Dtype::I64 => Ok(()),
        LayerKind::Embedding { .. } => Err(wrong_type(checkpoint, &one.input, "I64 ids")),
        _ if one.input.float().is_some() => Ok(()),
        _ => Err(wrong_type(checkpoint, &one.input, FLOAT)),
    }
}
