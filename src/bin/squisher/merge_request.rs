//! What a merge is asked to do, whether a recipe file or flags say it.

use std::path::PathBuf;

use clap::ValueEnum;
use squisher::DType;
use squisher::methods::merge as methods;

use crate::non_finite::NonFinite;

/// One merge: which models, how, and in which type the result is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MergeRequest {
    pub(crate) method: Method,
    /// The models in the order they were given, at least one.
    pub(crate) models: Vec<Source>,
    /// θ₀ of `ubgm`.
    pub(crate) base: Option<PathBuf>,
    /// F₀ of `ubgm`.
    pub(crate) base_fisher: Option<PathBuf>,
    pub(crate) options: Options,
}

/// A model, its Fisher and its coefficient λ.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Source {
    pub(crate) model: PathBuf,
    pub(crate) fisher: Option<PathBuf>,
    pub(crate) weight: f64,
}

/// What applies to all models. What was not said is left to the method.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
pub(crate) struct Options {
    /// Divide each model's Fisher by its mean or its L2 norm over all parameters first
    ///
    /// Needed where batch sizes or step counts differ: merging is blind to a common scale only.
    #[arg(long, value_enum)]
    pub(crate) normalize: Option<Normalize>,

    /// Raise each Fisher to at least R times its mean
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) floor: Option<f64>,

    /// What to do with a tensor that has no Fisher in one model [default: error]
    #[arg(long, value_enum)]
    pub(crate) missing: Option<Missing>,

    /// Element type of the result: f32, f16 or bf16 [default: the first model's; f32 for f64, since
    /// arithmetic is f32]
    #[arg(long, value_name = "D")]
    pub(crate) dtype: Option<DType>,

    /// δ of ubgm, added to F₀ [default: 0]
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    pub(crate) delta: Option<f64>,

    /// What to do with Fishers that are NaN, infinite or negative [default: error]
    #[arg(long, value_enum)]
    pub(crate) non_finite: Option<NonFinite>,

    /// Accept Fishers whose files say that their kinds, reductions or scales differ
    #[arg(long)]
    pub(crate) allow_mixed: bool,
}

/// How models are averaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Method {
    /// Σ λ θ / Σ λ
    Linear,
    /// Σ λ F θ / Σ λ F
    Fisher,
    /// θ₀ + Σ λ (F₀ + F)(θ − θ₀) / (F₀ + Σ λ F)
    Ubgm,
}

/// What each Fisher is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Normalize {
    /// Nothing
    None,
    /// Its mean over all parameters
    Mean,
    /// Its L2 norm over all parameters
    Norm,
}

/// What happens to a tensor that has no Fisher in one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Missing {
    /// The merge is refused
    Error,
    /// That tensor is averaged linearly
    Average,
}

impl MergeRequest {
    /// What is wrong with the request as it stands, before any file is opened.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.models.is_empty() {
            return Err("no models; give at least one".to_owned());
        }
        self.models.iter().try_for_each(check_weight)?;
        self.check_floor()?;
        self.check_delta()?;
        match self.method {
            Method::Linear => self.check_base_unused(),
            Method::Fisher => self.check_base_unused().and_then(|()| self.check_fishers()),
            Method::Ubgm => self.check_base().and_then(|()| self.check_fishers()),
        }
    }

    fn check_floor(&self) -> Result<(), String> {
        match self.options.floor {
            Some(floor) if !(floor.is_finite() && floor >= 0.0) => {
                Err(format!("floor is {floor}, expected a finite number of at least 0"))
            }
            _ => Ok(()),
        }
    }

    fn check_delta(&self) -> Result<(), String> {
        match self.options.delta {
            Some(_) if self.method != Method::Ubgm => {
                Err("delta belongs to method ubgm; leave it out".to_owned())
            }
            Some(delta) if !(delta.is_finite() && delta >= 0.0) => {
                Err(format!("delta is {delta}, expected a finite number of at least 0"))
            }
            _ => Ok(()),
        }
    }

    /// What was given and has no use for the method: worth a word, and harmless.
    pub(crate) fn unused(&self) -> Vec<String> {
        if self.method != Method::Linear {
            return Vec::new();
        }
        let given = [
            (self.models.iter().any(|source| source.fisher.is_some()), "fisher"),
            (self.options.normalize.is_some(), "normalize"),
            (self.options.floor.is_some(), "floor"),
            (self.options.missing.is_some(), "missing"),
            (self.options.non_finite.is_some(), "non_finite"),
            (self.options.allow_mixed, "allow_mixed"),
        ];
        let unused = given.iter().filter(|(given, _)| *given);
        unused.map(|(_, what)| format!("method linear has no use for {what}; it is ignored")).collect()
    }

    fn check_base_unused(&self) -> Result<(), String> {
        if self.base.is_some() || self.base_fisher.is_some() {
            let method = self.method.name();
            return Err(format!("method {method} has no use for a base; leave it out, or choose ubgm"));
        }
        Ok(())
    }

    fn check_base(&self) -> Result<(), String> {
        match (&self.base, &self.base_fisher) {
            (Some(_), Some(_)) => Ok(()),
            (None, _) => Err("method ubgm needs the base model that the models were trained from".to_owned()),
            (_, None) => Err("method ubgm needs the Fisher of the base model".to_owned()),
        }
    }

    fn check_fishers(&self) -> Result<(), String> {
        match self.models.iter().find(|source| source.fisher.is_none()) {
            Some(source) => {
                let (method, model) = (self.method.name(), source.model.display());
                Err(format!("method {method} needs a Fisher for every model, {model} has none"))
            }
            None => Ok(()),
        }
    }
}

impl From<Method> for methods::Method {
    fn from(method: Method) -> Self {
        match method {
            Method::Linear => Self::Linear,
            Method::Fisher => Self::Fisher,
            Method::Ubgm => Self::Ubgm,
        }
    }
}

impl From<Normalize> for methods::Normalize {
    fn from(normalize: Normalize) -> Self {
        match normalize {
            Normalize::None => Self::None,
            Normalize::Mean => Self::Mean,
            Normalize::Norm => Self::Norm,
        }
    }
}

impl From<Missing> for methods::Missing {
    fn from(missing: Missing) -> Self {
        match missing {
            Missing::Error => Self::Error,
            Missing::Average => Self::Average,
        }
    }
}

impl Method {
    /// As it is written on the command line and in a recipe.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Fisher => "fisher",
            Self::Ubgm => "ubgm",
        }
    }
}

fn check_weight(source: &Source) -> Result<(), String> {
    let Source { weight, model, .. } = source;
    if weight.is_finite() && *weight >= 0.0 {
        return Ok(());
    }
    Err(format!("weight of {} is {weight}, expected a finite number of at least 0", model.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method) -> MergeRequest {
        let source = |model: &str, fisher: &str| Source {
            model: model.into(),
            fisher: (method != Method::Linear).then(|| fisher.into()),
            weight: 1.0,
        };
        let base = (method == Method::Ubgm).then(|| PathBuf::from("m0"));
        MergeRequest {
            method,
            models: vec![source("a", "fa"), source("b", "fb")],
            base_fisher: base.clone(),
            base,
            options: Options::default(),
        }
    }

    fn refusal(method: Method, change: impl Fn(&mut MergeRequest)) -> String {
        let mut changed = request(method);
        assert_eq!(changed.check(), Ok(()), "refused before the change");
        change(&mut changed);
        changed.check().expect_err("the change must be refused")
    }

    #[test]
    fn what_a_method_needs_must_be_there() {
        let text = refusal(Method::Fisher, |r| r.models[1].fisher = None);
        assert_eq!(text, "method fisher needs a Fisher for every model, b has none");
        assert!(refusal(Method::Ubgm, |r| r.base = None).contains("needs the base model"));
        assert!(refusal(Method::Ubgm, |r| r.base_fisher = None).contains("Fisher of the base"));
        assert!(refusal(Method::Linear, |r| r.models.clear()).contains("no models"));
    }

    #[test]
    fn what_linear_has_no_use_for_is_named_and_ignored() {
        let unused = |change: fn(&mut MergeRequest)| {
            let mut changed = request(Method::Linear);
            assert!(changed.unused().is_empty(), "named before the change");
            change(&mut changed);
            assert_eq!(changed.check(), Ok(()));
            changed.unused().join("; ")
        };
        assert!(unused(|r| r.models[0].fisher = Some("f".into())).contains("no use for fisher"));
        assert!(unused(|r| r.options.normalize = Some(Normalize::Mean)).contains("no use for normalize"));
        assert!(unused(|r| r.options.floor = Some(0.1)).contains("no use for floor"));
        assert!(unused(|r| r.options.missing = Some(Missing::Average)).contains("no use for missing"));
    }

    #[test]
    fn a_base_that_the_method_would_ignore_is_refused() {
        assert!(refusal(Method::Linear, |r| r.base = Some("m0".into())).contains("no use for a base"));
        assert!(refusal(Method::Fisher, |r| r.base_fisher = Some("f0".into())).contains("choose ubgm"));
    }

    #[test]
    fn numbers_must_be_finite_and_not_negative() {
        for bad in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(refusal(Method::Fisher, |r| r.models[1].weight = bad).contains("weight of b is"));
            assert!(refusal(Method::Fisher, |r| r.options.floor = Some(bad)).contains("floor is"));
        }
    }
}
