//! Per-sample gradients of captured networks: their inner products, norms, products with a direction, and weighted sums.
//!
//! With g_n = ∂ℓ_n/∂θ the rows of J `[N, P]`:
//!
//! | method | result | cost of a linear layer with P = N·t positions |
//! |---|---|---|
//! | [`PerSample::gram`] | K = J Jᵀ, K[m, n] = ⟨g_m, g_n⟩ | 2·P²·(i + o), or 2·P·i·o + 2·N²·i·o |
//! | [`PerSample::norms`] | ‖g_n‖ = √K[n, n] | 2·P·t·(i + o), or 2·P·i·o |
//! | [`PerSample::inner_products`] | J Δ = ⟨g_n, Δ⟩ | 2·P·i·o |
//! | [`PerSample::weighted_sum`] | Jᵀ x = Σ_n x_n g_n | 2·P·i·o |
//!
//! J is never stored. Inner products of a linear layer's weights need no gradient at all:
//!
//! ```text
//! ⟨g_m, g_n⟩ = Σ_{s,t} (b_ms · b_nt) (a_ms · a_nt)
//! ```
//!
//! which costs less where there are few positions; where it does not, and for every other layer, the gradients of all samples are
//! formed for a *slab* of parameters at a time (some rows of the weight), and K grows by the slab's products. The cheaper is taken by counted
//! operations. An embedding's gradient is 0 but in the rows that a sample names, so its gradients are kept as runs (a sample
//! and a row), and only runs of one row meet.
//!
//! **Memory.** One slab (64 MiB, or less by the budget; at least one row of every sample), the layer's data of all files where they fit
//! in half of the host's budget (else of one file at a time, which is then read again for each slab), and the result.
//!
//! **Numbers.** Products of at most 8192 terms are f32, and are added in f64. Gradients are those of the summed loss: captures of a mean
//! loss are multiplied by their batch size.
//!
//! Source: Wu et al., *An Improved Empirical Fisher Approximation for Natural Gradient Descent* (2024).

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use rayon::prelude::*;

use crate::backend::Backend;
use crate::checkpoint::{
    Capture, CaptureLayer, Checkpoint, LayerKind, LossReduction, same_network, widen_bytes,
};
use crate::error::{Error, Result, printable};
use crate::gpu::Caps;
use crate::interrupt::Interrupt;
use crate::kernels::fisher::{EmbeddingIndex, Epilogue, Form, Gram, GramArgs, GramParams, Listed, Mode};
use crate::memory::{Element, View};
use crate::methods::captured::{
    Batch, Held, InFile, Parameter, Portion, Role, Share, Sides, Unit, by_size, cut, hold, in_pieces,
    joinable, passes, ranges, small, units,
};
use crate::progress::Progress;
use crate::record::Recording;
use crate::record::fisher::Squares;
use crate::shape::{DType, shape_text};
use crate::stream::Budget;

const OP: &str = "per-sample gradients";

/// Bytes of the gradients that are formed at a time.
const SLAB: u64 = 64 << 20;

/// Bytes of a layer's data that are held without a budget, beside those of one file.
const HELD: u64 = 1 << 30;

/// Terms of a sum in f32.
const TERMS: u32 = 8192;

/// Rows of a block of products.
const BLOCK: usize = 1024;

/// Per-sample gradients of one network over some captures, samples in the order of the files.
pub struct PerSample<'a> {
    backend: &'a Backend,
    captures: &'a [Capture],
    budget: Budget,
    /// The first sample of each file, and their number.
    first: Vec<usize>,
    /// What the captured gradient of each sample is multiplied by: the batch size for a mean loss.
    unit: Vec<f64>,
}

impl<'a> PerSample<'a> {
    /// The gradients that `captures` hold.
    ///
    /// # Errors
    /// [`Error::Argument`] without captures; [`Error::Mismatch`] for captures of different networks.
    pub fn new(backend: &'a Backend, captures: &'a [Capture], budget: Budget) -> Result<Self> {
        let Some(network) = captures.first() else {
            return Err(Error::argument(OP, "no capture was given"));
        };
        same_network(captures)?;
        let mut first = vec![0];
        let mut unit = Vec::new();
        for capture in captures {
            let samples = usize::try_from(capture.samples()).unwrap_or(usize::MAX);
            let factor = match network.loss_reduction() {
                LossReduction::Sum => 1.0,
                LossReduction::Mean => samples as f64,
            };
            unit.resize(unit.len() + samples, factor);
            first.push(unit.len());
        }
        Ok(Self { backend, captures, budget, first, unit })
    }

    /// Samples of all files.
    #[must_use]
    pub fn samples(&self) -> usize {
        self.unit.len()
    }

    /// s_n = ‖∂ℓ_n/∂z_n‖² of every sample, z being the logits.
    ///
    /// # Errors
    /// What [`Capture::logit_grad_sq`] refuses.
    pub fn logit_grad_sq(&self) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(self.samples());
        for capture in self.captures {
            all.extend(capture.logit_grad_sq()?);
        }
        all.iter_mut().zip(&self.unit).for_each(|(s, unit)| *s *= unit * unit);
        Ok(all)
    }

    /// Checks that K fits in memory.
    ///
    /// # Errors
    /// [`Error::Budget`] as [`PerSample::gram`].
    pub fn check_gram(&self) -> Result<()> {
        check_square(self.samples(), self.budget.host_bytes)
    }

    /// K = J Jᵀ, `[N, N]`, row-major, exactly symmetric.
    ///
    /// # Errors
    /// [`Error::Budget`] where 8·N² bytes are more than the host's budget or memory; [`Error::Tensor`] for values that are not finite or
    /// ids out of range; what kernels and backend refuse; [`Error::Interrupted`] between slabs.
    pub fn gram(&self, progress: &dyn Progress, interrupt: &Interrupt) -> Result<Vec<f64>> {
        let samples = self.samples();
        let mut sum = GramSum { samples, gram: square_matrix(samples, self.budget.host_bytes)? };
        self.walk(&mut sum, progress, interrupt)?;
        let mut gram = sum.gram;
        for m in 0..samples {
            for n in 0..=m {
                gram[m * samples + n] *= self.unit[m] * self.unit[n];
                gram[n * samples + m] = gram[m * samples + n];
            }
        }
        finite(&gram, "inner products leave f32's range")?;
        Ok(gram)
    }

    /// ‖g_n‖ of every sample: the roots of K's diagonal, without the rest of it.
    ///
    /// # Errors
    /// As [`PerSample::gram`], but for its size.
    pub fn norms(&self, progress: &dyn Progress, interrupt: &Interrupt) -> Result<Vec<f64>> {
        let mut sum = NormSum { squares: vec![0.0; self.samples()] };
        self.walk(&mut sum, progress, interrupt)?;
        let norms: Vec<f64> =
            sum.squares.iter().zip(&self.unit).map(|(square, unit)| unit * square.sqrt()).collect();
        finite(&norms, "squared norms leave f32's range")?;
        Ok(norms)
    }

    /// J Δ: ⟨g_n, Δ⟩ of every sample. `direction` holds Δ under the parameters' names (other tensors are not looked at).
    ///
    /// # Errors
    /// As [`PerSample::norms`]; [`Error::Mismatch`] where a parameter is missing or has another shape, [`Error::Tensor`] for values of it that are
    /// not finite floats.
    pub fn inner_products(
        &self,
        direction: &Checkpoint,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<Vec<f64>> {
        self.check_direction(direction)?;
        let mut sum = DirectionSum { direction, products: vec![0.0; self.samples()] };
        self.walk(&mut sum, progress, interrupt)?;
        let products: Vec<f64> =
            sum.products.iter().zip(&self.unit).map(|(product, unit)| unit * product).collect();
        finite(&products, "products with the direction leave f32's range")?;
        Ok(products)
    }

    /// Jᵀ x = Σ_n x_n g_n, x of either sign: calls `write` with a parameter's name, a flat index and the values from there on, piece by
    /// piece, layer by layer.
    ///
    /// # Errors
    /// As [`PerSample::norms`], what `write` refuses, and [`Error::Shape`] where x has not one number a sample.
    pub fn weighted_sum(
        &self,
        x: &[f64],
        progress: &dyn Progress,
        interrupt: &Interrupt,
        mut write: impl FnMut(&str, u64, &[f32]) -> Result<()>,
    ) -> Result<()> {
        if x.len() != self.samples() {
            return Err(Error::shape(OP, "x", format!("{} numbers", self.samples()), x.len().to_string()));
        }
        // Between −1 and 1, so that no factor leaves f32.
        let x: Vec<f64> = x.iter().zip(&self.unit).map(|(x, unit)| x * unit).collect();
        let scale = power_of_two(x.iter().fold(0.0, |most, x| x.abs().max(most)));
        let x: Vec<f64> = x.iter().map(|x| x * scale).collect();
        progress.begin(self.bytes());
        let (share, caps) = Share::of(&self.budget, &self.backend.caps(), 1);
        for unit in units(self.captures[0].layers())? {
            for (at, rows) in passes(&unit, &caps, share)?.iter().enumerate() {
                let progress = if at == 0 { progress } else { &() };
                self.sum_of_unit((&unit, rows), &caps, (&x, scale), &mut write, progress, interrupt)?;
            }
        }
        Ok(())
    }

    fn sum_of_unit(
        &self,
        (unit, rows): (&Unit, &[Vec<Range<u32>>]),
        caps: &Caps,
        (x, scale): (&[f64], f64),
        write: &mut impl FnMut(&str, u64, &[f32]) -> Result<()>,
        progress: &dyn Progress,
        interrupt: &Interrupt,
    ) -> Result<()> {
        let of = |(one, rows): (&Parameter, &Vec<_>)| hold(self.backend, one, rows);
        let outs = unit.parameters.iter().zip(rows).map(of).collect::<Result<Vec<_>>>()?;
        // Sums are kept in units of the first portion's scale.
        let mut common = None;
        let mut begun = vec![false; outs.len()];
        for (file, capture) in self.captures.iter().enumerate() {
            for &layer in &unit.layers {
                let in_file = InFile { capture, layer: &capture.layers()[layer] };
                for portion in in_file.portions(caps, 0..capture.samples()) {
                    interrupt.check()?;
                    let batch = Batch::load_portion(self.backend, capture, &portion, &[])?;
                    let gradient_scale = batch.gradient_scale();
                    let factor = *common.get_or_insert(gradient_scale) / gradient_scale;
                    let place =
                        |sample: u64| self.first[file] + usize::try_from(sample).unwrap_or(usize::MAX);
                    let samples = place(portion.samples().start)..place(portion.samples().end);
                    let weight = self.backend.buffer(&narrow(&x[samples]), DType::F32)?;
                    let mut recording = Recording::new(self.backend);
                    for (at, role) in unit
                        .of_layer(layer)
                        .filter(|&(at, role)| portion.adds_to(role) && !rows[at].is_empty())
                    {
                        let begins = !std::mem::replace(&mut begun[at], true);
                        let squares = Squares {
                            mode: Mode::Gradients,
                            epilogue: if begins { Epilogue::Overwrite } else { Epilogue::Add },
                            factor: narrow(&[factor])[0],
                            gradient_scale: narrow(&[gradient_scale])[0],
                            ..Squares::default()
                        };
                        batch.record(self.backend, &mut recording, role, squares, &weight, &outs[at])?;
                    }
                    self.backend.run(&recording)?;
                }
                progress.advance(in_file.layer.bytes());
            }
        }
        let common = common.unwrap_or(1.0);
        let undo = 1.0 / (common * scale);
        for (parameter, held) in unit.parameters.iter().zip(&outs) {
            let problem = format!("the sum for {} leaves f32's range", printable(&parameter.name));
            for Held { rows, view } in held {
                let start = u64::from(rows.start) * parameter.rows.len;
                in_pieces(self.backend, view, |first, values| {
                    #[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
                    values.iter_mut().for_each(|value| *value = (f64::from(*value) * undo) as f32);
                    finite(values, &problem)?;
                    write(&parameter.name, start + first, values)
                })?;
            }
        }
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.captures.iter().flat_map(Capture::layers).map(CaptureLayer::bytes).sum()
    }

    fn check_direction(&self, direction: &Checkpoint) -> Result<()> {
        for (name, shape) in self.captures[0].layers().iter().flat_map(|layer| layer.parameters()) {
            let problem = match direction.get(&name) {
                Some(tensor) if tensor.shape == shape && tensor.float().is_some() => continue,
                Some(tensor) => {
                    let (got, want) = (shape_text(&tensor.shape), shape_text(&shape));
                    format!("{} is {} {got}, expected floats of {want}", printable(&name), tensor.dtype)
                }
                None => format!("has no {}", printable(&name)),
            };
            let problem = format!("the direction {}: {problem}", direction.path().display());
            return Err(Error::mismatch(OP, problem));
        }
        Ok(())
    }

    /// Shows `sum` every layer's gradients.
    fn walk(&self, sum: &mut dyn Sum, progress: &dyn Progress, interrupt: &Interrupt) -> Result<()> {
        progress.begin(self.bytes());
        for unit in units(self.captures[0].layers())? {
            if let [at] = unit.layers[..] {
                let parts = self.parts(&[at]);
                let layer = Layer::new(self, &[at], &parts, interrupt);
                for parameter in &unit.parameters {
                    layer.show(parameter, sum)?;
                }
            } else {
                // The gradients of the layers that share it are added in the slab.
                for parameter in &unit.parameters {
                    let members: Vec<usize> = parameter.layers().collect();
                    let parts = self.parts(&members);
                    Layer::new(self, &members, &parts, interrupt).show(parameter, sum)?;
                }
            }
            progress.advance(unit.layers.iter().map(|&at| self.bytes_of(at)).sum());
        }
        Ok(())
    }

    /// Each file's layers, by size.
    fn parts(&self, layers: &[usize]) -> Vec<Vec<CaptureLayer>> {
        let of_file =
            |capture: &Capture| layers.iter().flat_map(|&at| by_size(&capture.layers()[at])).collect();
        self.captures.iter().map(of_file).collect()
    }

    /// A layer's bytes in all files.
    fn bytes_of(&self, layer: usize) -> u64 {
        self.captures.iter().map(|capture| capture.layers()[layer].bytes()).sum()
    }

    /// Bytes of the gradients that may be formed at a time.
    fn slab_bytes(&self) -> u64 {
        let budget = self.budget.within(&self.backend.caps());
        let device = if self.backend.caps().is_host { u64::MAX } else { budget.device_bytes / 4 };
        SLAB.min(budget.host_bytes / 4).min(device).min(budget.max_binding_bytes)
    }
}

/// What sees the gradients of every layer once, in whichever form costs least.
trait Sum {
    /// Whether a linear layer's pairs of positions cost less than its gradients.
    fn prefers_pairs(&self, _: &LinearSizes) -> bool {
        false
    }

    /// A linear layer's weight, from its inputs and output gradients.
    fn pairs(&mut self, _: &Layer<'_>) -> Result<()> {
        Ok(())
    }

    /// The gradients of some parameters.
    fn slab(&mut self, backend: &Backend, slab: &Slab<'_>) -> Result<()>;

    /// The gradients of some rows of an embedding.
    fn runs(&mut self, runs: &Runs<'_>) -> Result<()>;
}

/// A linear layer's numbers of samples and positions over all files, the positions of its longest sample, and its sizes.
struct LinearSizes {
    samples: f64,
    positions: f64,
    longest: f64,
    inputs: f64,
    outputs: f64,
    /// Whether products of unscaled gradients stay in f32.
    moderate: bool,
}

/// The gradients of all samples for consecutive elements of one parameter.
struct Slab<'s> {
    name: &'s str,
    first: u64,
    len: u64,
    chunks: Vec<SlabChunk>,
}

struct SlabChunk {
    samples: Range<usize>,
    /// `[n, len]`, f32.
    gradients: View,
    /// What they are multiplied by.
    scale: f64,
}

/// The gradients of an embedding's rows from `first_row` on: a run is what one sample adds to one row.
struct Runs<'s> {
    name: &'s str,
    first_row: u32,
    rows: u32,
    dim: usize,
    /// By row, then sample.
    runs: Vec<RunOf>,
    /// The runs' gradients, `dim` each.
    values: Vec<f32>,
}

struct RunOf {
    row: u32,
    sample: usize,
    /// Where its values are, counted in runs.
    at: usize,
    /// What they are divided by.
    scale: f64,
}

impl Runs<'_> {
    fn values(&self, run: &RunOf) -> &[f32] {
        &self.values[run.at * self.dim..(run.at + 1) * self.dim]
    }
}

/// Files whose data lie in one buffer (of each size, where the layer is used at several), or some samples of one file.
struct Chunk<'a> {
    sizes: Vec<Vec<InFile<'a>>>,
    samples: Range<usize>,
    /// Of one file, counted in it.
    some: Option<Range<u64>>,
    held: RefCell<Option<Rc<Vec<Batch>>>>,
}

/// One layer over all files, or those that share a parameter.
struct Layer<'a> {
    job: &'a PerSample<'a>,
    /// The places of the layers, the parameter's own first.
    members: Vec<usize>,
    chunks: Vec<Chunk<'a>>,
    /// Whether data stay in memory from one slab to the next.
    holds: bool,
    /// Whether a sample of some file is taken in parts, which are then batches of the same sample.
    divided: bool,
    interrupt: &'a Interrupt,
}

enum Part {
    Rows(Range<u32>),
    Bias,
}

impl<'a> Layer<'a> {
    /// `parts`: the layers of each file, by size.
    fn new(
        job: &'a PerSample<'a>,
        members: &[usize],
        parts: &'a [Vec<CaptureLayer>],
        interrupt: &'a Interrupt,
    ) -> Self {
        let caps = job.backend.caps();
        let device = if caps.is_host { u64::MAX } else { job.budget.device_bytes / 2 };
        let hold = HELD.min(job.budget.host_bytes / 2).min(device);
        let mut chunks: Vec<Chunk<'a>> = Vec::new();
        let mut last: Option<(InFile<'a>, u64)> = None;
        let mut divided = false;
        for ((capture, parts), samples) in job.captures.iter().zip(parts).zip(job.first.windows(2)) {
            if samples[0] == samples[1] {
                continue;
            }
            let this = InFile { capture, layer: &capture.layers()[members[0]] };
            let sizes = parts.iter().map(|layer| InFile { capture, layer });
            let bytes: u64 = members.iter().map(|&at| capture.layers()[at].bytes()).sum();
            match (chunks.last_mut(), &mut last) {
                (Some(chunk), Some((before, together)))
                    if members.len() == 1
                        && *together + bytes <= hold.min(caps.max_binding_bytes)
                        && joinable(*before, this) =>
                {
                    chunk.sizes.iter_mut().zip(sizes).for_each(|(files, file)| files.push(file));
                    chunk.samples.end = samples[1];
                    *together += bytes;
                }
                _ => {
                    let sizes: Vec<_> = sizes.map(|file| vec![file]).collect();
                    let chunk = |samples, some| Chunk {
                        sizes: sizes.clone(),
                        samples,
                        some,
                        held: RefCell::new(None),
                    };
                    let within = |&at: &usize| {
                        InFile { capture, layer: &capture.layers()[at] }.samples_within_bindings(&caps)
                    };
                    let most = members.iter().map(within).min().unwrap_or(u64::MAX);
                    let parts = members.iter().any(|&at| {
                        !InFile { capture, layer: &capture.layers()[at] }.takes_whole_samples(&caps)
                    });
                    divided |= parts;
                    let most = if parts { 1 } else { most };
                    match (parts || most < capture.samples()).then(|| ranges(capture.samples(), most)) {
                        None => {
                            chunks.push(chunk(samples[0]..samples[1], None));
                            last = Some((this, bytes));
                        }
                        Some(ranges) => {
                            let place = |at: u64| samples[0] + usize::try_from(at).unwrap_or(usize::MAX);
                            let some =
                                |range: Range<u64>| chunk(place(range.start)..place(range.end), Some(range));
                            chunks.extend(ranges.map(some));
                            last = None;
                        }
                    }
                }
            }
        }
        let all: u64 = members.iter().map(|&at| job.bytes_of(at)).sum();
        let holds = chunks.len() == 1 || all <= hold;
        Self { job, members: members.to_vec(), chunks, holds, divided, interrupt }
    }

    fn captured(&self) -> &'a CaptureLayer {
        &self.job.captures[0].layers()[self.members[0]]
    }

    /// Shows `sum` one parameter's gradients.
    fn show(&self, parameter: &Parameter, sum: &mut dyn Sum) -> Result<()> {
        let name = &parameter.name;
        match (parameter.role(), self.kind()) {
            (Role::Bias, _) => {
                let len = parameter.rows.len;
                self.slab(sum, name, 0, len, |batches| self.gradients(batches, len, &Part::Bias))
            }
            _ if self.members.len() > 1 || self.divided => self.slabs(sum, parameter),
            (_, LayerKind::Embedding { .. }) => self.embedding(sum, name),
            (_, LayerKind::Linear) if sum.prefers_pairs(&self.linear()?) => sum.pairs(self),
            _ => self.slabs(sum, parameter),
        }
    }

    fn kind(&self) -> &'a LayerKind {
        &self.captured().kind
    }

    /// A chunk's data, one batch for each size and part: never none, and one alone but where channels come before positions or a sample is divided.
    fn batches(&self, chunk: &Chunk<'a>) -> Result<Rc<Vec<Batch>>> {
        self.interrupt.check()?;
        if let Some(batches) = chunk.held.borrow().as_ref() {
            return Ok(Rc::clone(batches));
        }
        let caps = self.job.backend.caps();
        let load = |files: &Vec<InFile<'a>>| match &chunk.some {
            None => Batch::load(self.job.backend, files, &[]).map(|batch| vec![batch]),
            Some(samples) => {
                let InFile { capture, layer } = files[0];
                let whole = || vec![Portion::whole(layer.clone(), samples.clone())];
                // What a range of several samples is taken in is further samples, not parts of one.
                let one = self.divided && samples.end - samples.start == 1;
                let portions = if one { files[0].portions(&caps, samples.clone()) } else { whole() };
                let load = |portion| Batch::load_portion(self.job.backend, capture, portion, &[]);
                portions.iter().map(load).collect()
            }
        };
        let batches = chunk.sizes.iter().map(load).collect::<Result<Vec<Vec<Batch>>>>()?;
        let batches = Rc::new(batches.into_iter().flatten().collect::<Vec<_>>());
        if self.holds {
            chunk.held.replace(Some(Rc::clone(&batches)));
        }
        Ok(batches)
    }

    fn linear(&self) -> Result<LinearSizes> {
        let shape = &self.captured().weight;
        let mut sizes = LinearSizes {
            samples: 0.0,
            positions: 0.0,
            longest: 0.0,
            inputs: shape[1] as f64,
            outputs: shape[0] as f64,
            moderate: true,
        };
        for chunk in &self.chunks {
            let batches = self.batches(chunk)?;
            let batch = &batches[0];
            let (samples, positions) = (batch.samples() as f64, batch.positions() as f64);
            sizes.samples += samples;
            sizes.positions += samples * positions;
            sizes.longest = positions.max(sizes.longest);
            sizes.moderate &= scale_of(&batches) == 1.0;
        }
        Ok(sizes)
    }

    /// Shows `sum` the weight's gradients, some rows at a time.
    fn slabs(&self, sum: &mut dyn Sum, parameter: &Parameter) -> Result<()> {
        let rows = parameter.rows;
        let row_bytes = (4 * rows.len).saturating_mul(self.job.samples() as u64).max(1);
        for range in cut(rows, self.job.slab_bytes() / row_bytes) {
            let first = u64::from(range.start) * rows.len;
            let len = range.len() as u64 * rows.len;
            let part = Part::Rows(range);
            let gradients = |batches: &[Batch]| self.gradients(batches, len, &part);
            self.slab(sum, &parameter.name, first, len, gradients)?;
        }
        Ok(())
    }

    fn slab(
        &self,
        sum: &mut dyn Sum,
        name: &str,
        first: u64,
        len: u64,
        gradients: impl Fn(&[Batch]) -> Result<View>,
    ) -> Result<()> {
        let mut chunks = Vec::new();
        for chunk in &self.chunks {
            let batches = self.batches(chunk)?;
            let (samples, scale) = (chunk.samples.clone(), scale_of(&batches));
            chunks.push(SlabChunk { samples, gradients: gradients(&batches)?, scale });
        }
        sum.slab(self.job.backend, &Slab { name, first, len, chunks })
    }

    /// The gradients of a chunk's samples for a part of the parameters, `[n, len]`.
    fn gradients(&self, batches: &[Batch], len: u64, part: &Part) -> Result<View> {
        let backend = self.job.backend;
        let out = backend.alloc(batches[0].samples().saturating_mul(len), DType::F32)?;
        let weight = ones(backend, &batches[0])?;
        let sides = Sides { weight: &weight, out: &out };
        let gradient_scale = narrow(&[scale_of(batches)])[0];
        let squares = Squares { mode: Mode::Each, gradient_scale, ..Squares::default() };
        let mut recording = Recording::new(backend);
        let role = match part {
            Part::Rows(_) => Role::Weight,
            Part::Bias => Role::Bias,
        };
        for (at, batch) in batches.iter().filter(|batch| batch.adds_to(role)).enumerate() {
            let squares = after(squares, at);
            match part {
                Part::Rows(rows) => {
                    batch.record_rows(backend, &mut recording, rows.clone(), squares, sides)?;
                }
                Part::Bias => batch.record_bias(&mut recording, squares, sides)?,
            }
        }
        backend.run(&recording)?;
        Ok(out)
    }

    /// Shows `sum` an embedding's gradients, some rows at a time.
    fn embedding(&self, sum: &mut dyn Sum, name: &str) -> Result<()> {
        let shape = &self.captured().weight;
        let dim = usize::try_from(shape[1]).unwrap_or(usize::MAX);
        let mut uses = vec![0_u64; usize::try_from(shape[0]).unwrap_or(usize::MAX)];
        for chunk in &self.chunks {
            for &id in self.batches(chunk)?[0].ids().unwrap_or_default() {
                uses[id as usize] += 1;
            }
        }
        for rows in rows_within(&uses, self.job.slab_bytes() / (4 * shape[1]).max(1)) {
            let mut runs = Runs {
                name,
                first_row: rows.start,
                rows: rows.len() as u32,
                dim,
                runs: Vec::new(),
                values: Vec::new(),
            };
            for chunk in &self.chunks {
                self.add_runs(&mut runs, chunk)?;
            }
            runs.runs.sort_by_key(|run| (run.row, run.sample));
            sum.runs(&runs)?;
        }
        Ok(())
    }

    fn add_runs(&self, runs: &mut Runs<'_>, chunk: &Chunk<'a>) -> Result<()> {
        let backend = self.job.backend;
        let batches = self.batches(chunk)?;
        let batch = &batches[0];
        let positions = usize::try_from(batch.positions()).unwrap_or(usize::MAX);
        let ids = batch.ids().unwrap_or_default();
        let index = EmbeddingIndex::new(ids, positions, (runs.first_row, runs.rows), Listed::Touched)?;
        let scale = scale_of(&batches);
        let before = runs.runs.len();
        for (&row, of_row) in index.owner_row.iter().zip(index.owner_run.windows(2)) {
            runs.runs.extend((of_row[0]..of_row[1]).map(|run| RunOf {
                row: runs.first_row + row,
                sample: chunk.samples.start + index.run_sample[run as usize] as usize,
                at: before + run as usize,
                scale,
            }));
        }
        let index = index.by_run();
        let out = backend.alloc((index.run_sample.len() * runs.dim) as u64, DType::F32)?;
        let weight = ones(backend, batch)?;
        let gradient_scale = narrow(&[scale])[0];
        let squares = Squares { mode: Mode::Gradients, gradient_scale, ..Squares::default() };
        let mut recording = Recording::new(backend);
        let sides = Sides { weight: &weight, out: &out };
        batch.record_embedding(backend, &mut recording, &index, squares, sides)?;
        backend.run(&recording)?;
        runs.values.extend(backend.download::<f32>(&out)?);
        Ok(())
    }
}

/// A weight of 1 for every sample.
fn ones(backend: &Backend, batch: &Batch) -> Result<View> {
    backend.buffer(&vec![1.0_f32; small(batch.samples())? as usize], DType::F32)
}

/// The power of two that brings the largest gradient of all sizes near 1.
fn common_scale(batches: &[Batch]) -> f64 {
    batches.iter().map(Batch::gradient_scale).fold(f64::INFINITY, f64::min)
}

/// 1, or, where gradients are so small or large that their products leave f32, their common scale.
fn scale_of(batches: &[Batch]) -> f64 {
    let scale = common_scale(batches);
    if (2.0_f64.powi(-30)..=2.0_f64.powi(30)).contains(&scale) { 1.0 } else { scale }
}

/// The step of one of a layer's sizes or parts: those after the first add to it.
fn after(first: Squares, at: usize) -> Squares {
    Squares { epilogue: if at == 0 { first.epilogue } else { Epilogue::Add }, ..first }
}

/// The power of two that brings a magnitude near 1.
fn power_of_two(largest: f64) -> f64 {
    if largest > 0.0 && largest.is_finite() {
        (-largest.log2().round()).clamp(-1000.0, 1000.0).exp2()
    } else {
        1.0
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to nearest is meant")]
fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn finite<T: Copy + Into<f64>>(values: &[T], problem: &str) -> Result<()> {
    match values.iter().position(|&value| !value.into().is_finite()) {
        None => Ok(()),
        Some(at) => {
            let problem =
                format!("{problem} at flat index {at}; scale the loss by a power of two when capturing");
            Err(Error::argument(OP, problem))
        }
    }
}

/// Ranges of rows with at most so many uses each (or one row), without the unused ends.
fn rows_within(uses: &[u64], most: u64) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut of_range = 0;
    for (row, &count) in (0..).zip(uses) {
        if count == 0 {
            continue;
        }
        match ranges.last_mut() {
            Some(range) if of_range + count <= most => range.end = row + 1,
            _ => {
                ranges.push(row..row + 1);
                of_range = 0;
            }
        }
        of_range += count;
    }
    ranges
}

/// Rows of two matrices that meet: `[rows, len]` each.
struct Matrices<'a> {
    backend: &'a Backend,
    x: &'a View,
    y: &'a View,
    len: u32,
}

impl Matrices<'_> {
    /// Inner products of some rows of x with some of y, pieces of f32 added in f64.
    fn products(&self, rows: &Range<usize>, columns: &Range<usize>) -> Result<Vec<f64>> {
        let caps = self.backend.caps();
        let [first_row, row_count, first_column, column_count] =
            [rows.start, rows.len(), columns.start, columns.len()].map(|size| small(size as u64));
        let (first_row, rows, first_column, columns) = (first_row?, row_count?, first_column?, column_count?);
        let kernel = Gram {
            form: Form::of(&caps, 1, rows.into(), columns.into())
                .for_positions(&[self.len.into(), TERMS.into()]),
            x: self.x.float(OP, "x")?,
            y: self.y.float(OP, "y")?,
            overwrite: true,
        };
        let out = self.backend.alloc(u64::from(rows) * u64::from(columns), DType::F32)?;
        let mut sums = vec![0.0; rows as usize * columns as usize];
        for first in (0..self.len).step_by(TERMS as usize) {
            let count = TERMS.min(self.len - first);
            let params = GramParams { len: self.len, first, count, first_row, rows, first_column, columns };
            let args = GramArgs { x: self.x.clone(), y: self.y.clone(), out: out.clone() };
            let mut recording = Recording::new(self.backend);
            recording.dispatch(&kernel, params, args)?;
            self.backend.run(&recording)?;
            let piece: Vec<f32> = self.backend.download(&out)?;
            sums.iter_mut().zip(piece).for_each(|(sum, piece)| *sum += f64::from(piece));
        }
        Ok(sums)
    }
}

/// Blocks of samples of one chunk against those of another, of which every block's rows (positions) are within [`BLOCK`] where that is
/// possible; of a chunk against itself, those that reach the diagonal or below.
fn blocks(
    (m, m_positions): (usize, usize),
    (n, n_positions): (usize, usize),
    same: bool,
) -> Vec<(Range<usize>, Range<usize>)> {
    let step = |positions: usize| (BLOCK / positions.max(1)).max(1);
    let ranges = |all: usize, step: usize| (0..all).step_by(step).map(move |at| at..all.min(at + step));
    ranges(m, step(m_positions))
        .flat_map(|rows| ranges(n, step(n_positions)).map(move |columns| (rows.clone(), columns)))
        .filter(|(rows, columns)| !same || columns.start < rows.end)
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// K, of which the lower triangle is filled.
struct GramSum {
    samples: usize,
    gram: Vec<f64>,
}

impl GramSum {
    /// Adds a block, whose first sample pair is (m, n).
    fn add(&mut self, (m, n): (usize, usize), columns: usize, scale: f64, values: &[f64]) {
        for (row, values) in values.chunks(columns.max(1)).enumerate() {
            let start = (m + row) * self.samples + n;
            let into = &mut self.gram[start..start + values.len()];
            into.iter_mut().zip(values).for_each(|(sum, value)| *sum += value / scale);
        }
    }
}

impl Sum for GramSum {
    fn prefers_pairs(&self, sizes: &LinearSizes) -> bool {
        let LinearSizes { samples, positions, inputs, outputs, moderate, .. } = *sizes;
        let pairs = positions * positions * (inputs + outputs);
        moderate && pairs <= inputs * outputs * (positions + samples * samples)
    }

    fn pairs(&mut self, layer: &Layer<'_>) -> Result<()> {
        for (c, chunk) in layer.chunks.iter().enumerate() {
            let ours = layer.batches(chunk)?;
            for (d, other) in layer.chunks[..=c].iter().enumerate() {
                let theirs = if c == d { Rc::clone(&ours) } else { layer.batches(other)? };
                self.add_pairs(layer, (chunk, &ours[0]), (other, &theirs[0]), c == d)?;
            }
        }
        Ok(())
    }

    fn slab(&mut self, backend: &Backend, slab: &Slab<'_>) -> Result<()> {
        for (c, x) in slab.chunks.iter().enumerate() {
            for (d, y) in slab.chunks[..=c].iter().enumerate() {
                let matrices = Matrices { backend, x: &x.gradients, y: &y.gradients, len: small(slab.len)? };
                for (rows, columns) in blocks((x.samples.len(), 1), (y.samples.len(), 1), c == d) {
                    let products = matrices.products(&rows, &columns)?;
                    let at = (x.samples.start + rows.start, y.samples.start + columns.start);
                    self.add(at, columns.len(), x.scale * y.scale, &products);
                }
            }
        }
        Ok(())
    }

    /// Each of K's rows is one task: its sample's runs against the runs of the same rows.
    fn runs(&mut self, runs: &Runs<'_>) -> Result<()> {
        let mut of_sample: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.samples];
        let mut start = 0;
        for of_row in runs.runs.chunk_by(|a, b| a.row == b.row) {
            for (at, run) in of_row.iter().enumerate() {
                of_sample[run.sample].push((start, start + at));
            }
            start += of_row.len();
        }
        self.gram.par_chunks_mut(self.samples).zip(of_sample).for_each(|(sums, own)| {
            for (start, at) in own {
                let mine = &runs.runs[at];
                for other in &runs.runs[start..=at] {
                    let product = dot(runs.values(mine), runs.values(other));
                    sums[other.sample] += product / (mine.scale * other.scale);
                }
            }
        });
        Ok(())
    }
}

impl GramSum {
    /// Σ_{s,t} (b_ms · b_nt)(a_ms · a_nt) of two chunks' samples.
    fn add_pairs(
        &mut self,
        layer: &Layer<'_>,
        (chunk, ours): (&Chunk<'_>, &Batch),
        (other, theirs): (&Chunk<'_>, &Batch),
        same: bool,
    ) -> Result<()> {
        let (s, t) = (ours.positions() as usize, theirs.positions() as usize);
        let pairs = Pairs::new(layer, ours, theirs)?;
        for (rows, columns) in blocks((chunk.samples.len(), s), (other.samples.len(), t), same) {
            let products = pairs.products(&rows, s, &columns, t)?;
            let at = (chunk.samples.start + rows.start, other.samples.start + columns.start);
            self.add(at, columns.len(), 1.0, &products);
        }
        Ok(())
    }
}

/// A linear layer's inputs and output gradients, position by position.
struct Pairs<'a> {
    inputs: Matrices<'a>,
    gradients: Matrices<'a>,
}

impl<'a> Pairs<'a> {
    fn new(layer: &'a Layer<'_>, ours: &'a Batch, theirs: &'a Batch) -> Result<Self> {
        let backend = layer.job.backend;
        let shape = &layer.captured().weight;
        let (Some(x), Some(y)) = (ours.input(), theirs.input()) else {
            return Err(Error::argument(OP, "a linear layer's inputs are numbers"));
        };
        Ok(Self {
            inputs: Matrices { backend, x, y, len: small(shape[1])? },
            gradients: Matrices { backend, x: ours.gradient(), y: theirs.gradient(), len: small(shape[0])? },
        })
    }

    /// Inner products of the gradients of samples with `s` positions and samples with `t`.
    fn products(&self, rows: &Range<usize>, s: usize, columns: &Range<usize>, t: usize) -> Result<Vec<f64>> {
        let (m, n) = (rows.start * s..rows.end * s, columns.start * t..columns.end * t);
        let (a, b) = (self.inputs.products(&m, &n)?, self.gradients.products(&m, &n)?);
        let width = columns.len();
        let mut sums = vec![0.0; rows.len() * width];
        sums.par_chunks_mut(width).enumerate().for_each(|(m, sums)| {
            for position in m * s..(m + 1) * s {
                let at = position * width * t;
                let (a, b) = (&a[at..at + width * t], &b[at..at + width * t]);
                for (sum, (a, b)) in sums.iter_mut().zip(a.chunks(t).zip(b.chunks(t))) {
                    *sum += a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                }
            }
        });
        Ok(sums)
    }
}

/// Squared norms.
struct NormSum {
    squares: Vec<f64>,
}

/// Rows of the small blocks on the diagonal.
const NARROW: usize = 64;

impl Sum for NormSum {
    fn prefers_pairs(&self, sizes: &LinearSizes) -> bool {
        let rows = sizes.longest.max(NARROW as f64);
        sizes.moderate && rows * (sizes.inputs + sizes.outputs) <= sizes.inputs * sizes.outputs
    }

    fn pairs(&mut self, layer: &Layer<'_>) -> Result<()> {
        for chunk in &layer.chunks {
            let batches = layer.batches(chunk)?;
            let batch = &batches[0];
            let positions = batch.positions() as usize;
            let pairs = Pairs::new(layer, batch, batch)?;
            let at_once = (NARROW / positions.max(1)).max(1);
            for first in (0..chunk.samples.len()).step_by(at_once) {
                let samples = first..chunk.samples.len().min(first + at_once);
                let products = pairs.products(&samples, positions, &samples, positions)?;
                for at in 0..samples.len() {
                    self.squares[chunk.samples.start + first + at] += products[at * samples.len() + at];
                }
            }
        }
        Ok(())
    }

    fn slab(&mut self, backend: &Backend, slab: &Slab<'_>) -> Result<()> {
        let len = usize::try_from(slab.len).unwrap_or(usize::MAX).max(1);
        for chunk in &slab.chunks {
            let gradients: Vec<f32> = backend.download(&chunk.gradients)?;
            let of_sample = self.squares[chunk.samples.clone()].par_iter_mut().zip(gradients.par_chunks(len));
            of_sample.for_each(|(sum, g)| *sum += dot(g, g) / (chunk.scale * chunk.scale));
        }
        Ok(())
    }

    fn runs(&mut self, runs: &Runs<'_>) -> Result<()> {
        for run in &runs.runs {
            let g = runs.values(run);
            self.squares[run.sample] += dot(g, g) / (run.scale * run.scale);
        }
        Ok(())
    }
}

/// Products with a direction.
struct DirectionSum<'a> {
    direction: &'a Checkpoint,
    products: Vec<f64>,
}

impl DirectionSum<'_> {
    /// Some elements of Δ near 1, and what they were multiplied by.
    fn read(&self, name: &str, first: u64, len: u64) -> Result<(Vec<f32>, f64)> {
        let tensor =
            self.direction.get(name).ok_or_else(|| Error::argument(OP, "the direction was checked"))?;
        let dtype = tensor.float().ok_or_else(|| Error::argument(OP, "the direction was checked"))?;
        let size = Element::from(dtype).bytes();
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX) * size];
        self.direction.read(tensor, first * size as u64, &mut bytes)?;
        let mut values = vec![0.0; bytes.len() / size];
        widen_bytes(&bytes, dtype, &mut values);
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let problem = format!("NaN or infinity at flat index {}", first + at as u64);
            return Err(Error::tensor(self.direction.path(), name, problem));
        }
        let scale = power_of_two(values.iter().fold(0.0, |most, &value| f64::from(value).abs().max(most)));
        let scaled: Vec<f64> = values.iter().map(|&value| f64::from(value) * scale).collect();
        Ok((narrow(&scaled), scale))
    }
}

impl Sum for DirectionSum<'_> {
    fn slab(&mut self, backend: &Backend, slab: &Slab<'_>) -> Result<()> {
        let (direction, scale) = self.read(slab.name, slab.first, slab.len)?;
        let direction = backend.buffer(&direction, DType::F32)?;
        for chunk in &slab.chunks {
            let (x, y) = (&chunk.gradients, &direction);
            let matrices = Matrices { backend, x, y, len: small(slab.len)? };
            let products = matrices.products(&(0..chunk.samples.len()), &(0..1))?;
            for (sum, product) in self.products[chunk.samples.clone()].iter_mut().zip(products) {
                *sum += product / (chunk.scale * scale);
            }
        }
        Ok(())
    }

    fn runs(&mut self, runs: &Runs<'_>) -> Result<()> {
        let (first, len) = (u64::from(runs.first_row), u64::from(runs.rows));
        let (direction, scale) = self.read(runs.name, first * runs.dim as u64, len * runs.dim as u64)?;
        for run in &runs.runs {
            let row = (run.row - runs.first_row) as usize * runs.dim;
            let product = dot(runs.values(run), &direction[row..row + runs.dim]);
            self.products[run.sample] += product / (run.scale * scale);
        }
        Ok(())
    }
}

/// The reason why there can be no matrix `[N, N]` of f64, if there is one.
fn check_square(samples: usize, budget: u64) -> Result<()> {
    let (flag, have) = match available_memory() {
        Some(available) if available < budget => {
            ("the memory that is free, or give fewer captures", available)
        }
        _ => ("--host-memory, or give fewer captures", budget),
    };
    match square_bytes(samples) {
        need if need > have => Err(too_large(samples, have, flag)),
        _ => Ok(()),
    }
}

fn square_bytes(samples: usize) -> u64 {
    (samples as u64).saturating_mul(samples as u64).saturating_mul(8)
}

fn too_large(samples: usize, have: u64, flag: &str) -> Error {
    let what = format!("the Gram matrix of {samples} samples, 8·N²,");
    Error::Budget { op: "gram".into(), what, need: square_bytes(samples), have, flag: flag.into() }
}

/// Zeros `[N, N]`, or the reason why there can be none.
fn square_matrix(samples: usize, budget: u64) -> Result<Vec<f64>> {
    check_square(samples, budget)?;
    let len = samples.saturating_mul(samples);
    let mut matrix = Vec::new();
    // Where the system does not say what is free, the allocator does.
    let refused = |_| too_large(samples, 0, "the memory that is free, or give fewer captures");
    matrix.try_reserve_exact(len).map_err(refused)?;
    matrix.resize(len, 0.0);
    Ok(matrix)
}

/// Bytes that can be taken without swapping, where the system says so.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_an_embedding_are_cut_by_their_uses() {
        assert_eq!(rows_within(&[0, 3, 0, 2, 9, 1, 1, 0], 5), [1..4, 4..5, 5..7]);
        assert!(rows_within(&[0, 0], 5).is_empty());
    }

    #[test]
    fn blocks_cover_the_lower_triangle() {
        let (samples, positions) = (2500, 3);
        let mut seen = vec![false; samples * samples];
        for (rows, columns) in blocks((samples, positions), (samples, positions), true) {
            for m in rows {
                for n in columns.clone() {
                    assert!(!std::mem::replace(&mut seen[m * samples + n], true), "{m} {n} twice");
                }
            }
        }
        assert!((0..samples).all(|m| (0..=m).all(|n| seen[m * samples + n])));
    }

    #[test]
    fn a_matrix_beyond_memory_is_refused_with_the_figures() {
        let refusal = square_matrix(1000, 1 << 20).expect_err("8 MB in 1 MiB").to_string();
        assert!(refusal.contains("1048576") && refusal.contains("8000000"), "{refusal}");
        assert!(square_matrix(usize::MAX >> 24, u64::MAX).is_err());
        assert_eq!(square_matrix(3, u64::MAX).expect("small").len(), 9);
    }
}
