//! Jᵀ x: a weighted sum of gradients, by the kernels that square them, in another mode.
//!
//! x is brought between −1 and 1 by a power of two, which is undone in f64 when the sum is written, so that
//! sums are gradients, which f32 holds.

use std::ops::Range;

use super::scale::{finite, narrow, power_of_two, rounded};
use super::{OP, PerSample};
use crate::backend::Backend;
use crate::checkpoint::Capture;
use crate::error::{Error, Result, printable};
use crate::gpu::Caps;
use crate::kernels::fisher::{Epilogue, Mode};
use crate::methods::captured::{
    Ahead, Batch, Held, InFile, Parameter, Portion, Share, Unit, hold, in_pieces, passes, units,
};
use crate::progress::Progress;
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::{DType, usize_of};
use crate::stream::Stage;

impl PerSample<'_> {
    /// Jᵀ x = Σ_n x_n g_n, x of either sign: calls `write` with a parameter's name, a flat index and the
    /// values from there on, piece by piece, layer by layer.
    ///
    /// # Errors
    /// As [`PerSample::norms`], what `write` refuses, [`Error::Budget`] where a row of a parameter is beyond
    /// the budget, and [`Error::Shape`]
    /// where x has not one number a sample.
    pub fn weighted_sum(
        &self,
        x: &[f64],
        mut write: impl FnMut(&str, u64, &[f32]) -> Result<()>,
    ) -> Result<()> {
        if x.len() != self.samples() {
            return Err(Error::shape(OP, "x", format!("{} numbers", self.samples()), x.len().to_string()));
        }
        let x: Vec<f64> = x.iter().zip(&self.unit).map(|(x, unit)| x * unit).collect();
        let scale = power_of_two(x.iter().fold(0.0, |most, x| x.abs().max(most)));
        let x: Vec<f64> = x.iter().map(|x| x * scale).collect();
        self.run.progress.begin(self.bytes());
        let (share, caps) = Share::of(&self.run.budget, &self.run.backend.caps(), 1);
        for unit in units(self.captures[0].layers())? {
            for (at, rows) in passes(&unit, &caps, share)?.iter().enumerate() {
                let progress = if at == 0 { self.run.progress } else { &() };
                let mut sums = Sums::new(self.run.backend, &unit, rows)?;
                self.add_to(&mut sums, &caps, &x, progress)?;
                self.clock.time(Stage::Write, || sums.write(scale, &mut write))?;
            }
        }
        Ok(())
    }

    /// Checks that a row of every parameter fits the budget.
    ///
    /// # Errors
    /// [`Error::Budget`] as [`PerSample::weighted_sum`].
    pub fn check_weighted_sum(&self) -> Result<()> {
        let (share, caps) = Share::of(&self.run.budget, &self.run.backend.caps(), 1);
        units(self.captures[0].layers())?.iter().try_for_each(|unit| passes(unit, &caps, share).map(drop))
    }

    /// Adds every sample's gradient, x times; the next portion is read while one is added.
    fn add_to(&self, sums: &mut Sums<'_>, caps: &Caps, x: &[f64], progress: &dyn Progress) -> Result<()> {
        let unit = sums.unit;
        std::thread::scope(|scope| {
            let files = self.captures.iter().flat_map(|capture| in_file(unit, capture));
            let reads =
                files.flat_map(|(_, file)| portions(file, caps).map(move |read| (file.capture, read)));
            let data = Ahead::new(scope, reads.map(|(capture, portion)| self.load(capture, &portion)));
            for (first, capture) in self.first.iter().zip(self.captures) {
                for (layer, file) in in_file(unit, capture) {
                    for portion in portions(file, caps) {
                        let batch = data.next()?;
                        let place = |sample: u64| first + usize_of(sample);
                        let samples = place(portion.samples().start)..place(portion.samples().end);
                        let add = || sums.add(layer, &portion, &batch, &x[samples]);
                        self.clock.time(Stage::Compute, add)?;
                    }
                    progress.advance(file.layer.bytes());
                }
            }
            Ok(())
        })
    }

    /// Reads a portion of a file.
    fn load(&self, capture: &Capture, portion: &Portion) -> Result<Batch> {
        self.run.interrupt.check()?;
        self.clock.time(Stage::Read, || Batch::load_portion(self.run.backend, capture, portion, &[]))
    }
}

/// A unit's layers in a file, with their places.
fn in_file<'a>(unit: &'a Unit, capture: &'a Capture) -> impl Iterator<Item = (usize, InFile<'a>)> {
    unit.layers.iter().map(move |&layer| (layer, InFile { capture, layer: &capture.layers()[layer] }))
}

/// What is read of a layer of a file at a time.
fn portions(file: InFile<'_>, caps: &Caps) -> impl Iterator<Item = Portion> + use<> {
    file.portions(caps, 0..file.capture.samples()).into_iter()
}

/// Sums for some rows of a unit's parameters.
struct Sums<'a> {
    backend: &'a Backend,
    unit: &'a Unit,
    /// Of each parameter, one range a buffer.
    rows: &'a [Vec<Range<u32>>],
    held: Vec<Vec<Held>>,
    /// Which parameters' sums have a first term.
    begun: Vec<bool>,
}

impl<'a> Sums<'a> {
    fn new(backend: &'a Backend, unit: &'a Unit, rows: &'a [Vec<Range<u32>>]) -> Result<Self> {
        let of = |(one, rows): (&Parameter, &Vec<_>)| hold(backend, one, rows);
        let held = unit.parameters.iter().zip(rows).map(of).collect::<Result<Vec<_>>>()?;
        Ok(Self { backend, unit, rows, begun: vec![false; held.len()], held })
    }

    /// Adds the gradients of a layer's portion, x times.
    fn add(&mut self, layer: usize, portion: &Portion, batch: &Batch, x: &[f64]) -> Result<()> {
        let weight = self.backend.buffer(&narrow(x), DType::F32)?;
        let mut recording = Recording::new(self.backend);
        for (at, role) in self.unit.of_layer(layer) {
            if !portion.adds_to(role) || self.rows[at].is_empty() {
                continue;
            }
            let begins = !std::mem::replace(&mut self.begun[at], true);
            let squares = Squares {
                mode: Mode::Gradients,
                epilogue: if begins { Epilogue::Overwrite } else { Epilogue::Add },
                ..Squares::default()
            };
            batch.record(self.backend, &mut recording, role, squares, &weight, &self.held[at])?;
        }
        self.backend.run(&recording)
    }

    /// Writes the sums of x, which was multiplied by `scale_of_x`.
    fn write(&self, scale_of_x: f64, write: &mut impl FnMut(&str, u64, &[f32]) -> Result<()>) -> Result<()> {
        let undo = 1.0 / scale_of_x;
        for (parameter, held) in self.unit.parameters.iter().zip(&self.held) {
            let problem = format!("the sum for {} leaves f32's range", printable(&parameter.name));
            for Held { rows, view } in held {
                let start = u64::from(rows.start) * parameter.rows.len;
                in_pieces(self.backend, view, |first, values| {
                    values.iter_mut().for_each(|value| *value = rounded(f64::from(*value) * undo));
                    finite(values, &problem)?;
                    write(&parameter.name, start + first, values)
                })?;
            }
        }
        Ok(())
    }
}
