//! `weir man`.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Command};

use super::Exit;

/// Write the manual pages
///
/// Writes a manual page for each command into a folder.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Man {
    /// Folder; made where it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir man /usr/local/share/man/man1
  weir man pages && man -l pages/weir-status.1";

impl Man {
    /// Writes.
    pub fn run(self, command: Command) -> anyhow::Result<Exit> {
        let Self { folder } = self;
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make the folder {}; name one that can be written to", folder.display()))?;
        clap_mangen::generate_to(command, &folder)
            .with_context(|| format!("cannot write to {}; name a folder that can be written to", folder.display()))?;
        Ok(Exit::Fine)
    }
}
