//! Optimizer states that PyTorch wrote: which parameters have one, what each holds, and its squared-gradient accumulator.
//!
//! **What a file holds.** `optimizer.state_dict()` is `{"state": {id: {key: value}}, "param_groups": [{…, "params": [id, …]}]}`. Ids count
//! through the groups in order; which parameter an id means is not said (see [`super::names`]), except in states that are
//! keyed by name (FSDP's full states) or that carry `param_names`. The dict may lie under a key of a larger one; it is found by looking.
//!
//! **What is guaranteed.** Nothing in the file is executed. Every value that is used was stored as a plain number, text or
//! tensor; where an object of an unknown import stands in a place that is needed, the import is named and the file refused. An accumulator comes
//! whole and checked: right size, checksum of the archive, no NaN, no infinity, no negative value. Tensors are read one at a time.
//!
//! **What is given up.** Sharded states (DeepSpeed ZeRO, distributed checkpoints) are not put together; the refusal says how to convert them.
//! A tensor of more than 10 GiB is refused by `pytorch-reader`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use pytorch_reader::{DType as Stored, PytorchReader};

use super::accumulator::Accumulator;
use super::pickle::{Id, Node, Outline, state_dicts};
use crate::error::{Error, Result, printable};
use crate::shape::{elements, shape_text};

/// How an optimizer state calls a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ParamId {
    /// Its place, counted through the groups.
    Index(i64),
    /// Its name, in states that are keyed by name.
    Name(String),
}

impl fmt::Display for ParamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// One `param_groups` entry: the parameters it lists and the settings that give an accumulator its meaning.
#[derive(Clone, Debug, Default)]
pub struct ParamGroup {
    /// Ids, in the order of the group.
    pub params: Vec<ParamId>,
    /// Names of the same parameters, where the state has them (`param_names`).
    pub names: Option<Vec<String>>,
    /// β₁ and β₂ of Adam and its kin.
    pub betas: Option<(f64, f64)>,
    /// Decay of RMSprop.
    pub alpha: Option<f64>,
    /// Decay of Adadelta.
    pub rho: Option<f64>,
    /// Weight decay, 0 where the group does not say.
    pub weight_decay: f64,
    /// Whether the decay stays out of the gradient; nothing where the group does not say (PyTorch before 2.7).
    pub decoupled_weight_decay: Option<bool>,
    /// The step, where it is kept per group.
    pub step: Option<f64>,
    /// Every key of the group, sorted.
    pub keys: Vec<String>,
    /// Keys whose value an unknown import would have to make, with that import.
    foreign: BTreeMap<String, String>,
}

/// A tensor of a parameter's state, not yet read.
#[derive(Clone, Debug)]
pub struct StateTensor {
    /// Its shape.
    pub shape: Vec<u64>,
    handle: pytorch_reader::Tensor,
}

impl StateTensor {
    /// The element type as stored, `f32`, `bf16`, `u8`, ….
    #[must_use]
    pub fn dtype(&self) -> &'static str {
        dtype_name(self.handle.dtype())
    }

    /// Whether its numbers have no more than 11 bits: a moving average with β near 1 stalls in them.
    #[must_use]
    pub fn is_half(&self) -> bool {
        matches!(self.handle.dtype(), Stored::F16 | Stored::BF16)
    }

    /// The number of elements.
    #[must_use]
    pub fn elements(&self) -> u64 {
        elements(&self.shape).unwrap_or(u64::MAX)
    }
}

/// What the optimizer keeps for one parameter.
#[derive(Clone, Debug)]
pub struct StateEntry {
    /// How the state calls the parameter.
    pub id: ParamId,
    /// Its group.
    pub group: usize,
    /// Its place among all parameters, counted through the groups.
    pub position: usize,
    /// The name the state itself gives it.
    pub name: Option<String>,
    /// Steps taken: the parameter's own, or its group's.
    pub step: Option<f64>,
    /// Its tensors by key.
    pub tensors: BTreeMap<String, StateTensor>,
    /// Every key, sorted.
    pub keys: Vec<String>,
    /// Keys whose value an unknown import would have to make, with that import.
    foreign: BTreeMap<String, String>,
}

impl StateEntry {
    /// A tensor's name in messages, `state.3.exp_avg_sq`.
    #[must_use]
    pub fn label(&self, key: &str) -> String {
        format!("state.{}.{key}", self.id)
    }

    /// The import that stands where `key` is needed.
    pub(crate) fn foreign(&self, key: &str) -> Option<&str> {
        self.foreign.get(key).map(String::as_str)
    }
}

impl ParamGroup {
    /// The import that stands where `key` is needed.
    pub(crate) fn foreign(&self, key: &str) -> Option<&str> {
        self.foreign.get(key).map(String::as_str)
    }
}

/// An optimizer state, opened: everything but the tensors' bytes.
#[derive(Debug)]
pub struct OptimizerState {
    path: PathBuf,
    groups: Vec<ParamGroup>,
    entries: Vec<StateEntry>,
    container: Vec<String>,
    foreign_imports: Vec<String>,
    model_orders: Vec<Vec<String>>,
}

impl OptimizerState {
    /// Open an optimizer state: a file of `torch.save`, or a folder that holds one `optimizer.pt` or `optimizer.bin`.
    ///
    /// # Errors
    /// [`Error::File`] where the file is damaged, no optimizer state, or written as `torch.save` never writes;
    /// [`Error::Tensor`] where a step cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = file_of(path.as_ref())?;
        let outline = Outline::open(&path)?;
        let (at, container) = find_optimizer(&path, &outline)?;
        let reader = PytorchReader::new(&path).map_err(|e| refused_by_reader(&path, &outline, &e))?;
        let source = Source { path: &path, outline: &outline, reader: &reader, container: &container };
        let groups = source.groups(at)?;
        let entries = source.entries(at, &groups)?;
        let foreign_imports = outline.foreign_imports();
        let model_orders =
            state_dicts(&outline, &[at]).into_iter().map(|dict| dict.float_names(&reader)).collect();
        Ok(Self { path, groups, entries, container, foreign_imports, model_orders })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The groups, in order.
    #[must_use]
    pub fn groups(&self) -> &[ParamGroup] {
        &self.groups
    }

    /// The parameters that have a state, in the order of the groups. One that never had a gradient is not among them.
    #[must_use]
    pub fn entries(&self) -> &[StateEntry] {
        &self.entries
    }

    /// The keys under which the optimizer state was found, outermost first; empty where it is the whole file.
    #[must_use]
    pub fn container(&self) -> &[String] {
        &self.container
    }

    /// Imports of the file that no optimizer state needs, as `posix.system`. None of them was followed.
    #[must_use]
    pub fn foreign_imports(&self) -> &[String] {
        &self.foreign_imports
    }

    /// The order of each state dict that lies beside the optimizer's in the same file: candidates for the model's own.
    pub(crate) fn model_orders(&self) -> &[Vec<String>] {
        &self.model_orders
    }

    /// The number of parameters the groups list.
    #[must_use]
    pub fn param_count(&self) -> usize {
        self.groups.iter().map(|group| group.params.len()).sum()
    }

    /// The group of an entry.
    #[must_use]
    pub fn group(&self, entry: &StateEntry) -> &ParamGroup {
        // Entries are only made from the groups of the same state.
        &self.groups[entry.group]
    }

    /// What squared-gradient accumulator an entry holds. `max` asks for AMSGrad's maximum instead.
    ///
    /// # Errors
    /// [`Error::Tensor`] where it holds none, with the keys found and the reason.
    pub fn accumulator(&self, entry: &StateEntry, max: bool) -> Result<Accumulator> {
        Accumulator::of(entry, self.group(entry), max)
            .map_err(|problem| Error::tensor(&self.path, format!("state.{}", entry.id), problem))
    }

    /// The parameter's shape, as its accumulator tells it.
    ///
    /// # Errors
    /// [`Error::Tensor`] where the accumulator's parts do not fit together.
    pub fn param_shape(&self, entry: &StateEntry, accumulator: Accumulator) -> Result<Vec<u64>> {
        accumulator
            .param_shape(entry)
            .map_err(|problem| Error::tensor(&self.path, format!("state.{}", entry.id), problem))
    }

    /// Read one accumulator whole, row-major, as f32.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the tensor and the flat index of the first NaN, infinite or negative value, or of an f64
    /// beyond f32; also where the stored bytes do not have their checksum.
    pub fn read_accumulator(&self, entry: &StateEntry, accumulator: Accumulator) -> Result<Vec<f32>> {
        let values = accumulator.read(self, entry)?;
        let label = entry.label(accumulator.key());
        match values.iter().position(|v| !v.is_finite() || *v < 0.0) {
            None => Ok(values),
            Some(index) => {
                let problem = format!(
                    "holds {} at flat index {index}; a sum of squares is finite and at least 0 (a damaged or diverged run)",
                    values[index]
                );
                Err(Error::tensor(&self.path, label, problem))
            }
        }
    }

    /// Read one tensor of an entry as f32, as it is stored.
    ///
    /// # Errors
    /// As [`Self::read_accumulator`], apart from the values' signs and finiteness.
    pub fn read_floats(&self, entry: &StateEntry, key: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(entry, key)?;
        let bytes = self.read_bytes(entry, key)?;
        floats(tensor.handle.dtype(), &bytes)
            .map_err(|problem| Error::tensor(&self.path, entry.label(key), problem))
    }

    /// Read one byte tensor of an entry.
    pub(crate) fn read_codes(&self, entry: &StateEntry, key: &str) -> Result<Vec<u8>> {
        let tensor = self.tensor(entry, key)?;
        if tensor.handle.dtype() != Stored::U8 {
            let problem = format!("is {}, expected u8 codes", tensor.dtype());
            return Err(Error::tensor(&self.path, entry.label(key), problem));
        }
        self.read_bytes(entry, key)
    }

    fn tensor<'a>(&self, entry: &'a StateEntry, key: &str) -> Result<&'a StateTensor> {
        let missing = || Error::tensor(&self.path, entry.label(key), "is missing");
        entry.tensors.get(key).ok_or_else(missing)
    }

    fn read_bytes(&self, entry: &StateEntry, key: &str) -> Result<Vec<u8>> {
        let tensor = self.tensor(entry, key)?;
        tensor.handle.read().map_err(|e| unreadable(&self.path, entry.label(key), &e))
    }
}

fn unreadable(path: &Path, label: String, e: &std::io::Error) -> Error {
    Error::tensor(
        path,
        label,
        format!("cannot be read ({e}); the file is damaged: copy or download it again"),
    )
}

fn dtype_name(dtype: Stored) -> &'static str {
    match dtype {
        Stored::F64 => "f64",
        Stored::F32 => "f32",
        Stored::F16 => "f16",
        Stored::BF16 => "bf16",
        Stored::I64 => "i64",
        Stored::I32 => "i32",
        Stored::I16 => "i16",
        Stored::I8 => "i8",
        Stored::U64 => "u64",
        Stored::U32 => "u32",
        Stored::U16 => "u16",
        Stored::U8 => "u8",
        Stored::Bool => "bool",
    }
}

/// Decode native-endian bytes to f32; an f64 that is finite but beyond f32 is refused.
fn floats(dtype: Stored, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Stored::F32 => Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_ne_bytes(*b)).collect()),
        Stored::F16 => Ok(halves().map(|b| half::f16::from_ne_bytes(*b).to_f32()).collect()),
        Stored::BF16 => Ok(halves().map(|b| half::bf16::from_ne_bytes(*b).to_f32()).collect()),
        Stored::F64 => {
            let narrowed =
                bytes.as_chunks::<8>().0.iter().enumerate().map(|(i, b)| narrow(f64::from_ne_bytes(*b), i));
            narrowed.collect()
        }
        other => Err(format!("is {}, expected f32, f16, bf16 or f64", dtype_name(other))),
    }
}

/// An f64 as f32, rounded to nearest; beyond f32's range is an error that names the index.
pub(crate) fn narrow(value: f64, index: usize) -> Result<f32, String> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding to nearest is meant; the range is checked below"
    )]
    let narrowed = value as f32;
    if value.is_finite() && !narrowed.is_finite() {
        return Err(format!("holds {value:e} at flat index {index}, beyond the range of f32 (3.4e38)"));
    }
    Ok(narrowed)
}

/// The file meant by a path: itself, or the optimizer state of a checkpoint folder.
fn file_of(path: &Path) -> Result<PathBuf> {
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
fn find_optimizer(path: &Path, outline: &Outline) -> Result<(Id, Vec<String>)> {
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

/// Why a file is no optimizer state, with the way out for the kinds that are well known.
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

fn refused_by_reader(path: &Path, outline: &Outline, e: &pytorch_reader::PytorchError) -> Error {
    let imports = outline.foreign_imports();
    if imports.is_empty() {
        return Error::file(path, format!("cannot be read: {e}"));
    }
    let names: Vec<String> = imports.iter().map(|i| printable(i)).collect();
    Error::file(path, format!("cannot be read: {e}; it imports {}, which is not followed", names.join(", ")))
}

/// Where the parts of a state come from while it is opened.
struct Source<'a> {
    path: &'a Path,
    outline: &'a Outline,
    reader: &'a PytorchReader,
    container: &'a [String],
}

/// A number's fate: read, absent, or in the hands of an unknown import.
enum Number {
    Value(f64),
    Absent,
    Foreign(String),
}

impl Source<'_> {
    fn refuse<T>(&self, problem: impl Into<String>) -> Result<T> {
        Err(Error::file(self.path, problem))
    }

    /// The reader's name of the tensor under `keys` inside the optimizer state.
    fn reader_name(&self, keys: &[&str]) -> String {
        let mut all: Vec<&str> = self.container.iter().map(String::as_str).collect();
        all.extend(keys);
        all.join(".")
    }

    fn groups(&self, at: Id) -> Result<Vec<ParamGroup>> {
        let list = self.outline.get(at, "param_groups").unwrap_or(at);
        let Some(items) = self.outline.items(list) else {
            return self.refuse(format!("param_groups is {}, expected a list", self.outline.kind(list)));
        };
        let groups =
            items.iter().enumerate().map(|(i, &id)| self.group(i, id)).collect::<Result<Vec<_>>>()?;
        let mut seen = HashSet::new();
        match groups.iter().flat_map(|g| &g.params).find(|id| !seen.insert(*id)) {
            Some(twice) => {
                self.refuse(format!("param_groups lists parameter {} twice", printable(&twice.to_string())))
            }
            None => Ok(groups),
        }
    }

    fn group(&self, index: usize, id: Id) -> Result<ParamGroup> {
        let Some(pairs) = self.outline.pairs(id) else {
            return self
                .refuse(format!("param_groups[{index}] is {}, expected a dict", self.outline.kind(id)));
        };
        let mut group = ParamGroup { keys: self.keys(pairs), ..ParamGroup::default() };
        let place = |key: &str| vec!["param_groups".to_owned(), index.to_string(), key.to_owned()];
        let mut number = |key: &str| -> Result<Option<f64>> {
            let at = self.outline.get(id, key);
            Ok(match self.number(at, &place(key))? {
                Number::Value(value) => Some(value),
                Number::Absent => None,
                Number::Foreign(by) => {
                    group.foreign.insert(key.to_owned(), by);
                    None
                }
            })
        };
        group.alpha = number("alpha")?;
        group.rho = number("rho")?;
        group.step = number("step")?;
        group.weight_decay = number("weight_decay")?.unwrap_or(0.0);
        group.decoupled_weight_decay = number("decoupled_weight_decay")?.map(|flag| flag != 0.0);
        group.betas = self.betas(id, &place("betas"), &mut group.foreign)?;
        group.params = self.params(index, id)?;
        group.names = self.param_names(index, id, group.params.len())?;
        Ok(group)
    }

    fn keys(&self, pairs: &[(Id, Id)]) -> Vec<String> {
        let mut keys: Vec<String> =
            pairs.iter().filter_map(|&(k, _)| self.outline.text(k).map(str::to_owned)).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    fn betas(
        &self,
        group: Id,
        place: &[String],
        foreign: &mut BTreeMap<String, String>,
    ) -> Result<Option<(f64, f64)>> {
        let Some(list) = self.outline.get(group, "betas") else { return Ok(None) };
        let Some(&[first, second, ..]) = self.outline.items(list) else { return Ok(None) };
        let mut both = [0.0; 2];
        for (i, id) in [first, second].into_iter().enumerate() {
            match self.number(Some(id), &[place, &[i.to_string()]].concat())? {
                Number::Value(value) => both[i] = value,
                Number::Absent => return Ok(None),
                Number::Foreign(by) => {
                    foreign.insert("betas".into(), by);
                    return Ok(None);
                }
            }
        }
        Ok(Some((both[0], both[1])))
    }

    fn params(&self, index: usize, group: Id) -> Result<Vec<ParamId>> {
        let list = self.outline.get(group, "params");
        let Some(items) = list.and_then(|id| self.outline.items(id)) else {
            let got = list.map_or_else(|| "missing".into(), |id| self.outline.kind(id));
            return self
                .refuse(format!("param_groups[{index}].params is {got}, expected a list of ids or names"));
        };
        items.iter().map(|&id| self.param_id(id)).collect()
    }

    fn param_id(&self, id: Id) -> Result<ParamId> {
        match self.outline.node(id) {
            Node::Int(index) => Ok(ParamId::Index(*index)),
            Node::Text(name) => Ok(ParamId::Name(name.clone())),
            _ => self.refuse(format!(
                "a parameter is called by {}, expected an int or a str",
                self.outline.kind(id)
            )),
        }
    }

    fn param_names(&self, index: usize, group: Id, count: usize) -> Result<Option<Vec<String>>> {
        let Some(list) = self.outline.get(group, "param_names") else { return Ok(None) };
        let names: Option<Vec<String>> = self
            .outline
            .items(list)
            .and_then(|items| items.iter().map(|&id| self.outline.text(id).map(str::to_owned)).collect());
        match names {
            Some(names) if names.len() == count => Ok(Some(names)),
            Some(names) => self.refuse(format!(
                "param_groups[{index}].param_names has {} names for {count} parameters",
                names.len()
            )),
            None if *self.outline.node(list) == Node::None => Ok(None),
            None => self.refuse(format!("param_groups[{index}].param_names is not a list of texts")),
        }
    }

    /// A number stored plainly or as a tensor of one element.
    fn number(&self, id: Option<Id>, place: &[String]) -> Result<Number> {
        let Some(id) = id else { return Ok(Number::Absent) };
        #[expect(clippy::cast_precision_loss, reason = "steps and settings are far below 2^53")]
        let value = match self.outline.node(id) {
            Node::Int(value) => *value as f64,
            Node::Float(value) => *value,
            Node::Bool(value) => f64::from(u8::from(*value)),
            Node::Made { by, .. } => {
                let keys: Vec<&str> = place.iter().map(String::as_str).collect();
                return match self.reader.get(&self.reader_name(&keys)) {
                    Some(tensor) => self.scalar(tensor, &place.join(".")),
                    None => Ok(Number::Foreign(by.clone())),
                };
            }
            _ => return Ok(Number::Absent),
        };
        Ok(Number::Value(value))
    }

    fn scalar(&self, tensor: &pytorch_reader::Tensor, label: &str) -> Result<Number> {
        if tensor.num_elements() != 1 {
            let problem = format!("has {} elements, expected one number", tensor.num_elements());
            return Err(Error::tensor(self.path, label, problem));
        }
        let bytes = tensor.read().map_err(|e| unreadable(self.path, label.to_owned(), &e))?;
        #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^53")]
        let value = match (tensor.dtype(), bytes.as_slice()) {
            (Stored::I64, &[a, b, c, d, e, f, g, h]) => i64::from_ne_bytes([a, b, c, d, e, f, g, h]) as f64,
            (Stored::I32, &[a, b, c, d]) => f64::from(i32::from_ne_bytes([a, b, c, d])),
            (Stored::F64, &[a, b, c, d, e, f, g, h]) => f64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            (dtype, bytes) => match floats(dtype, bytes).as_deref() {
                Ok(&[one]) => f64::from(one),
                _ => {
                    return Err(Error::tensor(
                        self.path,
                        label,
                        format!("is {}, expected a number", dtype_name(dtype)),
                    ));
                }
            },
        };
        Ok(Number::Value(value))
    }

    fn entries(&self, at: Id, groups: &[ParamGroup]) -> Result<Vec<StateEntry>> {
        let state = self.outline.get(at, "state").unwrap_or(at);
        let Some(pairs) = self.outline.pairs(state) else {
            return self.refuse(format!("state is {}, expected a dict", self.outline.kind(state)));
        };
        let mut by_id: BTreeMap<ParamId, Id> = BTreeMap::new();
        let mut texts = HashSet::new();
        for &(key, value) in pairs {
            let id = self.param_id(key)?;
            if !texts.insert(id.to_string()) {
                return self.refuse(format!("state has two entries called {}", printable(&id.to_string())));
            }
            by_id.insert(id, value);
        }
        let mut entries = Vec::new();
        let mut position = 0;
        for (index, group) in groups.iter().enumerate() {
            for (place, id) in group.params.iter().enumerate() {
                if let Some(value) = by_id.remove(id) {
                    let name = group.names.as_ref().map(|names| names[place].clone());
                    entries.extend(self.entry(id, value, index, position, name, group)?);
                }
                position += 1;
            }
        }
        match by_id.keys().next() {
            Some(id) => {
                self.refuse(format!("state has an entry {} that no group lists", printable(&id.to_string())))
            }
            None => Ok(entries),
        }
    }

    /// One parameter's state, or nothing where it is empty.
    fn entry(
        &self,
        id: &ParamId,
        value: Id,
        group: usize,
        position: usize,
        name: Option<String>,
        settings: &ParamGroup,
    ) -> Result<Option<StateEntry>> {
        let text = id.to_string();
        let Some(pairs) = self.outline.pairs(value) else {
            return self.refuse(format!(
                "state.{} is {}, expected a dict",
                printable(&text),
                self.outline.kind(value)
            ));
        };
        if pairs.is_empty() {
            return Ok(None);
        }
        let name = name.or_else(|| match id {
            ParamId::Name(name) => Some(name.clone()),
            ParamId::Index(_) => None,
        });
        let (id, keys) = (id.clone(), self.keys(pairs));
        let (tensors, foreign) = (BTreeMap::new(), BTreeMap::new());
        let mut entry = StateEntry { id, group, position, name, step: None, tensors, keys, foreign };
        self.collect_tensors(&mut entry, pairs, &["state", &text])?;
        let place = ["state".to_owned(), text, "step".to_owned()];
        entry.step = match self.number(self.outline.get(value, "step"), &place)? {
            Number::Value(step) => Some(step),
            _ => settings.step,
        };
        Ok(Some(entry))
    }

    /// Note every tensor of a parameter's state. bitsandbytes puts its quantised tensors one level deeper under FSDP.
    fn collect_tensors(&self, entry: &mut StateEntry, pairs: &[(Id, Id)], place: &[&str]) -> Result<()> {
        const BITSANDBYTES_UNDER_FSDP: &str = "__bnb_optimizer_quant_state__";
        for &(key, value) in pairs {
            let Some(key) = self.outline.text(key) else { continue };
            let here = [place, &[key]].concat();
            match self.outline.node(value) {
                Node::Dict(inner) if key == BITSANDBYTES_UNDER_FSDP => {
                    self.collect_tensors(entry, inner, &here)?;
                }
                Node::Made { by, .. } => match self.reader.get(&self.reader_name(&here)) {
                    Some(handle) => {
                        let shape = handle.shape().iter().map(|&n| n as u64).collect();
                        entry.tensors.insert(key.to_owned(), StateTensor { shape, handle: handle.clone() });
                    }
                    None => drop(entry.foreign.insert(key.to_owned(), by.clone())),
                },
                _ => {}
            }
        }
        Ok(())
    }
}

/// A list of shapes by key, for messages: `exp_avg [4, 8], exp_avg_sq [4, 8], step []`.
pub(crate) fn contents(entry: &StateEntry) -> String {
    let parts: Vec<String> = entry
        .keys
        .iter()
        .map(|key| match entry.tensors.get(key) {
            Some(tensor) => format!("{} {}", printable(key), shape_text(&tensor.shape)),
            None => printable(key),
        })
        .collect();
    if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
}
