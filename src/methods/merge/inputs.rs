//! Opening what is merged, and refusing from headers alone what does not fit together.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use serde::Serialize;

use super::remedies::remedy;
use super::{MergeOptions, Method, Missing, Normalize, config};
use crate::checkpoint::{Checkpoint, OutputLayout, OutputTensor, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::shape::{DType, shape_text};
use crate::stream::{Direction, Layout, Plan, Run, Stream, TensorSpec};

/// One model with its Fisher.
pub(super) struct Opened {
    pub(super) model: Checkpoint,
    pub(super) fisher: Option<Checkpoint>,
    /// λ, or δ for the base.
    pub(super) weight: f64,
}

/// How one tensor is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// By the method's formula.
    Weighted,
    /// By the plain average.
    Averaged,
    /// Copied: it holds no floats and is equal in all models.
    Copied,
}

/// Everything that is read, checked against each other.
pub(super) struct Inputs<'a> {
    pub(super) options: &'a MergeOptions,
    pub(super) models: Vec<Opened>,
    pub(super) base: Option<Opened>,
    pub(super) kinds: Vec<Kind>,
    pub(super) warnings: Vec<String>,
}

/// What a merge will do.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct MergePlan {
    passes: Vec<Pass>,
    /// What should be looked at.
    pub warnings: Vec<String>,
}

/// One pass over the tensors that are made the same way.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Pass {
    /// By the method's formula, or by the plain average.
    pub(super) weighted: bool,
    /// Places in the first model.
    #[serde(skip)]
    pub(super) tensors: Vec<usize>,
    pub(super) plan: Plan,
}

impl MergePlan {
    pub(super) fn passes(&self) -> &[Pass] {
        &self.passes
    }

    /// Parameters that will be merged.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.passes.iter().map(|pass| pass.plan.elements()).sum()
    }

    /// The most device memory in use at a time.
    #[must_use]
    pub fn peak_device_bytes(&self) -> u64 {
        self.passes.iter().map(|pass| pass.plan.peak_device_bytes()).max().unwrap_or(0)
    }

    /// The most host memory in use for staging at a time.
    #[must_use]
    pub fn peak_host_bytes(&self) -> u64 {
        self.passes.iter().map(|pass| pass.plan.peak_host_bytes()).max().unwrap_or(0)
    }
}

impl fmt::Display for MergePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for pass in &self.passes {
            writeln!(f, "{}:", if pass.weighted { "merged by the method" } else { "averaged" })?;
            write!(f, "{}", pass.plan)?;
        }
        Ok(())
    }
}

pub(super) const OP: &str = "merge";

impl<'a> Inputs<'a> {
    /// Opens everything and checks names, shapes, types and the Fishers' own words about themselves.
    pub(super) fn open(options: &'a MergeOptions) -> Result<Self> {
        check_options(options)?;
        let open = |path: &Path, fisher: Option<&Path>, weight: f64| {
            let fisher = fisher.map(Checkpoint::open).transpose()?;
            Ok(Opened { model: Checkpoint::open(path)?, fisher, weight })
        };
        let uses_fishers = options.method != Method::Linear;
        let models = options
            .models
            .iter()
            .map(|m| open(&m.path, m.fisher.as_deref().filter(|_| uses_fishers), m.weight))
            .collect::<Result<Vec<_>>>()?;
        let base = options.base.as_ref().map(|b| open(&b.path, Some(&b.fisher), b.delta)).transpose()?;
        let mut inputs = Self { options, models, base, kinds: Vec::new(), warnings: Vec::new() };
        inputs.check_models()?;
        inputs.check_fishers()?;
        inputs.check_metadata()?;
        inputs.kinds = inputs.find_kinds()?;
        inputs.warn_of_narrowing();
        inputs.warn_of_adapters();
        Ok(inputs)
    }

    pub(super) fn first(&self) -> &Checkpoint {
        &self.models[0].model
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Opened> {
        self.models.iter().chain(&self.base)
    }

    /// Every file or folder that is read: none of them may be the output.
    pub(super) fn paths(&self) -> Vec<&Path> {
        self.all()
            .flat_map(|o| [Some(o.model.path()), o.fisher.as_ref().map(Checkpoint::path)])
            .flatten()
            .collect()
    }

    fn check_models(&self) -> Result<()> {
        let first = self.first();
        for other in self.all().skip(1) {
            let problems = differences(first, &other.model, "shape", |a, b| {
                (a.shape != b.shape).then(|| (shape_text(&a.shape), shape_text(&b.shape)))
            });
            refuse(first, &other.model, problems)?;
            let problems = differences(first, &other.model, "type", |a, b| {
                let fits = a.is_float() == b.is_float() && (a.is_float() || a.dtype == b.dtype);
                (!fits).then(|| (format!("{:?}", a.dtype), format!("{:?}", b.dtype)))
            });
            refuse(first, &other.model, problems)?;
        }
        Ok(())
    }

    fn check_fishers(&self) -> Result<()> {
        for opened in self.all() {
            let Some(fisher) = &opened.fisher else { continue };
            let problems: Vec<String> =
                fisher.tensors().iter().filter_map(|tensor| misfit(&opened.model, tensor)).collect();
            refuse(&opened.model, fisher, problems)?;
        }
        Ok(())
    }

    /// Fishers on different scales can't be weighed against each other.
    fn check_metadata(&mut self) -> Result<()> {
        let fishers: Vec<&Checkpoint> = self.all().filter_map(|o| o.fisher.as_ref()).collect();
        let mut warnings = Vec::new();
        for key in ["squisher.kind", "squisher.reduction", "squisher.scale"] {
            let mut said = fishers.iter().filter_map(|f| Some((f, f.metadata().get(key)?)));
            let Some((one, value)) = said.next() else { continue };
            let Some((other, different)) = said.find(|(_, other)| *other != value) else { continue };
            let problem = format!(
                "{} says {key} = {value}, {} says {different}: their scales differ; normalise them \
                 (--normalize mean) or, if the scale is known to be common, --allow-mixed",
                one.path().display(),
                other.path().display()
            );
            if self.options.normalize == Normalize::None && !self.options.allow_mixed {
                return Err(Error::mismatch(OP, problem));
            }
        }
        for key in ["squisher.batch_size", "squisher.samples", "squisher.step", "squisher.decay"] {
            let said: Vec<&String> = fishers.iter().filter_map(|f| f.metadata().get(key)).collect();
            if said.windows(2).any(|pair| pair[0] != pair[1]) && self.options.normalize == Normalize::None {
                warnings
                    .push(format!("the Fishers differ in {key}; --normalize mean takes such a factor out"));
            }
        }
        self.warnings.extend(warnings);
        Ok(())
    }

    /// Arithmetic is f32, so an F64 model comes back as F32.
    fn warn_of_narrowing(&mut self) {
        let wide = self.first().tensors().iter().filter(|tensor| tensor.dtype == Dtype::F64).count();
        if wide > 0 && self.options.dtype.is_none() {
            let tensors = if wide == 1 { "1 tensor is".to_owned() } else { format!("{wide} tensors are") };
            self.warnings
                .push(format!("{tensors} F64 in the first model and F32 in the result: arithmetic is f32"));
        }
    }

    /// ΔW = B A, and an average of products is another thing than a product of averages.
    fn warn_of_adapters(&mut self) {
        let of_adapter =
            |tensor: &TensorInfo| [".lora_A.", ".lora_B."].iter().any(|part| tensor.name.contains(part));
        if self.models.len() > 1 && self.first().tensors().iter().any(of_adapter) {
            self.warnings.push(
                "these are LoRA adapters: A and B are averaged each for itself, which is not the average of B A; merge each adapter \
                 into its model first (merge_and_unload)"
                    .into(),
            );
        }
    }

    fn find_kinds(&self) -> Result<Vec<Kind>> {
        let mut missing = Vec::new();
        let mut kinds = Vec::new();
        for tensor in self.first().tensors() {
            let without =
                self.all().find(|o| o.fisher.as_ref().is_none_or(|f| f.get(&tensor.name).is_none()));
            kinds.push(match without {
                _ if !tensor.is_float() => Kind::Copied,
                _ if self.options.method == Method::Linear => Kind::Averaged,
                None => Kind::Weighted,
                Some(opened) => {
                    missing.push(format!("{} of {}", printable(&tensor.name), opened.model.path().display()));
                    Kind::Averaged
                }
            });
        }
        if !missing.is_empty() && self.options.missing == Missing::Error {
            let problem = format!(
                "no Fisher for {}; --missing average averages such tensors linearly",
                listed(&missing)
            );
            return Err(Error::mismatch(OP, problem));
        }
        Ok(kinds)
    }

    /// The output's files: like the first model's, or sharded anew.
    pub(super) fn layout(&self) -> Result<OutputLayout> {
        let mut metadata: BTreeMap<String, String> = [("format".to_owned(), "pt".to_owned())].into();
        metadata.insert("squisher.method".into(), self.method_name().into());
        metadata.insert("squisher.version".into(), env!("CARGO_PKG_VERSION").into());
        let first = self.first();
        let layout = match self.options.shard_bytes {
            None => OutputLayout::like(first, |tensor| Some(self.output_dtype(tensor)), metadata),
            Some(bytes) => {
                let tensors = first
                    .tensors()
                    .iter()
                    .map(|t| OutputTensor::new(&t.name, self.output_dtype(t), t.shape.clone()))
                    .collect();
                OutputLayout::sharded(tensors, bytes, metadata)?
            }
        };
        if !layout.is_folder() {
            return Ok(layout);
        }
        let layout = if first.is_folder() { layout.with_side_files_of(first)? } else { layout };
        let config = self.options.dtype.and_then(|dtype| config::stored_as(config::of(first)?, dtype));
        let layout = match config {
            Some(config) => layout.with_text(config::NAME, config),
            None => layout,
        };
        Ok(layout.with_text("README.md", super::card::text(self.options, is_of_transformers(first))))
    }

    fn method_name(&self) -> &'static str {
        super::card::method_name(self.options.method)
    }

    fn output_dtype(&self, tensor: &TensorInfo) -> Dtype {
        if !tensor.is_float() {
            return tensor.dtype;
        }
        match self.options.dtype.or(tensor.float()) {
            Some(DType::F16) => Dtype::F16,
            Some(DType::BF16) => Dtype::BF16,
            // Arithmetic is f32, so an F64 model comes back as F32.
            Some(DType::F32) | None => Dtype::F32,
        }
    }

    /// Plans the passes within the budget.
    pub(super) fn plan(&self, run: &Run<'_>) -> Result<MergePlan> {
        let mut passes = Vec::new();
        for weighted in [true, false] {
            let kind = if weighted { Kind::Weighted } else { Kind::Averaged };
            let tensors: Vec<usize> =
                self.kinds.iter().enumerate().filter(|(_, k)| **k == kind).map(|(i, _)| i).collect();
            if !tensors.is_empty() {
                let budget = run.budget.within(&run.backend.caps());
                let plan = Plan::new(&self.stream_layout(&tensors, weighted), &budget)?;
                passes.push(Pass { weighted, tensors, plan });
            }
        }
        Ok(MergePlan { passes, warnings: self.warnings.clone() })
    }

    /// How many kernel steps a pass takes: two models a step, or one for `ubgm`.
    pub(super) fn steps(&self, weighted: bool) -> usize {
        let one_by_one = weighted && self.options.method == Method::Ubgm;
        if one_by_one { self.models.len() } else { self.models.len().div_ceil(2) }
    }

    /// Streams in the order θ_1, F_1, …, θ_M, F_M, θ_0, F_0, θ; without the Fishers and the base where all is averaged.
    fn stream_layout(&self, tensors: &[usize], weighted: bool) -> Layout {
        let checkpoints: Vec<&Checkpoint> =
            self.streams(weighted).into_iter().map(|(checkpoint, _)| checkpoint).collect();
        let read = |name: String| Stream { name, direction: Direction::Read };
        let mut streams: Vec<Stream> =
            checkpoints.iter().map(|checkpoint| read(checkpoint.path().display().to_string())).collect();
        streams.push(Stream { name: "output".into(), direction: Direction::Write });
        let spec = |&tensor: &usize| {
            let own = &self.first().tensors()[tensor];
            let stored = |checkpoint: &&Checkpoint| {
                checkpoint.get(&own.name).and_then(TensorInfo::float).unwrap_or(DType::F32)
            };
            let mut dtypes: Vec<DType> = checkpoints.iter().map(stored).collect();
            dtypes.push(match self.output_dtype(own) {
                Dtype::F16 => DType::F16,
                Dtype::BF16 => DType::BF16,
                _ => DType::F32,
            });
            TensorSpec { name: own.name.clone(), elements: own.elements(), dtypes, class: 0 }
        };
        Layout {
            streams,
            tensors: tensors.iter().map(spec).collect(),
            scratch_bytes: if self.steps(weighted) > 1 { 16 } else { 0 },
        }
    }

    /// The checkpoints that a pass reads, in the order of its streams, and whether each holds a Fisher.
    pub(super) fn streams<'s>(&'s self, weighted: bool) -> Vec<(&'s Checkpoint, bool)> {
        let model = |opened: &'s Opened| (&opened.model, false);
        if !weighted {
            return self.models.iter().map(model).collect();
        }
        let fisher = |opened: &'s Opened| opened.fisher.as_ref().map(|fisher| (fisher, true));
        self.all().flat_map(|opened| std::iter::once(model(opened)).chain(fisher(opened))).collect()
    }

    /// One line a file that is read, which tells whether it is what another run has read.
    pub(super) fn stamps(&self) -> impl Iterator<Item = String> {
        self.all()
            .flat_map(|opened| opened.model.stamps().chain(opened.fisher.iter().flat_map(Checkpoint::stamps)))
    }

    /// An error if any input changed since it was opened.
    pub(super) fn verify_unchanged(&self) -> Result<()> {
        for opened in self.all() {
            opened.model.verify_unchanged()?;
            opened.fisher.as_ref().map_or(Ok(()), Checkpoint::verify_unchanged)?;
        }
        Ok(())
    }
}

fn check_options(options: &MergeOptions) -> Result<()> {
    let refuse = |problem: &str| Err(Error::argument(OP, problem));
    if options.models.is_empty() {
        return refuse("no models");
    }
    if options.models.iter().any(|m| !(m.weight.is_finite() && m.weight >= 0.0)) {
        return refuse("a weight is negative or not finite; coefficients are at least 0");
    }
    // No quotient λ (F_0 + F_m) / (F_0 + Σ λ F) is above the largest λ or 1, and f32 ends at 2^128.
    if options.method == Method::Ubgm && options.models.iter().any(|m| m.weight > 2_f64.powi(100)) {
        return refuse("a weight is above 2^100, which ubgm cannot tell from infinity");
    }
    if options.models.iter().all(|m| m.weight == 0.0) {
        return refuse("all weights are 0; at least one must be above");
    }
    if !(options.floor.is_finite() && options.floor >= 0.0) {
        return refuse("the floor is negative or not finite");
    }
    if (options.method == Method::Ubgm) != options.base.is_some() {
        return refuse(
            "ubgm needs a base model and its Fisher (--base, --base-fisher); the other methods take none",
        );
    }
    if options.base.as_ref().is_some_and(|b| !(b.delta.is_finite() && b.delta >= 0.0)) {
        return refuse("delta is negative or not finite");
    }
    let without = options.models.iter().find(|m| m.fisher.is_none());
    if let (Some(model), true) = (without, options.method != Method::Linear) {
        let problem = format!("{} has no Fisher (--fisher)", model.path.display());
        return Err(Error::argument(OP, problem));
    }
    Ok(())
}

/// Whether a `config.json` beside the weights names an architecture of the transformers library.
fn is_of_transformers(model: &Checkpoint) -> bool {
    let config = config::of(model);
    config.is_some_and(|config| config["architectures"].as_array().is_some_and(|names| !names.is_empty()))
}

/// Why a Fisher's tensor can't weigh `model`'s.
fn misfit(model: &Checkpoint, tensor: &TensorInfo) -> Option<String> {
    let name = printable(&tensor.name);
    match model.get(&tensor.name) {
        None => Some(format!("{name} is not in the model")),
        Some(own) if own.shape != tensor.shape => {
            let (got, expected) = (shape_text(&tensor.shape), shape_text(&own.shape));
            Some(format!("{name} has shape {got}, expected {expected}"))
        }
        Some(_) if !tensor.is_float() => {
            Some(format!("{name} has type {:?}, expected F32, F16, BF16 or F64", tensor.dtype))
        }
        Some(_) => None,
    }
}

/// Tensors that only one has, and those in which `differ` finds two values.
fn differences(
    first: &Checkpoint,
    other: &Checkpoint,
    what: &str,
    differ: impl Fn(&TensorInfo, &TensorInfo) -> Option<(String, String)>,
) -> Vec<String> {
    let mut problems = Vec::new();
    for tensor in first.tensors() {
        match other.get(&tensor.name) {
            None => problems.push(format!("{} is missing", printable(&tensor.name))),
            Some(same) => problems.extend(differ(tensor, same).map(|(expected, got)| {
                format!("{} has {what} {got}, expected {expected}", printable(&tensor.name))
            })),
        }
    }
    let extra = other.tensors().iter().filter(|tensor| first.get(&tensor.name).is_none());
    problems.extend(extra.map(|tensor| format!("{} is not in the first model", printable(&tensor.name))));
    problems
}

fn refuse(first: &Checkpoint, other: &Checkpoint, problems: Vec<String>) -> Result<()> {
    if problems.is_empty() {
        return Ok(());
    }
    let remedy = remedy(first, other).map(|remedy| format!("; {remedy}")).unwrap_or_default();
    let problem = format!(
        "{} does not fit {}: {}{remedy}",
        other.path().display(),
        first.path().display(),
        listed(&problems)
    );
    Err(Error::mismatch(OP, problem))
}

/// The first few of a list, and how many more there are.
fn listed(items: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if items.len() > SHOWN {
        text.push_str(&format!("; and {} more", items.len() - SHOWN));
    }
    text
}
