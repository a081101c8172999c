//! Connections and throughput between two namespaces: without probes, with Weir's, with bpftrace on the same tracepoints.
//! In each round each of them runs once, so that what else the machine does is shared by all.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::netns::Netns;
use weir::probes::{ProbeSettings, Probes};

use crate::{SERVER, WATCHED};

const ROUNDS: usize = 9;
/// Connections per round.
const LOOP: usize = 1000;
const STREAMS: usize = 64;
const BULK: u16 = 8443;
const BULK_TIME: Duration = Duration::from_millis(700);
/// The aim: within this part of no probes.
const AIM: f64 = 0.01;

/// What is attached while the network is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Beside {
    Nothing,
    Weir,
    /// The nearest to tcpdrop.
    BpftraceDrop,
    /// The nearest to tcpconnect and tcpstates.
    BpftraceStates,
}

impl Beside {
    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no probes",
            Self::Weir => "Weir",
            Self::BpftraceDrop => "bpftrace, as tcpdrop",
            Self::BpftraceStates => "bpftrace, as tcpstates",
        }
    }

    fn script(self) -> Option<&'static str> {
        match self {
            Self::Nothing | Self::Weir => None,
            // Its `BEGIN` needs uprobes, which not every kernel has; an interval says as well that all is attached.
            Self::BpftraceDrop => Some(
                "tracepoint:skb:kfree_skb { @[args->protocol, args->location] = count(); } \
                 interval:ms:200 { printf(\"up\\n\"); }",
            ),
            Self::BpftraceStates => Some(
                "tracepoint:sock:inet_sock_set_state { @[args->oldstate, args->newstate, args->dport] = count(); } \
                 interval:ms:200 { printf(\"up\\n\"); }",
            ),
        }
    }
}

/// Median and 99th percentile of a connection, and throughput, of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    median: f64,
    p99: f64,
    gigabits: f64,
}

pub fn run(client: &Netns, server: &Netns) -> Result<bool> {
    let sink = server.run(|| Ok(TcpListener::bind((SERVER, BULK))?))?;
    thread::spawn(move || {
        for stream in sink.incoming().flatten() {
            thread::spawn(move || discard(stream));
        }
    });
    let mut rounds: BTreeMap<Beside, Vec<Round>> = BTreeMap::new();
    let mut missing = BTreeMap::new();
    for _ in 0..ROUNDS {
        for beside in [Beside::Nothing, Beside::Weir, Beside::BpftraceDrop, Beside::BpftraceStates] {
            match with(beside, client) {
                Ok(round) => rounds.entry(beside).or_default().push(round),
                Err(error) if beside.script().is_some() => drop(missing.insert(beside, format!("{error:#}"))),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(table(&rounds, &missing))
}

fn discard(mut stream: TcpStream) {
    let mut bytes = vec![0; 256 * 1024];
    while stream.read(&mut bytes).is_ok_and(|read| read > 0) {}
}

fn with(beside: Beside, client: &Netns) -> Result<Round> {
    match beside.script() {
        Some(script) => {
            let _running = Bpftrace::start(script)?;
            client.run(round)
        }
        None if beside == Beside::Weir => {
            let mut probes = Probes::load(&ProbeSettings::default())?;
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                // As the agent does: the ring buffer is emptied while things happen.
                scope.spawn(|| {
                    let mut events = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        probes.drain(&mut events);
                        events.clear();
                        thread::sleep(Duration::from_millis(50));
                    }
                });
                let round = client.run(round);
                stop.store(true, Ordering::Relaxed);
                round
            })
        }
        None => client.run(round),
    }
}

fn round() -> Result<Round> {
    let to = SocketAddr::from((SERVER, WATCHED));
    let mut times = Vec::with_capacity(LOOP);
    for _ in 0..LOOP {
        let begin = Instant::now();
        let stream = TcpStream::connect(to)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        drop(stream);
    }
    times.sort_by(f64::total_cmp);
    Ok(Round { median: times[LOOP / 2], p99: times[LOOP * 99 / 100], gigabits: bulk()? })
}

fn bulk() -> Result<f64> {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let streams = (0..STREAMS).map(|_| TcpStream::connect((SERVER, BULK))).collect::<Result<Vec<_>, _>>()?;
    let begin = Instant::now();
    thread::scope(|scope| {
        for mut stream in streams {
            scope.spawn({
                let (stop, sent) = (&stop, &sent);
                move || {
                    let bytes = vec![0; 128 * 1024];
                    while !stop.load(Ordering::Relaxed) {
                        let Ok(written) = stream.write(&bytes) else { break };
                        sent.fetch_add(written as u64, Ordering::Relaxed);
                    }
                }
            });
        }
        thread::sleep(BULK_TIME);
        stop.store(true, Ordering::Relaxed);
    });
    Ok(sent.load(Ordering::Relaxed) as f64 * 8.0 / begin.elapsed().as_secs_f64() / 1e9)
}

/// bpftrace, attached for as long as it lives.
struct Bpftrace(Child);

impl Bpftrace {
    fn start(script: &str) -> Result<Self> {
        let mut command = Command::new("unshare");
        // It finds tracepoints in tracefs only, which need not be mounted here.
        let inside = "mount -t tracefs tracefs /sys/kernel/tracing; exec bpftrace -e \"$0\"";
        command.args(["--mount", "sh", "-c", inside, script]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().context("unshare cannot be started")?;
        let mut said = BufReader::new(child.stdout.take().context("it was piped")?).lines();
        let up = said.any(|line| line.is_ok_and(|line| line == "up"));
        thread::spawn(move || said.for_each(drop));
        let running = Self(child);
        ensure!(up, "bpftrace is not installed or attaches nothing on this kernel");
        Ok(running)
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn table(rounds: &BTreeMap<Beside, Vec<Round>>, missing: &BTreeMap<Beside, String>) -> bool {
    println!(
        "\nconnect on a watched port ({LOOP} a round) and {STREAMS} streams, medians of {ROUNDS} interleaved rounds:"
    );
    println!("{:24} {:>12} {:>8} {:>12} {:>8} {:>14} {:>8}", "beside", "median", "", "p99", "", "throughput", "");
    let median = |beside: Beside, pick: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.get(&beside)?.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let picks: [fn(&Round) -> f64; 3] = [|r| r.median, |r| r.p99, |r| r.gigabits];
    let base = picks.map(|pick| median(Beside::Nothing, pick).unwrap_or(f64::NAN));
    let mut weir = [0.0; 3];
    for beside in rounds.keys() {
        let own = picks.map(|pick| median(*beside, pick).unwrap_or(f64::NAN));
        let more: Vec<f64> = own.iter().zip(base).map(|(own, base)| own / base - 1.0).collect();
        if *beside == Beside::Weir {
            weir.copy_from_slice(&more);
        }
        let percent = |index: usize| match *beside {
            Beside::Nothing => String::new(),
            _ => format!("{:+.1} %", more[index] * 100.0),
        };
        println!(
            "{:24} {:>9.1} us {:>8} {:>9.1} us {:>8} {:>7.2} Gbit/s {:>8}",
            beside.name(),
            own[0],
            percent(0),
            own[1],
            percent(1),
            own[2],
            percent(2)
        );
    }
    for (beside, why) in missing {
        println!("{:24} not run: {why}", beside.name());
    }
    // How far rounds of the same kind lie apart: half of the range between their quartiles, as a part of the median.
    let noise = picks.map(|pick| {
        let mut values: Vec<f64> = rounds.get(&Beside::Nothing).into_iter().flatten().map(pick).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() * 3 / 4] - values[values.len() / 4]) / 2.0 / values[values.len() / 2]
    });
    println!(
        "without probes, rounds differ by ±{:.1} % (p99) and ±{:.1} % (throughput)",
        noise[1] * 100.0,
        noise[2] * 100.0
    );
    let slow = weir[1] > AIM;
    let thin = -weir[2] > AIM;
    let word = |missed: bool| if missed { "MISSED" } else { "met" };
    println!("aim, p99 of connect at most {:.0} % more: {}", AIM * 100.0, word(slow));
    println!("aim, throughput at most {:.0} % less: {}", AIM * 100.0, word(thin));
    !slow && !thin
}
