//! `weir check`.

mod traffic;

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, ValueEnum};
use weir_engine::check::{self, Options};
use weir_engine::requirement::Severity;

use super::connections::Seen;
use super::manifests::Source;
use super::{Exit, out, progress};
use crate::report::{Checked, Conclusion, junit, markdown, sarif, table};

/// Judge manifests before they are applied
///
/// Judges every flow that the mesh needs by the policies in manifests, before anything is applied.
///
/// Pods come from Pod objects, or, in rendered charts, from the pod templates of workloads.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Check {
    #[command(flatten)]
    source: Source,

    /// Take the policies of -f for candidates: tell what they would break of what an agent has observed. FILE is a recording
    /// (weir run --record), or a snapshot (weir status --output json --all, /snapshot) together with --cluster
    #[arg(long, value_name = "FILE", conflicts_with_all = ["fail_on", "strict", "mutate", "all", "connections"])]
    traffic: Option<PathBuf>,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Format,

    /// Denied flows of this severity or worse are findings
    #[arg(long, value_enum, value_name = "SEVERITY", default_value_t = FailOn::Low)]
    fail_on: FailOn,

    /// Errors and warnings about policies are findings too
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    seen: Seen,

    /// Delete each rule in turn and tell which required flows close
    #[arg(long)]
    mutate: bool,

    /// Show admitted flows and notes on policies too
    #[arg(long)]
    all: bool,
}

const EXAMPLES: &str = "Examples:
  weir check -f policies/ --cluster cluster.yaml
  helm template my-mesh | weir check -f - --cluster cluster.yaml --output sarif > weir.sarif
  weir check --traffic recording.jsonl -f candidates/

A cluster's objects: kubectl get ns,no,po,svc,endpointslices,netpol -A -o yaml > cluster.yaml

Exit codes: 0 all required flows fine, 1 findings, 2 could not tell or failed.";

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs; versioned
    Json,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// For CI systems
    Junit,
    /// For pull requests
    Markdown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    Critical,
    High,
    Medium,
    Low,
    Info,
}

impl From<FailOn> for Severity {
    fn from(fail_on: FailOn) -> Self {
        match fail_on {
            FailOn::Critical => Self::Critical,
            FailOn::High => Self::High,
            FailOn::Medium => Self::Medium,
            FailOn::Low => Self::Low,
            FailOn::Info => Self::Info,
        }
    }
}

impl Check {
    /// Reads, judges, prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { source, traffic, seen, output, fail_on, strict, mutate, all } = self;
        if let Some(traffic) = traffic {
            return match output {
                Format::Table => traffic::run(&traffic, &source, false),
                Format::Json => traffic::run(&traffic, &source, true),
                Format::Sarif | Format::Junit | Format::Markdown => bail!("--traffic prints as table or json"),
            };
        }
        let mut loaded = source.load()?;
        seen.observe(&mut loaded.model)?;
        let options = Options { profile: source.reading.engine, mutate, ..Options::default() };
        let bar = progress::working("judging what the mesh needs");
        let report = check::check(&loaded.model, &options);
        bar.finish_and_clear();
        let checked = Checked::new(report, loaded.inputs, fail_on.into(), strict);
        match output {
            Format::Table => {
                let show = table::Show { all, arguments: source.arguments(), seen: seen.arguments() };
                out::print(&table::render(&checked, &show))?;
            }
            Format::Json => out::json(&checked)?,
            Format::Sarif => out::json(&sarif::render(&checked, &loaded.model.cluster))?,
            Format::Junit => out::print(&junit::render(&checked)?)?,
            Format::Markdown => out::print(&markdown::render(&checked))?,
        }
        Ok(checked.conclusion.into())
    }
}

impl From<Conclusion> for Exit {
    fn from(conclusion: Conclusion) -> Self {
        match conclusion {
            Conclusion::Fine => Self::Fine,
            Conclusion::Findings => Self::Findings,
            Conclusion::CouldNotTell => Self::Failed,
        }
    }
}
