//! Merging, end to end: the values against their definitions, the identities that must hold, and every
//! refusal by its message and exit code with the old output as it was.

mod definition;
mod files;
mod identities;
mod options;
mod oracle;
mod refusals;
mod resume;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use squisher::methods::merge::{Base, MergeOptions, MergeReport, Method, Model, merge};
use squisher::stream::Budget;
use squisher::{Backend, Error, Run};
use tempfile::TempDir;

use support::files::folder;
use support::tool;

const METHODS: [Method; 3] = [Method::Linear, Method::Fisher, Method::Ubgm];

/// A merge of `models` (with their Fishers) with all weights 1.
fn options(method: Method, models: &[(&Path, &Path)]) -> MergeOptions {
    let model = |(path, fisher): &(&Path, &Path)| Model {
        path: path.to_path_buf(),
        fisher: (method != Method::Linear).then(|| fisher.to_path_buf()),
        weight: 1.0,
    };
    MergeOptions::new(method, models.iter().map(model).collect())
}

fn with_base(options: MergeOptions, path: &Path, fisher: &Path) -> MergeOptions {
    let base = Some(Base { path: path.to_path_buf(), fisher: fisher.to_path_buf(), delta: 0.0 });
    MergeOptions { base, ..options }
}

fn run(options: &MergeOptions, output: &Path, backend: &Backend) -> Result<MergeReport, Error> {
    merge(options, output, &Run::new(backend))
}

fn run_within(
    budget: Budget,
    options: &MergeOptions,
    output: &Path,
    backend: &Backend,
) -> Result<MergeReport, Error> {
    merge(options, output, &Run { budget, ..Run::new(backend) })
}

/// Merges and reads the result.
#[track_caller]
fn merged(options: &MergeOptions, backend: &Backend) -> (files::Tensors, MergeReport) {
    let folder = folder();
    let output = folder.path().join("merged");
    let report = run(options, &output, backend).expect("a sound merge");
    (files::read(&output), report)
}

/// One vector `w` a file: a model and its Fisher a pair.
struct Vectors {
    folder: TempDir,
    pairs: Vec<(PathBuf, PathBuf)>,
}

impl Vectors {
    fn new(dtype: squisher::DType, models: &[(Vec<f64>, Vec<f64>)]) -> Self {
        let mut vectors = Self { folder: folder(), pairs: Vec::new() };
        for (theta, fisher) in models {
            vectors.push(files::floats("w", dtype, theta), files::floats("w", squisher::DType::F32, fisher));
        }
        vectors
    }

    fn push(&mut self, theta: files::Tensor, fisher: files::Tensor) {
        let at = self.pairs.len();
        let path = |what: &str| self.folder.path().join(format!("{what}{at}.safetensors"));
        let pair = (files::write(&path("model"), &[theta]), files::write(&path("fisher"), &[fisher]));
        self.pairs.push(pair);
    }

    /// The last pair is the base's where the method has one.
    fn options(&self, method: Method) -> MergeOptions {
        let mut pairs: Vec<(&Path, &Path)> =
            self.pairs.iter().map(|(m, f)| (m.as_path(), f.as_path())).collect();
        if method != Method::Ubgm {
            return options(method, &pairs);
        }
        let (path, fisher) = pairs.pop().expect("a base");
        with_base(options(method, &pairs), path, fisher)
    }
}

/// Repeatable numbers in [-1, 1).
fn noise(seed: u64, len: usize) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    for _ in 0..8 {
        next();
    }
    (0..len).map(|_| next()).collect()
}

/// Repeatable Fishers from 1e-6 to 1e6, some of them 0.
fn fishers(seed: u64, len: usize) -> Vec<f64> {
    let zero = noise(seed + 1000, len);
    noise(seed, len)
        .iter()
        .zip(zero)
        .map(|(x, z)| if z < -0.8 { 0.0 } else { 10.0_f64.powf(6.0 * x) })
        .collect()
}

/// The command line that says the same as `options` (without memory limits).
fn command(options: &MergeOptions, output: &Path) -> std::process::Command {
    let mut command = tool::squisher(["merge", "--json", "--method", method_name(options.method), "-o"]);
    command.arg(output);
    for model in &options.models {
        command.arg("--model").arg(&model.path).arg("--weight").arg(model.weight.to_string());
        if let Some(fisher) = &model.fisher {
            command.arg("--fisher").arg(fisher);
        }
    }
    if let Some(base) = &options.base {
        command.arg("--base").arg(&base.path).arg("--base-fisher").arg(&base.fisher);
    }
    command
}

fn method_name(method: Method) -> &'static str {
    match method {
        Method::Linear => "linear",
        Method::Fisher => "fisher",
        Method::Ubgm => "ubgm",
    }
}
