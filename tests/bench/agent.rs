//! The released agent as a process: memory and processor time at a rate of connections, and beside a flood of dropped packets.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use harness::clients::Attempt;
use harness::fixture::Protocol;
use harness::ipv6::Family;
use harness::matrix::load::settle;
use harness::matrix::table::CAUSES;
use harness::matrix::world::{Lane, Site, Watcher, XDS, lanes, mesh};
use harness::matrix::{Model, Place, cgroup, traffic};
use harness::mesh::Mesh;
use harness::netns::Netns;
use harness::usage;

const LASTS: Duration = Duration::from_secs(6);
const MEBIBYTE: f64 = 1024.0 * 1024.0;
/// Aims: memory in MiB, processor time in percent of one core.
const MEMORY: f64 = 30.0;
const AT_1000: f64 = 1.0;
const IN_FLOOD: f64 = 10.0;

/// What the agent used while something went on.
struct Usage {
    /// Percent of one core.
    percent: f64,
    /// MiB, resident.
    memory: f64,
}

pub fn run() -> Result<bool> {
    let binary = std::env::var_os("WEIR_AGENT").map(PathBuf::from).context("WEIR_AGENT names no agent")?;
    let causes: Vec<_> =
        CAUSES.iter().filter(|cause| ["healthy", "nft-forward"].contains(&cause.id)).copied().collect();
    let lanes = lanes(&causes);
    let mesh = mesh(&lanes)?;
    let held: Vec<_> =
        lanes.iter().map(|lane| (lane.cause.setup)(&Site { mesh: &mesh, lane })).collect::<Result<_>>()?;
    let find = |cause: &str, place: Place| {
        lanes
            .iter()
            .find(|lane| lane.cause.id == cause && lane.place == place)
            .ok_or_else(|| anyhow!("no lane {cause}"))
    };
    let watcher = Watcher::start(&mesh, binary, Model::DoesNotAdmit)?;
    watcher.enter(Model::DoesNotAdmit, &lanes)?;
    println!("\nthe agent, {} s each:", LASTS.as_secs());
    let idle = usage(&watcher, || {
        thread::sleep(LASTS);
        Ok(())
    })?;
    line("nothing going on", "", &idle, true);
    let mut met = true;
    let healthy = find("healthy", Place::SourceNode)?;
    for rate in [1_000, 20_000] {
        let (client, to) = address(&mesh, healthy)?;
        let server = mesh.namespace(&healthy.server)?;
        // The mesh's own server is not made for so many.
        mesh.stop_listening(&healthy.server, Protocol::Tcp, XDS)?;
        let (used, made) = under(&watcher, |stop, count| {
            thread::scope(|scope| {
                let sink = scope.spawn(|| traffic::sink(server, XDS, stop));
                settled(client, to)?;
                traffic::connect(client, to, rate, 4, stop, count)?;
                sink.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })?;
        let good = rate != 1_000 || used.percent <= AT_1000 && used.memory <= MEMORY;
        met &= good;
        line(&format!("{rate} connections/s"), &format!("{made:.0}/s made"), &used, good);
    }
    let (flooded, denied) = (find("nft-forward", Place::OneNode)?, find("nft-forward", Place::SourceNode)?);
    let (client, to) = address(&mesh, flooded)?;
    let from = Site { mesh: &mesh, lane: flooded }.address(&flooded.client, Family::V4)?;
    let (used, made) = under(&watcher, |stop, count| {
        thread::scope(|scope| {
            let floods: Vec<_> =
                (0..2).map(|_| scope.spawn(|| traffic::syn_flood(client, from, to, 100_000, stop, count))).collect();
            thread::sleep(LASTS / 4);
            let (dialler, other) = address(&mesh, denied)?;
            let attempt = Attempt { timeout: Duration::from_millis(1300), ..Attempt::new(Protocol::Tcp, other) };
            attempt.run(dialler)?;
            floods.into_iter().try_for_each(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    })?;
    let good = used.percent <= IN_FLOOD && used.memory <= MEMORY;
    line("flood of 200000 SYNs/s, all dropped", &format!("{made:.0}/s made"), &used, good);
    let state = settle(&watcher, denied, |state| state == "denied")?;
    let seen = state == "denied";
    println!("a denial of another pair in the flood: {state} ({})", if seen { "met" } else { "MISSED" });
    println!("aims: at 1000 connections/s at most {AT_1000} % and {MEMORY} MiB, in the flood at most {IN_FLOOD} %");
    watcher.agent.stop()?;
    drop(held);
    cgroup::leave();
    Ok(met && good && seen)
}

fn address<'a>(mesh: &'a Mesh, lane: &Lane) -> Result<(&'a Netns, SocketAddr)> {
    let server = Site { mesh, lane }.address(&lane.server, Family::V4)?;
    Ok((mesh.namespace(&lane.client)?, SocketAddr::new(server, XDS)))
}

/// Waits until somebody listens.
fn settled(client: &Netns, to: SocketAddr) -> Result<()> {
    let begin = Instant::now();
    while client.run(|| Ok(std::net::TcpStream::connect(to)?)).is_err() {
        ensure!(begin.elapsed() < Duration::from_secs(10), "nobody listens at {to}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn line(what: &str, made: &str, used: &Usage, good: bool) {
    let mark = if good { "" } else { "MISSED" };
    println!("{what:36} {made:>18} {:>6.2} % of a core {:>6.1} MiB  {mark}", used.percent, used.memory);
}

/// What the agent used while traffic was made, and how much of it a second.
fn under(watcher: &Watcher, traffic: impl Fn(&AtomicBool, &AtomicU64) -> Result<()> + Sync) -> Result<(Usage, f64)> {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let begin = Instant::now();
    let used = usage(watcher, || {
        thread::scope(|scope| {
            let making = scope.spawn(|| traffic(&stop, &count));
            thread::sleep(LASTS);
            stop.store(true, Ordering::Relaxed);
            making.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok((used, count.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64()))
}

fn usage(watcher: &Watcher, during: impl FnOnce() -> Result<()>) -> Result<Usage> {
    let pid = watcher.agent.pid();
    let (begin, before) = (Instant::now(), usage::processor_time(pid)?);
    during()?;
    let (spent, elapsed) = (usage::processor_time(pid)? - before, begin.elapsed());
    let percent = spent.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    Ok(Usage { percent, memory: usage::resident(pid)? as f64 / MEBIBYTE })
}
