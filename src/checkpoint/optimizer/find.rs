//! Where the optimizer state lies: which file of a folder, and which dict of a file.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::checkpoint::pickle::{Id, Node, Outline};
use crate::error::{Error, Result, printable};

/// The file meant by a path: itself, or the optimizer state of a checkpoint folder.
pub(super) fn file_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.join(".metadata").is_file() {
        let problem = "a distributed checkpoint; convert it with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch` first";
        return Err(Error::file(path, problem));
    }
    let found: Vec<PathBuf> = ["optimizer.pt", "optimizer.bin"]
        .iter()
        .map(|name| path.join(name))
        .filter(|p| p.is_file())
        .collect();
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(Error::file(
            path,
            "a folder without optimizer.pt or optimizer.bin; name the optimizer's file",
        )),
        _ => Err(Error::file(path, "a folder with both optimizer.pt and optimizer.bin; name the file")),
    }
}

/// Find the dict with `state` and `param_groups`, and the keys that lead to it.
pub(super) fn find_optimizer(path: &Path, outline: &Outline) -> Result<(Id, Vec<String>)> {
    if let Node::Made { by, .. } = outline.node(outline.root()) {
        let problem = format!(
            "holds a whole pickled object ({}), which only running its code could open; save optimizer.state_dict() instead",
            printable(by)
        );
        return Err(Error::file(path, problem));
    }
    let mut found = optimizers_within(outline);
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::file(path, no_optimizer(outline))),
        n => {
            let places: Vec<String> = found.iter().map(|(_, keys)| printable(&keys.join("."))).collect();
            let problem = format!(
                "holds {n} optimizer states ({}); save the one you mean on its own",
                places.join(", ")
            );
            Err(Error::file(path, problem))
        }
    }
}

/// Optimizer states within three levels of the root.
fn optimizers_within(outline: &Outline) -> Vec<(Id, Vec<String>)> {
    let mut seen = HashSet::new();
    let mut level = vec![(outline.root(), Vec::new())];
    let mut found = Vec::new();
    for _ in 0..4 {
        let mut below = Vec::new();
        for (id, keys) in level {
            if !seen.insert(id) {
                continue;
            }
            if outline.get(id, "state").is_some() && outline.get(id, "param_groups").is_some() {
                found.push((id, keys));
            } else {
                below.extend(outline.children(id, &keys));
            }
        }
        level = below;
    }
    found
}

/// Why a file is not an optimizer state, with the way out for the kinds that are well known.
fn no_optimizer(outline: &Outline) -> String {
    let keys: Vec<&str> = outline
        .pairs(outline.root())
        .unwrap_or_default()
        .iter()
        .filter_map(|&(k, _)| outline.text(k))
        .collect();
    let nested = outline.get(outline.root(), "optimizer_state_dict");
    let has = |key| keys.contains(&key) || nested.is_some_and(|id| outline.get(id, key).is_some());
    if has("zero_stage") || has("base_optimizer_state") {
        return "a shard of DeepSpeed ZeRO; convert the checkpoint with DeepSpeed's ds_to_universal and gather it first".into();
    }
    let some: Vec<String> = keys.iter().take(8).map(|k| printable(k)).collect();
    let root = outline.kind(outline.root());
    if some.is_empty() {
        return format!(
            "holds {root}, expected optimizer.state_dict() (a dict with \"state\" and \"param_groups\")"
        );
    }
    format!(
        "holds no optimizer state (a dict with \"state\" and \"param_groups\"); its keys are {}{}; save optimizer.state_dict()",
        some.join(", "),
        if keys.len() > some.len() { ", …" } else { "" }
    )
}

pub(super) fn refused_by_reader(path: &Path, outline: &Outline, e: &pytorch_reader::PytorchError) -> Error {
    let imports = outline.foreign_imports();
    if imports.is_empty() {
        return Error::file(path, format!("cannot be read: {e}"));
    }
    let names: Vec<String> = imports.iter().map(|i| printable(i)).collect();
    Error::file(path, format!("cannot be read: {e}; it imports {}, which is not followed", names.join(", ")))
}
