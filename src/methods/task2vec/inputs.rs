//! Opening Fishers of one network, and refusing from headers alone what does not fit together.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Error, Result, printable};
use crate::methods::transposed;
use crate::shape::{DType, shape_text};

/// Fishers of one network.
pub(super) struct Fishers {
    pub(super) checkpoints: Vec<Checkpoint>,
    pub(super) names: Vec<String>,
    /// The tensors that have elements, by their places in every checkpoint: names, and so places, are the same in all.
    pub(super) places: Vec<usize>,
    /// Weights whose outputs lie along the second axis.
    pub(super) transposed: BTreeSet<String>,
    pub(super) warnings: Vec<String>,
}

impl Fishers {
    pub(super) fn of(op: &str, checkpoints: Vec<Checkpoint>, paths: &[PathBuf]) -> Result<Self> {
        let Some(first) = checkpoints.first() else { return Err(Error::argument(op, "no Fishers")) };
        checkpoints.iter().try_for_each(check_types)?;
        checkpoints[1..].iter().try_for_each(|other| check_same(op, first, other))?;
        let places: Vec<usize> =
            (0..first.tensors().len()).filter(|&i| first.tensors()[i].elements() > 0).collect();
        if places.is_empty() {
            return Err(Error::file(first.path(), "holds no elements: there is nothing to compare"));
        }
        let warnings = mixed(&checkpoints);
        // A Fisher that says nothing of it may be of the same network.
        let transposed = checkpoints.iter().map(transposed::of_fisher).collect::<Result<Vec<_>>>()?;
        let transposed = transposed.into_iter().flatten().collect();
        Ok(Self { names: names(paths), places, transposed, warnings, checkpoints })
    }

    /// A tensor of the layout in every file; its shape is that of all.
    pub(super) fn tensor(&self, fisher: usize, index: usize) -> &TensorInfo {
        &self.checkpoints[fisher].tensors()[self.places[index]]
    }

    /// Parameters of one Fisher.
    pub(super) fn elements(&self) -> u64 {
        (0..self.places.len()).map(|index| self.tensor(0, index).elements()).sum()
    }

    /// How kernels see a tensor: f64 is narrowed on the way.
    pub(super) fn dtype(&self, fisher: usize, index: usize) -> DType {
        self.tensor(fisher, index).float().unwrap_or(DType::F32)
    }
}

/// What a file is called in tables: its name without the extension, or its whole path where two are called the same.
pub(super) fn names(paths: &[PathBuf]) -> Vec<String> {
    let short = |path: &Path| path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let name = |path: &PathBuf| {
        let alone = paths.iter().filter(|other| short(other) == short(path)).count() == 1;
        if alone { short(path) } else { path.display().to_string() }
    };
    paths.iter().map(name).collect()
}

fn check_types(fisher: &Checkpoint) -> Result<()> {
    match fisher.tensors().iter().find(|tensor| !tensor.is_float()) {
        None => Ok(()),
        Some(tensor) => {
            let problem = format!(
                "has type {:?}, expected F32, F16, BF16 or F64; is this a Fisher file?",
                tensor.dtype
            );
            Err(Error::tensor(fisher.file_of(tensor), &tensor.name, problem))
        }
    }
}

fn check_same(op: &str, first: &Checkpoint, other: &Checkpoint) -> Result<()> {
    let mut problems = Vec::new();
    for tensor in first.tensors() {
        match other.get(&tensor.name) {
            None => problems.push(format!("{} is missing", printable(&tensor.name))),
            Some(same) if same.shape != tensor.shape => problems.push(format!(
                "{} has shape {}, expected {}",
                printable(&tensor.name),
                shape_text(&same.shape),
                shape_text(&tensor.shape)
            )),
            Some(_) => {}
        }
    }
    let extra = other.tensors().iter().filter(|tensor| first.get(&tensor.name).is_none());
    problems.extend(extra.map(|tensor| format!("{} is in this one alone", printable(&tensor.name))));
    if problems.is_empty() {
        return Ok(());
    }
    const SHOWN: usize = 5;
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    let problem = format!(
        "{} and {} are Fishers of different networks: {}{more}; compare the tensors they share",
        first.path().display(),
        other.path().display(),
        problems.join("; ")
    );
    Err(Error::mismatch(op, problem))
}

/// What the files say of themselves in different words.
fn mixed(fishers: &[Checkpoint]) -> Vec<String> {
    let differs = |key: &&str| {
        let said: Vec<&String> = fishers.iter().filter_map(|f| f.metadata().get(*key)).collect();
        said.windows(2).any(|pair| pair[0] != pair[1])
    };
    let keys = ["squisher.kind", "squisher.reduction", "squisher.scale", "squisher.batch_size"];
    let warning =
        |key: &str| format!("the Fishers differ in {key}; every metric but cosine sees their scales");
    keys.iter().filter(|key| differs(key)).map(|key| warning(key)).collect()
}
