//! The model's tensors by the names that optimizers know them by.

use std::collections::HashMap;

use super::Param;

/// The model's tensors by name, with and without the parts that wrappers add.
pub(super) struct Lookup<'a> {
    exact: HashMap<&'a str, usize>,
    /// By the bare name; nothing where two tensors share one.
    bare: HashMap<String, Option<usize>>,
}

impl<'a> Lookup<'a> {
    pub(super) fn new(model: &'a [Param]) -> Self {
        let exact = model.iter().enumerate().map(|(at, (name, _))| (name.as_str(), at)).collect();
        let mut all: HashMap<String, Option<usize>> = HashMap::new();
        for (at, (name, _)) in model.iter().enumerate() {
            all.entry(bare(name)).and_modify(|one| *one = None).or_insert(Some(at));
        }
        Self { exact, bare: all }
    }

    /// The tensor of exactly this name, else the one tensor whose name differs by wrappers alone.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.exact.get(name).copied().or_else(|| self.bare.get(&bare(name)).copied().flatten())
    }
}

/// Buffers of torch's batch norms; they have the shape of the parameters beside them and no optimizer knows them.
pub(super) fn is_running_statistic(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(last, "running_mean" | "running_var" | "num_batches_tracked")
}

/// A name without what wrappers add: DDP's `module.` in front, the parts of `torch.compile`, FSDP and
/// activation checkpointing anywhere, and PEFT's adapter name.
fn bare(name: &str) -> String {
    const ANYWHERE: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
    let parts: Vec<&str> = name.split('.').filter(|part| !ANYWHERE.contains(part)).collect();
    let leading = parts.iter().take_while(|part| **part == "module").count();
    let kept = &parts[leading.min(parts.len().saturating_sub(1))..];
    let adapter = |i: usize| kept[i] == "default" && i > 0 && kept[i - 1].starts_with("lora_");
    let kept: Vec<&str> = (0..kept.len()).filter(|&i| !adapter(i)).map(|i| kept[i]).collect();
    kept.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrappers_are_dropped_and_nothing_else() {
        assert_eq!(bare("module._orig_mod.a.weight"), "a.weight");
        assert_eq!(bare("module.module.a"), "a");
        assert_eq!(bare("layers.0._checkpoint_wrapped_module.w"), "layers.0.w");
        assert_eq!(bare("q.lora_A.default.weight"), "q.lora_A.weight");
        assert_eq!(bare("encoder.module.w"), "encoder.module.w");
        assert_eq!(bare("default.w"), "default.w");
        assert_eq!(bare("module"), "module");
    }

    #[test]
    fn names_that_differ_by_wrappers_alone_find_nothing_where_two_are_possible() {
        let model = vec![("module.a".to_owned(), vec![1]), ("_orig_mod.a".to_owned(), vec![1])];
        let lookup = Lookup::new(&model);
        assert_eq!(lookup.find("module.a"), Some(0));
        assert_eq!(lookup.find("a"), None);
    }
}
