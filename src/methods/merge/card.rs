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
pub(super) fn text(options: &MergeOptions, of_transformers: bool) -> String {
    let (method, recipe) = (method_name(options.method), recipe(options));
    let library = if of_transformers { "library_name: transformers\n" } else { "" };
    format!(
        "---\n{library}tags:\n- merge\n- squisher\n---\n\n# Merged model\n\n\
         Merged with squisher {} by the method `{method}`.\n\n```yaml\n{recipe}```\n\n\
         Relative paths are relative to the folder in which `squisher merge` ran: with the recipe there, \
         `squisher merge recipe.yml -o merged` makes the same merge.\n",
        env!("CARGO_PKG_VERSION")
    )
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
    if let Some(base) = options.base.as_ref().filter(|base| base.delta != 0.0) {
        parameters.push(format!("delta: {:?}", base.delta));
    }
    if options.non_finite == NonFinite::Zero {
        parameters.push("non_finite: zero".into());
    }
    if options.allow_mixed {
        parameters.push("allow_mixed: true".into());
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
