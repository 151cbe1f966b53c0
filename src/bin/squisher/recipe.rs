//! A merge recipe: YAML shaped like mergekit's, so that recipes carry over.
//!
//! ```yaml
//! merge_method: fisher            # linear, fisher or ubgm
//! models:
//!   - model: finetuned-a
//!     parameters: { weight: 0.6, fisher: fisher-a.safetensors }
//!   - model: finetuned-b
//!     parameters: { weight: 0.4, fisher: fisher-b.safetensors }
//! parameters: { normalize: mean, floor: 1.0e-6, missing: average }
//! dtype: bfloat16
//! ```
//!
//! `base_model`, with `base_fisher` and `delta` among the parameters, belongs to `ubgm`. The parameters also
//! take `non_finite` (`error` or `zero`) and `allow_mixed`. A weight that is left out is 1; only ratios
//! matter. Paths are relative to the recipe's folder. A key that would change the result in mergekit and does
//! not here is refused by name, and so is any key that neither of the two knows.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use clap::ValueEnum;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, Visitor};
use serde_saphyr::{Location, Spanned};
use squisher::{DType, Error};

use crate::merge_request::{MergeRequest, Method, Normalize, Options, Source};

/// Reads the recipe at `path`.
///
/// # Errors
/// [`Error::Io`] where it cannot be read; [`Error::File`] with line and column for everything it gets wrong.
pub(crate) fn read(path: &Path) -> Result<MergeRequest, Error> {
    let no_recipe = || Error::file(path, "is not a YAML recipe; a model is given with --model");
    let metadata = std::fs::metadata(path).map_err(|error| Error::io("read", path, error))?;
    // A pipe would block, and a folder is a model.
    if !metadata.is_file() {
        return Err(no_recipe());
    }
    let bytes = read_bytes(path).map_err(|error| Error::io("read", path, error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(no_recipe());
    }
    let text = String::from_utf8(bytes).map_err(|_| no_recipe())?;
    let folder = path.parent().unwrap_or(Path::new(""));
    parse(&text, folder).map_err(|problem| Error::file(path, problem))
}

/// No recipe is longer; what is longer was meant to be something else.
const MAX_BYTES: u64 = 1 << 20;

fn read_bytes(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The request that `text` makes, with paths relative to `folder`.
fn parse(text: &str, folder: &Path) -> Result<MergeRequest, String> {
    let recipe: Recipe = serde_saphyr::from_str(text).map_err(|error| yaml_problem(&error))?;
    recipe.refuse_unsupported()?;
    let method = one_of::<Method>("merge_method", &recipe.merge_method)?;
    let parameters = recipe.parameters.unwrap_or_default();
    let request = MergeRequest {
        method,
        models: recipe.models.iter().flatten().map(|entry| entry.source(folder)).collect(),
        base: recipe.base_model.map(|base| folder.join(base)),
        base_fisher: parameters.base_fisher.as_ref().map(|fisher| folder.join(fisher)),
        options: parameters.options(method, recipe.dtype.as_ref())?,
    };
    request.check().map(|()| request)
}

/// The recipe as it is written.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    merge_method: Spanned<String>,
    models: Option<Vec<Model>>,
    base_model: Option<String>,
    dtype: Option<Spanned<String>>,
    parameters: Option<Parameters>,

    // What mergekit knows and this does not; see `refuse_unsupported`.
    slices: Option<Spanned<IgnoredAny>>,
    modules: Option<Spanned<IgnoredAny>>,
    out_dtype: Option<Spanned<IgnoredAny>>,
    tokenizer_source: Option<Spanned<IgnoredAny>>,
    tokenizer: Option<Spanned<IgnoredAny>>,
    chat_template: Option<Spanned<IgnoredAny>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    model: String,
    parameters: Option<ModelParameters>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelParameters {
    weight: Option<Weight>,
    fisher: Option<String>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    normalize: Option<Spanned<String>>,
    floor: Option<f64>,
    missing: Option<Spanned<String>>,
    base_fisher: Option<String>,
    delta: Option<f64>,
    non_finite: Option<Spanned<String>>,
    allow_mixed: Option<bool>,
}

impl Recipe {
    fn refuse_unsupported(&self) -> Result<(), String> {
        let refusals = [
            ("slices", &self.slices, "models are merged whole: list them under `models`"),
            ("modules", &self.modules, "models are merged whole: list them under `models`"),
            ("out_dtype", &self.out_dtype, "arithmetic is always f32: name the stored type with `dtype`"),
            ("tokenizer_source", &self.tokenizer_source, TOKENIZER),
            ("tokenizer", &self.tokenizer, TOKENIZER),
            ("chat_template", &self.chat_template, TOKENIZER),
        ];
        match refusals.iter().find_map(|(key, given, remedy)| given.as_ref().map(|at| (key, at, remedy))) {
            Some((key, at, remedy)) => {
                Err(format!("{}`{key}` is not supported; {remedy}", position(Some(at.referenced))))
            }
            None => Ok(()),
        }
    }
}

const TOKENIZER: &str = "the first model's tokenizer and its templates are copied as they are";

impl Model {
    fn source(&self, folder: &Path) -> Source {
        let parameters = self.parameters.as_ref();
        let fisher = parameters.and_then(|parameters| parameters.fisher.as_ref());
        let weight = parameters.and_then(|parameters| parameters.weight.as_ref());
        Source {
            model: folder.join(&self.model),
            fisher: fisher.map(|fisher| folder.join(fisher)),
            weight: weight.map_or(1.0, |weight| weight.0),
        }
    }
}

impl Parameters {
    fn options(&self, method: Method, dtype: Option<&Spanned<String>>) -> Result<Options, String> {
        let missing = self.missing.as_ref().map(|missing| one_of("missing", missing)).transpose()?;
        let non_finite = self.non_finite.as_ref().map(|word| one_of("non_finite", word)).transpose()?;
        Ok(Options {
            normalize: self.normalize(method)?,
            floor: self.floor,
            missing,
            dtype: stored(dtype)?,
            delta: self.delta,
            non_finite,
            allow_mixed: self.allow_mixed.unwrap_or(false),
        })
    }

    /// In mergekit's linear recipes `normalize: true` says that weights are divided by their sum, which is always done.
    fn normalize(&self, method: Method) -> Result<Option<Normalize>, String> {
        let Some(normalize) = &self.normalize else { return Ok(None) };
        match (method, normalize.value.as_str()) {
            (Method::Linear, "true") => Ok(None),
            (Method::Linear, "false") => {
                let at = position(Some(normalize.referenced));
                Err(format!("{at}`normalize: false` is not supported; weights are divided by their sum"))
            }
            _ => one_of("normalize", normalize).map(Some),
        }
    }
}

fn stored(dtype: Option<&Spanned<String>>) -> Result<Option<DType>, String> {
    let Some(dtype) = dtype else { return Ok(None) };
    let parsed = dtype.value.parse();
    parsed.map(Some).map_err(|problem: Error| format!("{}{problem}", position(Some(dtype.referenced))))
}

/// A word that is one of an option's values, in the spelling of the command line.
fn one_of<T: ValueEnum>(key: &str, word: &Spanned<String>) -> Result<T, String> {
    T::from_str(&word.value, false).map_err(|_| {
        let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let names: Vec<String> = values.map(|value| value.get_name().to_owned()).collect();
        let at = position(Some(word.referenced));
        format!("{at}`{key}` is \"{}\", expected one of {}", word.value.escape_debug(), names.join(", "))
    })
}

/// A number; mergekit's lists (a gradient over layers, or values by filter) are refused by name.
struct Weight(f64);

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(WeightVisitor)
    }
}

struct WeightVisitor;

impl<'de> Visitor<'de> for WeightVisitor {
    type Value = Weight;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }

    fn visit_f64<E>(self, value: f64) -> Result<Weight, E> {
        Ok(Weight(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Weight, E> {
        u32::try_from(value).map(|value| Weight(value.into())).map_err(|_| E::custom("weight above 2^32"))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Weight, E> {
        i32::try_from(value).map(|value| Weight(value.into())).map_err(|_| E::custom("weight beyond ±2^31"))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, _: A) -> Result<Weight, A::Error> {
        Err(de::Error::custom(
            "a list of weights is not supported (neither gradients over layers nor filters); \
                               give one number for the whole model",
        ))
    }
}

/// The parser's complaint on one line, led by where it is instead of followed by it.
fn yaml_problem(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let problem = text.lines().next().unwrap_or_default();
    let at = error.location();
    let suffix = at.map(|at| format!(" at line {}, column {}", at.line(), at.column())).unwrap_or_default();
    format!("{}{}", position(at), for_users(problem.strip_suffix(&suffix).unwrap_or(problem)))
}

/// A complaint without what the parser says to those who program with it.
fn for_users(problem: &str) -> String {
    let hints = [", set ", "; use "];
    let said = hints.iter().fold(problem, |said, &hint| said.split(hint).next().unwrap_or(said));
    said.replace(" rejected by the configured policy", ", expected a finite number")
}

fn position(at: Option<Location>) -> String {
    at.map(|at| format!("line {}, column {}: ", at.line(), at.column())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge_request::Missing;
    use crate::non_finite::NonFinite;

    const FISHER: &str = "\
merge_method: fisher
models:
  - model: a
    parameters:
      weight: 0.5
      fisher: fa.safetensors
  - model: /abs/b
    parameters: {fisher: ../fb}
parameters: {normalize: mean, floor: 1.0e-6, missing: average}
dtype: bfloat16
";

    fn refusal(text: &str) -> String {
        parse(text, Path::new("folder")).expect_err("the recipe must be refused")
    }

    fn source(model: &str, fisher: Option<&str>, weight: f64) -> Source {
        Source { model: model.into(), fisher: fisher.map(Into::into), weight }
    }

    #[test]
    fn a_whole_recipe_is_read_with_paths_beside_it() {
        let request = parse(FISHER, Path::new("folder")).expect("a sound recipe");
        let options = Options {
            normalize: Some(Normalize::Mean),
            floor: Some(1e-6),
            missing: Some(Missing::Average),
            dtype: Some(DType::BF16),
            ..Options::default()
        };
        let models = vec![
            source("folder/a", Some("folder/fa.safetensors"), 0.5),
            source("/abs/b", Some("folder/../fb"), 1.0),
        ];
        let want = MergeRequest { method: Method::Fisher, models, base: None, base_fisher: None, options };
        assert_eq!(request, want);
    }

    #[test]
    fn ubgm_finds_its_base_and_the_base_fisher() {
        let text = "merge_method: ubgm\nbase_model: m0\nparameters: {base_fisher: f0}\n\
                    models: [{model: a, parameters: {fisher: fa, weight: 1}}]\n";
        let request = parse(text, Path::new("r")).expect("a sound recipe");
        assert_eq!((request.base, request.base_fisher), (Some("r/m0".into()), Some("r/f0".into())));
    }

    #[test]
    fn a_recipe_says_all_that_flags_say() {
        let text = "merge_method: ubgm\nbase_model: m0\n\
                    parameters: {base_fisher: f0, delta: 0.5, non_finite: zero, allow_mixed: true}\n\
                    models: [{model: a, parameters: {fisher: fa}}]\n";
        let options = parse(text, Path::new("")).expect("a sound recipe").options;
        assert_eq!((options.delta, options.non_finite), (Some(0.5), Some(NonFinite::Zero)));
        assert!(options.allow_mixed);
        let refused = refusal(&text.replace("zero", "nothing"));
        assert!(
            refused.starts_with("line 3, ") && refused.contains("expected one of error, zero"),
            "{refused}"
        );
        let refused = refusal(&text.replace("delta: 0.5", "delta: -1"));
        assert_eq!(refused, "delta is -1, expected a finite number of at least 0");
        let refused = refusal(&FISHER.replace("floor:", "delta: 1, floor:"));
        assert_eq!(refused, "delta belongs to method ubgm; leave it out");
    }

    #[test]
    fn a_linear_recipe_of_mergekit_carries_over() {
        let text = "models:\n  - model: a\n    parameters:\n      weight: 1\n  - model: b\n    parameters:\n      \
                    weight: 0.3\nmerge_method: linear\nparameters:\n  normalize: true\ndtype: float16\n";
        let request = parse(text, Path::new("")).expect("a sound recipe");
        assert_eq!(request.models, [source("a", None, 1.0), source("b", None, 0.3)]);
        assert_eq!(request.options, Options { dtype: Some(DType::F16), ..Options::default() });
    }

    #[test]
    fn unknown_keys_are_refused_where_they_stand() {
        let text = refusal(&FISHER.replace("weight: 0.5", "wieght: 0.5"));
        assert!(text.starts_with("line 5, column 7: ") && text.contains("wieght"), "{text}");
        let text = refusal(&FISHER.replace("dtype:", "dytpe:"));
        assert!(text.starts_with("line 10, column 1: ") && text.contains("dytpe"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn what_only_mergekit_does_is_refused_by_name() {
        for key in ["slices", "modules", "out_dtype", "tokenizer_source", "tokenizer", "chat_template"] {
            let text = refusal(&format!("{FISHER}{key}: union\n"));
            assert!(
                text.starts_with(&format!("line 11, column {}: `{key}` is not supported; ", key.len() + 3)),
                "{text}"
            );
        }
        for list in ["[0.1, 0.9]", "[{filter: mlp, value: 0.5}]"] {
            let text = refusal(&FISHER.replace("weight: 0.5", &format!("weight: {list}")));
            assert!(
                text.starts_with("line 5, ") && text.contains("a list of weights is not supported"),
                "{text}"
            );
        }
        let text = refusal(&FISHER.replace("merge_method: fisher", "merge_method: ties"));
        assert_eq!(
            text,
            "line 1, column 15: `merge_method` is \"ties\", expected one of linear, fisher, ubgm"
        );
        let text = refusal("merge_method: linear\nmodels: [{model: a}]\nparameters: {normalize: false}\n");
        assert!(text.starts_with("line 3, ") && text.contains("weights are divided by their sum"), "{text}");
    }

    #[test]
    fn complaints_of_the_parser_are_cut_to_what_concerns_recipes() {
        let twice = refusal(&format!("{FISHER}dtype: float16\n"));
        assert_eq!(twice, "line 11, column 1: duplicate mapping key: dtype");
        let infinite = refusal(&FISHER.replace("weight: 0.5", "weight: .inf"));
        assert_eq!(infinite, "line 5, column 15: non-finite float `.inf`, expected a finite number");
        let several = refusal(&format!("{FISHER}---\nmodels: []\n"));
        assert!(several.ends_with("multiple YAML documents detected"), "{several}");
    }

    #[test]
    fn what_is_no_text_is_no_recipe() {
        let folder = tempfile::tempdir().expect("a folder");
        let model = folder.path().join("a.safetensors");
        std::fs::write(&model, [0x10, 0xff, 0xfe]).expect("writes");
        for path in [model.as_path(), folder.path()] {
            let refused = read(path).expect_err("no recipe").to_string();
            assert!(refused.ends_with("is not a YAML recipe; a model is given with --model"), "{refused}");
        }
    }

    #[test]
    fn values_are_checked_where_they_stand() {
        let text = refusal(&FISHER.replace("bfloat16", "int4"));
        assert!(text.starts_with("line 10, column 8: ") && text.contains("int4"), "{text}");
        let text = refusal(&FISHER.replace("normalize: mean", "normalize: true"));
        assert!(text.starts_with("line 9, ") && text.contains("none, mean, norm"), "{text}");
        let text = refusal(&FISHER.replace("weight: 0.5", "weight: heavy"));
        assert!(text.starts_with("line 5, ") && text.contains("a number"), "{text}");
        let text = refusal(&FISHER.replace("weight: 0.5", "weight: .nan"));
        assert!(text.starts_with("line 5, ") && text.ends_with(".nan`, expected a finite number"), "{text}");
        let text = refusal(&FISHER.replace("weight: 0.5", "weight: -1"));
        assert_eq!(text, "weight of folder/a is -1, expected a finite number of at least 0");
    }

    #[test]
    fn a_recipe_that_is_no_recipe_is_refused() {
        assert!(refusal("").contains("line 1"), "{}", refusal(""));
        assert!(refusal("merge_method: linear\n").contains("no models"));
        assert!(refusal("merge_method: linear\nmerge_method: fisher\n").contains("line 2"));
        assert!(refusal("models: [").starts_with("line 1"));
        let missing = read(Path::new("no-such-recipe.yml")).expect_err("there is no such file");
        assert_eq!(missing.exit_code(), 3);
        let long = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(long.path(), vec![b' '; MAX_BYTES as usize + 1]).expect("it can be written");
        assert!(read(long.path()).expect_err("too long").to_string().contains("not a YAML recipe"));
    }
}
