//! `weir doctor` as a command; what it looks at is in [`doctor`](super::doctor).

use std::path::PathBuf;

use clap::Args;

use super::doctor::report;
use super::out::{self, Output};
use super::{Exit, doctor::DoctorReport};
use crate::outputs::socket;
use crate::outputs::text::clean;
use crate::probes::ProbeSettings;

/// Say what this node's kernel offers, which probes work and what is missing
///
/// Says what this node's kernel offers to the probes, which of them work, and what is missing for the others; which network
/// plugin and policy engine the node has, and which of that engine's drops show; and how old what the agent knows is, what it
/// lost, and whether its clock still fits. Loads every probe, and takes it off again. The JSON names no node, address or object.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Doctor {
    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,

    /// The kernel's type information, for a kernel that keeps it elsewhere
    #[arg(long, value_name = "PATH", default_value = "/sys/kernel/btf/vmlinux")]
    btf: PathBuf,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir doctor
  weir doctor --output json | jq '.probes[] | select(.active | not)'

Exit codes: 0 the agent can work here, 2 it cannot.";

impl Doctor {
    /// Looks and prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { output, btf, socket } = self;
        let report = report(&ProbeSettings { btf, ..ProbeSettings::default() }, &socket);
        match output {
            Output::Table => out::print(&page(&report))?,
            Output::Json => out::json(&report)?,
        }
        Ok(if report.exit_code() == 0 { Exit::Fine } else { Exit::Failed })
    }
}

fn page(report: &DoctorReport) -> String {
    report.to_string().lines().map(|line| format!("{}\n", clean(line))).collect()
}
