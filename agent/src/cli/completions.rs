//! `weir completions`.

use std::io::Write as _;

use clap::{Args, Command};
use clap_complete::Shell;

use super::Exit;

/// Print the completions of a shell
///
/// Prints the completions of a shell, to be read by it at its start.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Completions {
    /// Which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

const EXAMPLES: &str = "Examples:
  weir completions bash > /etc/bash_completion.d/weir
  weir completions zsh > ~/.zfunc/_weir";

impl Completions {
    /// Prints.
    pub fn run(self, mut command: Command) -> anyhow::Result<Exit> {
        let Self { shell } = self;
        // Into memory first: the generator panics where its writer fails, and a pipe may be closed.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "weir", &mut script);
        std::io::stdout().lock().write_all(&script)?;
        Ok(Exit::Fine)
    }
}
