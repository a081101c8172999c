//! `weir watch`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use anyhow::{Context as _, bail};
use clap::Args;
use weir_engine::attempt::{Attempts, Outcome};
use weir_engine::engine::WATCHED_PORTS;
use weir_engine::observation::{Hook, Tuple};
use weir_engine::snapshot::names_line;

use super::Exit;
use super::filter::Filter;
use super::{out, table};
use crate::outputs::live::{Line, Live};
use crate::outputs::text::clean;
use crate::outputs::{log, socket};
use crate::probes::ProbeSettings;
use crate::run::{self, Clock, Kernel, Observer as _};

/// Show connection attempts as the kernel decides them
///
/// Shows connection attempts as the kernel decides them, one line each, until Ctrl-C: time, outcome, flow, source →
/// destination, addresses as dialled (and where a Service led), where it was dropped, the policies that select its ends, and
/// the process. What does not fit into 100 columns goes on below, indented. A mark + after the outcome: the socket still tries.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct Watch {
    #[command(flatten)]
    filter: Filter,

    /// Only attempts that were dropped or rejected where policies act, or that policies do not admit
    #[arg(long)]
    denied: bool,

    /// Only to this port, as dialled or as translated; repeatable
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Vec<u16>,

    /// One line for each attempt, however wide
    #[arg(long, conflicts_with = "json")]
    wide: bool,

    /// One JSON object per line
    #[arg(long)]
    json: bool,

    /// With probes of its own: no agent, no cluster, addresses instead of names. Needs root
    #[arg(long, conflicts_with_all = ["flow", "namespace", "workload"])]
    standalone: bool,

    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = socket::DEFAULT_PATH, env = "WEIR_SOCKET")]
    socket: PathBuf,
}

const EXAMPLES: &str = "Examples:
  weir watch --namespace shop --denied
  weir watch --standalone --port 15012 --json | jq -r .attempt.outcome";

/// Attempts followed at the same time without an agent.
const MAX_ATTEMPTS: usize = 65_536;

/// The last words of a watch that was ended.
const NEXT: &str =
    "weir: next: weir explain FROM TO PORT says why one was denied, weir status what it does to the mesh";
const NEXT_STANDALONE: &str =
    "weir: next: weir doctor says what this kernel shows; names and verdicts take an agent: weir run";

impl Watch {
    /// Prints until the agent or the reader goes away.
    pub fn run(self) -> anyhow::Result<Exit> {
        if self.standalone {
            return self.standalone();
        }
        let lines = socket::watch(&self.socket)?;
        end_when_interrupted()?;
        for live in lines {
            self.show(&live?)?;
        }
        bail!("the agent has stopped; start it again with `weir run`, or use `weir watch --standalone`")
    }

    fn show(&self, live: &Live) -> anyhow::Result<()> {
        match live {
            Live::Attempt(line) if !self.wanted(line) => Ok(()),
            live if self.json => out::json(live),
            Live::Attempt(line) if self.wide => out::print(&text(line)),
            Live::Attempt(line) => out::print(&table::wrap(text(line).trim_end())),
            Live::Skipped(count) => out::print(&format!("{count} lines skipped: more than can be shown\n")),
        }
    }

    fn wanted(&self, line: &Line) -> bool {
        let flows: Vec<(&str, &str)> = line.flows.iter().map(|f| (&*f.id, &*f.code)).collect();
        let to =
            |port: &u16| std::iter::once(&line.dialled).chain(&line.translated).any(|t| t.destination_port == *port);
        (!self.denied || line.is_denied())
            && (self.port.is_empty() || self.port.iter().any(to))
            && self.filter.flow(&flows)
            && self.filter.ends([&line.source, &line.destination])
    }

    fn standalone(&self) -> anyhow::Result<Exit> {
        let ports = if self.port.is_empty() { WATCHED_PORTS.into() } else { self.port.iter().copied().collect() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.context("cannot start the event loop")?.block_on(async {
            let clock = Clock::start();
            let mut kernel = Kernel::load(&ProbeSettings { ports, ..ProbeSettings::default() })?;
            anstream::eprintln!("weir: watching; Ctrl-C ends it");
            let mut attempts = Attempts::new(MAX_ATTEMPTS);
            let (mut batch, mut lost) = (Vec::new(), 0);
            let stop = run::stop_signal()?;
            tokio::pin!(stop);
            loop {
                // What nothing more is seen of is decided by time.
                let decided = attempts.poll_timeout().map(|at| tokio::time::sleep_until(clock.instant(at)));
                tokio::select! {
                    () = &mut stop => {
                        anstream::eprintln!("{NEXT_STANDALONE}");
                        return Ok(Exit::Fine);
                    }
                    seen = kernel.next(&mut batch) => seen?,
                    () = run::maybe(decided) => {}
                }
                let now = clock.now();
                batch.drain(..).for_each(|o| attempts.observe(now, &o));
                attempts.handle_timeout(now);
                let total = kernel.lost().iter().map(|(_, n)| n).sum::<u64>();
                if total > lost {
                    self.show(&Live::Skipped(total - lost))?;
                    lost = total;
                }
                while let Some(attempt) = attempts.poll() {
                    let line = Line::between_addresses(&attempt, clock.wall_offset_ns());
                    self.show(&Live::Attempt(Arc::new(line)))?;
                }
            }
        })
    }
}

/// Ctrl-C is how a watch ends: in order, with what to do next. Lines come from a blocking read, so this waits beside it.
fn end_when_interrupted() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("cannot wait for Ctrl-C")?;
    let stop = {
        let _inside = runtime.enter();
        run::stop_signal()?
    };
    std::thread::spawn(move || {
        runtime.block_on(stop);
        // Whole lines only: nobody else prints while this is held.
        let _out = std::io::stdout().lock();
        anstream::eprintln!("{NEXT}");
        std::process::exit(0);
    });
    Ok(())
}

/// One line for people.
pub fn text(line: &Line) -> String {
    let time = jiff::Timestamp::from_nanosecond(line.at_unix_ns.into()).unwrap_or_default();
    let style = style(line);
    let still = if line.provisional { "+" } else { "" };
    let flows = line.flows.iter().map(|f| &*f.id).collect::<Vec<_>>().join(",");
    let flow = if flows.is_empty() { "-" } else { flows.as_str() };
    let mut out = format!("{} {style}{}{still}{style:#} {}", time.strftime("%H:%M:%S%.3fZ"), line.outcome, clean(flow));
    // Where nobody has a name, the addresses that follow say it all.
    if line.source.kind != "address" || line.destination.kind != "address" {
        let (source, destination) = (log::end(&line.source), log::end(&line.destination));
        let _ = write!(out, " {} → {}", clean(&source), clean(&destination));
    }
    let Tuple { source, source_port, destination, destination_port, protocol } = line.dialled;
    let port = |address, port| match port {
        0 => address_only(address),
        port => SocketAddr::new(address, port).to_string(),
    };
    let _ = write!(out, " {} → {}/{protocol}", port(source, source_port), port(destination, destination_port));
    if let Some(t) = &line.translated {
        let _ = write!(out, " ({} → {})", port(t.source, t.source_port), port(t.destination, t.destination_port));
    }
    if let Some(class) = line.class {
        let _ = write!(out, " {}{class}", if line.reply { "answer in " } else { "in " });
        let hook = line.hook.map(Hook::as_str);
        for part in hook.into_iter().chain(line.location.as_deref()).chain(line.reason.as_deref()) {
            let _ = write!(out, " {}", clean(part));
        }
    }
    if line.retransmits > 0 {
        let _ = write!(out, " {} retransmits", line.retransmits);
    }
    if let Some(latency) = line.latency_ns {
        let _ = write!(out, " {}.{:03}ms", latency / 1_000_000, latency / 1_000 % 1_000);
    }
    if !line.policies.is_empty() {
        let _ = write!(out, " policies {}", clean(&names_line(&line.policies, line.policies_left_out)));
    }
    if let Some(owner) = line.owner.as_ref().filter(|o| o.pid != 0) {
        let _ = write!(out, " by {}[{}]", clean(&owner.comm), owner.pid);
    }
    out.push('\n');
    out
}

fn address_only(address: std::net::IpAddr) -> String {
    address.to_string()
}

fn style(line: &Line) -> Style {
    let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
    match line.outcome {
        Outcome::Established => colour(AnsiColor::Green),
        Outcome::Cancelled => Style::new().dimmed(),
        Outcome::NoReply | Outcome::BacklogFull => colour(AnsiColor::Yellow),
        Outcome::Refused | Outcome::Rejected | Outcome::Dropped | Outcome::TimedOut | Outcome::Unreachable => {
            colour(AnsiColor::Red)
        }
    }
}
