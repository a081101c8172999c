//! Each program beside an empty one on the same hook, on the same events; nanoseconds are the kernel's own.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya::programs::{CgroupAttachMode, Program};
use aya::{Btf, Ebpf, EbpfLoader};
use harness::netns::Netns;
use socket2::{Domain, Socket, Type};
use weir::probes::{ProbeSettings, Probes};

use crate::{DEAF, DNS, NOBODY, SERVER, SERVER_V6, WATCHED};

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";
/// The aim: a program that ignores an event costs at most this many times an empty one.
const AIM: f64 = 3.0;
/// A mean of fewer runs is that of the first, which find nothing in the caches.
const ENOUGH: u64 = 100;
const ROUNDS: usize = 10;

/// What the kernel counted of one program.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunStats {
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
pub type Costs = BTreeMap<&'static str, (RunStats, RunStats)>;

/// Runs ours and an empty one on each hook under the same traffic: as the agent does by default, then what it does if told to, and
/// what stands in where there is no BTF.
pub fn programs(client: &Netns, port: u16) -> Result<Costs> {
    let ports = [WATCHED, WATCHED + NOBODY, WATCHED + DEAF, DNS].into();
    let settings = ProbeSettings { ports, ..ProbeSettings::default() };
    let beside = |settings: &ProbeSettings, hooks: &[Hook], traffic: fn(u16) -> Result<()>| {
        beside(client, settings, hooks, || traffic(port))
    };
    let mut costs = beside(&settings, &[&TRACEPOINTS[..], &SOCKETS].concat(), traffic)?;
    costs.extend(beside(&ProbeSettings { dns_replies: true, ..settings.clone() }, &DATAGRAMS, queries)?);
    costs.extend(beside(&ProbeSettings { btf: "/nowhere".into(), ..settings }, &[CALLBACK], traffic)?);
    Ok(costs)
}

fn beside(
    client: &Netns,
    settings: &ProbeSettings,
    hooks: &[Hook],
    traffic: impl Fn() -> Result<()> + Sync,
) -> Result<Costs> {
    let mut probes = Probes::load(settings)?;
    let names: BTreeMap<u32, String> = aya::programs::loaded_programs()
        .flatten()
        .filter_map(|program| Some((program.id(), program.name_as_str()?.to_owned())))
        .collect();
    let ours: BTreeMap<u32, RunStats> = counted()?;
    let empty = empty(hooks)?;
    let before = counted()?;
    for _ in 0..ROUNDS {
        client.run(&traffic)?;
        // The agent would have read them by now.
        probes.drain(&mut Vec::new());
    }
    let after = counted()?;
    let during = |id: &u32| Some(after.get(id)?.since(before.get(id).copied().unwrap_or_default()));
    let mut costs = Costs::new();
    for (name, _) in hooks {
        // The kernel keeps 15 characters of a name.
        let short = &name[..name.len().min(15)];
        let own = ours.keys().find(|id| names.get(id).is_some_and(|known| known == short));
        let (Some(own), Some((_, empty))) = (own, empty.get(name)) else { continue };
        if let (Some(own), Some(empty)) = (during(own), during(empty)) {
            costs.insert(name, (own, empty));
        }
    }
    Ok(costs)
}

/// A probe, and its tracepoint or the empty program for its hook on the root cgroup.
type Hook = (&'static str, &'static str);

/// The probes on tracepoints, with these.
const TRACEPOINTS: [Hook; 7] = [
    ("tcp_state", "inet_sock_set_state"),
    ("syn_retransmit", "tcp_retransmit_skb"),
    ("reset_received", "tcp_receive_reset"),
    ("packet_drop", "kfree_skb"),
    ("socket_error", "inet_sk_error_report"),
    ("icmp_sent", "icmp_send"),
    ("answer_retransmit", "tcp_retransmit_synack"),
];
const SOCKETS: [Hook; 2] = [("udp_create", "empty_create"), ("udp_release", "empty_release")];
/// Only where they are asked for.
const DATAGRAMS: [Hook; 4] = [
    ("dns_query4", "empty_sendmsg4"),
    ("dns_query6", "empty_sendmsg6"),
    ("dns_reply4", "empty_recvmsg4"),
    ("dns_reply6", "empty_recvmsg6"),
];
const CALLBACK: Hook = ("tcp_callback", "empty_callback");

/// An empty program on each hook that this kernel has, with its id.
fn empty(hooks: &[Hook]) -> Result<BTreeMap<&'static str, (Ebpf, u32)>> {
    let object = std::env::var_os("WEIR_EBPF_OBJECT")
        .context("WEIR_EBPF_OBJECT names no probe object: run `cargo xtask bench probes`")?;
    let object = fs::read(&object).with_context(|| Path::new(&object).display().to_string())?;
    let btf = Btf::parse_file(&ProbeSettings::default().btf, aya::Endianness::default())?;
    let root = || {
        let root = weir::probes::root_cgroup().context("the root of cgroup v2 is not mounted")?;
        fs::File::open(&root).with_context(|| root.display().to_string())
    };
    let mode = CgroupAttachMode::Single;
    let mut all = BTreeMap::new();
    for (name, on) in hooks {
        // Each has an object of its own: a program is attached but once.
        let mut ebpf = EbpfLoader::new().btf(None).map_max_entries("EVENTS", 4096).load(&object)?;
        let empty = if on.starts_with("empty_") { on } else { "empty" };
        let program = ebpf.program_mut(empty).context(empty)?;
        match program {
            Program::BtfTracePoint(program) => {
                if program.load(on, &btf).is_err() {
                    continue;
                }
                program.attach()?;
            }
            Program::CgroupSock(program) => {
                program.load()?;
                program.attach(root()?, mode)?;
            }
            Program::CgroupSockAddr(program) => {
                program.load()?;
                program.attach(root()?, mode)?;
            }
            Program::SockOps(program) => {
                program.load()?;
                program.attach(root()?, mode)?;
            }
            _ => bail!("{empty} is on a hook that is not measured"),
        }
        let id = program.info()?.id();
        all.insert(*name, (ebpf, id));
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

/// Everything that the hooks see of a port: connections, refusals, datagrams to nobody, SYNs and answers sent again.
fn traffic(port: u16) -> Result<()> {
    for _ in 0..200 {
        drop(TcpStream::connect((SERVER, port))?);
    }
    for _ in 0..20 {
        let _ = TcpStream::connect((SERVER, port + NOBODY));
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((SERVER, port + NOBODY))?;
        let _ = socket.send(b"?");
        let _ = socket.send(b"?");
    }
    let to = SocketAddr::from((SERVER, port + DEAF)).into();
    let waiting = (0..20).map(|_| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // It goes on in the background.
        let _ = socket.connect(&to);
        Ok(socket)
    });
    let waiting: Vec<Socket> = waiting.collect::<Result<_>>()?;
    // Both ends repeat themselves after a second.
    thread::sleep(Duration::from_millis(1200));
    drop(waiting);
    Ok(())
}

/// Datagrams of sockets that are not connected, one for each as resolvers do: to where queries are answered, or to a port like any
/// other.
fn queries(port: u16) -> Result<()> {
    let datagrams = if port == WATCHED { DNS } else { port };
    for (any, server) in
        [(IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(SERVER)), (Ipv6Addr::UNSPECIFIED.into(), SERVER_V6.into())]
    {
        for _ in 0..100 {
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send_to(b"?", (server, datagrams))?;
            let _ = socket.recv_from(&mut [0; 8]);
        }
    }
    Ok(())
}

pub fn table(ignored: &Costs, watched: &Costs) -> bool {
    println!("{:20} {:>9} {:>9} {:>6} {:>9} {:>9}  aim", "program", "ignored", "empty", "ratio", "watched", "runs");
    let mut met = true;
    for (name, (ours, empty)) in ignored {
        let watched = watched.get(name).and_then(|(ours, _)| ours.mean());
        let (Some(ours_mean), Some(empty_mean)) = (ours.mean(), empty.mean()) else {
            println!("{name:20} {:>9} {:>9} {:>6} {:>9} {:>9}  not run", "-", "-", "-", "-", ours.runs);
            continue;
        };
        let ratio = ours_mean / empty_mean;
        let enough = ours.runs >= ENOUGH;
        met &= !enough || ratio <= AIM;
        println!(
            "{name:20} {ours_mean:>6.0} ns {empty_mean:>6.0} ns {ratio:>6.1} {:>9} {:>9}  {}",
            watched.map_or("-".to_owned(), |mean| format!("{mean:.0} ns")),
            ours.runs,
            match (enough, ratio <= AIM) {
                (false, _) => format!("not judged: fewer than {ENOUGH} runs"),
                (true, true) => format!("met (<= {AIM})"),
                (true, false) => format!("MISSED (<= {AIM})"),
            }
        );
    }
    met
}

/// Run-time statistics of BPF programs, on until dropped.
pub struct Stats {
    before: String,
}

impl Stats {
    pub fn on() -> Result<Self> {
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
