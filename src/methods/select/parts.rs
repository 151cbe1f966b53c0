//! What a pass makes the tensors of its plan from: parts of the ranked ones, in classes that keep them in order.

use std::ops::Range;

use super::{Cut, Ranked};
use crate::error::Result;
use crate::methods::source::CheckpointSource;
use crate::stream::{Sink, Source};

/// Consecutive elements of one ranked tensor: what a pass makes a tensor of its plan from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) tensor: usize,
    pub(super) start: u64,
    pub(super) len: u64,
}

/// Ranges of tensors as parts, in groups of at most `most` elements.
pub(super) fn parts(tensors: &[Ranked], range: Range<usize>, most: u64) -> Vec<Vec<Part>> {
    let mut groups = vec![Vec::new()];
    let mut room = most;
    for tensor in range {
        let mut start = 0;
        while start < tensors[tensor].len {
            if room == 0 {
                groups.push(Vec::new());
                room = most;
            }
            let len = (tensors[tensor].len - start).min(room);
            groups.last_mut().expect("made with one group").push(Part { tensor, start, len });
            (start, room) = (start + len, room - len);
        }
    }
    groups
}

/// Classes of a plan that keep parts in order, and what belongs to each class.
pub(super) struct Classes {
    pub(super) of_part: Vec<u32>,
    /// Elements that must not be cut apart.
    pub(super) units: Vec<u64>,
    pub(super) strides: Vec<u64>,
    /// The cut of each class, and whether it is the first class of that cut.
    pub(super) cuts: Vec<(usize, bool)>,
}

impl Classes {
    /// A class is a run of neighbours with one cut, one combination of types and one stride: a plan lays tensors out by
    /// class and types, first come, first served, so that these stay in order.
    pub(super) fn of(tensors: &[Ranked], parts: &[Part], ranges: &[(Range<usize>, Cut)]) -> Self {
        let mut classes =
            Self { of_part: Vec::new(), units: Vec::new(), strides: Vec::new(), cuts: Vec::new() };
        let mut last = None;
        for part in parts {
            let Ranked { theta, fisher, stride, unit, .. } = tensors[part.tensor];
            let cut = ranges.partition_point(|(range, _)| range.end <= part.tensor);
            let kind = (cut, theta.map(|theta| theta.1), fisher.1, stride, unit);
            if last != Some(kind) {
                let first = classes.cuts.last().is_none_or(|&(before, _)| before != cut);
                classes.units.push(unit);
                classes.strides.push(stride);
                classes.cuts.push((cut, first));
                last = Some(kind);
            }
            classes.of_part.push(u32::try_from(classes.units.len() - 1).expect("fewer classes than tensors"));
        }
        classes
    }
}

/// A source of parts, from one of tensors.
pub(super) struct PartSource<'a> {
    pub(super) source: &'a CheckpointSource<'a>,
    pub(super) parts: &'a [Part],
}

impl Source for PartSource<'_> {
    fn read(&self, part: usize, start: u64, out: &mut [u8]) -> Result<()> {
        let Part { tensor, start: first, .. } = self.parts[part];
        self.source.read(tensor, first + start, out)
    }
}

/// A sink of parts, into one of tensors.
pub(super) struct PartSink<'a> {
    pub(super) sink: &'a dyn Sink,
    pub(super) parts: &'a [Part],
}

impl Sink for PartSink<'_> {
    fn write(&self, part: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let Part { tensor, start: first, .. } = self.parts[part];
        self.sink.write(tensor, first + start, bytes)
    }
}
