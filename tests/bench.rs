//! What the probes cost: `cargo xtask bench probes` runs this.
//!
//! Each program is measured beside an empty one on the same hook, on the same events: connections, datagrams and resets between
//! two network namespaces on ports that nobody watches, then on a watched one. Nanoseconds are the kernel's own
//! (`kernel.bpf_stats_enabled`). Then connect and close in a loop, with and without the agent's probes, rounds interleaved.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use harness::netns::{Netns, RunId};
use weir::probes::{ProbeSettings, Probes};

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Nobody watches it.
const IGNORED: u16 = 9999;
const WATCHED: u16 = 8080;
/// Connections per round of the loop.
const LOOP: u32 = 1000;
const ROUNDS: usize = 9;
/// The aim: a program that ignores an event costs at most this many times an empty one.
const AIM: f64 = 3.0;
/// The aim for the loop: within this part of no probes.
const LOOP_AIM: f64 = 0.01;

fn main() -> ExitCode {
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn bench() -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the bench attaches probes and makes network namespaces: run it as root");
    }
    let _stats = Stats::on()?;
    let id = RunId::new()?;
    let names = ["client", "server"].map(|name| id.name(name));
    let [client, server]: [Netns; 2] = Netns::create(&names)?.try_into().ok().context("two namespaces")?;
    client.ip(&format!(
        "link set lo up\nlink add eth0 type veth peer name eth0 netns {}\naddr add 10.9.0.1/24 dev eth0\nlink set eth0 up\n",
        server.name()
    ))?;
    server.ip("link set lo up\naddr add 10.9.0.2/24 dev eth0\nlink set eth0 up\n")?;
    for port in [IGNORED, WATCHED] {
        let listener = server.run(|| Ok(TcpListener::bind((SERVER, port))?))?;
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let ignored = programs(&client, IGNORED)?;
    let watched = programs(&client, WATCHED)?;
    let cheap = table(&ignored, &watched);
    let fast = connect_loop(&client)?;
    Ok(cheap && fast)
}

/// What the kernel counted of one program.
#[derive(Clone, Copy, Debug, Default)]
struct RunStats {
    nanoseconds: u64,
    runs: u64,
}

impl RunStats {
    fn since(self, before: Self) -> Self {
        Self { nanoseconds: self.nanoseconds - before.nanoseconds, runs: self.runs - before.runs }
    }

    /// Nanoseconds per run.
    fn mean(self) -> Option<f64> {
        (self.runs > 0).then(|| self.nanoseconds as f64 / self.runs as f64)
    }
}

/// Ours and an empty one on the same hook.
type Costs = BTreeMap<&'static str, (RunStats, RunStats)>;

/// Runs ours and an empty one on each hook under the same traffic.
fn programs(client: &Netns, port: u16) -> Result<Costs> {
    let settings = ProbeSettings::default();
    let mut probes = Probes::load(&settings)?;
    let names: BTreeMap<u32, String> = aya::programs::loaded_programs()
        .flatten()
        .filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())))
        .collect();
    let ours: BTreeMap<u32, RunStats> = counted()?;
    let empty = empty(&settings)?;
    let before = counted()?;
    client.run(|| traffic(port, 2000))?;
    let after = counted()?;
    let during = |id: &u32| Some(after.get(id)?.since(before.get(id).copied().unwrap_or_default()));
    let mut costs = Costs::new();
    for (name, _) in HOOKS {
        // The kernel keeps 15 characters of a name.
        let short = &name[..name.len().min(15)];
        let own = ours.keys().find(|id| names.get(id).is_some_and(|known| known == short));
        let (Some(own), Some((_, empty))) = (own, empty.get(name)) else { continue };
        if let (Some(own), Some(empty)) = (during(own), during(empty)) {
            costs.insert(name, (own, empty));
        }
    }
    probes.drain(&mut Vec::new());
    Ok(costs)
}

/// The probes on tracepoints.
const HOOKS: [(&str, &str); 7] = [
    ("tcp_state", "inet_sock_set_state"),
    ("syn_retransmit", "tcp_retransmit_skb"),
    ("reset_received", "tcp_receive_reset"),
    ("packet_drop", "kfree_skb"),
    ("socket_error", "inet_sk_error_report"),
    ("icmp_sent", "icmp_send"),
    ("answer_retransmit", "tcp_retransmit_synack"),
];

/// An empty program on each hook that this kernel has, with its id.
fn empty(settings: &ProbeSettings) -> Result<BTreeMap<&'static str, (Ebpf, u32)>> {
    let object =
        std::env::var_os("WEIR_EBPF").context("WEIR_EBPF names no probe object: run `cargo xtask bench probes`")?;
    let object = fs::read(&object).with_context(|| Path::new(&object).display().to_string())?;
    let btf = Btf::parse_file(&settings.btf, aya::Endianness::default())?;
    let mut all = BTreeMap::new();
    for (name, tracepoint) in HOOKS {
        let mut ebpf = EbpfLoader::new().btf(None).map_max_entries("EVENTS", 4096).load(&object)?;
        let program: &mut BtfTracePoint = ebpf.program_mut("empty").context("no program `empty`")?.try_into()?;
        if program.load(tracepoint, &btf).is_ok() {
            program.attach()?;
            let id = program.info()?.id();
            all.insert(name, (ebpf, id));
        }
    }
    Ok(all)
}

/// Statistics of this process's programs by id, from its descriptors' `fdinfo`.
fn counted() -> Result<BTreeMap<u32, RunStats>> {
    let mut stats = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(nanoseconds), Some(runs)) = (field("prog_id:"), field("run_time_ns:"), field("run_cnt:"))
        {
            stats.insert(u32::try_from(id)?, RunStats { nanoseconds, runs });
        }
    }
    Ok(stats)
}

/// Everything that the hooks see of a port: connections, refusals, datagrams to nobody.
fn traffic(port: u16, count: u32) -> Result<()> {
    for _ in 0..count {
        drop(TcpStream::connect((SERVER, port))?);
    }
    for _ in 0..count / 10 {
        // Nobody listens one port further: a reset, an error, a drop.
        let _ = TcpStream::connect((SERVER, port + 100));
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((SERVER, port + 100))?;
        let _ = socket.send(b"?");
        let _ = socket.send(b"?");
    }
    Ok(())
}

fn table(ignored: &Costs, watched: &Costs) -> bool {
    println!("{:20} {:>9} {:>9} {:>6} {:>9} {:>9}  aim", "program", "ignored", "empty", "ratio", "watched", "runs");
    let mut met = true;
    for (name, (ours, empty)) in ignored {
        let watched = watched.get(name).and_then(|(ours, _)| ours.mean());
        let (Some(ours_mean), Some(empty_mean)) = (ours.mean(), empty.mean()) else {
            println!("{name:20} {:>9} {:>9} {:>6} {:>9} {:>9}  not run", "-", "-", "-", "-", ours.runs);
            continue;
        };
        let ratio = ours_mean / empty_mean;
        met &= ratio <= AIM;
        println!(
            "{name:20} {ours_mean:>6.0} ns {empty_mean:>6.0} ns {ratio:>6.1} {:>9} {:>9}  {}",
            watched.map_or("-".to_owned(), |mean| format!("{mean:.0} ns")),
            ours.runs,
            if ratio <= AIM { format!("met (<= {AIM})") } else { format!("MISSED (<= {AIM})") }
        );
    }
    met
}

fn connect_loop(client: &Netns) -> Result<bool> {
    fs::write(STATS, "0").context(STATS)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(client.run(once)?);
        let mut probes = Probes::load(&ProbeSettings::default())?;
        with.push(client.run(once)?);
        probes.drain(&mut Vec::new());
    }
    let (without, with) = (median(&mut without), median(&mut with));
    let more = with.as_secs_f64() / without.as_secs_f64() - 1.0;
    println!();
    println!("connect and close on a watched port, median of {ROUNDS} interleaved rounds of {LOOP}:");
    println!("without probes {:.1} us, with {:.1} us, {:+.1} %", micros(without), micros(with), more * 100.0);
    let met = more <= LOOP_AIM;
    println!("aim: {} (<= {:.0} %)", if met { "met" } else { "MISSED" }, LOOP_AIM * 100.0);
    Ok(met)
}

fn micros(of: Duration) -> f64 {
    of.as_secs_f64() * 1e6
}

/// Time of one connection.
fn once() -> Result<Duration> {
    let to = SocketAddr::new(IpAddr::V4(SERVER), WATCHED);
    let begin = Instant::now();
    for _ in 0..LOOP {
        drop(TcpStream::connect(to)?);
    }
    Ok(begin.elapsed() / LOOP)
}

fn median(of: &mut [Duration]) -> Duration {
    of.sort_unstable();
    of[of.len() / 2]
}

/// Run-time statistics of BPF programs, on until dropped.
struct Stats {
    before: String,
}

impl Stats {
    fn on() -> Result<Self> {
        let before = fs::read_to_string(Path::new(STATS)).context(STATS)?;
        fs::write(STATS, "1").context(STATS)?;
        Ok(Self { before: before.trim().to_owned() })
    }
}

impl Drop for Stats {
    fn drop(&mut self) {
        let _ = fs::write(STATS, &self.before);
    }
}
