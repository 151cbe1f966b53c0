//! What each Fisher is divided by, and the least it is raised to: from its totals.

use rayon::prelude::*;

use super::inputs::{Inputs, OP, Opened};
use super::{MergeReport, NonFinite, Normalize};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::methods::source::{CheckpointSource, FISHER_VALUES};

/// Elements of one piece of the totals' pass: every thread holds one, so small enough for a hundred of them.
const PIECE: u64 = 1 << 16;

/// How a model's Fisher is scaled: the factor, and the least value before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    pub(super) factor: f64,
    pub(super) floor: f32,
}

impl Scale {
    const PLAIN: Self = Self { factor: 1.0, floor: 0.0 };
}

/// The scales of the models and of the base.
pub(super) struct Scales {
    pub(super) models: Vec<Scale>,
    pub(super) base: Scale,
}

/// Sums over one Fisher, in f64.
#[derive(Clone, Copy, Default)]
struct Totals {
    elements: f64,
    sum: f64,
    sum_squares: f64,
}

impl Inputs<'_> {
    /// Each Fisher's factor and floor: from one pass over the Fishers where something needs their totals.
    pub(super) fn scales(&self, interrupt: &Interrupt, report: &mut MergeReport) -> Result<Scales> {
        let floor = self.options.floor;
        let mut scale = |opened: &Opened, floor: f64| {
            let Some(fisher) = &opened.fisher else { return Ok(Scale::PLAIN) };
            if self.options.normalize == Normalize::None && floor == 0.0 {
                return Ok(Scale::PLAIN);
            }
            let totals = self.totals(fisher, interrupt)?;
            report.bytes_read += fisher.total_bytes();
            if totals.sum == 0.0 {
                self.warn_of_zeros(fisher, report);
                return Ok(Scale::PLAIN);
            }
            let mean = totals.sum / totals.elements;
            let factor = match self.options.normalize {
                Normalize::None => 1.0,
                Normalize::Mean => 1.0 / mean,
                Normalize::Norm => 1.0 / totals.sum_squares.sqrt(),
            };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a floor is rounded to f32 as the Fishers are"
            )]
            let least = (floor * mean) as f32;
            if least.is_infinite() {
                let problem =
                    format!("a floor of {floor:e} times the mean {mean:e} is beyond the range of f32");
                return Err(Error::argument(OP, problem));
            }
            Ok(Scale { factor, floor: least })
        };
        let models = self.models.iter().map(|opened| scale(opened, floor)).collect::<Result<_>>()?;
        // The floor is a share of F_m; the base's F_0 has none.
        let base = self.base.as_ref().map_or(Ok(Scale::PLAIN), |base| scale(base, 0.0))?;
        Ok(Scales { models, base })
    }

    /// Tells once of a Fisher of zeros; a model of zeros is none of its business.
    pub(super) fn warn_of_zeros(&self, checkpoint: &Checkpoint, report: &mut MergeReport) {
        let is_fisher =
            self.all().any(|opened| opened.fisher.as_ref().is_some_and(|f| std::ptr::eq(f, checkpoint)));
        let warning = format!(
            "{} is zero everywhere: its model counts only where every other Fisher is 0 too",
            checkpoint.path().display()
        );
        if is_fisher && checkpoint.total_bytes() > 0 && !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }

    fn totals(&self, fisher: &Checkpoint, interrupt: &Interrupt) -> Result<Totals> {
        let zero_bad = self.options.non_finite == NonFinite::Zero;
        let places: Vec<usize> = (0..fisher.tensors().len()).collect();
        let source = CheckpointSource::new(fisher, places.clone()).of_fisher();
        let pieces: Vec<(usize, u64, u64)> = places
            .iter()
            .flat_map(|&tensor| {
                let elements = fisher.tensors()[tensor].elements();
                let starts = (0..elements.div_ceil(PIECE)).map(|i| i * PIECE);
                starts.map(move |start| (tensor, start, PIECE.min(elements - start)))
            })
            .collect();
        let one = |&(tensor, start, len): &(usize, u64, u64)| {
            interrupt.check()?;
            let values = source.floats(tensor, start, len)?;
            let mut totals = Totals { elements: len as f64, sum: 0.0, sum_squares: 0.0 };
            for (i, &value) in values.iter().enumerate() {
                if value.is_finite() && value >= 0.0 {
                    totals.sum += f64::from(value);
                    totals.sum_squares += f64::from(value) * f64::from(value);
                } else if !zero_bad {
                    return Err(source.bad_value(tensor, start + i as u64, FISHER_VALUES));
                }
            }
            Ok(totals)
        };
        // Collected in order before it is summed, so that the same input gives the same bits.
        let parts = pieces.par_iter().map(one).collect::<Result<Vec<Totals>>>()?;
        Ok(parts.into_iter().fold(Totals::default(), |a, b| Totals {
            elements: a.elements + b.elements,
            sum: a.sum + b.sum,
            sum_squares: a.sum_squares + b.sum_squares,
        }))
    }
}
