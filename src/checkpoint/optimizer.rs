//! Optimizer states that PyTorch wrote: which parameters have one, what each holds, and its squared-gradient
//! accumulator.
//!
//! **What a file holds.** `optimizer.state_dict()` is `{"state": {id: {key: value}}, "param_groups": [{…,
//! "params": [id, …]}]}`. Ids count through the groups in order; which parameter an id means is not said (see
//! [`super::names`]), except in states that are keyed by name (FSDP's full states) or that carry
//! `param_names`. The dict may lie under a key of a larger one; it is found by looking.
//!
//! **What is guaranteed.** Nothing in the file is executed. Every value that is used was stored as a plain
//! number, text or tensor; where an object of an unknown import stands in a place that is needed, the import
//! is named and the file refused. An accumulator comes whole and checked: right size, checksum of the
//! archive, no NaN, no infinity, no negative value. Tensors are read one at a time.
//!
//! **What is given up.** Sharded states (DeepSpeed ZeRO, distributed checkpoints) are not put together; the
//! refusal says how to convert them. A tensor of more than 10 GiB is refused by `pytorch-reader`.

mod find;
mod parse;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use pytorch_reader::{DType as Stored, PytorchReader};

use find::{file_of, find_optimizer, refused_by_reader};
use parse::Source;
pub(crate) use values::narrow;
use values::{dtype_name, floats, floats_above, unreadable};

use super::accumulator::Accumulator;
use super::pickle::{Outline, state_dicts};
use crate::error::{Error, Result, printable};
use crate::shape::{elements, shape_text};

/// How an optimizer state identifies a parameter.
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
    /// What Adagrad's sums start from, 0 where the group does not say.
    pub initial_accumulator_value: f64,
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

    /// The parameters that have a state, in the order of the groups. One that never had a gradient is not
    /// among them, also where the optimizer made a state for it in advance, as Adagrad does.
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

    /// Read one accumulator whole, row-major, as f32. Adagrad's sum comes without the group's
    /// `initial_accumulator_value`.
    ///
    /// # Errors
    /// [`Error::Tensor`] naming the tensor and the flat index of the first NaN, infinite or negative value,
    /// or of an f64 beyond f32; also where the stored bytes do not have their checksum.
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

    /// Read what a tensor has gained over the `start` that all of it was filled with, as f32.
    pub(crate) fn read_above(&self, entry: &StateEntry, key: &str, start: f64) -> Result<Vec<f32>> {
        if start == 0.0 {
            return self.read_floats(entry, key);
        }
        let tensor = self.tensor(entry, key)?;
        let bytes = self.read_bytes(entry, key)?;
        floats_above(tensor.handle.dtype(), &bytes, start)
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
