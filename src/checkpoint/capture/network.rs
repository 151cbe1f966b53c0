//! Whether captures are batches of one network.

use std::collections::BTreeMap;

use super::{Capture, CaptureLayer};
use crate::checkpoint::TensorInfo;
use crate::error::{Error, Result, printable};

/// Requires that captures are batches of one network: the same layers, of the same kinds and shapes, under the same loss.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference and both files.
pub fn same_network(captures: &[Capture]) -> Result<()> {
    let Some((first, rest)) = captures.split_first() else { return Ok(()) };
    for other in rest {
        same_layers(first, other)?;
        if first.loss_reduction != other.loss_reduction || first.labels != other.labels {
            return Err(difference(
                (first, other),
                &format!(
                    "loss reduction and labels are {:?}, {:?} and {:?}, {:?}",
                    first.loss_reduction, first.labels, other.loss_reduction, other.labels
                ),
            ));
        }
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
    Error::mismatch("captures", format!("{a} and {b} are not of one network: {problem}"))
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
