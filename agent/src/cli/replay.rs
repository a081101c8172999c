//! `weir replay`.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use weir_engine::engine::{Engine, Snapshot, Transition};
use weir_engine::time::Time;

use super::{Exit, out, progress};
use crate::outputs::text::clean;
use crate::run::record::Recording;

/// Feed a recording to the engine again
///
/// Feeds a recording to the engine and prints every transition, then the last snapshot, one JSON line each. The same recording
/// gives the same bytes on every machine.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Replay {
    /// File written by `weir record` or `weir run --record`
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir replay incident.jsonl
  weir replay incident.jsonl | jq -r 'select(.transition) | .transition.why'";

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
enum Line<'a> {
    Transition(&'a Transition),
    Snapshot(&'a Snapshot),
}

impl Replay {
    /// Replays and prints.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { file } = self;
        let mut recording = Recording::open(&file)?;
        let mut engine = Engine::new(recording.settings.clone());
        let mut last = Time::default();
        // A terminal on which lines appear needs no other sign of life.
        let bar = (!io::stdout().is_terminal()).then(|| progress::bytes(recording.progress().1));
        let (mut inputs, mut transitions) = (0_u64, 0_u64);
        while let Some((now, input)) = recording.next_input()? {
            (last, inputs) = (now, inputs + 1);
            bar.iter().for_each(|bar| bar.set_position(recording.progress().0));
            if let Err(error) = engine.input(now, input) {
                anstream::eprintln!("weir: at {now}: {}", clean(&error.to_string()));
            }
            while let Some(transition) = engine.poll_transition() {
                out::json(&Line::Transition(&transition))?;
                transitions += 1;
            }
        }
        drop(bar);
        out::json(&Line::Snapshot(&engine.snapshot(last)))?;
        anstream::eprintln!(
            "weir: {inputs} inputs gave {transitions} transitions; next: each has its reason: jq .transition.why"
        );
        Ok(Exit::Fine)
    }
}
