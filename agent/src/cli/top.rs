//! `weir top`.

mod screen;

use std::io::{IsTerminal as _, stdout};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::Exit;
use super::filter::Filter;
use crate::outputs::live::Live;
use crate::outputs::socket;
use screen::Screen;

/// Show status and attempts on a screen that keeps itself up to date
///
/// Shows the required flows, the details of one, and attempts as they come, until q is pressed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Top {
    #[command(flatten)]
    filter: Filter,

    /// Show pairs that are fine too; the key a changes it
    #[arg(long)]
    all: bool,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir top
  weir top --namespace shop --all

Keys: q quits, up and down choose a pair, a shows all pairs.";

/// How often the agent is asked.
const REFRESH: Duration = Duration::from_secs(1);
/// How often attempts are drawn.
const DRAW: Duration = Duration::from_millis(200);
/// Set in a debug build, it panics after its first picture: how a test sees what a panic leaves behind.
#[cfg(debug_assertions)]
const PANIC: &str = "WEIR_TEST_PANIC";
/// Attempts that wait to be drawn; more are not worth keeping.
const QUEUE: usize = 256;

impl Top {
    /// Draws until told to stop.
    pub fn run(self) -> anyhow::Result<Exit> {
        let Self { filter, all, socket } = self;
        if !stdout().is_terminal() {
            bail!(
                "weir top draws on a terminal, and this is none; in a pod: kubectl exec -it; without one: weir status --watch"
            );
        }
        // Before the screen is taken: who has no agent is told so where it stays readable.
        let mut screen = Screen::new(filter, all);
        screen.update(socket::ask(&socket)?);
        let lines = attempts(socket.clone());
        // Restores the terminal when it is dropped below, and in a panic before its message.
        let mut terminal = ratatui::try_init().context("cannot draw on this terminal; use weir status")?;
        let ended = (|| -> anyhow::Result<()> {
            let mut asked = Instant::now();
            loop {
                lines.try_iter().for_each(|live| screen.attempt(&live));
                if asked.elapsed() >= REFRESH {
                    match socket::ask(&socket) {
                        Ok(view) => screen.update(view),
                        // An agent that restarts comes back.
                        Err(error) => screen.fail(&error.to_string()),
                    }
                    asked = Instant::now();
                }
                terminal.draw(|frame| screen.draw(frame))?;
                #[cfg(debug_assertions)]
                assert!(std::env::var_os(PANIC).is_none(), "{PANIC} is set");
                if !event::poll(DRAW)? {
                    continue;
                }
                let Event::Key(key) = event::read()? else { continue };
                if key.kind == KeyEventKind::Release {
                    continue;
                }
                match key.code {
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('a') => screen.toggle_all(),
                    KeyCode::Down | KeyCode::Char('j') => screen.choose(1),
                    KeyCode::Up | KeyCode::Char('k') => screen.choose(-1),
                    _ => {}
                }
            }
        })();
        ratatui::try_restore().context("cannot restore the terminal; `reset` does")?;
        ended?;
        anstream::eprintln!("weir: next: weir explain FROM TO PORT says why, weir watch --denied follows attempts");
        Ok(Exit::Fine)
    }
}

/// Attempts from a thread of its own, for as long as somebody draws them; again from an agent that restarts.
fn attempts(socket: PathBuf) -> Receiver<Live> {
    let (send, lines) = sync_channel(QUEUE);
    std::thread::spawn(move || {
        loop {
            for live in socket::watch(&socket).into_iter().flatten().map_while(Result::ok) {
                if send.send(live).is_err() {
                    return;
                }
            }
            std::thread::sleep(REFRESH);
        }
    });
    lines
}
