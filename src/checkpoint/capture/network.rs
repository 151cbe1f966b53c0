//! Whether captures are batches of one network.

use std::collections::BTreeMap;

use super::{Capture, CaptureLayer};
use crate::checkpoint::TensorInfo;
use crate::error::{Error, Result, printable};

const OP: &str = "captures";

/// Requires that captures are batches of one network: the same layers, of the same kinds and shapes, under
/// the same loss.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference and both files.
pub fn same_network(captures: &[Capture]) -> Result<()> {
    let Some((first, rest)) = captures.split_first() else { return Ok(()) };
    for other in rest {
        same_layers(first, other)?;
        same_loss(first, other)?;
    }
    Ok(())
}

/// Labels of another kind, or a loss reduced otherwise, are those of another Fisher.
fn same_loss(first: &Capture, other: &Capture) -> Result<()> {
    let files = format!("{} and {}", first.path().display(), other.path().display());
    if first.labels != other.labels {
        let (one, two) = (first.labels.word(), other.labels.word());
        let problem = format!(
            "{files} have labels of two kinds, \"{one}\" and \"{two}\", which are different Fishers; give captures of one kind"
        );
        return Err(Error::mismatch(OP, problem));
    }
    if first.loss_reduction != other.loss_reduction {
        let problem =
            format!("one of {files} is of a summed loss and one of a mean loss; capture all of them alike");
        return Err(Error::mismatch(OP, problem));
    }
    Ok(())
}

/// Requires that two captures are of one network, whatever its loss.
pub(crate) fn same_layers(first: &Capture, other: &Capture) -> Result<()> {
    let layers = |capture: &Capture| -> BTreeMap<String, String> {
        capture.layers.iter().map(|layer| (layer.name.clone(), layer.describe())).collect()
    };
    let (ours, theirs) = (layers(first), layers(other));
    for name in ours.keys().chain(theirs.keys()) {
        let problem = match (ours.get(name), theirs.get(name)) {
            (Some(a), Some(b)) if a == b => continue,
            (Some(a), Some(b)) => format!("layer {} is {a} and {b}", printable(name)),
            _ => format!("layer {} is in one alone", printable(name)),
        };
        return Err(difference((first, other), &problem));
    }
    Ok(())
}

fn difference((a, b): (&Capture, &Capture), problem: &str) -> Error {
    let (a, b) = (a.path().display(), b.path().display());
    Error::mismatch(OP, format!("{a} and {b} are not of one network: {problem}"))
}

/// Whether two files hold one layer's uses in the same types and, samples apart, shapes.
pub(crate) fn same_shapes(a: &CaptureLayer, b: &CaptureLayer) -> bool {
    let alike = |a: &TensorInfo, b: &TensorInfo| a.dtype == b.dtype && a.shape[1..] == b.shape[1..];
    a.uses.len() == b.uses.len()
        && a.uses
            .iter()
            .zip(&b.uses)
            .all(|(a, b)| alike(&a.input, &b.input) && alike(&a.grad_output, &b.grad_output))
}
