//! Elastic weight consolidation: the penalty of leaving where earlier tasks left a model, and its gradient.
//!
//!   penalty = ½ λ Σ F (θ − θ*)²,   gradient = λ F (θ − θ*)
//!
//! Several anchors add up, and none of them decays another: each keeps its own Fisher whole. *Online*: several Fishers at one anchor, the
//! oldest first, count as F ← F_new + γ F_old, with γ applied once at each step to all that came before and never to the newest. As the
//! penalty is linear in F, each Fisher is a term of its own with λ γ^(newer ones at its anchor); nothing is combined in f32 first.
//! γ where no anchor has two Fishers would change nothing, and is refused.
//!
//! A tensor without Fisher is free: it adds nothing and has no gradient, which is how new heads stay trainable. Tensors that
//! the model has not are refused.
//!
//! λ is transferable only together with the ½, γ, the Fisher's reduction (sum or mean), and its B and N: the report states them all.
//! Everything streams through once, in chunks; partial sums are folded in f64 in the order of the plan.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use safetensors::Dtype;
use serde::Serialize;

use crate::backend::Backend;
use crate::checkpoint::{Checkpoint, Output, OutputLayout, OutputTensor, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::interrupt::Interrupt;
use crate::kernels::Owner;
use crate::kernels::ewc::{
    Gradient, GradientArgs, GradientParams, Penalty, PenaltyArgs, PenaltyParams, PenaltySum,
};
use crate::memory::{Element, View};
use crate::methods::source::{CheckpointSource, FISHER_VALUES, NonFinite, OutputSink};
use crate::progress::Progress;
use crate::record::Recording;
use crate::shape::{DType, shape_text};
use crate::stream::{
    Budget, Buffers, Chunk, Direction, End, Job, Layout, Plan, Sink, Stream, Sweep, TensorSpec, run,
};

const OP: &str = "ewc";

/// Records of one step start at a multiple of this many words: 256 bytes, the strictest device's alignment.
const STRIDE: u64 = 64;

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct EwcOptions {
    /// θ.
    pub model: PathBuf,
    /// The anchors.
    pub anchors: Vec<Anchor>,
    /// λ, at least 0.
    pub lambda: f64,
    /// γ, at least 0: needed where an anchor has several Fishers, refused where none has.
    pub gamma: Option<f64>,
    /// What to do with Fishers that are NaN, infinite or negative.
    pub non_finite: NonFinite,
    /// Where to write the gradient, in f32 under the model's names.
    pub gradient: Option<PathBuf>,
    /// Replace an output that exists.
    pub overwrite: bool,
    /// What memory the job may use.
    pub budget: Budget,
}

/// Where an earlier task left the model, and what mattered there.
#[derive(Clone, Debug)]
pub struct Anchor {
    /// θ*.
    pub path: PathBuf,
    /// Its Fishers, the oldest first; all but the newest are decayed.
    pub fishers: Vec<PathBuf>,
}

/// The penalty with all that it depends on. Keys are stable.
#[derive(Clone, Debug, Serialize)]
pub struct EwcReport {
    /// ½ λ Σ F (θ − θ*)² over all anchors.
    pub penalty: f64,
    /// The formula that was evaluated.
    pub formula: &'static str,
    /// The factor before λ.
    pub half: f64,
    /// λ.
    pub lambda: f64,
    /// γ; nothing where no Fisher was decayed and none was given.
    pub gamma: Option<f64>,
    /// One a Fisher.
    pub terms: Vec<Term>,
    /// Parameters that have a Fisher.
    pub elements: u64,
    /// Tensors of the model that have none in any term.
    pub free: Vec<String>,
    /// Fishers that were NaN, infinite or negative and counted as 0.
    pub non_finite: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Seconds.
    pub seconds: f64,
    /// Where it ran.
    pub adapter: String,
}

/// One Fisher's share of the penalty, and what its file says of itself.
#[derive(Clone, Debug, Serialize)]
pub struct Term {
    /// θ*.
    pub anchor: PathBuf,
    /// F.
    pub fisher: PathBuf,
    /// λ times its power of γ.
    pub weight: f64,
    /// Its share of the penalty.
    pub penalty: f64,
    /// The Fisher's kind.
    pub kind: Option<String>,
    /// Its reduction, sum or mean.
    pub reduction: Option<String>,
    /// Its scale.
    pub scale: Option<String>,
    /// B.
    pub batch_size: Option<String>,
    /// N.
    pub samples: Option<String>,
}

/// What [`ewc`] would do, from headers alone. Keys are stable.
#[derive(Debug, Serialize)]
pub struct EwcPlan {
    /// The formula that would be evaluated.
    pub formula: &'static str,
    /// λ.
    pub lambda: f64,
    /// γ, where it was given.
    pub gamma: Option<f64>,
    /// One a Fisher.
    pub terms: Vec<PlannedTerm>,
    /// Parameters that have a Fisher.
    pub elements: u64,
    /// Tensors of the model that have none in any term.
    pub free: Vec<String>,
    /// One for each set of terms that tensors have Fishers of.
    pub passes: Vec<Plan>,
}

/// One Fisher's term before it is evaluated.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedTerm {
    /// θ*.
    pub anchor: PathBuf,
    /// F.
    pub fisher: PathBuf,
    /// λ times its power of γ.
    pub weight: f64,
}

const FORMULA: &str = "penalty = 1/2 lambda sum F (theta - anchor)^2, gradient = lambda F (theta - anchor)";

/// The result of a `--dry-run`.
///
/// # Errors
/// What headers and budgets alone show to be wrong, as [`ewc`].
pub fn plan(options: &EwcOptions, backend: &Backend) -> Result<EwcPlan> {
    let inputs = Inputs::open(options)?;
    let passes = inputs.passes(options, backend)?;
    let term = |term: &OpenTerm| PlannedTerm {
        anchor: term.anchor.path().to_owned(),
        fisher: term.fisher.path().to_owned(),
        weight: term.weight,
    };
    Ok(EwcPlan {
        formula: FORMULA,
        lambda: options.lambda,
        gamma: options.gamma,
        terms: inputs.terms.iter().map(term).collect(),
        elements: passes.iter().map(Plan::elements).sum(),
        free: inputs.free,
        passes,
    })
}

/// Evaluates the penalty and, if asked, writes its gradient.
///
/// # Errors
/// [`Error::Argument`] for λ or γ below 0, decayed Fishers without γ, or γ without any to decay; [`Error::Mismatch`] for files that do not fit the
/// model; [`Error::Tensor`] for values that are no numbers, Fishers below 0, or a gradient beyond f32; and all that files and devices do.
pub fn ewc(
    options: &EwcOptions,
    backend: &Backend,
    progress: &dyn Progress,
    interrupt: &Interrupt,
) -> Result<EwcReport> {
    let started = Instant::now();
    let inputs = Inputs::open(options)?;
    let passes = inputs.passes(options, backend)?;
    let output = options
        .gradient
        .as_ref()
        .map(|path| Output::create(path, inputs.layout(options), options.overwrite, &inputs.paths()));
    let output = output.transpose()?;
    let mut sums = vec![0.0; inputs.terms.len()];
    let zeroed = AtomicU64::new(0);
    for ((terms, tensors), plan) in inputs.passes.iter().zip(&passes) {
        let zeroed = options.non_finite.counted(&zeroed);
        let pass = PassInputs::of(&inputs, terms, tensors, output.as_ref(), zeroed)?;
        pass.run(plan, &mut sums, backend, (progress, interrupt))?;
    }
    inputs.verify_unchanged()?;
    let bytes_written = output.as_ref().map_or(0, Output::total_bytes);
    output.map_or(Ok(()), Output::finish)?;
    let terms: Vec<Term> = inputs.terms.iter().zip(&sums).map(|(term, sum)| term.report(*sum)).collect();
    Ok(EwcReport {
        penalty: terms.iter().map(|term| term.penalty).sum(),
        formula: FORMULA,
        half: 0.5,
        lambda: options.lambda,
        gamma: options.gamma,
        terms,
        elements: passes.iter().map(Plan::elements).sum(),
        free: inputs.free,
        non_finite: zeroed.into_inner(),
        bytes_read: passes.iter().map(|plan| plan.traffic().read).sum(),
        bytes_written,
        seconds: started.elapsed().as_secs_f64(),
        adapter: backend.name(),
    })
}

/// One anchor with one Fisher.
struct OpenTerm {
    anchor: Checkpoint,
    fisher: Checkpoint,
    /// λ times its power of γ.
    weight: f64,
}

impl OpenTerm {
    fn report(&self, sum: f64) -> Term {
        let said = |key: &str| self.fisher.metadata().get(key).cloned();
        Term {
            anchor: self.anchor.path().to_owned(),
            fisher: self.fisher.path().to_owned(),
            weight: self.weight,
            penalty: 0.5 * self.weight * sum,
            kind: said("squisher.kind"),
            reduction: said("squisher.reduction"),
            scale: said("squisher.scale"),
            batch_size: said("squisher.batch_size"),
            samples: said("squisher.samples"),
        }
    }
}

struct Inputs {
    model: Checkpoint,
    terms: Vec<OpenTerm>,
    /// The tensors of the model by the terms that have a Fisher for them.
    passes: BTreeMap<Vec<usize>, Vec<usize>>,
    free: Vec<String>,
}

impl Inputs {
    fn open(options: &EwcOptions) -> Result<Self> {
        check_options(options)?;
        let model = Checkpoint::open(&options.model)?;
        let mut terms = Vec::new();
        for anchor in &options.anchors {
            let newest = anchor.fishers.len() - 1;
            for (age, fisher) in anchor.fishers.iter().enumerate().map(|(i, fisher)| (newest - i, fisher)) {
                let decay = (0..age).map(|_| options.gamma.unwrap_or(1.0)).product::<f64>();
                let term = OpenTerm {
                    anchor: Checkpoint::open(&anchor.path)?,
                    fisher: Checkpoint::open(fisher)?,
                    weight: options.lambda * decay,
                };
                check_fits(&model, &term)?;
                terms.push(term);
            }
        }
        let mut passes: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        let mut free = Vec::new();
        for (place, tensor) in model.tensors().iter().enumerate() {
            let with = (0..terms.len()).filter(|&term| terms[term].fisher.get(&tensor.name).is_some());
            let with: Vec<usize> = with.collect();
            if with.is_empty() {
                free.push(tensor.name.clone());
            } else {
                passes.entry(with).or_default().push(place);
            }
        }
        Ok(Self { model, terms, passes, free })
    }

    /// How the tensors of each set of terms would stream.
    fn passes(&self, options: &EwcOptions, backend: &Backend) -> Result<Vec<Plan>> {
        let budget = options.budget.within(&backend.caps());
        let one = |(terms, tensors): (&Vec<usize>, &Vec<usize>)| {
            let pass = PassInputs::of(self, terms, tensors, None, None)?;
            Plan::new(&pass.layout(options.gradient.is_some()), &budget)
        };
        self.passes.iter().map(one).collect()
    }

    fn paths(&self) -> Vec<&std::path::Path> {
        let terms = self.terms.iter().flat_map(|term| [term.anchor.path(), term.fisher.path()]);
        terms.chain([self.model.path()]).collect()
    }

    fn layout(&self, options: &EwcOptions) -> OutputLayout {
        let tensors = self.passes.values().flatten().map(|&place| &self.model.tensors()[place]);
        let tensors = tensors.map(|t| OutputTensor::new(&t.name, Dtype::F32, t.shape.clone())).collect();
        let mut metadata: BTreeMap<String, String> = BTreeMap::new();
        metadata.insert("squisher.kind".into(), "ewc-gradient".into());
        metadata.insert("squisher.lambda".into(), options.lambda.to_string());
        metadata.extend(options.gamma.map(|gamma| ("squisher.gamma".into(), gamma.to_string())));
        metadata.insert("squisher.version".into(), env!("CARGO_PKG_VERSION").into());
        OutputLayout::single(tensors, metadata)
    }

    fn verify_unchanged(&self) -> Result<()> {
        self.model.verify_unchanged()?;
        self.terms.iter().try_for_each(|term| {
            term.anchor.verify_unchanged()?;
            term.fisher.verify_unchanged()
        })
    }
}

fn check_options(options: &EwcOptions) -> Result<()> {
    let refuse = |problem: String| Err(Error::argument(OP, problem));
    if !(options.lambda.is_finite() && options.lambda >= 0.0) {
        return refuse(format!("lambda is {}, expected a finite number of at least 0", options.lambda));
    }
    if let Some(gamma) = options.gamma.filter(|gamma| !(gamma.is_finite() && *gamma >= 0.0)) {
        return refuse(format!("gamma is {gamma}, expected a finite number of at least 0"));
    }
    if options.gamma.is_some() && options.anchors.iter().all(|anchor| anchor.fishers.len() < 2) {
        return refuse(
            "gamma decays older Fishers at one anchor, and no anchor has two; leave it out (several anchors add up as they are)"
                .into(),
        );
    }
    if options.anchors.is_empty() {
        return refuse(
            "no anchor; give where the earlier task left the model (--anchor) and its Fisher (--fisher)"
                .into(),
        );
    }
    for anchor in &options.anchors {
        match anchor.fishers.len() {
            0 => return refuse(format!("{} has no Fisher (--fisher)", anchor.path.display())),
            1 => {}
            n if options.gamma.is_none() => {
                let problem = format!(
                    "{} has {n} Fishers: say by how much the older ones count (--gamma)",
                    anchor.path.display()
                );
                return refuse(problem);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Every tensor of the Fisher is in the model and in the anchor, with the same shape, and all three are floats.
fn check_fits(model: &Checkpoint, term: &OpenTerm) -> Result<()> {
    for tensor in term.fisher.tensors() {
        let refuse = |file: &Checkpoint, problem: String| {
            let name = printable(&tensor.name);
            Err(Error::mismatch(OP, format!("{}: tensor {name} {problem}", file.path().display())))
        };
        for file in [model, &term.anchor, &term.fisher] {
            let Some(same) = file.get(&tensor.name) else {
                return refuse(
                    file,
                    format!(
                        "is missing, {} has it; is that Fisher of another model?",
                        term.fisher.path().display()
                    ),
                );
            };
            if same.shape != tensor.shape {
                return refuse(
                    file,
                    format!(
                        "has shape {}, expected {} by its Fisher",
                        shape_text(&same.shape),
                        shape_text(&tensor.shape)
                    ),
                );
            }
            if !same.is_float() {
                return refuse(file, format!("has type {:?}, expected F32, F16, BF16 or F64", same.dtype));
            }
        }
    }
    Ok(())
}

/// One pass over the tensors that the same terms are about. Streams: θ, then θ* and F of each term, then the gradient.
struct PassInputs<'a> {
    inputs: &'a Inputs,
    terms: &'a [usize],
    tensors: &'a [usize],
    sources: Vec<CheckpointSource<'a>>,
    sink: Option<FiniteSink<'a>>,
}

impl<'a> PassInputs<'a> {
    fn of(
        inputs: &'a Inputs,
        terms: &'a [usize],
        tensors: &'a [usize],
        output: Option<&'a Output>,
        zeroed: Option<&'a AtomicU64>,
    ) -> Result<Self> {
        let source = |file| CheckpointSource::matching(file, &inputs.model, tensors);
        let mut sources = vec![source(&inputs.model)?];
        for &term in terms {
            sources.push(source(&inputs.terms[term].anchor)?);
            sources.push(source(&inputs.terms[term].fisher)?.zeroing(zeroed));
        }
        let sink = output.map(|output| FiniteSink {
            sink: OutputSink::matching(output, &inputs.model, tensors),
            names: tensors.iter().map(|&place| inputs.model.tensors()[place].name.as_str()).collect(),
        });
        Ok(Self { inputs, terms, tensors, sources, sink })
    }

    fn files(&self) -> impl Iterator<Item = &'a Checkpoint> {
        let inputs = self.inputs;
        let terms =
            self.terms.iter().flat_map(move |&term| [&inputs.terms[term].anchor, &inputs.terms[term].fisher]);
        std::iter::once(&inputs.model).chain(terms)
    }

    fn layout(&self, gradient: bool) -> Layout {
        let read = |file: &Checkpoint| Stream {
            name: file.path().display().to_string(),
            direction: Direction::Read,
        };
        let mut streams: Vec<Stream> = self.files().map(read).collect();
        if gradient {
            streams.push(Stream { name: "gradient".into(), direction: Direction::Write });
        }
        let spec = |&place: &usize| {
            let tensor = &self.inputs.model.tensors()[place];
            let dtype =
                |file: &Checkpoint| file.get(&tensor.name).and_then(TensorInfo::float).unwrap_or(DType::F32);
            let dtypes = self.files().map(dtype).chain(gradient.then_some(DType::F32)).collect();
            TensorSpec { name: tensor.name.clone(), elements: tensor.elements(), dtypes, class: 0 }
        };
        Layout { streams, tensors: self.tensors.iter().map(spec).collect(), scratch_bytes: 0 }
    }

    fn run(
        &self,
        plan: &Plan,
        sums: &mut [f64],
        backend: &Backend,
        (progress, interrupt): (&dyn Progress, &Interrupt),
    ) -> Result<()> {
        let mut ends: Vec<End<'_>> = self.sources.iter().map(|source| End::Source(source)).collect();
        ends.extend(self.sink.as_ref().map(|sink| End::Sink(sink)));
        let longest = plan.chunks().iter().map(|chunk| chunk.elements).max().unwrap_or(0);
        let owner = Owner::of(&backend.caps());
        let penalty = Penalty { theta: DType::F32, anchor: DType::F32, fisher: DType::F32, owner };
        let stride = penalty.records(longest).next_multiple_of(STRIDE);
        let mut sweep = EwcSweep { pass: self, penalty, stride, sums };
        run(&Job { backend, plan, ends, progress, interrupt }, &mut sweep)?;
        Ok(())
    }
}

struct EwcSweep<'a> {
    pass: &'a PassInputs<'a>,
    /// The kernel but for a term's storage.
    penalty: Penalty,
    /// Words of results between one term's records and the next one's.
    stride: u64,
    /// Σ F (θ − θ*)² of every term.
    sums: &'a mut [f64],
}

impl Sweep for EwcSweep<'_> {
    fn result_words(&self) -> u64 {
        self.stride * self.pass.terms.len() as u64
    }

    fn record(&self, recording: &mut Recording, chunk: &Chunk, buffers: &Buffers) -> Result<()> {
        let results = buffers.results.as_ref().expect("this sweep asks for results");
        let len = u32::try_from(chunk.elements).expect("a chunk's buffers are below the binding limit");
        let (streams, dtypes) = (&buffers.streams, &chunk.dtypes);
        for (step, &term) in self.pass.terms.iter().enumerate() {
            let (a, f) = (2 * step + 1, 2 * step + 2);
            let offset = results.offset() + 4 * self.stride * step as u64;
            let words = self.penalty.records(chunk.elements);
            let records = View::new(results.memory().clone(), offset, words, Element::F32)?;
            let kernel = Penalty { theta: dtypes[0], anchor: dtypes[a], fisher: dtypes[f], ..self.penalty };
            let (theta, anchor, fisher) = (streams[0].clone(), streams[a].clone(), streams[f].clone());
            let args =
                PenaltyArgs { theta: theta.clone(), anchor: anchor.clone(), fisher: fisher.clone(), records };
            recording.dispatch(&kernel, PenaltyParams { len }, args)?;
            if self.pass.sink.is_some() {
                let gradient = streams.last().expect("the last stream is the gradient").clone();
                let kernel = Gradient {
                    theta: dtypes[0],
                    anchor: dtypes[a],
                    fisher: dtypes[f],
                    gradient: DType::F32,
                    add: step > 0,
                };
                let params = GradientParams::new(len, self.pass.inputs.terms[term].weight);
                recording.dispatch(&kernel, params, GradientArgs { theta, anchor, fisher, gradient })?;
            }
        }
        Ok(())
    }

    fn absorb(&mut self, chunk: &Chunk, results: &[u32]) -> Result<()> {
        let records: &[f32] = bytemuck::cast_slice(results);
        let stride = usize::try_from(self.stride).expect("results lie in memory");
        let words = usize::try_from(self.penalty.records(chunk.elements)).expect("results lie in memory");
        for (step, &term) in self.pass.terms.iter().enumerate() {
            let sum = PenaltySum::fold(self.penalty.share(), &records[step * stride..][..words]);
            for (bad, stream, expected) in [
                (sum.bad_theta, 0, "a finite number"),
                (sum.bad_anchor, 2 * step + 1, "a finite number"),
                (sum.bad_fisher, 2 * step + 2, FISHER_VALUES),
            ] {
                let Some(at) = bad else { continue };
                let segment = chunk.segments.iter().find(|s| s.at <= at && at < s.at + s.len);
                let segment = segment.expect("a kernel counts only elements of its chunk");
                let index = segment.start + at - segment.at;
                return Err(self.pass.sources[stream].bad_value(segment.tensor, index, expected));
            }
            self.sums[term] += sum.sum;
        }
        Ok(())
    }
}

/// The gradient's file, which takes finite numbers only.
struct FiniteSink<'a> {
    sink: OutputSink<'a>,
    names: Vec<&'a str>,
}

impl Sink for FiniteSink<'_> {
    fn write(&self, tensor: usize, start: u64, bytes: &[u8]) -> Result<()> {
        let values = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
        if let Some((index, value)) = (start..).zip(values).find(|(_, value)| !value.is_finite()) {
            let problem = format!(
                "tensor {}: index {index} of the gradient is {value:?}, beyond the range of f32; choose a smaller --lambda",
                printable(self.names[tensor])
            );
            return Err(Error::mismatch(OP, problem));
        }
        self.sink.write(tensor, start, bytes)
    }
}
