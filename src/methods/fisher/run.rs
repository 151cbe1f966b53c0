//! One pass: batch by batch, squares or gradients of what was read are added to the results, which are then written.

use std::ops::Range;

use super::OP;
use super::job::Job;
use super::numbers::{Average, Bound, each_sample};
use super::passes::{OfBatch, Pass, Read};
use crate::checkpoint::Output;
use crate::error::{Error, Result, printable};
use crate::kernels::fisher::{Epilogue, Mode};
use crate::kernels::optimizer::{Ema, EmaArgs, EmaParams};
use crate::memory::View;
use crate::methods::captured::{Ahead, Batch, Held, Parameter, Role, hold, in_pieces, small};
use crate::progress::Progress;
use crate::record::Recording;
use crate::record::fisher::{Bias, Squares};
use crate::shape::{DType, usize_of};
use crate::stream::{Clock, Stage};

impl Job<'_> {
    /// Some rows of a unit's parameters: computed batch by batch from what is read, then checked and written.
    pub(super) fn pass(
        &self,
        pass: Pass<'_>,
        data: &Ahead<Batch>,
        output: &Output,
        progress: &dyn Progress,
    ) -> Result<()> {
        let Pass { unit, clock, .. } = pass;
        let results = self.buffers(pass)?;
        let sums = if self.options.kind.folds_samples() { self.buffers(pass)? } else { Vec::new() };
        let group = if self.is_grouped() { self.buffers(pass)? } else { Vec::new() };
        let into = if group.is_empty() { &results } else { &group };
        for batch in self.batches(pass) {
            self.add_batch(batch, data, &sums, into)?;
            let next = batch.step + 1;
            if !group.is_empty() && (next == self.captures.len() || self.begins(next)) {
                clock.time(Stage::Compute, || self.add_group(&group, &results))?;
            }
            progress.advance(batch.bytes());
        }
        for (parameter, held) in unit.parameters.iter().zip(&results) {
            clock.time(Stage::Write, || self.write(parameter, held, output))?;
        }
        Ok(())
    }

    /// Adds a batch to the results, or to its group's.
    fn add_batch(
        &self,
        batch: OfBatch<'_>,
        data: &Ahead<Batch>,
        sums: &[Vec<Held>],
        results: &[Vec<Held>],
    ) -> Result<()> {
        let Pass { unit, caps, clock, .. } = batch.pass;
        if self.options.kind.folds_samples() {
            self.add_sums(batch, data, sums)?;
            let average = self.square_of_sum(batch);
            clock.time(Stage::Compute, || self.square(sums, results, average))
        } else if self.options.kind.joins_samples() {
            self.add_sums(batch, data, results)
        } else if self.adds_by_sample(unit, batch.capture, caps) {
            self.add_by_sample(batch, data, results)
        } else {
            self.add_squares(batch, data, results)
        }
    }

    /// Adds a group's sums to the results.
    fn add_group(&self, group: &[Vec<Held>], results: &[Vec<Held>]) -> Result<()> {
        let squares = Squares { mode: Mode::Gradients, epilogue: Epilogue::Add, ..Squares::default() };
        let weight = self.run.backend.buffer(&[1.0_f32], DType::F32)?;
        let mut recording = Recording::new(self.run.backend);
        for (group, result) in group.iter().flatten().zip(results.iter().flatten()) {
            let outputs = small(result.view.len())?;
            let elements = Bias { samples: 1, positions: 1, outputs, channels_first: false };
            elements.record(&mut recording, squares, &group.view, &weight, &result.view)?;
        }
        self.run.backend.run(&recording)
    }

    /// Zeros for the rows of a pass.
    fn buffers(&self, pass: Pass<'_>) -> Result<Vec<Vec<Held>>> {
        let of = |(one, rows): (&Parameter, &Vec<_>)| hold(self.run.backend, one, rows);
        pass.unit.parameters.iter().zip(pass.rows).map(of).collect()
    }

    /// Finishes a parameter's results, checks them and writes them to the output.
    fn write(&self, parameter: &Parameter, held: &[Held], output: &Output) -> Result<()> {
        let name = &parameter.name;
        let slot = output.position(name).expect("the layout has every tensor of every layer");
        for Held { rows, view } in held {
            let start = u64::from(rows.start) * parameter.rows.len;
            in_pieces(self.run.backend, view, |first, values| {
                self.finish(values);
                check_finite(name, start + first, values)?;
                output.write(slot, 4 * (start + first), bytemuck::cast_slice(values))
            })?;
        }
        Ok(())
    }

    /// Adds the squares of a batch's samples, each of which is one step's alone.
    fn add_squares(&self, batch: OfBatch<'_>, data: &Ahead<Batch>, results: &[Vec<Held>]) -> Result<()> {
        for Read { layer, portion, .. } in self.portions(batch) {
            let data = data.next()?;
            let samples = portion.samples();
            let part = batch.part(samples.start == 0, samples.end - samples.start, Bound::of(&data));
            let squares = self.squares(part);
            let weights = of_samples(&self.batches[batch.step].weight, &samples);
            let steps = batch.of_layer(layer).map(|(at, role)| (role, squares, &results[at][..]));
            self.record(batch.pass.clock, &data, &weights, steps)?;
        }
        Ok(())
    }

    /// Adds the gradients of all samples of a batch.
    fn add_sums(&self, batch: OfBatch<'_>, data: &Ahead<Batch>, sums: &[Vec<Held>]) -> Result<()> {
        let mut begun = vec![false; sums.len()];
        for Read { layer, portion, .. } in self.portions(batch) {
            let data = data.next()?;
            let samples = portion.samples().end - portion.samples().start;
            let step = |(at, role): (usize, Role)| {
                let first = !std::mem::replace(&mut begun[at], true);
                (role, self.sums(batch.part(first, samples, Bound::NONE)), &sums[at][..])
            };
            let own = batch.of_layer(layer).filter(|(_, role)| portion.adds_to(*role));
            // The portion is one square, if it has samples.
            let weights = vec![1.0; usize::from(samples > 0)];
            self.record(batch.pass.clock, &data, &weights, own.map(step).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Adds the squares of a batch's samples whose gradients are formed in several steps: some samples at a
    /// time, whose gradients lie one after the other.
    fn add_by_sample(&self, batch: OfBatch<'_>, data: &Ahead<Batch>, results: &[Vec<Held>]) -> Result<()> {
        let at_once = batch.samples_at_once();
        let most = at_once.min(batch.capture.samples());
        let slabs = each(results, |held| self.run.backend.alloc(most * held.view.len(), DType::F32))?;
        for samples in batch.groups(at_once) {
            let count = samples.end - samples.start;
            let gradients = each(&slabs, |slab| slab.view.first(slab.view.len() / most.max(1) * count))?;
            self.gradients(batch, data, samples.clone(), &gradients)?;
            let squares = self.squares(batch.part(samples.start == 0, count, Bound::NONE));
            let weights = of_samples(&self.batches[batch.step].weight, &samples);
            batch.pass.clock.time(Stage::Compute, || {
                self.square_each(&gradients, squares, small(count)?, &weights, results)
            })?;
        }
        Ok(())
    }

    /// The gradients of some samples, one after the other in each buffer.
    fn gradients(
        &self,
        batch: OfBatch<'_>,
        data: &Ahead<Batch>,
        samples: Range<u64>,
        gradients: &[Vec<Held>],
    ) -> Result<()> {
        let ones = vec![1.0; usize_of(samples.end - samples.start)];
        let mut begun = vec![false; gradients.len()];
        for Read { layer, portion, .. } in batch.portions(samples) {
            let data = data.next()?;
            let step = |(at, role): (usize, Role)| {
                let begins = !std::mem::replace(&mut begun[at], true);
                (role, each_sample(begins), &gradients[at][..])
            };
            let own = batch.of_layer(layer).filter(|(_, role)| portion.adds_to(*role));
            self.record(batch.pass.clock, &data, &ones, own.map(step).collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Squares gradients of some samples that lie one after the other into the results: elements as the
    /// outputs of a layer with one position.
    fn square_each(
        &self,
        gradients: &[Vec<Held>],
        squares: Squares,
        samples: u32,
        weights: &[f32],
        results: &[Vec<Held>],
    ) -> Result<()> {
        // A sample of weight 0 is left out, whatever it holds.
        if let [weight] = *weights
            && weight != 0.0
        {
            let gain = squares.epilogue.gain(squares.factor) * weight;
            let (decay, gradient_scale) = (squares.epilogue.decay(), squares.gradient_scale);
            let average = Average { decay, gain, gradient_scale };
            return self.square(gradients, results, average);
        }
        let weight = self.run.backend.buffer(weights, DType::F32)?;
        let mut recording = Recording::new(self.run.backend);
        for (gradient, result) in gradients.iter().flatten().zip(results.iter().flatten()) {
            let outputs = small(result.view.len())?;
            let elements = Bias { samples, positions: 1, outputs, channels_first: false };
            elements.record(&mut recording, squares, &gradient.view, &weight, &result.view)?;
        }
        self.run.backend.run(&recording)
    }

    /// Records and runs the steps of a layer's parameters.
    fn record<'s>(
        &self,
        clock: &Clock,
        data: &Batch,
        weights: &[f32],
        steps: impl IntoIterator<Item = (Role, Squares, &'s [Held])>,
    ) -> Result<()> {
        clock.time(Stage::Compute, || {
            let weight = self.run.backend.buffer(weights, DType::F32)?;
            let mut recording = Recording::new(self.run.backend);
            for (role, squares, held) in steps {
                data.record(self.run.backend, &mut recording, role, squares, &weight, held)?;
            }
            self.run.backend.run(&recording)
        })
    }

    /// Squares gradients into the results.
    fn square(&self, gradients: &[Vec<Held>], results: &[Vec<Held>], average: Average) -> Result<()> {
        let Average { decay, gain, gradient_scale } = average;
        let mut recording = Recording::new(self.run.backend);
        for (gradient, result) in gradients.iter().flatten().zip(results.iter().flatten()) {
            let kernel = Ema { gradient: DType::F32, accumulator: DType::F32 };
            let params = EmaParams { len: small(gradient.view.len())?, decay, gain, gradient_scale };
            let args = EmaArgs { gradient: gradient.view.clone(), exp_avg_sq: result.view.clone() };
            recording.dispatch(&kernel, params, args)?;
        }
        self.run.backend.run(&recording)
    }
}

/// Values of a tensor from the flat index `first` on, of which none may have left f32.
fn check_finite(name: &str, first: u64, values: &[f32]) -> Result<()> {
    let Some(index) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
    let index = first + index as u64;
    let problem = format!(
        "the sum of squares of {} leaves f32 at flat index {index}; scale the loss down when capturing",
        printable(name)
    );
    Err(Error::mismatch(OP, problem))
}

/// A buffer for each of those that hold parameters.
fn each(of: &[Vec<Held>], make: impl Fn(&Held) -> Result<View>) -> Result<Vec<Vec<Held>>> {
    let one = |held: &Held| Ok(Held { rows: held.rows.clone(), view: make(held)? });
    of.iter().map(|held| held.iter().map(one).collect()).collect()
}

/// The weights of some samples.
#[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
fn of_samples(all: &[f64], samples: &Range<u64>) -> Vec<f32> {
    all[usize_of(samples.start)..usize_of(samples.end)].iter().map(|&weight| weight as f32).collect()
}
