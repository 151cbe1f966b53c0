//! `squisher completions SHELL`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::Cli;
use crate::output;

const EXAMPLES: &str = "\
Examples:
  squisher completions bash > ~/.local/share/bash-completion/completions/squisher
  squisher completions zsh  > \"${fpath[1]}/_squisher\"
  squisher completions fish > ~/.config/fish/completions/squisher.fish";

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "squisher", &mut script);
        output::write(&script)
    }
}
