//! An optimizer's state, as `squisher inspect` shows it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use squisher::Error;
use squisher::checkpoint::{ModelParams, OptimizerState, ParamGroup, StateEntry};
use squisher::error::printable;
use squisher::methods::squisher::{self as methods, ExtractOptions};
use squisher::shape::shape_text;

use crate::commands::extract::NamedState;
use crate::table::{Column, Table, counted};

/// One optimizer state.
#[derive(Serialize)]
pub(super) struct Optimizer {
    #[serde(serialize_with = "squisher::paths::as_text")]
    path: PathBuf,
    container: Vec<String>,
    groups: Vec<Group>,
    entries: Vec<Entry>,
    /// What extracting it for the model would read, and under which names.
    map: Option<NamedState>,
    /// Why there is no such map, where a model was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    map_problem: Option<String>,
}

#[derive(Serialize)]
struct Group {
    parameters: usize,
    betas: Option<(f64, f64)>,
    alpha: Option<f64>,
    rho: Option<f64>,
    weight_decay: f64,
    decoupled_weight_decay: Option<bool>,
    step: Option<f64>,
}

#[derive(Serialize)]
struct Entry {
    id: String,
    name: Option<String>,
    group: usize,
    step: Option<f64>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Serialize)]
struct Stored {
    dtype: &'static str,
    shape: Vec<u64>,
}

impl Optimizer {
    /// Opens and describes the state at `path`, and finds its names in `model`.
    pub(super) fn read(path: &Path, model: Option<&ModelParams>) -> anyhow::Result<Self> {
        let state = OptimizerState::open(path)?;
        let plan = model.map(|model| methods::plan(&state, model, &ExtractOptions::default()));
        let (map, map_problem) = match plan {
            None => (None, None),
            Some(Ok(plan)) => (Some(NamedState::from(plan)), None),
            // The state is sound; whose its entries are is what there is to tell.
            Some(Err(Error::Mismatch { problem, .. })) => (None, Some(problem)),
            Some(Err(error)) => return Err(error.into()),
        };
        map.iter().for_each(NamedState::warn);
        Ok(Self {
            path: state.path().to_owned(),
            container: state.container().to_owned(),
            groups: state.groups().iter().map(Group::from).collect(),
            entries: state.entries().iter().map(Entry::from).collect(),
            map,
            map_problem,
        })
    }

    fn entries_table(&self) -> Table {
        let mut table = Table::new(&[
            Column::Right("ID"),
            Column::Left("NAME"),
            Column::Right("GROUP"),
            Column::Right("STEP"),
            Column::Left("TENSORS"),
        ]);
        self.entries.iter().for_each(|entry| table.row(entry.cells()));
        table
    }
}

impl From<&ParamGroup> for Group {
    fn from(group: &ParamGroup) -> Self {
        Self {
            parameters: group.params.len(),
            betas: group.betas,
            alpha: group.alpha,
            rho: group.rho,
            weight_decay: group.weight_decay,
            decoupled_weight_decay: group.decoupled_weight_decay,
            step: group.step,
        }
    }
}

impl From<&StateEntry> for Entry {
    fn from(entry: &StateEntry) -> Self {
        let tensors = entry.tensors.iter().map(|(key, tensor)| {
            (key.clone(), Stored { dtype: tensor.dtype(), shape: tensor.shape.clone() })
        });
        Self {
            id: entry.id.to_string(),
            name: entry.name.clone(),
            group: entry.group,
            step: entry.step,
            tensors: tensors.collect(),
        }
    }
}

impl Entry {
    fn cells(&self) -> [String; 5] {
        let dash = || "-".to_owned();
        let tensors = self.tensors.iter().map(|(key, Stored { dtype, shape })| {
            format!("{} {dtype} {}", key.escape_debug(), shape_text(shape))
        });
        [
            self.id.escape_debug().to_string(),
            self.name.as_deref().map_or_else(dash, printable),
            self.group.to_string(),
            self.step.map_or_else(dash, |step| step.to_string()),
            tensors.collect::<Vec<_>>().join(", "),
        ]
    }
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.path.display())?;
        for (at, group) in self.groups.iter().enumerate() {
            writeln!(f, "group {at}: {group}")?;
        }
        match &self.map {
            Some(map) => write!(f, "{map}")?,
            None => write!(f, "{}", self.entries_table())?,
        }
        self.map_problem.iter().try_for_each(|problem| write!(f, "\nno map to the model: {problem}"))
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", counted(self.parameters as u64, "parameter"))?;
        if let Some((first, second)) = self.betas {
            write!(f, ", betas {first} and {second}")?;
        }
        for (name, decay) in [("alpha", self.alpha), ("rho", self.rho), ("step", self.step)] {
            decay.iter().try_for_each(|decay| write!(f, ", {name} {decay}"))?;
        }
        let coupling = match self.decoupled_weight_decay {
            Some(true) => " (decoupled)",
            Some(false) => " (coupled)",
            None => "",
        };
        write!(f, ", weight decay {}{coupling}", self.weight_decay)
    }
}
