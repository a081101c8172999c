//! `weir-matrix`: makes every cause, prints what the agent says of each, and writes Markdown and JSON. Needs root.
//!
//! Exit codes: 0 nothing below the floor, 1 something is, 2 the matrix could not be run.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use harness::agent;
use harness::matrix::run::{Options, run};

/// The confusion matrix: each cause of a failed connection made for real, and what the agent says of it.
#[derive(Debug, Parser)]
#[command(name = "weir-matrix")]
struct Arguments {
    /// Only causes whose name contains this.
    only: Option<String>,
    /// One address family and non-blocking connects only, without floods.
    #[arg(long)]
    quick: bool,
    /// File to write the report to, as Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// File to write every cell to, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match matrix(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn matrix(arguments: Arguments) -> Result<bool> {
    let Arguments { only, quick, markdown, json } = arguments;
    ensure!(nix::unistd::geteuid().is_root(), "the matrix needs root: it makes network namespaces and attaches probes");
    let load = only.is_none() && !quick;
    let report = run(&Options { binary: agent::binary()?, only, quick, load })?;
    let text = report.markdown();
    if let Some(path) = markdown {
        std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = json {
        std::fs::write(&path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    print!("{text}\n{}", report.summary());
    Ok(report.below_floor().is_empty() && report.load_failures().is_empty())
}
