//! Published NetworkPolicy cases against the engine: every file of a folder, passed and failed.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::tools;

/// `cargo xtask conformance DIR`
#[derive(clap::Args)]
pub struct Conformance {
    /// Folders of cases (`*.json`, `*.ndjson.gz`, `*.sequences.json`) or of fixtures (`expected*.yaml` below them).
    #[arg(required = true)]
    folders: Vec<PathBuf>,
}

impl Conformance {
    /// Exit codes: 0 all passed, 1 some failed, 2 nothing could be read.
    pub fn run(self) -> Result<ExitCode> {
        let Self { folders } = self;
        let mut cargo = tools::cargo();
        tools::run(cargo.args(["build", "--quiet", "--package", "weir-tests", "--bin", "weir-conformance"]))?;
        let program = tools::built("weir-conformance");
        let mut command = Command::new(&program);
        let status = command.args(&folders).status().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }
}
