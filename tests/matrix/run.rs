//! The rounds: every lane's client dials at once, and what both agents say is held against the table.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::panic;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::programs::Fenced;
use super::report::Report;
use super::world::{DNS, Lane, Site, Watcher, XDS, lanes, mesh};
use super::{Act, Cause, Cell, Held, Model, Place, Truth, cgroup, connect_word, family_word, load};
use crate::clients::{Attempt, Waiting};
use crate::fixture::Protocol;
use crate::ipv6::Family;
use crate::mesh::Mesh;

/// One SYN more than the first.
const USUAL: Duration = Duration::from_millis(1300);
/// How long the agents may take to report what happened.
const PATIENCE: Duration = Duration::from_secs(6);

/// How often a round is made again in which the agents said that they had lost events.
const REPEATS: usize = 2;

/// What is said of a policy's drop that the kernel does not show: nothing is accused and nothing works.
const UNSHOWN: [&str; 5] = ["unknown", "predicted", "at-risk", "failing", "silent"];

/// What is right may still become wrong for as long as this.
const SETTLING: Duration = Duration::from_millis(700);

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `weir` binary.
    pub binary: PathBuf,
    /// Only causes whose name contains this.
    pub only: Option<String>,
    /// One address family and non-blocking connects only.
    pub quick: bool,
    /// Floods and overruns as well.
    pub load: bool,
}

/// What one client does in a round.
struct Dial<'a> {
    lane: &'a Lane,
    protocol: Protocol,
}

/// Builds the mesh, runs every round and returns what was found.
pub fn run(options: &Options) -> Result<Report> {
    let begin = Instant::now();
    let wanted = |cause: &&Cause| options.only.as_ref().is_none_or(|part| cause.id.contains(part.as_str()));
    let mut report = Report::new();
    let causes: Vec<Cause> = report.causes().into_iter().filter(|cause| wanted(&cause)).collect();
    ensure!(!causes.is_empty(), "there is no such cause");
    let lanes = lanes(&causes);
    let mesh = mesh(&lanes)?;
    let (made, held) = set_up(&mesh, lanes, &mut report)?;
    let agents = thread::scope(|scope| {
        let other = scope.spawn(|| Watcher::start(&mesh, options.binary.clone(), Model::DoesNotAdmit));
        let one = Watcher::start(&mesh, options.binary.clone(), Model::Admits);
        let other = other.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
        Ok::<_, anyhow::Error>([one?, other?])
    })?;
    eprintln!("mesh of {} lanes and both agents are up ({:.1} s)", made.len(), begin.elapsed().as_secs_f64());
    let rounds: &[(Family, Waiting)] = match options.quick {
        true => &[(Family::V4, Waiting::NonBlocking)],
        false => &[
            (Family::V4, Waiting::NonBlocking),
            (Family::V6, Waiting::NonBlocking),
            (Family::V4, Waiting::Blocking),
            (Family::V6, Waiting::Blocking),
        ],
    };
    let mut turn = 0;
    for (family, waiting) in rounds {
        let name = format!("{} {}", family_word(*family), connect_word(*waiting));
        for repeats_left in (0..=REPEATS).rev() {
            let models = change(&agents, turn, &made)?;
            turn += 1;
            let cells = round(&mesh, &made, &held, &agents, models, *family, *waiting)?;
            eprintln!("{name}: {} cells", cells.len());
            let has_lost = report.note_lost(&name, lost(&agents)?);
            let mut wrong = cells.iter().filter(|cell| !cell.faults.is_empty()).peekable();
            // What the agents said they had lost is no miss, as long as they claim no more for it. Any other claim stands.
            let excused =
                has_lost && wrong.peek().is_some() && wrong.all(|cell| UNSHOWN.contains(&cell.said.state.as_str()));
            if !excused || repeats_left == 0 {
                report.cells.extend(cells);
                break;
            }
            eprintln!("{name}: once more, for events were lost");
        }
    }
    if options.load {
        load::run(&mesh, &made, &agents, turn, &mut report)?;
        report.note_lost("under load", lost(&agents)?);
    }
    for agent in agents {
        agent.agent.stop()?;
    }
    drop(held);
    drop(mesh);
    cgroup::leave();
    report.seconds = begin.elapsed().as_secs();
    Ok(report)
}

/// What both agents have lost so far, by stage.
fn lost(agents: &[Watcher; 2]) -> Result<BTreeMap<String, u64>> {
    let mut all = BTreeMap::new();
    for agent in agents {
        for (stage, count) in agent.lost()? {
            *all.entry(stage).or_default() += count;
        }
    }
    Ok(all)
}

/// Lets the agents change places: what they have seen before counts for nothing from here on.
pub fn change(agents: &[Watcher; 2], number: usize, lanes: &[Lane]) -> Result<[Model; 2]> {
    let models = match number % 2 {
        0 => [Model::DoesNotAdmit, Model::Admits],
        _ => [Model::Admits, Model::DoesNotAdmit],
    };
    thread::scope(|scope| {
        let changing: Vec<_> =
            agents.iter().zip(models).map(|(agent, model)| scope.spawn(move || agent.enter(model, lanes))).collect();
        changing.into_iter().try_for_each(|it| it.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })?;
    Ok(models)
}

/// Brings every cause about; those that this machine cannot make are left out, with the reason.
fn set_up(mesh: &Mesh, lanes: Vec<Lane>, report: &mut Report) -> Result<(Vec<Lane>, Vec<Held>)> {
    let next = Mutex::new(lanes.into_iter());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let lane = next.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                    let Some(lane) = lane else { break };
                    let made = (lane.cause.setup)(&Site { mesh, lane: &lane });
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((lane, made));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let (mut made, mut held) = (Vec::new(), Vec::new());
    for (lane, result) in done {
        match result {
            Ok(guard) => {
                made.push(lane);
                held.push(guard);
            }
            Err(error) => report.not_made.push((lane.cause.id.to_owned(), lane.place, reason(&error))),
        }
    }
    Ok((made, held))
}

/// Why a cause could not be made, without the names of this run's namespaces.
fn reason(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let said = match text.split_once(": ") {
        Some((place, said)) if place.starts_with("in ") => said,
        _ => &text,
    };
    said.lines().next().unwrap_or_default().to_owned()
}

fn round(
    mesh: &Mesh,
    lanes: &[Lane],
    held: &[Held],
    agents: &[Watcher; 2],
    models: [Model; 2],
    family: Family,
    waiting: Waiting,
) -> Result<Vec<Cell>> {
    let mut dials = Vec::new();
    for (lane, guard) in lanes.iter().zip(held).filter(|(lane, _)| lane.cause.families.contains(&family)) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let exists = !lane.cause.outcomes(protocol).is_empty();
            // A UDP socket does not wait for a connection.
            if exists && (protocol == Protocol::Tcp || waiting == Waiting::NonBlocking) {
                dials.push((Dial { lane, protocol }, guard));
            }
        }
    }
    let clients: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> =
            dials.iter().map(|(dial, guard)| scope.spawn(move || dial.run(mesh, guard, family, waiting))).collect();
        let joined = running.into_iter().map(|it| it.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        joined.collect::<Result<_>>()
    })?;
    let begin = Instant::now();
    loop {
        let mut cells = Vec::new();
        for (agent, model) in agents.iter().zip(models) {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let chosen: Vec<usize> =
                    (0..dials.len()).filter(|index| dials[*index].0.protocol == protocol).collect();
                let asked: Vec<&Lane> = chosen.iter().map(|index| dials[*index].0.lane).collect();
                for (index, said) in chosen.into_iter().zip(agent.said(&asked, protocol)?) {
                    let lane = dials[index].0.lane;
                    cells.push(Cell {
                        cause: lane.cause.id.to_owned(),
                        place: lane.place,
                        family: family_word(family).to_owned(),
                        protocol,
                        connect: if protocol == Protocol::Tcp {
                            connect_word(waiting).to_owned()
                        } else {
                            "–".to_owned()
                        },
                        model,
                        client: clients[index].clone(),
                        allowed: lane.cause.allowed(model).into_iter().map(str::to_owned).collect(),
                        faults: lane.cause.faults(model, protocol, &said),
                        said,
                    });
                }
            }
        }
        let settled = begin.elapsed() > SETTLING && cells.iter().all(|cell| cell.faults.is_empty());
        if settled || begin.elapsed() > PATIENCE {
            return Ok(cells);
        }
        thread::sleep(Duration::from_millis(250));
    }
}

impl Dial<'_> {
    /// Dials, and says what the client was told.
    fn run(&self, mesh: &Mesh, guard: &Held, family: Family, waiting: Waiting) -> Result<String> {
        let Self { lane, protocol } = self;
        let site = Site { mesh, lane };
        let port = if *protocol == Protocol::Tcp { XDS } else { DNS };
        let to = SocketAddr::new(site.address(&lane.server, family)?, port);
        let timeout = match lane.cause.act {
            Act::GivesUp => Duration::from_millis(120),
            Act::TimesOut => Duration::from_millis(3400),
            Act::WaitsLong | Act::KernelTimesOut => Duration::from_secs(8),
            Act::Usual | Act::InCgroup | Act::SendsMuch | Act::ThroughProxy => USUAL,
        };
        let client = mesh.namespace(&lane.client)?;
        let attempt = Attempt { timeout, waiting, ..Attempt::new(*protocol, to) };
        if lane.cause.act == Act::SendsMuch {
            return client.run(|| send_much(to));
        }
        let dial = || attempt.run(client);
        let fenced = guard.as_ref().and_then(|guard| guard.downcast_ref::<Fenced>());
        let attempted = match fenced.filter(|_| lane.cause.act == Act::InCgroup) {
            Some(fenced) => fenced.cgroup.run(dial),
            None => dial(),
        };
        Ok(attempted.with_context(|| format!("{} cannot dial", lane.name))?.outcome.to_string())
    }
}

fn send_much(to: SocketAddr) -> Result<String> {
    let mut stream = std::net::TcpStream::connect_timeout(&to, USUAL)?;
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    // Whether this returns depends on buffers; that it does not arrive is what matters.
    let _ = stream.write_all(&[0; 16 * 1024]);
    thread::sleep(Duration::from_millis(300));
    Ok("established".to_owned())
}

/// How many lanes a run must have had for its floor to mean anything: a quarter of the table's policies.
pub fn enough(report: &Report) -> bool {
    let policies: Vec<&Cause> = super::table::CAUSES.iter().filter(|cause| cause.truth == Truth::Policy).collect();
    let made = policies.iter().filter(|cause| report.cells.iter().any(|cell| cell.cause == cause.id)).count();
    made * 4 >= policies.len() && report.cells.iter().any(|cell| cell.place == Place::OneNode)
}
