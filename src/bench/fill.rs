//! What a bench's buffers hold. Values repeat after a while: their number does not matter to speed.

use crate::backend::Backend;
use crate::error::Result;
use crate::kernel::{CaseBuffer, Fill, noise};
use crate::memory::{Element, View};
use crate::shape::{DType, usize_of};

/// Elements after which values repeat.
const PATTERN: usize = 1 << 16;

/// Elements that are uploaded at a time: 8 MiB of f32, one piece of staging memory.
const PIECE: u64 = 2 << 20;

/// A new buffer as a bench asks for it.
pub(super) fn filled(backend: &Backend, element: Element, len: u64, fill: Fill) -> Result<View> {
    let view = backend.alloc(len, element)?;
    // Memory comes zeroed, but is mapped only when it is first written: zeros are written too, so that no
    // timed run does it.
    let piece = pattern(element, 0, fill).repeat(usize_of(PIECE) / PATTERN);
    let mut start = 0;
    while start < len {
        let count = PIECE.min(len - start);
        let offset = start * element.bytes() as u64;
        let part = View::new(view.memory().clone(), offset, count, element)?;
        if fill == Fill::Count {
            backend.upload(&part, &pattern(element, start, fill)[..usize_of(part.bytes())])?;
        } else {
            backend.upload(&part, &piece[..usize_of(part.bytes())])?;
        }
        start += count;
    }
    Ok(view)
}

/// [`PATTERN`] elements, or the words that count from `start`, a whole piece of them.
fn pattern(element: Element, start: u64, fill: Fill) -> Vec<u8> {
    let noise = || noise(1, PATTERN);
    let floats = |values: Vec<f64>| CaseBuffer::floats(element.dtype().unwrap_or(DType::F32), &values).bytes;
    match fill {
        // A buffer of another binding has its own contents.
        Fill::Zero | Fill::Same(_) => vec![0; element.bytes() * PATTERN],
        Fill::Noise => floats(noise()),
        Fill::Positive => floats(noise().iter().map(|v| v.abs()).collect()),
        Fill::Count => {
            let words = (start..start + PIECE).map(|i| u32::try_from(i).unwrap_or(u32::MAX));
            CaseBuffer::words(&words.collect::<Vec<_>>()).bytes
        }
        Fill::Below(end) => {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below a u32")]
            let words: Vec<u32> = noise().iter().map(|v| (v.abs() * f64::from(end)) as u32).collect();
            CaseBuffer::words(&words).bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_below_their_bound() {
        let words = pattern(Element::U32, 0, Fill::Below(7));
        assert!(bytemuck::cast_slice::<u8, u32>(&words).iter().all(|word| *word < 7));
    }

    #[test]
    fn words_count_on_from_piece_to_piece() {
        let len = PIECE + 3;
        let view = filled(&Backend::Host, Element::U32, len, Fill::Count).expect("a small buffer");
        let words = Backend::Host.download::<u32>(&view).expect("the host is there");
        assert!((0..).zip(&words).all(|(i, &word)| i == word) && words.len() as u64 == len);
    }
}
