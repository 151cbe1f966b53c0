//! The values of a pickle in one flat list, lists and dictionaries holding positions in it.

use std::collections::BTreeSet;

use crate::error::printable;

/// Where a value lies in an [`Outline`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub(super) u32);

/// One value of a pickle.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list, tuple or set.
    List(Vec<Id>),
    /// A dictionary, in the order in which it was written.
    Dict(Vec<(Id, Id)>),
    /// A module's member, by its dotted name.
    Import(String),
    /// What a call would have made; nothing was called.
    Made {
        by: String,
        args: Id,
    },
    /// A reference to a tensor's storage: the tuple that names it.
    Storage(Id),
    /// Bytes, or a whole number beyond 64 bits.
    Other,
}

/// A whole pickle, flat.
#[derive(Debug)]
pub(crate) struct Outline {
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
    pub(super) imports: BTreeSet<String>,
}

/// Imports that state dicts and optimizer states are made of. None of them does more than rebuild data.
const KNOWN_IMPORTS: &[&str] = &[
    "collections.OrderedDict",
    "collections.defaultdict",
    "builtins.set",
    "__builtin__.set",
    "builtins.dict",
    "__builtin__.dict",
    "_codecs.encode",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch.Size",
    "torch.device",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    "torch.UntypedStorage",
    "torch.FloatStorage",
    "torch.DoubleStorage",
    "torch.HalfStorage",
    "torch.BFloat16Storage",
    "torch.LongStorage",
    "torch.IntStorage",
    "torch.ShortStorage",
    "torch.CharStorage",
    "torch.ByteStorage",
    "torch.BoolStorage",
    "torch.float64",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
    "torch.int64",
    "torch.int32",
    "torch.int16",
    "torch.int8",
    "torch.uint64",
    "torch.uint32",
    "torch.uint16",
    "torch.uint8",
    "torch.bool",
];

impl Outline {
    /// The outermost value.
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// Imports that no state dict needs, as `posix.system`.
    pub(crate) fn foreign_imports(&self) -> Vec<String> {
        self.imports.iter().filter(|name| !KNOWN_IMPORTS.contains(&name.as_str())).cloned().collect()
    }

    /// The value of a dictionary under a text key; the last one where the key is repeated, as in Python.
    pub(crate) fn get(&self, dict: Id, key: &str) -> Option<Id> {
        self.pairs(dict)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|&(_, v)| v)
    }

    /// The pairs of a dictionary, in order.
    pub(crate) fn pairs(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.node(id) {
            Node::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// The items of a list, tuple or set.
    pub(crate) fn items(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::List(items) => Some(items),
            _ => None,
        }
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The values inside a dict (under texts) or list, with the keys that lead to them from the root.
    pub(crate) fn children(&self, id: Id, keys: &[String]) -> Vec<(Id, Vec<String>)> {
        let below = |key: String, value: Id| (value, [keys, &[key]].concat());
        match self.node(id) {
            Node::Dict(pairs) => {
                let texts = pairs.iter().filter_map(|&(k, v)| self.text(k).map(|key| (key.to_owned(), v)));
                texts.map(|(key, v)| below(key, v)).collect()
            }
            Node::List(items) => items.iter().enumerate().map(|(i, &v)| below(i.to_string(), v)).collect(),
            _ => Vec::new(),
        }
    }

    /// What a value is, in Python's words, for messages.
    pub(crate) fn kind(&self, id: Id) -> String {
        match self.node(id) {
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) => "an int".into(),
            Node::Float(_) => "a float".into(),
            Node::Text(_) => "a str".into(),
            Node::List(_) => "a list".into(),
            Node::Dict(_) => "a dict".into(),
            Node::Import(name) => format!("the import {}", printable(name)),
            Node::Made { by, .. } => format!("an object made by {}", printable(by)),
            Node::Storage(_) => "a storage".into(),
            Node::Other => "bytes or a very large int".into(),
        }
    }

    /// What tells two tensors apart: their storage, offset and size. Tied parameters share it.
    /// Nothing where the value is not a tensor.
    pub(crate) fn tensor_identity(&self, id: Id) -> Option<String> {
        let Node::Made { by, args } = self.node(id) else { return None };
        let args = self.items(*args)?;
        match by.as_str() {
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                self.tensor_identity_of_call(*args.first()?)
            }
            "torch._tensor._rebuild_from_type_v2" => self.storage_identity(self.items(*args.get(2)?)?),
            _ if by.starts_with("torch._utils._rebuild_tensor") => self.storage_identity(args),
            _ => None,
        }
    }

    /// [`Self::tensor_identity`] one level down: a parameter wraps a tensor, never another parameter.
    fn tensor_identity_of_call(&self, id: Id) -> Option<String> {
        let Node::Made { by, args } = self.node(id) else { return None };
        let plain = by.starts_with("torch._utils._rebuild_tensor");
        plain.then(|| self.storage_identity(self.items(*args)?)).flatten()
    }

    fn storage_identity(&self, args: &[Id]) -> Option<String> {
        let [storage, offset, size, ..] = args else { return None };
        let Node::Storage(name) = self.node(*storage) else { return None };
        let key = *self.items(*name)?.get(2)?;
        let sizes: Vec<&Node> = self.items(*size)?.iter().map(|&s| self.node(s)).collect();
        Some(format!("{:?} {:?} {sizes:?}", self.node(key), self.node(*offset)))
    }
}
