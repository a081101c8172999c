//! `weir status`.

mod page;
mod redraw;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use weir_engine::snapshot::{Effect, PairView};
use weir_engine::verdict::State;

use super::Exit;
use super::filter::Filter;
use super::out::{self, Output};
use crate::outputs::text::clean;
use crate::outputs::{View, socket};
use page::next_step;
use redraw::Screen;

/// How often a watched table is drawn again.
const REDRAW: Duration = Duration::from_secs(1);

/// Show what the agent on this node knows of the required flows
///
/// Shows the required flows between workloads as the agent on this node sees them, what needs attention first.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Status {
    /// Show pairs that are fine too
    #[arg(long)]
    all: bool,

    #[command(flatten)]
    filter: Filter,

    /// Only pairs in this state; repeatable
    #[arg(long, value_name = "STATE", value_parser = states())]
    state: Vec<State>,

    /// Draw again every second, in place on a terminal, until Ctrl-C
    #[arg(long)]
    watch: bool,

    /// How to print
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t)]
    output: Output,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir status --namespace shop --watch
  weir status --all --output json | jq '.pairs[] | select(.state == \"denied\") | .policies'

Exit codes: 0 all required flows fine, 1 findings, 2 could not tell or failed; of what the filters leave.";

impl Status {
    /// Asks the agent and prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        if !self.watch {
            return self.show(|text| out::print(&text));
        }
        let mut screen = Screen::new();
        loop {
            let drawn = match self.show(|text| screen.draw(&text)) {
                Ok(_) => Ok(()),
                Err(error) if out::is_broken_pipe(&error) => return Err(error),
                // An agent that restarts comes back.
                Err(error) => screen.draw(&format!("weir: {}\n", clean(&format!("{error:#}")))),
            };
            drawn?;
            std::thread::sleep(REDRAW);
        }
    }

    fn show(&self, mut draw: impl FnMut(String) -> anyhow::Result<()>) -> anyhow::Result<Exit> {
        let mut view = socket::ask(&self.socket)?;
        let known = view.snapshot.pairs.len();
        view.snapshot.pairs.retain(|p| self.filter.pair(p));
        if view.snapshot.pairs.is_empty() && known > 0 {
            bail!("none of the {known} pairs fits the filters; `weir status --all` shows every pair");
        }
        let exit = judge(&view);
        let wanted = |p: &PairView| match self.state.as_slice() {
            [] => self.all || needs_attention(p.state) || breaks(p),
            states => states.contains(&p.state),
        };
        match self.output {
            Output::Table => {
                let more = view.snapshot.pairs.iter().any(|p| !wanted(p));
                let mut text = page::page(&view, wanted, more);
                if let Some(reason) = view.not_ready() {
                    text.push_str(&format!("not ready: {}\n", clean(&reason)));
                }
                text.push_str(&next_step(&view));
                draw(text)?;
            }
            Output::Json => {
                view.snapshot.pairs.retain(wanted);
                out::json(&view)?;
                if let Some(reason) = view.not_ready() {
                    anstream::eprintln!("weir: not ready: {}", clean(&reason));
                }
            }
        }
        Ok(exit)
    }
}

/// The states by their words.
fn states() -> impl TypedValueParser<Value = State> {
    PossibleValuesParser::new(State::ALL.map(State::as_str))
        .map(|word| State::ALL.into_iter().find(|s| s.as_str() == word).unwrap_or(State::Unknown))
}

/// Whether a pair in this state is shown without being asked for.
pub fn needs_attention(state: State) -> bool {
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

/// Whether the candidates would deny it: nothing is wrong yet, and it is what candidates are for.
fn breaks(pair: &PairView) -> bool {
    pair.candidate.as_ref().is_some_and(|c| c.effect == Effect::Breaks)
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
