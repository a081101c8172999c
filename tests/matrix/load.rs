//! Denials beside floods: a SYN flood and healthy traffic at a high rate must hide none, and an agent that was not scheduled
//! while its ring buffer ran over must say that it lost events, prove nothing from their absence, and see again afterwards.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::{Domain, Protocol as IpProtocol, SockAddr, Socket, Type};

use super::report::{Load, Report};
use super::run::change;
use super::world::{Lane, Site, Watcher, XDS};
use super::{Model, Place};
use crate::clients::Attempt;
use crate::fixture::Protocol;
use crate::ipv6::Family;
use crate::mesh::Mesh;
use crate::netns::Netns;

/// How long a flood lasts. Bounded, so that a machine that others use stays usable.
const FLOOD: Duration = Duration::from_secs(2);
/// Packets a second at most.
const FLOOD_RATE: u64 = 50_000;
/// Connections a second that the healthy traffic aims at.
const HEALTHY_RATE: u64 = 5_000;
/// Events that surely do not fit: four for each connection of about 100 bytes each, into a mebibyte.
const OVERRUN: u64 = 12_000;

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
        let begin = Instant::now();
        thread::scope(|scope| {
            let noisy = scope.spawn(|| noise(&stop, &count));
            thread::sleep(FLOOD / 4);
            let dialled = self.dial(self.denied);
            thread::sleep(FLOOD.saturating_sub(begin.elapsed()));
            stop.store(true, Ordering::Relaxed);
            noisy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            dialled
        })?;
        let rate = (count.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()).round();
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

    /// Both agents stand still while more happens than their buffers hold.
    fn overrun(&self, round: usize, report: &mut Report) -> Result<()> {
        let models = change(self.agents, round, self.lanes)?;
        let before = [self.agents[0].lost()?, self.agents[1].lost()?];
        let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
        let begin = Instant::now();
        {
            let _asleep = [Asleep::new(&self.agents[0])?, Asleep::new(&self.agents[1])?];
            thread::scope(|scope| {
                let noisy = scope.spawn(|| self.connect(&stop, &count));
                while count.load(Ordering::Relaxed) < OVERRUN && begin.elapsed() < 4 * FLOOD {
                    thread::sleep(Duration::from_millis(20));
                }
                stop.store(true, Ordering::Relaxed);
                noisy.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
        }
        let what = |detail: &str, model: Model| format!("ring buffer overrun: {detail}, policies {model}");
        let rate = format!("{} connections unread", count.load(Ordering::Relaxed));
        thread::sleep(Duration::from_millis(500));
        for ((agent, model), before) in self.agents.iter().zip(models).zip(before) {
            let lost = agent.lost()?.saturating_sub(before);
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
        let (IpAddr::V4(source), IpAddr::V4(destination)) = (from, to.ip()) else { return Ok(()) };
        client.run(|| {
            // IPPROTO_RAW: the IP header is ours.
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(IpProtocol::from(255)))?;
            let address = SockAddr::from(to);
            let begin = Instant::now();
            let mut packet = Vec::with_capacity(64);
            while !stop.load(Ordering::Relaxed) {
                let sent = count.fetch_add(1, Ordering::Relaxed);
                packet.clear();
                let step = PacketBuilder::ipv4(source.octets(), destination.octets(), 64);
                let port = 1024 + (sent % 60_000) as u16;
                step.tcp(port, XDS, sent as u32, 1000).syn().write(&mut packet, &[])?;
                // A full queue is part of a flood.
                let _ = socket.send_to(&packet, &address);
                pace(begin, sent, FLOOD_RATE);
            }
            Ok(())
        })
    }

    /// Connections one after the other, each closed by a reset so that none lingers.
    fn connect(&self, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
        let (client, _, to) = self.address(self.healthy)?;
        thread::scope(|scope| {
            let running: Vec<_> = (0..2)
                .map(|_| {
                    scope.spawn(move || {
                        client.run(|| {
                            let begin = Instant::now();
                            let mut own = 0;
                            while !stop.load(Ordering::Relaxed) {
                                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                                socket.set_linger(Some(Duration::ZERO))?;
                                socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
                                own += 1;
                                count.fetch_add(1, Ordering::Relaxed);
                                pace(begin, own, HEALTHY_RATE / 2);
                            }
                            Ok(())
                        })
                    })
                })
                .collect();
            running.into_iter().try_for_each(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
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

/// Sleeps if more was done than the rate allows.
fn pace(begin: Instant, done: u64, rate: u64) {
    let due = Duration::from_micros(done * 1_000_000 / rate);
    let ahead = due.saturating_sub(begin.elapsed());
    if ahead > Duration::from_millis(2) {
        thread::sleep(ahead);
    }
}

/// The state of a lane, given a few seconds to become what it should.
fn settle(agent: &Watcher, lane: &Lane, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let begin = Instant::now();
    loop {
        let state = agent.said(&[lane], Protocol::Tcp)?.remove(0).state;
        if wanted(&state) || begin.elapsed() > Duration::from_secs(4) {
            return Ok(state);
        }
        thread::sleep(Duration::from_millis(150));
    }
}
