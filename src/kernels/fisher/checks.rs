//! What every kernel of this family checks of its numbers before it is started.

use super::Mode;
use crate::error::{Error, Result};
use crate::memory::View;
use crate::shape::{DType, elements};

/// Refuses squares of no samples.
pub(super) fn check_fold(op: &str, fold: u64) -> Result<()> {
    if fold == 0 {
        return Err(Error::argument(op, "fold is 0; 1 squares each sample's gradient"));
    }
    Ok(())
}

/// Checks that a step's range of squares or outputs lies inside the whole.
pub(super) fn check_range(op: &str, what: &str, (first, count): (u32, u32), all: u64) -> Result<()> {
    let end = u64::from(first) + u64::from(count);
    if end > all {
        return Err(Error::argument(op, format!("{what} {first}..{end} of {all}")));
    }
    Ok(())
}

/// Checks that `out` holds what a step writes: of every square its `output_count` outputs with [`Mode::Each`], else
/// whole outputs from `out_first` on, with those of the step among them. Sizes are squares, outputs, elements
/// of an output.
pub(super) fn check_out(
    op: &str,
    mode: Mode,
    out: &View,
    (out_first, first_output, output_count): (u32, u32, u32),
    [squares, outputs, width]: [u64; 3],
) -> Result<()> {
    if mode.each() {
        let all = len(op, &[squares, output_count.into(), width])?;
        return out.check(op, "out", all, Some(DType::F32.into()));
    }
    out.check(op, "out", len(op, &[out.len()])?, Some(DType::F32.into()))?;
    let held = out.len().checked_div(width).unwrap_or(outputs.saturating_sub(out_first.into()));
    let end = u64::from(out_first) + held;
    let (first, last) = (u64::from(first_output), u64::from(first_output) + u64::from(output_count));
    if held.checked_mul(width) == Some(out.len())
        && u64::from(out_first) <= first
        && last <= end
        && end <= outputs
    {
        return Ok(());
    }
    let expected = format!("whole outputs of {width} elements of {outputs}, with {first}..{last} among them");
    Err(Error::shape(op, "out", expected, format!("{} elements from output {out_first} on", out.len())))
}

/// The elements of a shape, which shaders count in u32.
pub(super) fn len(op: &str, shape: &[u64]) -> Result<u64> {
    let max = u64::from(u32::MAX);
    match elements(shape) {
        Some(len) if len <= max => Ok(len),
        len => Err(Error::Limit {
            op: op.into(),
            limit: "the most elements of one argument".into(),
            max,
            asked: len.unwrap_or(u64::MAX),
        }),
    }
}

/// Samples of a range of squares.
pub(super) fn samples_of(samples: u32, fold: u32, first: u32, count: u32) -> u64 {
    let [samples, fold, first, count] = [samples, fold, first, count].map(u64::from);
    samples.min((first + count) * fold).saturating_sub(first * fold)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_s_faults_are_refused_by_name() {
        assert!(check_fold("op", 0).is_err_and(|e| e.to_string().contains("fold is 0")));
        let range = check_range("op", "squares", (3, 2), 4);
        assert!(range.is_err_and(|e| e.to_string().contains("squares 3..5 of 4")));
        assert!(check_range("op", "squares", (u32::MAX, u32::MAX), 4).is_err());
        assert!(len("op", &[65_536, 65_536]).is_err_and(|e| e.to_string().contains("4294967296 needed")));
        assert!(len("op", &[u64::MAX, 2]).is_err());
    }
}
