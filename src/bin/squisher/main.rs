//! `squisher`, the command-line tool: finds which parameters of a neural network matter, and uses it.
//!
//! Standard output carries a command's result and nothing else: a table, or one JSON object. Progress, warnings
//! and errors go to standard error. Each subcommand is one file in `commands`; what they share is here beside it.

// One word of it is `unsafe`: that a device may have experimental features (`device::experimental`).
#![deny(unsafe_code)]

mod args;
mod charts;
mod commands;
mod device;
mod failure;
mod logging;
mod merge_request;
mod model_groups;
mod non_finite;
mod output;
mod progress;
mod recipe;
mod repeats;
mod selection;
mod signals;
mod table;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::Cli;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|refusal| usage_error(refusal));
    logging::start(&cli.global);
    let operation = matches.subcommand_name().unwrap_or_default();
    match signals::survive_file_limit().and_then(|()| cli.command.run(&cli.global)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failure::report(operation, &error),
    }
}

fn usage_error(refusal: clap::Error) -> ! {
    refusal.format(&mut Cli::command()).exit()
}
