//! The demo's steps: each is one call of the library, and knows the command line that does the same.

use std::path::{Path, PathBuf};

use squisher::checkpoint::{ModelParams, OptimizerState, Scale};
use squisher::methods::merge::{self, MergeOptions};
use squisher::methods::squisher::{self as accumulator, ExtractOptions};
use squisher::stream::Budget;
use squisher::{Backend, Error, Interrupt};

use super::data;
use crate::args::Global;
use crate::merge_request::Method;

/// The accumulators saw different numbers of steps (the base 50, the specialists 760). The bias correction puts them on one scale.
const SCALE: (&str, Scale) = ("unbiased", Scale::Unbiased);

/// The specialists, which are merged.
const SPECIALISTS: [&str; 2] = ["top", "bottom"];

/// One step.
pub(super) enum Step {
    /// A Fisher out of the optimizer's state of this network.
    Extract(&'static str),
    /// One network out of the two specialists.
    Merge(Method),
}

/// Every step, in its order.
pub(super) fn all() -> Vec<Step> {
    let extracts = data::NAMES.map(Step::Extract);
    let merges = [Method::Linear, Method::Fisher, Method::Ubgm].map(Step::Merge);
    extracts.into_iter().chain(merges).collect()
}

/// Where things are, and how the program is called.
pub(super) struct Place {
    pub(super) folder: PathBuf,
    program: String,
    device: Vec<String>,
}

impl Place {
    pub(super) fn new(folder: PathBuf, global: &Global) -> Self {
        let program = std::env::args().next().unwrap_or_else(|| "squisher".to_owned());
        Self { folder, program, device: global.device.words() }
    }

    /// The test images.
    pub(super) fn digits(&self) -> PathBuf {
        self.folder.join(data::DIGITS)
    }

    /// A trained network.
    pub(super) fn model(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("model.safetensors")
    }

    fn optimizer(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("optimizer.pt")
    }

    fn names(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("parameters.json")
    }

    fn fisher(&self, name: &str) -> PathBuf {
        self.folder.join(name).join("fisher.safetensors")
    }

    fn merged(&self, method: Method) -> PathBuf {
        self.folder.join(format!("merged-{}.safetensors", method.name()))
    }
}

impl Step {
    /// The command line that does this step again, for a POSIX shell.
    pub(super) fn line(&self, place: &Place) -> String {
        let words = match self {
            Self::Extract(name) => extract_words(place, name),
            Self::Merge(method) => merge_words(place, *method),
        };
        let words = std::iter::once(place.program.clone()).chain(words);
        words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
    }

    /// Does it, through the library.
    pub(super) fn run(
        &self,
        place: &Place,
        global: &Global,
        backend: &Backend,
        interrupt: &Interrupt,
    ) -> Result<(), Error> {
        match self {
            Self::Extract(name) => extract(place, name, interrupt),
            Self::Merge(method) => {
                let options = merge_options(place, *method, global.memory.budget());
                let report = merge::merge(&options, place.merged(*method), backend, &(), interrupt)?;
                report.warnings.iter().for_each(|warning| log::warn!("{warning}"));
                Ok(())
            }
        }
    }

    /// The network that it leaves, if it leaves one: what the table calls it, and where it is.
    pub(super) fn network(&self, place: &Place) -> Option<(&'static str, PathBuf)> {
        match self {
            Self::Extract(_) => None,
            Self::Merge(method) => Some((method.name(), place.merged(*method))),
        }
    }
}

fn extract(place: &Place, name: &str, interrupt: &Interrupt) -> Result<(), Error> {
    let state = OptimizerState::open(place.optimizer(name))?;
    let model = ModelParams::open(place.model(name))?;
    let options = ExtractOptions {
        scale: SCALE.1,
        names_file: Some(place.names(name)),
        overwrite: true,
        ..ExtractOptions::default()
    };
    let report = accumulator::extract(&state, &model, &options, &place.fisher(name), &(), interrupt)?;
    report.warnings.iter().for_each(|warning| log::warn!("{name}: {warning}"));
    Ok(())
}

fn extract_words(place: &Place, name: &str) -> Vec<String> {
    let mut words = vec!["extract".to_owned(), text(&place.optimizer(name))];
    flag(&mut words, "--model", place.model(name));
    flag(&mut words, "--names", place.names(name));
    words.extend(["--scale", SCALE.0].map(str::to_owned));
    flag(&mut words, "-o", place.fisher(name));
    words.push("--overwrite".to_owned());
    words
}

fn merge_options(place: &Place, method: Method, budget: Budget) -> MergeOptions {
    let model = |name: &&str| merge::Model {
        path: place.model(name),
        fisher: (method != Method::Linear).then(|| place.fisher(name)),
        weight: 1.0,
    };
    MergeOptions {
        method: method.into(),
        models: SPECIALISTS.iter().map(model).collect(),
        base: (method == Method::Ubgm).then(|| merge::Base {
            path: place.model("base"),
            fisher: place.fisher("base"),
            delta: 0.0,
        }),
        normalize: merge::Normalize::None,
        floor: 0.0,
        missing: merge::Missing::Error,
        non_finite: merge::NonFinite::Error,
        allow_mixed: false,
        dtype: None,
        shard_bytes: None,
        overwrite: true,
        budget,
    }
}

fn merge_words(place: &Place, method: Method) -> Vec<String> {
    let mut words = ["merge", "--method", method.name()].map(str::to_owned).to_vec();
    for name in SPECIALISTS {
        flag(&mut words, "--model", place.model(name));
        if method != Method::Linear {
            flag(&mut words, "--fisher", place.fisher(name));
        }
    }
    if method == Method::Ubgm {
        flag(&mut words, "--base", place.model("base"));
        flag(&mut words, "--base-fisher", place.fisher("base"));
    }
    flag(&mut words, "-o", place.merged(method));
    words.push("--overwrite".to_owned());
    words.extend(place.device.iter().cloned());
    words
}

fn flag(words: &mut Vec<String>, flag: &str, path: PathBuf) {
    words.extend([flag.to_owned(), text(&path)]);
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// A word as a shell reads it back: as it stands where nothing in it means anything to a shell, else in single quotes.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%\\".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_take_them_apart() {
        for (word, text) in
            [("a/b-c.d", "a/b-c.d"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(quoted(word), text);
        }
    }
}
