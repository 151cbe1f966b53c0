//! The configuration beside a merged model.

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::shape::DType;

/// The configuration's name.
pub(super) const NAME: &str = "config.json";

/// What a model's `config.json` says, where there is one that can be read.
pub(super) fn of(model: &Checkpoint) -> Option<Value> {
    let files = model.side_files().ok()?;
    let config = files.iter().find(|file| file.file_name().is_some_and(|name| name == NAME))?;
    serde_json::from_str(&std::fs::read_to_string(config).ok()?).ok()
}

/// A configuration whose weights are stored as `dtype`: `torch_dtype`, `dtype` since transformers 5, by which
/// loaders choose what they make of the weights. All else keeps its order and its values, and is written anew
/// (1e-05 as 0.00001). Nothing where it says so already, or says nothing.
pub(super) fn stored_as(mut config: Value, dtype: DType) -> Option<String> {
    let stored = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
    };
    let mut changed = false;
    for key in ["torch_dtype", "dtype"] {
        if let Some(Value::String(said)) = config.get_mut(key)
            && said != stored
        {
            stored.clone_into(said);
            changed = true;
        }
    }
    // A value always serializes.
    changed.then(|| format!("{config:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str) -> Option<String> {
        stored_as(serde_json::from_str(text).expect("sound"), DType::BF16)
    }

    #[test]
    fn the_type_of_the_weights_is_changed_and_nothing_else() {
        let text = r#"{"z": 1e-5, "torch_dtype": "float32", "a": {"torch_dtype": "float32"}, "b": [10000.0, null, "ü"]}"#;
        let want = "{\n  \"z\": 0.00001,\n  \"torch_dtype\": \"bfloat16\",\n  \"a\": {\n    \"torch_dtype\": \"float32\"\n  },\n  \
                    \"b\": [\n    10000.0,\n    null,\n    \"ü\"\n  ]\n}\n";
        assert_eq!(changed(text).as_deref(), Some(want));
        assert_eq!(changed(r#"{"dtype": "float16"}"#).as_deref(), Some("{\n  \"dtype\": \"bfloat16\"\n}\n"));
        for same in
            [r#"{"torch_dtype": "bfloat16"}"#, r#"{"architectures": ["X"]}"#, r#"{"dtype": null}"#, "[]", "1"]
        {
            assert_eq!(changed(same), None, "{same}");
        }
    }
}
