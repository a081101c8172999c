//! The confusion matrix: each cause of a failed connection made for real, and what the agent says of it.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::{build_ebpf, setup, tools};

/// `cargo xtask matrix`
#[derive(clap::Args)]
pub struct Matrix {
    /// Only causes whose name contains this; nothing is written then.
    only: Option<String>,
    /// One address family and non-blocking connects only, without floods; nothing is written then.
    #[arg(long)]
    quick: bool,
    /// File for every cell, as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/matrix.json")]
    json: PathBuf,
}

impl Matrix {
    /// Exit codes: 0 nothing below the floor, 1 something is, 2 the matrix could not be run.
    pub fn run(self) -> Result<ExitCode> {
        let Self { only, quick, json } = self;
        if !tools::is_root() {
            bail!(
                "the matrix makes network namespaces and attaches probes: run it as root (`sudo -E cargo xtask matrix`)"
            );
        }
        setup::ensure(setup::For::Tests)?;
        build_ebpf::build()?;
        let mut cargo = tools::cargo();
        tools::run(cargo.args(["build", "--quiet", "--package", "weir", "--package", "weir-tests", "--bins"]))?;
        let program = tools::built("weir-matrix");
        let mut matrix = Command::new(&program);
        matrix.current_dir(tools::root()).arg("--json").arg(json);
        if quick {
            matrix.arg("--quick");
        }
        match only {
            Some(only) => drop(matrix.arg(only)),
            None if quick => {}
            None => drop(matrix.args(["--markdown", "docs/accuracy.md"])),
        }
        let status = matrix.status().with_context(|| format!("cannot start {}", program.display()))?;
        Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
    }
}
