//! The command line: one file per subcommand. Data goes to standard output, everything else to standard error; the exit code
//! says whether all is fine (0), something was found (1), or it could not be told (2).

mod check;
mod completions;
mod connections;
mod diff;
pub mod doctor;
mod doctor_args;
mod explain;
pub mod filter;
mod fix;
mod flows;
mod kubectl;
mod man;
mod manifests;
mod out;
mod probe;
mod progress;
mod record;
mod replay;
mod run;
mod status;
mod table;
mod top;
mod usage;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::outputs::text::clean;

/// Names the NetworkPolicies that deny what an Istio mesh needs.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 all required flows fine, 1 findings, 2 could not tell or failed.";

/// Their short and long descriptions are those of the types.
#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Check(check::Check),
    Explain(explain::Explain),
    Fix(fix::Fix),
    Diff(diff::Diff),
    Status(status::Status),
    Probe(probe::Probe),
    Watch(watch::Watch),
    Top(top::Top),
    Doctor(doctor_args::Doctor),
    Flows(flows::Flows),
    Record(record::Record),
    Replay(replay::Replay),
    Completions(completions::Completions),
    Man(man::Man),
}

/// How a command ends. The numbers are an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All required flows are fine, or the command did what it was asked.
    Fine = 0,
    /// There are findings.
    Findings = 1,
    /// Could not tell, or failed.
    Failed = 2,
}

impl Exit {
    /// As an agent says it.
    fn of(code: u8) -> Self {
        match code {
            0 => Self::Fine,
            1 => Self::Findings,
            _ => Self::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The command line, as it is parsed.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// The plugin's.
#[must_use]
pub fn kubectl_command() -> clap::Command {
    kubectl::Kubectl::command()
}

/// Parses the command line and runs it.
#[must_use]
pub fn main() -> ExitCode {
    if kubectl::is_called() {
        return match kubectl::Kubectl::try_parse() {
            Ok(plugin) => end(plugin.run()),
            Err(error) => usage::tell(&error),
        };
    }
    match Cli::try_parse() {
        Ok(Cli { command }) => end(dispatch(command)),
        Err(error) => usage::tell(&error),
    }
}

fn dispatch(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Explain(command) => command.run(),
        Command::Fix(command) => command.run(),
        Command::Diff(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Probe(command) => command.run(),
        Command::Watch(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Flows(command) => command.run(),
        Command::Record(command) => command.run(),
        Command::Replay(command) => command.run(),
        Command::Completions(command) => command.run(Cli::command()),
        Command::Man(command) => command.run(Cli::command()),
    }
}

fn end(ended: anyhow::Result<Exit>) -> ExitCode {
    match ended {
        Ok(exit) => exit.into(),
        // The reader has seen enough: `weir … | head`.
        Err(error) if out::is_broken_pipe(&error) => Exit::Fine.into(),
        Err(error) => {
            anstream::eprintln!("weir: {}", clean(&format!("{error:#}")));
            Exit::Failed.into()
        }
    }
}
