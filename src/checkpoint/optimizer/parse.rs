//! What a state's dicts say: its groups with their settings, and what is kept for each parameter.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use pytorch_reader::{DType as Stored, PytorchReader};

use super::values::{dtype_name, floats, unreadable};
use super::{ParamGroup, ParamId, StateEntry, StateTensor};
use crate::checkpoint::accumulator::Accumulator;
use crate::checkpoint::pickle::{Id, Node, Outline};
use crate::error::{Error, Result, printable};

/// Where the parts of a state come from while it is opened.
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) outline: &'a Outline,
    pub(super) reader: &'a PytorchReader,
    pub(super) container: &'a [String],
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

    pub(super) fn groups(&self, at: Id) -> Result<Vec<ParamGroup>> {
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
        group.initial_accumulator_value = number("initial_accumulator_value")?.unwrap_or(0.0);
        let start = group.initial_accumulator_value;
        if !(start.is_finite() && start >= 0.0) {
            return self.refuse(format!(
                "param_groups[{index}] has initial_accumulator_value {start}, expected at least 0"
            ));
        }
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
            (Stored::U64, &[a, b, c, d, e, f, g, h]) => u64::from_ne_bytes([a, b, c, d, e, f, g, h]) as f64,
            (Stored::I32, &[a, b, c, d]) => f64::from(i32::from_ne_bytes([a, b, c, d])),
            (Stored::U32, &[a, b, c, d]) => f64::from(u32::from_ne_bytes([a, b, c, d])),
            (Stored::I16, &[a, b]) => f64::from(i16::from_ne_bytes([a, b])),
            (Stored::U16, &[a, b]) => f64::from(u16::from_ne_bytes([a, b])),
            (Stored::I8, &[a]) => f64::from(i8::from_ne_bytes([a])),
            (Stored::U8, &[a]) => f64::from(a),
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

    pub(super) fn entries(&self, at: Id, groups: &[ParamGroup]) -> Result<Vec<StateEntry>> {
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

    /// One parameter's state, or nothing where it is empty or no gradient has come to it.
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
        // Adagrad makes a state for every parameter at once. One whose parameter never had a gradient says no
        // more than a missing one.
        let unused =
            entry.step == Some(0.0) && Accumulator::of(&entry, settings, false) == Ok(Accumulator::Sum);
        Ok((!unused).then_some(entry))
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
