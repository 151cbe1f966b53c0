//! The demo's steps: each is one call of the library, and knows the command line that does the same.

use std::path::{Path, PathBuf};

use squisher::checkpoint::{ModelParams, OptimizerState, Scale};
use squisher::methods::mask::{self, MaskOptions};
use squisher::methods::merge::{self, MergeOptions};
use squisher::methods::prune::{self, PruneOptions, Structure};
use squisher::methods::reset::{self, ResetOptions};
use squisher::methods::select::Keep;
use squisher::methods::squisher::{self as accumulator, ExtractOptions};
use squisher::methods::task2vec::distance::{DistanceMetric, DistanceOptions, DistanceReport, distance};
use squisher::methods::task2vec::{Group, Metric};
use squisher::{Error, Run};

use super::data;
use crate::args::Global;
use crate::commands::report;
use crate::merge_request::Method;

/// The accumulators saw different numbers of steps (the base 50, the specialists 760). The bias correction
/// puts them on one scale.
const SCALE: (&str, Scale) = ("unbiased", Scale::Unbiased);

/// The specialists, which are merged.
const SPECIALISTS: [&str; 2] = ["top", "bottom"];

/// The network that is pruned.
const PRUNED: &str = "top";

/// Shares that are removed: exact in binary, so that 1 − x loses nothing.
const SPARSITIES: [f64; 3] = [0.25, 0.5, 0.75];

/// The share of the specialist's parameters that goes into the base.
const RESET_KEEP: f64 = 0.25;

/// One step.
pub(super) enum Step {
    /// A Fisher out of the optimizer's state of this network.
    Extract(&'static str),
    /// One network out of the two specialists.
    Merge(Method),
    /// Without the share of parameters that matter least.
    Prune(f64),
    /// A mask with a share of the parameters: the best by these scores.
    Mask(Scores, f64),
    /// The specialist where that mask is true, elsewhere another network.
    Reset(Scores, f64),
    /// The specialists' Fishers to look at.
    Report,
}

/// What a mask is chosen by.
#[derive(Clone, Copy)]
pub(super) enum Scores {
    /// The pruned network's Fisher.
    Fisher,
    /// Random numbers: what a choice that knows nothing gives.
    Random,
}

/// Every step, in its order.
pub(super) fn all() -> Vec<Step> {
    let mut steps: Vec<Step> = data::NAMES.map(Step::Extract).into();
    steps.extend([Method::Linear, Method::Fisher, Method::Ubgm].map(Step::Merge));
    steps.extend(SPARSITIES.map(Step::Prune));
    for sparsity in SPARSITIES {
        let keep = 1.0 - sparsity;
        steps.extend([Step::Mask(Scores::Random, keep), Step::Reset(Scores::Random, keep)]);
    }
    steps.extend([Step::Mask(Scores::Fisher, RESET_KEEP), Step::Reset(Scores::Fisher, RESET_KEEP)]);
    steps.push(Step::Report);
    steps
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

    fn made(&self, stem: &str) -> PathBuf {
        self.folder.join(format!("{stem}.safetensors"))
    }

    fn mask(&self, scores: Scores, keep: f64) -> PathBuf {
        self.made(&format!("mask-{}-{}", scores.name(), percent(keep)))
    }

    fn scores(&self, scores: Scores) -> PathBuf {
        match scores {
            Scores::Fisher => self.fisher(PRUNED),
            Scores::Random => self.folder.join(data::RANDOM),
        }
    }

    /// Where a network is taken from outside a mask: nothing at all, or what it was trained from.
    fn elsewhere(&self, scores: Scores) -> PathBuf {
        match scores {
            Scores::Fisher => self.model("base"),
            Scores::Random => self.folder.join(data::ZEROS),
        }
    }

    fn page(&self) -> PathBuf {
        self.folder.join("report.html")
    }
}

impl Scores {
    fn name(self) -> &'static str {
        match self {
            Self::Fisher => "fisher",
            Self::Random => "random",
        }
    }
}

impl Step {
    /// The command line that does this step again, for a POSIX shell.
    pub(super) fn line(&self, place: &Place) -> String {
        let mut line = Line::new(&place.program);
        match self {
            Self::Extract(name) => line.extract(place, name),
            Self::Merge(method) => line.merge(place, *method),
            Self::Prune(sparsity) => line
                .words(&["prune"])
                .path(&place.model(PRUNED))
                .flag("--fisher", &place.fisher(PRUNED))
                .words(&["--sparsity", &sparsity.to_string()]),
            Self::Mask(scores, keep) => {
                line.words(&["mask"]).path(&place.scores(*scores)).words(&["--keep", &keep.to_string()])
            }
            Self::Reset(scores, keep) => line
                .words(&["reset"])
                .flag("--mask", &place.mask(*scores, *keep))
                .flag("--model", &place.model(PRUNED))
                .flag("--base", &place.elsewhere(*scores)),
            Self::Report => {
                SPECIALISTS.iter().fold(line.words(&["report"]), |line, name| line.path(&place.fisher(name)))
            }
        };
        line.flag("-o", &self.output(place)).words(&["--overwrite"]);
        if self.computes() {
            line.0.extend(place.device.iter().cloned());
        }
        line.0.join(" ")
    }

    /// Does it, through the library.
    pub(super) fn run(&self, place: &Place, run: &Run<'_>) -> Result<(), Error> {
        let out = self.output(place);
        match *self {
            Self::Extract(name) => extract(place, name, &out, run),
            Self::Merge(method) => {
                warn(&merge::merge(&merge_options(place, method), &out, run)?.warnings);
                Ok(())
            }
            Self::Prune(sparsity) => {
                let keep = Structure::Elements(Keep::Fraction(1.0 - sparsity));
                let options = PruneOptions { overwrite: true, ..PruneOptions::new(keep) };
                prune::prune(&place.model(PRUNED), &place.fisher(PRUNED), &options, &out, run).map(|_| ())
            }
            Self::Mask(scores, keep) => {
                let options = MaskOptions { overwrite: true, ..MaskOptions::new(Keep::Fraction(keep)) };
                mask::mask(&place.scores(scores), &options, &out, run).map(|_| ())
            }
            Self::Reset(scores, keep) => {
                let options = ResetOptions { overwrite: true, ..ResetOptions::default() };
                let (chosen, model) = (place.mask(scores, keep), place.model(PRUNED));
                reset::reset(&chosen, &model, &place.elsewhere(scores), &options, &out, run).map(|_| ())
            }
            Self::Report => {
                let fishers = SPECIALISTS.map(|name| place.fisher(name));
                report::write(&fishers, &out, false, run.progress, &run.interrupt).map(|_| ())
            }
        }
    }

    /// The network that it leaves, if it leaves one: what the table calls it, and where it is.
    pub(super) fn network(&self, place: &Place) -> Option<(String, PathBuf)> {
        let name = match self {
            Self::Merge(method) => method.name().to_owned(),
            Self::Prune(sparsity) => format!("pruned-{}", percent(*sparsity)),
            Self::Reset(Scores::Random, keep) => format!("random-{}", percent(1.0 - keep)),
            Self::Reset(Scores::Fisher, keep) => format!("reset-{}", percent(*keep)),
            Self::Extract(_) | Self::Mask(..) | Self::Report => return None,
        };
        Some((name, self.output(place)))
    }

    fn output(&self, place: &Place) -> PathBuf {
        match self {
            Self::Extract(name) => place.fisher(name),
            Self::Merge(method) => place.made(&format!("merged-{}", method.name())),
            Self::Prune(sparsity) => place.made(&format!("pruned-{}", percent(*sparsity))),
            Self::Mask(scores, keep) => place.mask(*scores, *keep),
            Self::Reset(scores, keep) => place.made(&format!("reset-{}-{}", scores.name(), percent(*keep))),
            Self::Report => place.page(),
        }
    }

    /// Whether it runs kernels, so that the device's flags mean something to it.
    fn computes(&self) -> bool {
        matches!(self, Self::Merge(_) | Self::Prune(_) | Self::Mask(..))
    }
}

/// How far apart the networks' tasks are by their Fishers: a number to print, no file.
pub(super) fn compare(place: &Place, run: &Run<'_>) -> Result<DistanceReport, Error> {
    let options = DistanceOptions {
        non_finite: squisher::methods::NonFinite::Error,
        metric: DistanceMetric::Symmetric(Metric::Cosine),
        group: Group::Element,
    };
    let report = distance(&data::NAMES.map(|name| place.fisher(name)), &options, run)?;
    warn(&report.warnings);
    Ok(report)
}

/// The command line of [`compare`].
pub(super) fn compare_line(place: &Place) -> String {
    let mut line = Line::new(&place.program);
    line.words(&["distance"]);
    for name in data::NAMES {
        line.path(&place.fisher(name));
    }
    line.words(&["--metric", "cosine"]);
    line.0.extend(place.device.iter().cloned());
    line.0.join(" ")
}

fn extract(place: &Place, name: &str, out: &Path, run: &Run<'_>) -> Result<(), Error> {
    let state = OptimizerState::open(place.optimizer(name))?;
    let model = ModelParams::open(place.model(name))?;
    let options = ExtractOptions {
        scale: SCALE.1,
        names_file: Some(place.names(name)),
        overwrite: true,
        ..ExtractOptions::default()
    };
    let report = accumulator::extract(&state, &model, &options, out, run)?;
    report.warnings.iter().for_each(|warning| log::warn!("{name}: {warning}"));
    Ok(())
}

fn merge_options(place: &Place, method: Method) -> MergeOptions {
    let model = |name: &&str| merge::Model {
        path: place.model(name),
        fisher: (method != Method::Linear).then(|| place.fisher(name)),
        weight: 1.0,
    };
    MergeOptions {
        base: (method == Method::Ubgm).then(|| merge::Base {
            path: place.model("base"),
            fisher: place.fisher("base"),
            delta: 0.0,
        }),
        overwrite: true,
        ..MergeOptions::new(method.into(), SPECIALISTS.iter().map(model).collect())
    }
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| log::warn!("{warning}"));
}

fn percent(share: f64) -> String {
    format!("{:.0}", 100.0 * share)
}

/// A command line as it grows, word by quoted word.
struct Line(Vec<String>);

impl Line {
    fn new(program: &str) -> Self {
        Self(vec![quoted(program)])
    }

    fn words(&mut self, words: &[&str]) -> &mut Self {
        self.0.extend(words.iter().map(|word| quoted(word)));
        self
    }

    fn path(&mut self, path: &Path) -> &mut Self {
        self.words(&[&path.display().to_string()])
    }

    fn flag(&mut self, flag: &str, path: &Path) -> &mut Self {
        self.words(&[flag]).path(path)
    }

    fn extract(&mut self, place: &Place, name: &str) -> &mut Self {
        self.words(&["extract"])
            .path(&place.optimizer(name))
            .flag("--model", &place.model(name))
            .flag("--names", &place.names(name))
            .words(&["--scale", SCALE.0])
    }

    fn merge(&mut self, place: &Place, method: Method) -> &mut Self {
        self.words(&["merge", "--method", method.name()]);
        for name in SPECIALISTS {
            self.flag("--model", &place.model(name));
            if method != Method::Linear {
                self.flag("--fisher", &place.fisher(name));
            }
        }
        if method == Method::Ubgm {
            self.flag("--base", &place.model("base")).flag("--base-fisher", &place.fisher("base"));
        }
        self
    }
}

/// A word as a shell reads it back: as it stands where nothing in it means anything to a shell, else in single quotes.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
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
