//! Which bytes of a range were written.

use std::collections::BTreeMap;

/// A set of bytes, as disjoint ranges `start..end` that do not touch.
///
/// Sequential writing keeps it at one range. Writing a piece again is allowed: a retried chunk brings the same bytes.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    ranges: BTreeMap<u64, u64>,
}

impl Coverage {
    /// Adds `start..end`, joining what it overlaps or touches.
    pub(super) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        while let Some((&before, &until)) = self.ranges.range(..=end).next_back() {
            if until < start {
                break;
            }
            self.ranges.remove(&before);
            start = start.min(before);
            end = end.max(until);
        }
        self.ranges.insert(start, end);
    }

    /// The first byte of `0..len` that is not in the set.
    pub(super) fn first_gap(&self, len: u64) -> Option<u64> {
        let reached = match self.ranges.first_key_value() {
            Some((&0, &end)) => end,
            _ => 0,
        };
        (reached < len).then_some(reached)
    }

    /// How many bytes are in the set.
    pub(super) fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn coverage_agrees_with_a_bitmap(pieces in prop::collection::vec((0_u64..64, 0_u64..20), 0..24)) {
            let mut coverage = Coverage::default();
            let mut bitmap = [false; 96];
            for (start, len) in pieces {
                coverage.insert(start, start + len);
                for byte in start..start + len {
                    bitmap[usize::try_from(byte).expect("small")] = true;
                }
                let gap = bitmap.iter().position(|&written| !written).map(|byte| byte as u64);
                prop_assert_eq!(coverage.first_gap(96), gap);
                prop_assert_eq!(coverage.bytes(), bitmap.iter().filter(|&&written| written).count() as u64);
                let ranges: Vec<_> = coverage.ranges.iter().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "ranges touch: {:?}", ranges);
            }
        }
    }

    #[test]
    fn nothing_of_nothing_is_whole() {
        assert_eq!(Coverage::default().first_gap(0), None);
        assert_eq!(Coverage::default().first_gap(1), Some(0));
    }
}
