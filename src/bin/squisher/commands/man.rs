//! `squisher man [COMMAND]`.

use clap::{Args, CommandFactory};
use squisher::Error;

use crate::args::Cli;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  squisher man > squisher.1
  squisher man completions | man --local-file -";

/// Print the manual page of the tool or of one command
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Man {
    /// The command; the whole tool if left out
    command: Option<String>,
}

impl Man {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command(self.command.as_deref())?).render(&mut page)?;
        output::write(&page)
    }
}

fn command(name: Option<&str>) -> Result<clap::Command, Error> {
    let mut tool = Cli::command();
    tool.build();
    let Some(name) = name else { return Ok(tool) };
    let known: Vec<&str> = tool.get_subcommands().map(clap::Command::get_name).collect();
    let found = tool.find_subcommand(name).cloned();
    let refusal = || Error::argument("man", format!("no command \"{name}\"; there are {}", known.join(", ")));
    found.map(|found| found.name(format!("squisher-{name}"))).ok_or_else(refusal)
}
