//! Connections and throughput between two namespaces: without probes, with Weir's, with other tools on the same hooks.
//! In each round each of them runs once, and is held against the same round without probes, so that what else the machine
//! does is shared by all.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use harness::netns::Netns;
use socket2::{Domain, Socket, Type};
use weir::probes::{ProbeSettings, Probes};

use crate::beside::{Beside, Running};
use crate::{SERVER, WATCHED};

const ROUNDS: usize = 21;
/// Connections per round.
const LOOP: usize = 5_000;
const STREAMS: usize = 64;
const BULK: u16 = 8443;
const BULK_TIME: Duration = Duration::from_millis(700);
/// The aim: within this part of no probes.
const AIM: f64 = 0.01;

/// Median and 99th percentile of a connection in microseconds, and throughput in Gbit/s, of one round.
type Round = [f64; 3];

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
        for beside in Beside::all() {
            if missing.contains_key(&beside) {
                continue;
            }
            match with(beside, client) {
                Ok(round) => rounds.entry(beside).or_default().push(round),
                Err(error) if matches!(beside, Beside::Tool(_)) => {
                    missing.insert(beside, format!("{error:#}"));
                }
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
    match beside {
        Beside::Nothing => client.run(round),
        Beside::Tool(tool) => {
            let _running = Running::start(tool)?;
            client.run(round)
        }
        Beside::Weir => {
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
    }
}

/// Each connection is closed by a reset: those that linger would use up the ports, and slow down the search for one.
fn round() -> Result<Round> {
    let to = SocketAddr::from((SERVER, WATCHED)).into();
    let mut times = Vec::with_capacity(LOOP);
    for _ in 0..LOOP {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_linger(Some(Duration::ZERO))?;
        let begin = Instant::now();
        socket.connect(&to).context("connecting on a watched port")?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok([times[LOOP / 2], times[LOOP * 99 / 100], bulk()?])
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

fn table(rounds: &BTreeMap<Beside, Vec<Round>>, missing: &BTreeMap<Beside, String>) -> bool {
    println!(
        "\nconnect on a watched port ({LOOP} a round) and {STREAMS} streams, medians of {ROUNDS} interleaved rounds;"
    );
    println!(
        "beside them how far they are from the same round without probes: the median, and its 95 % confidence interval:"
    );
    println!("{:24} {:>9} {:>26} {:>10} {:>26} {:>14} {:>26}", "beside", "median", "", "p99", "", "throughput", "");
    let base = rounds.get(&Beside::Nothing).map(Vec::as_slice).unwrap_or_default();
    let mut weir = [Difference::default(); 3];
    for (beside, own) in rounds {
        let [median, p99, throughput] =
            [0, 1, 2].map(|pick| sorted(own.iter().map(|round| round[pick]))[own.len() / 2]);
        let differences = [0, 1, 2].map(|pick| Difference::of(own, base, pick));
        if *beside == Beside::Weir {
            weir = differences;
        }
        let [more_median, more_p99, more_throughput] = match beside {
            Beside::Nothing => Default::default(),
            _ => differences.map(|difference| difference.to_string()),
        };
        println!(
            "{:24} {median:>6.1} us {more_median:>26} {p99:>7.1} us {more_p99:>26} {throughput:>7.2} Gbit/s {more_throughput:>26}",
            beside.name()
        );
    }
    for (beside, why) in missing {
        println!("{:24} not run: {why}", beside.name());
    }
    let slow = Aim::of(weir[1].middle, weir[1].low);
    let thin = Aim::of(-weir[2].middle, -weir[2].high);
    println!("aim, p99 of connect at most {:.0} % more: {slow}", AIM * 100.0);
    println!("aim, throughput at most {:.0} % less: {thin}", AIM * 100.0);
    slow != Aim::Missed && thin != Aim::Missed
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    Met,
    /// More than the aim, and not to be told from nothing.
    Noise,
    Missed,
}

impl Aim {
    /// Of how much worse it is, and how much surely.
    fn of(worse: f64, surely: f64) -> Self {
        match (worse > AIM, surely > 0.0) {
            (false, _) => Self::Met,
            (true, false) => Self::Noise,
            (true, true) => Self::Missed,
        }
    }
}

impl std::fmt::Display for Aim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Met => "met",
            Self::Noise => "within the noise of these rounds",
            Self::Missed => "MISSED",
        })
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// How far rounds differ from those without probes, as a part of these: the median, and the interval that has it with 95 %
/// confidence by the sign test (which assumes nothing of how noise is distributed).
#[derive(Clone, Copy, Debug, Default)]
struct Difference {
    low: f64,
    middle: f64,
    high: f64,
}

impl Difference {
    fn of(own: &[Round], base: &[Round], pick: usize) -> Self {
        let parts = sorted(own.iter().zip(base).map(|(own, base)| own[pick] / base[pick] - 1.0));
        // Of 21 coin tosses 5 or fewer are heads in 1.3 % of all cases, and 15 or fewer in 98.7 %.
        let rank = parts.len() * 5 / 21;
        Self { low: parts[rank], middle: parts[parts.len() / 2], high: parts[parts.len() - 1 - rank] }
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { low, middle, high } = self;
        write!(f, "{:+.1} % ({:+.1} … {:+.1})", middle * 100.0, low * 100.0, high * 100.0)
    }
}
