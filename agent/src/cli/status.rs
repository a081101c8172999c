//! `weir status`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use weir_engine::snapshot::PairView;
use weir_engine::verdict::State;

use super::Exit;
use super::out::{self, Output};
use super::table::{self, Cell, Table};
use crate::cluster::manifests::Severity;
use crate::outputs::text::clean;
use crate::outputs::{View, log, socket};

/// Shows the required flows between workloads as the agent on this node sees them, what needs attention first.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Status {
    /// Show pairs that are fine too
    #[arg(long)]
    all: bool,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir status
  weir status --all --output json | jq '.pairs[] | select(.state == \"denied\") | .policies'

Exit codes: 0 all required flows fine, 1 findings, 2 could not tell or failed.";

impl Status {
    /// Asks the agent and prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { all, output, socket } = self;
        let mut view = socket::ask(&socket)?;
        let exit = judge(&view);
        match output {
            Output::Table => out::print(&page(&view, all))?,
            Output::Json => {
                if !all {
                    view.snapshot.pairs.retain(|p| needs_attention(p.state));
                }
                out::json(&view)?;
            }
        }
        if let Some(reason) = view.not_ready() {
            anstream::eprintln!("weir: not ready: {}", clean(&reason));
        }
        Ok(exit)
    }
}

fn needs_attention(state: State) -> bool {
    match state {
        State::Denied
        | State::Predicted
        | State::AtRisk
        | State::Unenforced
        | State::Unexplained
        | State::Failing
        | State::Unknown => true,
        State::Silent | State::Verified => false,
    }
}

/// Findings outweigh doubt, doubt outweighs silence. Where nothing is known, nothing is fine.
fn judge(view: &View) -> Exit {
    let states = || view.snapshot.pairs.iter().map(|p| p.state);
    if states().any(|s| needs_attention(s) && s != State::Unknown) {
        Exit::Findings
    } else if view.not_ready().is_some() || view.snapshot.pairs.is_empty() || states().any(|s| s == State::Unknown) {
        Exit::Failed
    } else {
        Exit::Fine
    }
}

fn page(view: &View, all: bool) -> String {
    let shown: Vec<&PairView> = view.snapshot.pairs.iter().filter(|p| all || needs_attention(p.state)).collect();
    let mut out = String::new();
    if !shown.is_empty() {
        let mut table = Table::new(&["state", "flow", "source → destination", "port", "since"], 2);
        for pair in shown {
            let cells = [
                Cell::state(pair.state),
                Cell::from(&*pair.flow),
                format!("{} → {}", log::end(&pair.source), log::end(&pair.destination)).into(),
                port(pair).into(),
                age(view.snapshot.at.since(pair.since)).into(),
            ];
            table.row(cells, note(pair).as_deref());
        }
        out.push_str(&table.render());
        out.push('\n');
    }
    let _ = writeln!(out, "{}", summary(view, all));
    let broken = view.agent.problems.iter().filter(|p| p.severity == Severity::Error).count();
    if broken > 0 {
        let first = view.agent.problems.iter().find(|p| p.severity == Severity::Error);
        let text = first.map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(out, "{broken} manifest documents were not read, the first:\n    {}", clean(&text));
    }
    let lost: u64 = view.snapshot.lost.iter().map(|l| l.count).sum();
    if lost > 0 {
        let _ = writeln!(out, "{lost} kernel events were lost since the start; what they concern is unknown");
    }
    out
}

fn summary(view: &View, all: bool) -> String {
    let count = |state: State| view.snapshot.pairs.iter().filter(|p| p.state == state).count();
    let parts: Vec<String> = State::ALL
        .into_iter()
        .map(|state| (state, count(state)))
        .filter(|(_, n)| *n > 0)
        .map(|(state, n)| format!("{n} {}", table::state(state)))
        .collect();
    if parts.is_empty() {
        return "no required flows: no mesh workloads are known; check what `weir run --manifests` reads".to_owned();
    }
    let hidden = view.snapshot.pairs.iter().any(|p| !needs_attention(p.state)) && !all;
    format!("{}{}", parts.join(", "), if hidden { " (--all shows every pair)" } else { "" })
}

fn port(pair: &PairView) -> String {
    match pair.service_port.filter(|p| *p != pair.port) {
        Some(dialled) => format!("{dialled}→{}/{}", pair.port, pair.protocol),
        None => format!("{}/{}", pair.port, pair.protocol),
    }
}

/// The policies where some deny, else why; nothing below what is fine.
fn note(pair: &PairView) -> Option<String> {
    match pair.state {
        State::Silent | State::Verified => None,
        State::Denied | State::Predicted | State::AtRisk | State::Unenforced if !pair.policies.is_empty() => {
            Some(format!("policies: {}", pair.policies.join(", ")))
        }
        State::Denied
        | State::Predicted
        | State::AtRisk
        | State::Unenforced
        | State::Unexplained
        | State::Failing
        | State::Unknown => Some(pair.why.clone()),
    }
}

/// The two largest units: `12s`, `3m05s`, `2h10m`, `4d03h`.
fn age(age: Duration) -> String {
    let s = age.as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}
