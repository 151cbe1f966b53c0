//! How far apart tasks are.

mod element;
mod embeddings;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use serde::{Serialize, Serializer};

use element::{by_element, layout};
use embeddings::{Embeddings, is_embedding};

use super::embed::{Rows, means, pass_over};
use super::inputs::Fishers;
use super::{Group, Metric};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result, printable};
use crate::kernels::task2vec::Sums;
use crate::methods::source::NonFinite;
use crate::stream::{Plan, Run, Timings};

const OP: &str = "distance";

/// A distance between tasks.
#[derive(Clone, Debug, PartialEq)]
pub enum DistanceMetric {
    /// One that depends on the two alone.
    Symmetric(Metric),
    /// d(a, b) − α d(a, trivial) with d = [`Metric::Normalized`].
    Asymmetric(Trivial),
}

/// What the asymmetric distance measures complexity by.
#[derive(Clone, Debug, PartialEq)]
pub struct Trivial {
    /// The Fisher (or embedding) of the network on the trivial task: in Task2Vec, as it was before any task.
    pub path: PathBuf,
    /// The share α of the distance to the trivial task that is subtracted, at least 0.
    pub alpha: f64,
}

impl Trivial {
    /// The α of the Task2Vec paper.
    pub const ALPHA: f64 = 0.15;
}

impl DistanceMetric {
    fn between(&self) -> Metric {
        match self {
            Self::Symmetric(metric) => *metric,
            Self::Asymmetric(_) => Metric::Normalized,
        }
    }
}

impl fmt::Display for DistanceMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symmetric(metric) => metric.fmt(f),
            Self::Asymmetric(_) => f.write_str("asymmetric"),
        }
    }
}

impl Serialize for DistanceMetric {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is compared, and by what.
#[derive(Clone, Debug)]
pub struct DistanceOptions {
    /// Which distance is computed.
    pub metric: DistanceMetric,
    /// What the Fishers' vectors consist of. Embeddings have their own groups.
    pub group: Group,
    /// What to do with Fishers that are NaN, infinite or negative. Embeddings that hold such means are always refused.
    pub non_finite: NonFinite,
}

/// The distances. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DistanceReport {
    /// Which distance was computed.
    pub metric: DistanceMetric,
    /// What the vectors consist of; nothing for embeddings.
    pub group: Option<Group>,
    /// What the tasks are called.
    pub names: Vec<String>,
    /// The distances, `[from, to]`.
    pub matrix: Vec<Vec<f64>>,
    /// Entries of a vector.
    pub entries: u64,
    /// Fishers that were NaN, infinite or negative and counted as 0.
    pub non_finite: u64,
    /// Bytes read from all inputs.
    pub bytes_read: u64,
    /// Seconds from start to end.
    pub seconds: f64,
    /// Where the time of the passes went; nothing took any for embeddings, which are read whole.
    pub timings: Timings,
    /// The host or the adapter that kernels ran on.
    pub adapter: String,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// What [`distance`] would do, from headers alone. Keys are stable.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct DistancePlan {
    /// Which distance was computed.
    pub metric: DistanceMetric,
    /// What the vectors consist of; nothing for embeddings.
    pub group: Option<Group>,
    /// What the tasks are called.
    pub names: Vec<String>,
    /// Entries of a vector.
    pub entries: u64,
    /// How the Fishers would stream: side by side, or one after the other for means. Embeddings are read whole.
    pub passes: Vec<Plan>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// The result of a `--dry-run`.
///
/// # Errors
/// What headers and budgets alone show to be wrong, as [`distance`].
pub fn plan(inputs: &[PathBuf], options: &DistanceOptions, run: &Run<'_>) -> Result<DistancePlan> {
    let Inputs { paths, files, embeddings, .. } = Inputs::open(inputs, options)?;
    let metric = options.metric.clone();
    if embeddings {
        let Embeddings { mut names, groups, .. } = Embeddings::read(&files)?;
        check_count(options, names.len())?;
        names.truncate(tasks(options, names.len()));
        let (entries, group) = (groups.len() as u64, None);
        return Ok(DistancePlan { metric, group, names, entries, passes: vec![], warnings: vec![] });
    }
    let fishers = Fishers::of(OP, files, &paths)?;
    check_count(options, fishers.names.len())?;
    let (entries, passes) = if options.group == Group::Element {
        let plan = Plan::new(&layout(&fishers), &run.budget.within(&run.backend.caps()))?;
        (plan.elements(), vec![plan])
    } else {
        let one = |fisher| pass_over(&fishers, fisher, run);
        let passes = (0..fishers.names.len()).map(one).collect::<Result<_>>()?;
        (Rows::of(&fishers, options.group).len() as u64, passes)
    };
    let (mut names, warnings) = (fishers.names, fishers.warnings);
    names.truncate(tasks(options, names.len()));
    Ok(DistancePlan { metric, group: Some(options.group), names, entries, passes, warnings })
}

/// The files to compare, the trivial task's last.
struct Inputs {
    paths: Vec<PathBuf>,
    files: Vec<Checkpoint>,
    /// Whether they are embeddings, not Fishers.
    embeddings: bool,
}

impl Inputs {
    fn open(inputs: &[PathBuf], options: &DistanceOptions) -> Result<Self> {
        let mut paths = inputs.to_vec();
        if let DistanceMetric::Asymmetric(trivial) = &options.metric {
            if !(trivial.alpha.is_finite() && trivial.alpha >= 0.0) {
                return Err(Error::argument(OP, format!("alpha is {}, expected at least 0", trivial.alpha)));
            }
            paths.push(trivial.path.clone());
        }
        let files = paths.iter().map(Checkpoint::open).collect::<Result<Vec<_>>>()?;
        let embeddings = files.iter().filter(|file| is_embedding(file)).count();
        if embeddings != 0 && embeddings != files.len() {
            let problem = "some inputs are Fishers and some embeddings; embed them all alike first";
            return Err(Error::mismatch(OP, problem));
        }
        Ok(Self { paths, embeddings: embeddings > 0, files })
    }
}

/// The distances between every two of `inputs`: Fishers of one network, or files that
/// [`embed`](super::embed::embed) wrote, not both.
///
/// Reads each file once. With [`Group::Element`] the Fishers pass through memory side by side, a chunk at a time.
///
/// # Errors
/// [`Error::Argument`] for fewer than two tasks, [`Error::Mismatch`] for tasks of different networks or
/// without a distance (a vector of zeros has no cosine; a value that is 0 in one task alone has no
/// divergence), [`Error::Tensor`] for a value that no Fisher can have, and everything files and devices do.
pub fn distance(inputs: &[PathBuf], options: &DistanceOptions, run: &Run<'_>) -> Result<DistanceReport> {
    let started = Instant::now();
    let Inputs { paths, files, embeddings } = Inputs::open(inputs, options)?;
    let bytes_read = files.iter().map(Checkpoint::total_bytes).sum();
    let compared = if embeddings {
        of_embeddings(options, &files)?
    } else {
        of_fishers(options, Fishers::of(OP, files, &paths)?, run)?
    };
    let Compared { mut names, mut matrix, entries, group, non_finite, timings, warnings } = compared;
    if let DistanceMetric::Asymmetric(trivial) = &options.metric {
        towards(&mut matrix, trivial.alpha);
        names.pop();
    }
    Ok(DistanceReport {
        metric: options.metric.clone(),
        group,
        names,
        matrix,
        entries,
        non_finite,
        bytes_read,
        seconds: started.elapsed().as_secs_f64(),
        timings,
        adapter: run.backend.name(),
        warnings,
    })
}

/// Symmetric distances, of which the last row and column are the trivial task's, made asymmetric.
fn towards(matrix: &mut Vec<Vec<f64>>, alpha: f64) {
    matrix.pop();
    for row in matrix {
        let trivial = row.pop().unwrap_or(0.0);
        row.iter_mut().for_each(|distance| *distance -= alpha * trivial);
    }
}

struct Compared {
    names: Vec<String>,
    matrix: Vec<Vec<f64>>,
    entries: u64,
    group: Option<Group>,
    non_finite: u64,
    timings: Timings,
    warnings: Vec<String>,
}

/// How many of the vectors are tasks: the last is the trivial one where the metric has one.
fn tasks(options: &DistanceOptions, vectors: usize) -> usize {
    vectors - usize::from(matches!(options.metric, DistanceMetric::Asymmetric(_)))
}

/// Two tasks at least, the trivial one not counted.
fn check_count(options: &DistanceOptions, vectors: usize) -> Result<()> {
    let tasks = tasks(options, vectors);
    if tasks >= 2 {
        return Ok(());
    }
    Err(Error::argument(OP, format!("{tasks} task has no distance to another; give at least two Fishers")))
}

fn of_fishers(options: &DistanceOptions, fishers: Fishers, run: &Run<'_>) -> Result<Compared> {
    check_count(options, fishers.names.len())?;
    let metric = options.metric.between();
    let zeroed = AtomicU64::new(0);
    let counted = options.non_finite.counted(&zeroed);
    let (matrix, entries, timings) = if options.group == Group::Element {
        by_element(metric, &fishers, counted, run)?
    } else {
        let rows = Rows::of(&fishers, options.group);
        let (vectors, timings) = means(&fishers, &rows, counted, run)?;
        let groups = || rows.names(&fishers, options.group);
        (by_vector(metric, &vectors, &fishers.names, groups)?, rows.len() as u64, timings)
    };
    fishers.checkpoints.iter().try_for_each(Checkpoint::verify_unchanged)?;
    let (names, warnings) = (fishers.names, fishers.warnings);
    let non_finite = zeroed.into_inner();
    Ok(Compared { names, matrix, entries, group: Some(options.group), non_finite, timings, warnings })
}

/// The symmetric matrix of `distance(a, b)` for a < b.
fn symmetric(tasks: usize, mut distance: impl FnMut(usize, usize) -> Result<f64>) -> Result<Vec<Vec<f64>>> {
    let mut matrix = vec![vec![0.0; tasks]; tasks];
    for (a, b) in pairs(tasks) {
        let distance = distance(a, b)?;
        (matrix[a][b], matrix[b][a]) = (distance, distance);
    }
    Ok(matrix)
}

fn pairs(tasks: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..tasks).flat_map(move |a| (a + 1..tasks).map(move |b| (a, b)))
}

/// Vectors that fit memory: in f64 throughout.
fn by_vector(
    metric: Metric,
    vectors: &[Vec<f64>],
    names: &[String],
    groups: impl Fn() -> Vec<String>,
) -> Result<Vec<Vec<f64>>> {
    symmetric(vectors.len(), |a, b| {
        let sums = Sums::of(metric, &vectors[a], &vectors[b]);
        if let (Some(index), true) = (sums.one_zero, metric.needs_both()) {
            let index = usize::try_from(index).expect("a vector's index fits its address");
            return Err(one_zero(
                metric,
                (&names[a], &names[b]),
                &format!("the mean of {}", printable(&groups()[index])),
            ));
        }
        of_sums(metric, &sums, (&names[a], &names[b]))
    })
}

fn of_sums(metric: Metric, sums: &Sums, (a, b): (&str, &str)) -> Result<f64> {
    let distance = sums.distance(metric).filter(|distance| distance.is_finite());
    distance.ok_or_else(|| {
        let problem = format!(
            "{a} or {b} is zero everywhere: a vector of zeros has no direction, so {metric} has no value"
        );
        Error::mismatch(OP, problem)
    })
}

fn one_zero(metric: Metric, (a, b): (&str, &str), what: &str) -> Error {
    let problem = format!(
        "{what} is 0 in one of {a} and {b} alone: its variance 1/F is infinite and {metric} has no finite value; \
         use cosine or normalized, or a coarser --group"
    );
    Error::mismatch(OP, problem)
}

fn of_embeddings(options: &DistanceOptions, files: &[Checkpoint]) -> Result<Compared> {
    let Embeddings { names, groups, vectors } = Embeddings::read(files)?;
    check_count(options, names.len())?;
    let matrix = by_vector(options.metric.between(), &vectors, &names, || groups.clone())?;
    let entries = groups.len() as u64;
    let (timings, warnings) = (Timings::default(), Vec::new());
    Ok(Compared { names, matrix, entries, group: None, non_finite: 0, timings, warnings })
}
