//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::disk;
use super::header::{MAX_HEADER_BYTES, UniqueStrings};
use crate::error::{Error, Result, printable};

/// How every index file's name ends.
pub(super) const INDEX_SUFFIX: &str = ".safetensors.index.json";

/// What an index file says.
pub(super) struct Index {
    /// Tensor name to shard name, every shard name a plain file name.
    pub(super) weight_map: BTreeMap<String, String>,
    /// The sum of the tensors' bytes as stated, where it is stated as a whole number.
    pub(super) total_size: Option<u64>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueStrings,
    #[serde(default)]
    metadata: Option<serde_json::Map<String, serde_json::Value>>,
}

/// Reads and checks an index file, though not yet against its shards.
pub(super) fn read(path: &Path) -> Result<Index> {
    let file = super::open::open_regular(path)?;
    let bytes = file.metadata().map_err(|error| Error::io("read", path, error))?.len();
    if bytes > MAX_HEADER_BYTES {
        let problem = format!("an index of {bytes} bytes; the limit is {MAX_HEADER_BYTES}");
        return Err(Error::file(path, problem));
    }
    let mut json = vec![0; usize::try_from(bytes).expect("at most MAX_HEADER_BYTES, checked above")];
    disk::read_exact_at(&file, &mut json, 0).map_err(|error| Error::io("read", path, error))?;
    let raw: RawIndex = serde_json::from_slice(&json).map_err(|error| {
        Error::file(path, format!("not a valid index of shards: {error}; fetch it again"))
    })?;
    for (tensor, shard) in &raw.weight_map.0 {
        if !is_plain_file_name(shard) {
            let problem = format!(
                "the index places it in {}, which is not a plain file name beside the index; refused",
                printable(shard)
            );
            return Err(Error::tensor(path, tensor, problem));
        }
    }
    let total_size = raw.metadata.and_then(|metadata| metadata.get("total_size")?.as_u64());
    Ok(Index { weight_map: raw.weight_map.0, total_size })
}

/// Whether `name` names a file in the folder it is looked up in, on every system, and nothing else.
pub(super) fn is_plain_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['/', '\\', ':', '\0'])
}

/// The index file's text: keys sorted, two spaces a level, a newline at the end.
pub(super) fn build(weight_map: &BTreeMap<&str, &str>, total_size: u64) -> String {
    #[derive(Serialize)]
    struct Metadata {
        total_size: u64,
    }
    #[derive(Serialize)]
    struct Json<'a> {
        metadata: Metadata,
        weight_map: &'a BTreeMap<&'a str, &'a str>,
    }

    let json = Json { metadata: Metadata { total_size }, weight_map };
    let mut text = serde_json::to_string_pretty(&json).expect("maps of strings and numbers always serialize");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_file_names_are_plain() {
        for good in ["model.safetensors", "model-00001-of-00002.safetensors", "..x", "a b", "ü"] {
            assert!(is_plain_file_name(good), "{good}");
        }
        for bad in ["", ".", "..", "../x", "/x", "a/b", "a/", "./a", "a\\b", "C:x", "a\0b"] {
            assert!(!is_plain_file_name(bad), "{bad:?}");
        }
    }
}
