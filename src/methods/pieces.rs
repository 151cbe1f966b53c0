//! Tensors as one long row of elements, cut into pieces that fit a buffer.

use crate::error::{Error, Result};

/// A tensor as far as cutting is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent<K> {
    /// Elements.
    pub(super) len: u64,
    /// Only tensors of one kind share a piece.
    pub(super) kind: K,
    /// A cut inside the tensor lies at a multiple of this many elements.
    pub(super) unit: u64,
}

/// Consecutive elements of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Which tensor.
    pub(super) tensor: usize,
    /// Its first element.
    pub(super) start: u64,
    /// Elements.
    pub(super) len: u64,
}

/// What is handled at once: spans one behind the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// The spans, in the order of tensors and elements.
    pub(super) spans: Vec<Span>,
    /// Their elements.
    pub(super) len: u64,
}

impl Piece {
    /// The tensor and the element in it that are at `index` of the piece.
    pub(super) fn locate(&self, mut index: u64) -> Option<(usize, u64)> {
        for span in &self.spans {
            if index < span.len {
                return Some((span.tensor, span.start + index));
            }
            index -= span.len;
        }
        None
    }
}

/// Cuts tensors into pieces of at most `room` elements, in order, every element once. Empty tensors have no span.
///
/// # Errors
/// [`Error::Budget`] where a unit does not fit.
pub(super) fn pieces<K: Copy + PartialEq>(extents: &[Extent<K>], room: u64) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut piece = Piece::default();
    let mut kind = None;
    for (tensor, extent) in extents.iter().enumerate() {
        if extent.unit > room {
            return Err(Error::Budget {
                op: "select".into(),
                what: "one piece of the model".into(),
                need: extent.unit,
                have: room,
                flag: "the elements of a piece".into(),
            });
        }
        let mut start = 0;
        while start < extent.len {
            let free = if kind == Some(extent.kind) { room - piece.len } else { 0 };
            let len = (extent.len - start).min(free / extent.unit * extent.unit);
            if len == 0 {
                pieces.push(std::mem::take(&mut piece));
                kind = Some(extent.kind);
                continue;
            }
            piece.spans.push(Span { tensor, start, len });
            piece.len += len;
            start += len;
        }
    }
    pieces.push(piece);
    pieces.retain(|piece| piece.len > 0);
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(extents: &[Extent<u8>], room: u64) -> Result<(), TestCaseError> {
        let pieces = pieces(extents, room).expect("every unit fits");
        let mut next = (0, 0);
        for piece in &pieces {
            prop_assert!(0 < piece.len && piece.len <= room);
            prop_assert_eq!(piece.len, piece.spans.iter().map(|span| span.len).sum::<u64>());
            for span in &piece.spans {
                while next.1 == extents[next.0].len {
                    next = (next.0 + 1, 0);
                }
                let extent = extents[span.tensor];
                prop_assert_eq!((span.tensor, span.start), next);
                prop_assert_eq!(extent.kind, extents[piece.spans[0].tensor].kind);
                prop_assert!(span.start.is_multiple_of(extent.unit));
                next.1 += span.len;
            }
        }
        while next.0 < extents.len() && next.1 == extents[next.0].len {
            next = (next.0 + 1, 0);
        }
        prop_assert_eq!(next, (extents.len(), 0), "something is left over");
        Ok(())
    }

    proptest! {
        #[test]
        fn pieces_cover_every_element_once_in_order(
            tensors in prop::collection::vec((0_u64..40, 0_u8..3, 1_u64..5), 0..12),
            room in 5_u64..30,
        ) {
            let extents: Vec<Extent<u8>> = tensors
                .iter()
                .map(|&(units, kind, unit)| Extent { len: units * unit, kind, unit })
                .collect();
            check(&extents, room)?;
        }

        #[test]
        fn tensors_beyond_two_to_the_32_are_cut_right(
            tensors in prop::collection::vec((0_u64..1 << 36, 0_u8..2), 1..4),
            room in 1_u64 << 28..1 << 33,
        ) {
            let extents: Vec<Extent<u8>> =
                tensors.iter().map(|&(len, kind)| Extent { len, kind, unit: 1 }).collect();
            check(&extents, room)?;
        }
    }

    #[test]
    fn an_element_is_found_again() {
        let spans = vec![Span { tensor: 2, start: 10, len: 3 }, Span { tensor: 5, start: 0, len: 4 }];
        let piece = Piece { spans, len: 7 };
        assert_eq!(piece.locate(0), Some((2, 10)));
        assert_eq!(piece.locate(2), Some((2, 12)));
        assert_eq!(piece.locate(3), Some((5, 0)));
        assert_eq!(piece.locate(7), None);
    }

    #[test]
    fn a_unit_that_does_not_fit_is_refused() {
        let extent = Extent { len: 64, kind: (), unit: 32 };
        let refused = pieces(&[extent], 31).expect_err("32 do not fit in 31").to_string();
        assert!(refused.contains("32") && refused.contains("31"), "{refused}");
    }
}
