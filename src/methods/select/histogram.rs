//! Histograms of score bits.

use crate::error::{Error, Result};

/// Bins of equal width over a window of score bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The lower end.
    pub(super) low: u32,
    /// A bin is 2^shift wide.
    pub(super) shift: u32,
    /// Bins.
    pub(super) bins: u32,
}

/// How many scores lie in each bin of a window, and above it.
///
/// Counts are u64, and what several steps count over one window adds up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Histogram {
    /// What is counted.
    pub(super) window: Window,
    /// Scores in each bin.
    pub(super) counts: Vec<u64>,
    /// Scores above the window.
    pub(super) above: u64,
}

/// Where the k-th largest score is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Above the window.
    Above,
    /// In a bin.
    In {
        /// The bin.
        bin: u32,
        /// Scores above the bin, in the window and beyond.
        better: u64,
        /// Scores in the bin.
        count: u64,
    },
    /// Below the window, or there are fewer than k scores.
    Below,
}

impl Window {
    /// Every score, in bins of an eighth of a power of two.
    pub(super) const COARSE: Self = Self { low: 0, shift: 20, bins: 2048 };

    /// The window over one of this window's bins, every score its own bin.
    pub(super) fn inside(self, bin: u32) -> Self {
        Self { low: self.low + (bin << self.shift), shift: 0, bins: 1 << self.shift }
    }

    /// A window of single scores around `score`, as wide as a coarse bin.
    pub(super) fn around(score: u32) -> Self {
        let bins = 1 << Self::COARSE.shift;
        Self { low: score.saturating_sub(bins / 2), shift: 0, bins }
    }
}

impl Histogram {
    /// A histogram of nothing.
    pub(super) fn new(window: Window) -> Self {
        Self { window, counts: vec![0; window.bins as usize], above: 0 }
    }

    /// Adds counts as [`kernels::select::Histogram`](crate::kernels::select::Histogram) leaves them: below,
    /// bins, above.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not as many as the window's.
    pub(super) fn add_words(&mut self, words: &[u32]) -> Result<()> {
        let expected = self.counts.len() + 2;
        let wrong = || Error::shape("histogram", "counts", expected.to_string(), words.len().to_string());
        let (_below, rest) = words.split_first().ok_or_else(wrong)?;
        let (&above, bins) = rest.split_last().ok_or_else(wrong)?;
        if bins.len() != self.counts.len() {
            return Err(wrong());
        }
        self.above += u64::from(above);
        for (sum, &count) in self.counts.iter_mut().zip(bins) {
            *sum += u64::from(count);
        }
        Ok(())
    }

    /// Where the `k`-th largest score is; k counts from 1.
    pub(super) fn place(&self, k: u64) -> Place {
        if k <= self.above {
            return Place::Above;
        }
        let mut better = self.above;
        for (bin, &count) in (0..self.window.bins).zip(&self.counts).rev() {
            if k <= better + count {
                return Place::In { bin, better, count };
            }
            better += count;
        }
        Place::Below
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counted(window: Window, scores: &[u32]) -> Histogram {
        let mut histogram = Histogram::new(window);
        histogram.add_words(&words(window, scores)).expect("as many as the window's");
        histogram
    }

    fn words(window: Window, scores: &[u32]) -> Vec<u32> {
        let mut words = vec![0; window.bins as usize + 2];
        for &score in scores {
            let bin = i64::from(score >> window.shift) - i64::from(window.low >> window.shift);
            let slot = (bin + 1).clamp(0, i64::from(window.bins) + 1);
            words[usize::try_from(slot).expect("clamped")] += 1;
        }
        words
    }

    proptest! {
        #[test]
        fn histograms_of_parts_add_up_and_find_the_kth(
            scores in prop::collection::vec(0_u32..64, 1..60),
            cut in 0_usize..60,
            k in 1_usize..60,
        ) {
            let window = Window { low: 16, shift: 2, bins: 8 };
            let (first, second) = scores.split_at(cut.min(scores.len()));
            let mut sum = counted(window, first);
            sum.add_words(&words(window, second)).expect("one window");
            prop_assert_eq!(&sum, &counted(window, &scores));

            let mut sorted = scores.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let wanted = sorted.get(k - 1);
            let place = sum.place(k as u64);
            match wanted {
                Some(&score) if score >= 48 => prop_assert_eq!(place, Place::Above),
                Some(&score) if score >= 16 => {
                    let bin = (score - 16) / 4;
                    let better = scores.iter().filter(|&&s| s >= 16 + 4 * (bin + 1)).count() as u64;
                    let count = scores.iter().filter(|&&s| s >= 16 && (s - 16) / 4 == bin).count() as u64;
                    prop_assert_eq!(place, Place::In { bin, better, count });
                }
                _ => prop_assert_eq!(place, Place::Below),
            }
        }
    }

    #[test]
    fn counts_beyond_two_to_the_32_are_found() {
        let mut histogram = Histogram::new(Window { low: 0, shift: 0, bins: 2 });
        histogram.counts = vec![1 << 40, 1 << 33];
        assert_eq!(histogram.place(1 << 33), Place::In { bin: 1, better: 0, count: 1 << 33 });
        assert_eq!(histogram.place((1 << 33) + 1), Place::In { bin: 0, better: 1 << 33, count: 1 << 40 });
        assert_eq!(histogram.place((1 << 40) + (1 << 33) + 1), Place::Below);
    }

    #[test]
    fn counts_of_other_windows_are_refused() {
        let mut coarse = Histogram::new(Window::COARSE);
        assert!(coarse.add_words(&[0; 5]).is_err(), "five counts were added to 2050");
    }

    #[test]
    fn a_coarse_bin_opens_into_single_scores() {
        let fine = Window::COARSE.inside(0x3f8);
        assert_eq!(fine, Window { low: 0x3f80_0000, shift: 0, bins: 1 << 20 });
        assert_eq!(Window::around(5).low, 0);
        assert_eq!(Window::around(0x3f80_0000).low, 0x3f78_0000);
    }
}
