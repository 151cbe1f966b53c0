//! The model, its anchors and their Fishers, opened and held against each other.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::sweep::PassInputs;
use super::{EwcOptions, OP, Term};
use crate::checkpoint::{Checkpoint, OutputLayout, OutputTensor};
use crate::error::{Error, Result, printable};
use crate::shape::shape_text;
use crate::stream::{Plan, Run};

/// One anchor with one Fisher.
pub(super) struct OpenTerm {
    pub(super) anchor: Checkpoint,
    pub(super) fisher: Checkpoint,
    /// λ times its power of γ.
    pub(super) weight: f64,
}

impl OpenTerm {
    pub(super) fn report(&self, sum: f64) -> Term {
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

/// Everything that is read, checked against each other.
pub(super) struct Inputs {
    pub(super) model: Checkpoint,
    pub(super) terms: Vec<OpenTerm>,
    /// The tensors of the model by the terms that have a Fisher for them.
    pub(super) passes: BTreeMap<Vec<usize>, Vec<usize>>,
    pub(super) free: Vec<String>,
}

impl Inputs {
    pub(super) fn open(options: &EwcOptions) -> Result<Self> {
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
    pub(super) fn passes(&self, options: &EwcOptions, run: &Run<'_>) -> Result<Vec<Plan>> {
        let budget = run.budget.within(&run.backend.caps());
        let one = |(terms, tensors): (&Vec<usize>, &Vec<usize>)| {
            let pass = PassInputs::of(self, terms, tensors, None, None)?;
            Plan::new(&pass.layout(options.gradient.is_some()), &budget)
        };
        self.passes.iter().map(one).collect()
    }

    /// One λ weighs the terms alike only where their Fishers are of one kind and on one scale.
    pub(super) fn mixed(&self) -> Vec<String> {
        let differs = |key: &&str| {
            let said: Vec<&String> =
                self.terms.iter().filter_map(|term| term.fisher.metadata().get(*key)).collect();
            said.windows(2).any(|pair| pair[0] != pair[1])
        };
        let keys = ["squisher.kind", "squisher.reduction", "squisher.scale"];
        let warning =
            |key: &str| format!("the Fishers differ in {key}; one lambda does not weigh their terms alike");
        keys.iter().filter(|key| differs(key)).map(|key| warning(key)).collect()
    }

    pub(super) fn paths(&self) -> Vec<&Path> {
        let terms = self.terms.iter().flat_map(|term| [term.anchor.path(), term.fisher.path()]);
        terms.chain([self.model.path()]).collect()
    }

    pub(super) fn layout(&self, options: &EwcOptions) -> OutputLayout {
        let tensors = self.passes.values().flatten().map(|&place| &self.model.tensors()[place]);
        let tensors = tensors.map(|t| OutputTensor::new(&t.name, Dtype::F32, t.shape.clone())).collect();
        let mut metadata: BTreeMap<String, String> = BTreeMap::new();
        metadata.insert("squisher.kind".into(), "ewc-gradient".into());
        metadata.insert("squisher.lambda".into(), options.lambda.to_string());
        metadata.extend(options.gamma.map(|gamma| ("squisher.gamma".into(), gamma.to_string())));
        metadata.insert("squisher.version".into(), env!("CARGO_PKG_VERSION").into());
        OutputLayout::single(tensors, metadata)
    }

    pub(super) fn verify_unchanged(&self) -> Result<()> {
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
