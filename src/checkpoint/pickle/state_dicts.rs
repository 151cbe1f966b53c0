//! The state dicts in an outline: dicts whose values are all tensors, in the order of their definition.

use std::collections::HashSet;

use pytorch_reader::{DType as Stored, PytorchReader};

use super::{Id, Outline};

/// A state dict found in a file.
#[derive(Debug)]
pub(crate) struct StateDict {
    /// The keys that lead to it.
    pub(crate) container: Vec<String>,
    /// Its tensors as they were defined, a tied tensor under its first name only.
    pub(crate) names: Vec<String>,
}

impl StateDict {
    /// The reader's handle of one of its tensors.
    pub(crate) fn tensor<'a>(
        &self,
        reader: &'a PytorchReader,
        name: &str,
    ) -> Option<&'a pytorch_reader::Tensor> {
        let keys: Vec<&str> = self.container.iter().map(String::as_str).chain([name]).collect();
        reader.get(&keys.join("."))
    }

    /// The names of its floating-point tensors, in order.
    pub(crate) fn float_names(self, reader: &PytorchReader) -> Vec<String> {
        let float = |name: &String| self.tensor(reader, name).is_some_and(|tensor| is_float(tensor.dtype()));
        self.names.iter().filter(|name| float(name)).cloned().collect()
    }
}

/// Whether a parameter can have this type.
pub(crate) fn is_float(dtype: Stored) -> bool {
    matches!(dtype, Stored::F64 | Stored::F32 | Stored::F16 | Stored::BF16)
}

/// Every dict of names to tensors within two levels of the root, apart from what lies under `except`.
pub(crate) fn state_dicts(outline: &Outline, except: &[Id]) -> Vec<StateDict> {
    let mut seen: HashSet<Id> = except.iter().copied().collect();
    let mut level = vec![(outline.root(), Vec::new())];
    let mut found = Vec::new();
    for _ in 0..3 {
        let mut below = Vec::new();
        for (id, container) in level {
            if !seen.insert(id) {
                continue;
            }
            let Some(pairs) = outline.pairs(id) else { continue };
            match tensor_names(outline, pairs) {
                Some(names) => found.push(StateDict { container, names }),
                None => below.extend(outline.children(id, &container)),
            }
        }
        level = below;
    }
    found
}

/// The names of a dict whose values are all tensors; a second name of the same tensor is left out.
fn tensor_names(outline: &Outline, pairs: &[(Id, Id)]) -> Option<Vec<String>> {
    let mut seen = HashSet::new();
    let mut names = Vec::new();
    for &(key, value) in pairs {
        let name = outline.text(key)?;
        if seen.insert(outline.tensor_identity(value)?) {
            names.push(name.to_owned());
        }
    }
    (!names.is_empty()).then_some(names)
}
