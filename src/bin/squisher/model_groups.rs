//! `--model A --fisher FA --weight 0.5 --model B …`: flags that repeat in groups, in order.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use crate::merge_request::Source;

/// The models of a command line. `--fisher` and `--weight` belong to the `--model` before them.
#[derive(Debug)]
pub(crate) struct ModelGroups(pub(crate) Vec<Source>);

/// One flag of a group, as it was met.
enum Given {
    Model(PathBuf),
    Fisher(PathBuf),
    Weight(f64),
}

impl Args for ModelGroups {
    fn augment_args(command: Command) -> Command {
        let flag = |id: &'static str, value: &'static str| {
            Arg::new(id).long(id).value_name(value).action(ArgAction::Append).help_heading("Models")
        };
        let path = value_parser!(PathBuf);
        command
            .arg(
                flag("model", "M")
                    .value_parser(path.clone())
                    .help("A model: a .safetensors file or a folder; repeat"),
            )
            .arg(flag("fisher", "F").value_parser(path).help("The Fisher of the model before it"))
            .arg(
                flag("weight", "W")
                    .value_parser(value_parser!(f64))
                    .allow_negative_numbers(true)
                    .help("The coefficient of the model before it; only ratios matter [default: 1]"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ModelGroups {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = occurrences(matches, "model", Given::Model);
        given.extend(occurrences(matches, "fisher", Given::Fisher));
        given.extend(occurrences(matches, "weight", Given::Weight));
        given.sort_by_key(|(place, _)| *place);
        let in_order = given.into_iter().map(|(_, flag)| flag);
        group(in_order).map(Self).map_err(|problem| clap::Error::raw(ErrorKind::ArgumentConflict, problem))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Every value of a flag with its place on the command line.
fn occurrences<T: Clone + Send + Sync + 'static>(
    matches: &ArgMatches,
    id: &str,
    make: impl Fn(T) -> Given,
) -> Vec<(usize, Given)> {
    if matches.value_source(id) != Some(ValueSource::CommandLine) {
        return Vec::new();
    }
    let places = matches.indices_of(id).into_iter().flatten();
    let values = matches.get_many::<T>(id).into_iter().flatten().cloned();
    places.zip(values.map(make)).collect()
}

/// Sorts flags under the `--model` before them.
fn group(flags: impl Iterator<Item = Given>) -> Result<Vec<Source>, String> {
    let mut open: Vec<(PathBuf, Option<PathBuf>, Option<f64>)> = Vec::new();
    for flag in flags {
        match (flag, open.last_mut()) {
            (Given::Model(model), _) => open.push((model, None, None)),
            (Given::Fisher(path), Some((model, fisher, _))) => set(fisher, path, "--fisher", model)?,
            (Given::Weight(value), Some((model, _, weight))) => set(weight, value, "--weight", model)?,
            (Given::Fisher(_), None) => return Err(before_any_model("--fisher")),
            (Given::Weight(_), None) => return Err(before_any_model("--weight")),
        }
    }
    let close = |(model, fisher, weight): (_, _, Option<f64>)| Source {
        model,
        fisher,
        weight: weight.unwrap_or(1.0),
    };
    Ok(open.into_iter().map(close).collect())
}

fn set<T>(place: &mut Option<T>, value: T, flag: &str, model: &std::path::Path) -> Result<(), String> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(format!("{flag} is given twice for --model {}", model.display())),
    }
}

fn before_any_model(flag: &str) -> String {
    format!("{flag} stands before any --model; it belongs to the model before it")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        groups: ModelGroups,
        #[arg(long, global = true)]
        json: bool,
    }

    fn parse(line: &str) -> Result<Vec<Source>, String> {
        let words = std::iter::once("merge").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.groups.0).map_err(|refusal| {
            assert_eq!(refusal.exit_code(), 2, "a usage error");
            refusal.to_string()
        })
    }

    fn source(model: &str, fisher: Option<&str>, weight: f64) -> Source {
        Source { model: model.into(), fisher: fisher.map(Into::into), weight }
    }

    #[test]
    fn each_flag_belongs_to_the_model_before_it() {
        let sources =
            parse("--model a --fisher fa --weight 0.25 --model=b --json --weight=0 --model c --fisher fc");
        let want = [source("a", Some("fa"), 0.25), source("b", None, 0.0), source("c", Some("fc"), 1.0)];
        assert_eq!(sources.expect("sound flags"), want);
        let swapped = parse("--model a --weight 2 --fisher fa").expect("sound flags");
        assert_eq!(swapped, [source("a", Some("fa"), 2.0)]);
        assert_eq!(parse("").expect("no flags are no models"), []);
    }

    #[test]
    fn a_flag_without_a_model_or_given_twice_is_refused() {
        let refused = |line: &str| parse(line).expect_err("the flags must be refused");
        assert!(refused("--fisher f --model a").contains("--fisher stands before any --model"));
        assert!(refused("--weight 1 --model a").contains("--weight stands before any --model"));
        assert!(refused("--model a --fisher f --fisher g").contains("--fisher is given twice for --model a"));
        assert!(refused("--model a --weight 1 --weight 2").contains("--weight is given twice for --model a"));
        assert!(refused("--model a --weight heavy").contains("heavy"));
    }
}
