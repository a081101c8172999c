//! `weir-matrix`: makes every cause, prints what the agent says of each, and writes Markdown and JSON. Needs root.
//!
//! Exit codes: 0 nothing below the floor, 1 something is, 2 the matrix could not be run.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use harness::agent;
use harness::matrix::document;
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
    /// File whose section of this kernel is to be replaced, Markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// File to write every cell to, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run nothing: read the cells of an earlier run from this file.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "quick", "json"])]
    read: Option<PathBuf>,
    /// The agent; beside this program if not given.
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
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
    let Arguments { only, quick, markdown, json, read, agent } = arguments;
    let report = match read {
        Some(path) => {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} holds no report", path.display()))?
        }
        None => {
            ensure!(
                nix::unistd::geteuid().is_root(),
                "the matrix needs root: it makes network namespaces and attaches probes"
            );
            let load = only.is_none() && !quick;
            let binary = agent.map_or_else(agent::binary, Ok)?;
            run(&Options { binary, only, quick, load })?
        }
    };
    if let Some(path) = json {
        std::fs::write(&path, serde_json::to_string(&report)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let section = report.markdown();
    if let Some(path) = markdown {
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(&path, document::merge(&before, &section))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{section}");
    print!("{}", report.summary());
    Ok(report.below_floor().is_empty() && report.load_failures().is_empty())
}
