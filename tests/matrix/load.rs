//! Denials beside floods: a SYN flood and healthy traffic at a high rate must hide none, and an agent that was not scheduled
//! while its ring buffer ran over must say that it lost events, prove nothing from their absence, and see again afterwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::report::{Load, Report};
use super::run::change;
use super::world::{Lane, Site, Watcher, XDS};
use super::{Model, Place, traffic};
use crate::clients::Attempt;
use crate::fixture::Protocol;
use crate::ipv6::Family;
use crate::mesh::Mesh;
use crate::netns::Netns;
use crate::usage;

/// How long a flood lasts. Bounded, so that a machine that others use stays usable.
const FLOOD: Duration = Duration::from_secs(2);
/// How long one may take to begin, and an overrun to come about.
const SLOWEST: Duration = Duration::from_secs(60);
/// Packets a second at most.
const FLOOD_RATE: u64 = 50_000;
/// Connections a second that the healthy traffic aims at.
const HEALTHY_RATE: u64 = 5_000;
/// Clients that make them.
const CLIENTS: u64 = 4;
/// Events that surely do not fit: four for each connection of about 100 bytes each, into a mebibyte.
const OVERRUN: u64 = 12_000;

/// Addresses that a flood comes from.
const SOURCES: (Ipv4Addr, u32) = (Ipv4Addr::new(198, 18, 0, 0), 0x4000);
/// Series of metrics that a flood may add: of outcomes and losses, never of addresses.
const MORE_SERIES: usize = 32;
/// Bytes that it may add to an agent.
const MORE_MEMORY: u64 = 16 << 20;

/// The scene: agents and the lanes that play a part.
struct Stage<'a> {
    mesh: &'a Mesh,
    lanes: &'a [Lane],
    agents: &'a [Watcher; 2],
    denied: &'a Lane,
    flooded: &'a Lane,
    healthy: &'a Lane,
}

/// Runs every check; the agents' policies are as the last round left them, or the other way round.
pub fn run(mesh: &Mesh, lanes: &[Lane], agents: &[Watcher; 2], rounds: usize, report: &mut Report) -> Result<()> {
    let lane = |cause: &str, place: Place| {
        let found = lanes.iter().find(|lane| lane.cause.id == cause && lane.place == place);
        found.with_context(|| format!("no lane {cause} ({place})"))
    };
    let stage = Stage {
        mesh,
        lanes,
        agents,
        denied: lane("nft-forward", Place::SourceNode)?,
        flooded: lane("nft-forward", Place::OneNode)?,
        healthy: lane("healthy", Place::SourceNode)?,
    };
    stage.beside(rounds, "SYN flood", "packets", |stop, count| stage.syn_flood(stop, count), report)?;
    stage.beside(rounds + 1, "healthy connections", "connections", |stop, count| stage.connect(stop, count), report)?;
    stage.sources(report)?;
    stage.overrun(rounds + 2, report)
}

impl Stage<'_> {
    /// A real denial in the middle of `noise`.
    fn beside(
        &self,
        round: usize,
        what: &str,
        unit: &str,
        noise: impl Fn(&AtomicBool, &AtomicU64) -> Result<()> + Sync,
        report: &mut Report,
    ) -> Result<()> {
        let models = change(self.agents, round, self.lanes)?;
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        let took = thread::scope(|scope| {
            let noisy = scope.spawn(|| noise(&stop, &count));
            until(1, &count, || noisy.is_finished());
            let begin = Instant::now();
            thread::sleep(FLOOD / 4);
            let dialled = self.dial(self.denied);
            thread::sleep(FLOOD.saturating_sub(begin.elapsed()));
            stop.store(true, Ordering::Relaxed);
            noisy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            dialled.map(|()| begin.elapsed())
        })?;
        let rate = (count.load(Ordering::Relaxed) as f64 / took.as_secs_f64()).round();
        ensure!(rate > 0.0, "{what}: none of it was there");
        for (agent, model) in self.agents.iter().zip(models) {
            let right = self.denied.cause.allowed(model);
            let found = settle(agent, self.denied, |state| right.contains(&state))?;
            report.load.push(Load {
                what: format!("{what} beside a denial, policies {model}"),
                rate: format!("{rate} {unit}/s"),
                right: right.join(" or "),
                good: right.contains(&found.as_str()),
                found,
            });
        }
        Ok(())
    }

    /// A flood of which each packet has another source makes neither series nor memory grow beyond a bound.
    fn sources(&self, report: &mut Report) -> Result<()> {
        let size = |agent: &Watcher| -> Result<_> {
            let series = agent.agent.metrics()?.lines().filter(|line| !line.starts_with('#')).count();
            Ok((series, usage::resident(agent.agent.pid())?))
        };
        let before = [size(&self.agents[0])?, size(&self.agents[1])?];
        let (client, _, to) = self.address(self.flooded)?;
        let SocketAddr::V4(to) = to else { return Ok(()) };
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            // To nobody: there the kernel drops each of them.
            let noisy = scope.spawn(|| traffic::udp_flood(client, SOURCES, to, FLOOD_RATE, &stop, &count));
            until(1, &count, || noisy.is_finished());
            thread::sleep(FLOOD);
            stop.store(true, Ordering::Relaxed);
            noisy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        thread::sleep(Duration::from_millis(500));
        ensure!(count.load(Ordering::Relaxed) > 0, "no packet of the flood was sent");
        let rate = format!("{} packets/s", count.load(Ordering::Relaxed) / FLOOD.as_secs());
        for (agent, (series, memory)) in self.agents.iter().zip(before) {
            let (series_after, memory_after) = size(agent)?;
            let (more, grown) = (series_after.saturating_sub(series), memory_after.saturating_sub(memory));
            let mut bounded = |what: &str, right: String, found: String, good| {
                let what = format!("flood from {} addresses: {what}", SOURCES.1);
                report.load.push(Load { what, rate: rate.clone(), right, found, good });
            };
            let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
            bounded("more series", format!("<= {MORE_SERIES}"), more.to_string(), more <= MORE_SERIES);
            let right = format!("<= {}", mebibytes(MORE_MEMORY));
            bounded("more memory", right, mebibytes(grown), grown <= MORE_MEMORY);
        }
        Ok(())
    }

    /// Both agents stand still while more happens than their buffers hold.
    fn overrun(&self, round: usize, report: &mut Report) -> Result<()> {
        let models = change(self.agents, round, self.lanes)?;
        let before = [self.agents[0].lost()?, self.agents[1].lost()?];
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        {
            let _asleep = [Asleep::new(&self.agents[0])?, Asleep::new(&self.agents[1])?];
            thread::scope(|scope| {
                let noisy = scope.spawn(|| self.connect(&stop, &count));
                until(OVERRUN, &count, || noisy.is_finished());
                stop.store(true, Ordering::Relaxed);
                noisy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
        }
        let what = |detail: &str, model: Model| format!("ring buffer overrun: {detail}, policies {model}");
        let rate = format!("{} connections unread", count.load(Ordering::Relaxed));
        thread::sleep(Duration::from_millis(500));
        for ((agent, model), before) in self.agents.iter().zip(models).zip(before) {
            let lost = agent.lost()?.values().sum::<u64>().saturating_sub(before.values().sum());
            report.load.push(Load {
                what: what("the loss is counted", model),
                rate: rate.clone(),
                right: "more than 0 events lost".to_owned(),
                found: if lost > 0 { "more than 0 events lost".to_owned() } else { "none lost".to_owned() },
                good: lost > 0,
            });
            // This lane's client has not dialled since the policies changed: nothing is known of it.
            let quiet = agent.said(&[self.flooded], Protocol::Tcp)?.remove(0).state;
            report.load.push(Load {
                what: what("a pair without evidence", model),
                rate: rate.clone(),
                right: "unknown".to_owned(),
                good: quiet == "unknown",
                found: quiet,
            });
        }
        self.dial(self.denied)?;
        for (agent, model) in self.agents.iter().zip(models) {
            let right = self.denied.cause.allowed(model);
            let found = settle(agent, self.denied, |state| right.contains(&state))?;
            report.load.push(Load {
                what: what("a denial after it", model),
                rate: rate.clone(),
                right: right.join(" or "),
                good: right.contains(&found.as_str()),
                found,
            });
        }
        Ok(())
    }

    fn address(&self, lane: &Lane) -> Result<(&Netns, IpAddr, SocketAddr)> {
        let site = Site { mesh: self.mesh, lane };
        let to = SocketAddr::new(site.address(&lane.server, Family::V4)?, XDS);
        Ok((self.mesh.namespace(&lane.client)?, site.address(&lane.client, Family::V4)?, to))
    }

    fn dial(&self, lane: &Lane) -> Result<()> {
        let (client, _, to) = self.address(lane)?;
        Attempt { timeout: Duration::from_millis(1300), ..Attempt::new(Protocol::Tcp, to) }.run(client).map(drop)
    }

    /// SYNs from ever new source ports, all dropped in FORWARD.
    fn syn_flood(&self, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
        let (client, from, to) = self.address(self.flooded)?;
        traffic::syn_flood(client, from, to, FLOOD_RATE, stop, count)
    }

    /// Connections one after the other.
    fn connect(&self, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
        let (client, _, to) = self.address(self.healthy)?;
        traffic::connect(client, to, HEALTHY_RATE, CLIENTS, stop, count)
    }
}

/// An agent that is not scheduled until the value is dropped.
struct Asleep(Pid);

impl Asleep {
    fn new(watcher: &Watcher) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(watcher.agent.pid())?);
        kill(pid, Signal::SIGSTOP).context("cannot stop the agent")?;
        Ok(Self(pid))
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        // A process that has ended needs no waking.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Waits until so many were sent, which takes its time on a machine that is emulated; or until they ended, or no longer.
fn until(wanted: u64, count: &AtomicU64, ended: impl Fn() -> bool) {
    let begin = Instant::now();
    while count.load(Ordering::Relaxed) < wanted && !ended() && begin.elapsed() < SLOWEST {
        thread::sleep(Duration::from_millis(20));
    }
}

/// The state of a lane, given a few seconds to become what it should.
pub fn settle(agent: &Watcher, lane: &Lane, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let begin = Instant::now();
    loop {
        let state = agent.said(&[lane], Protocol::Tcp)?.remove(0).state;
        if wanted(&state) || begin.elapsed() > Duration::from_secs(4) {
            return Ok(state);
        }
        thread::sleep(Duration::from_millis(150));
    }
}
