//! Cuts the recorded steps of a layer into dispatches that are short enough.

use std::ops::Range;

use super::Squares;
use crate::backend::Backend;
use crate::kernels::fisher::{Epilogue, Mode};
use crate::record::Recording;

/// Operations of one dispatch: 50 ms of a device that reaches 200 GFLOP/s, the slowest that has a watchdog.
const FLOPS: u64 = 10_000_000_000;

/// Loop iterations of one invocation in a dispatch, where a device makes more: a small result has few workgroups, and
/// what bounds these is how long one takes. At 100 ns an iteration, these are 26 ms.
const ITERATIONS: u64 = 1 << 18;

/// Outputs are cut at multiples of this, the height of the largest tile.
const OUTPUTS: u64 = 128;

/// One dispatch's ranges of squares and outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) first: u32,
    pub(super) count: u32,
    pub(super) first_output: u32,
    pub(super) output_count: u32,
}

impl Piece {
    /// What this piece does with the old value, given what the whole shall do: only a sum over squares is continued.
    pub(super) fn epilogue(self, whole: Squares) -> Epilogue {
        if self.first == 0 || whole.mode == Mode::Each { whole.epilogue } else { Epilogue::Add }
    }
}

/// The squares of a step, and what each of them takes.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) squares: u32,
    /// Operations an output.
    pub(super) flops: u64,
    /// Loop iterations of an invocation.
    pub(super) iterations: u64,
}

/// Cuts a step into dispatches of at most [`FLOPS`] operations and no more loop iterations than the device
/// makes. Outputs are cut at multiples of `multiple`; where each square has a result, which holds its outputs
/// without a gap, they are not. The host has no watchdog and gets one piece.
pub(super) fn pieces(
    recording: &Recording,
    mode: Mode,
    work: Work,
    outputs: Range<u32>,
    multiple: u32,
) -> Vec<Piece> {
    let count = outputs.end.saturating_sub(outputs.start);
    let whole = Piece { first: 0, count: work.squares, first_output: outputs.start, output_count: count };
    let multiple = if mode == Mode::Each { count } else { multiple };
    let squares = recording.caps().max_iterations.min(ITERATIONS) / work.iterations.max(1);
    match recording.backend {
        Backend::Host => vec![whole],
        Backend::Gpu(_) => cut(whole, work.flops, multiple, Most { flops: FLOPS, squares }),
    }
}

/// The most of one dispatch.
#[derive(Clone, Copy)]
struct Most {
    flops: u64,
    squares: u64,
}

fn cut(whole: Piece, flops: u64, multiple: u32, most: Most) -> Vec<Piece> {
    let step = u64::from(multiple).max(1) * OUTPUTS.div_ceil(u64::from(multiple).max(1));
    let outputs_at_once =
        (most.flops / flops.max(1) / step * step).clamp(step, u64::from(whole.output_count).max(step));
    let work = flops.max(1).saturating_mul(outputs_at_once.min(u64::from(whole.output_count)).max(1));
    let squares_at_once = (most.flops / work).min(most.squares).max(1);
    let mut pieces = Vec::new();
    for (first, count) in ranges(whole.count, squares_at_once) {
        for (first_output, output_count) in ranges(whole.output_count, outputs_at_once) {
            let first_output = whole.first_output + first_output;
            pieces.push(Piece { first, count, first_output, output_count });
        }
    }
    pieces
}

/// Consecutive ranges of at most `most` that cover `all`; one empty range for nothing.
fn ranges(all: u32, most: u64) -> Vec<(u32, u32)> {
    let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
    (0..all.div_ceil(most).max(1)).map(|i| (i * most, most.min(all - i * most))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_every_output_of_every_square_once_and_are_short() {
        for (count, outputs, flops, multiple) in [
            (0, 5, 10, 1),
            (7, 300, 10, 1),
            (7, 300, 100, 1),
            (3, 300, 1_000_000, 1),
            (5, 90, 100, 30),
            (4, 0, 9, 1),
        ] {
            let whole = Piece { first: 0, count, first_output: 0, output_count: outputs };
            let most = Most { flops: 20_000, squares: 4 };
            let pieces = cut(whole, flops, multiple, most);
            let mut seen = vec![0; count as usize * outputs as usize];
            for piece in &pieces {
                assert_eq!(piece.first_output % multiple, 0, "{piece:?}");
                let work = u64::from(piece.count) * u64::from(piece.output_count) * flops;
                let least = piece.count <= 1 && piece.output_count <= multiple * 128_u32.div_ceil(multiple);
                assert!(work <= most.flops || least, "{piece:?} takes {work}");
                assert!(u64::from(piece.count) <= most.squares, "{piece:?}");
                for s in piece.first..piece.first + piece.count {
                    for o in piece.first_output..piece.first_output + piece.output_count {
                        seen[(s * outputs + o) as usize] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&times| times == 1), "{whole:?}");
            assert!(!pieces.is_empty(), "a step over nothing still applies its epilogue");
        }
    }
}
