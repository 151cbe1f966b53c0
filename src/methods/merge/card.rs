//! The model card of a merged folder: what it was made of, so that it can be made again.

use std::fmt::Write as _;

use super::{MergeOptions, Method, Missing, NonFinite, Normalize};

/// The method as recipes spell it.
pub(super) fn method_name(method: Method) -> &'static str {
    match method {
        Method::Linear => "linear",
        Method::Fisher => "fisher",
        Method::Ubgm => "ubgm",
    }
}

/// The card, with the recipe that makes the same merge.
pub(super) fn text(options: &MergeOptions) -> String {
    let method = method_name(options.method);
    let mut card = String::from(
        "---\nlibrary_name: transformers\ntags:\n- merge\n- squisher\n---\n\n# Merged model\n\n",
    );
    let _ = writeln!(card, "Merged with squisher {} by the method `{method}`.\n", env!("CARGO_PKG_VERSION"));
    card.push_str("```yaml\n");
    card.push_str(&recipe(options));
    card.push_str("```\n");
    let flags = flags(options);
    if !flags.is_empty() {
        let _ = writeln!(card, "\nBesides the recipe: `{}`.", flags.join(" "));
    }
    card
}

/// What changes the result and has no place in a recipe.
pub(super) fn flags(options: &MergeOptions) -> Vec<String> {
    let mut flags = Vec::new();
    if let Some(base) = options.base.as_ref().filter(|base| base.delta != 0.0) {
        flags.push(format!("--delta {:?}", base.delta));
    }
    if options.non_finite == NonFinite::Zero {
        flags.push("--non-finite zero".to_owned());
    }
    if options.allow_mixed {
        flags.push("--allow-mixed".to_owned());
    }
    flags
}

/// The recipe as YAML; paths as they were given.
pub(super) fn recipe(options: &MergeOptions) -> String {
    let mut yaml = format!("merge_method: {}\nmodels:\n", method_name(options.method));
    for model in &options.models {
        let _ = writeln!(yaml, "  - model: {}", quoted(&model.path.display().to_string()));
        let _ = writeln!(yaml, "    parameters:\n      weight: {}", model.weight);
        if let Some(fisher) = &model.fisher {
            let _ = writeln!(yaml, "      fisher: {}", quoted(&fisher.display().to_string()));
        }
    }
    if let Some(base) = &options.base {
        let _ = writeln!(yaml, "base_model: {}", quoted(&base.path.display().to_string()));
    }
    let mut parameters = Vec::new();
    if let Some(base) = &options.base {
        parameters.push(format!("base_fisher: {}", quoted(&base.fisher.display().to_string())));
    }
    match options.normalize {
        Normalize::None => {}
        Normalize::Mean => parameters.push("normalize: mean".into()),
        Normalize::Norm => parameters.push("normalize: norm".into()),
    }
    if options.floor > 0.0 {
        parameters.push(format!("floor: {:?}", options.floor));
    }
    if options.missing == Missing::Average {
        parameters.push("missing: average".into());
    }
    if !parameters.is_empty() {
        yaml.push_str("parameters:\n");
        parameters.iter().for_each(|line| yaml.push_str(&format!("  {line}\n")));
    }
    if let Some(dtype) = options.dtype {
        let _ = writeln!(yaml, "dtype: {dtype}");
    }
    yaml
}

/// A path as a YAML string: JSON's quoting is YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
