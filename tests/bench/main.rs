//! What the probes cost: `cargo xtask bench probes` runs this. Three parts, all in one run on one machine:
//!
//! each program against an empty one on the same hook; connections and throughput between two network namespaces without
//! probes, with them, and with bpftrace on the same tracepoints, rounds interleaved; the released agent's memory and processor
//! time under load and beside a flood. Missed aims are printed and make the exit code 1.

mod agent;
mod beside;
mod network;
mod programs;

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context as _, Result, bail};
use harness::aims;
use harness::netns::{Netns, RunId};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2);
/// Where queries are answered that the probes follow.
const DNS: u16 = 53;
/// Nobody watches it, nor the ports after it.
const IGNORED: u16 = 9999;
const WATCHED: u16 = 8080;
/// So much further nobody listens.
const NOBODY: u16 = 1;
/// So much further the client does not hear the answers.
const DEAF: u16 = 2;

fn main() -> ExitCode {
    aims::exit(bench())
}

fn bench() -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the bench attaches probes and makes network namespaces: run it as root");
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "Linux {}, {} processors, load {}\n",
        kernel.trim(),
        thread::available_parallelism()?,
        load.split(' ').next().unwrap_or("unknown")
    );
    let id = RunId::new()?;
    let names = ["client", "server"].map(|name| id.name(name));
    let [client, server]: [Netns; 2] = Netns::create(&names)?.try_into().ok().context("two namespaces")?;
    client.ip(&format!(
        "link set lo up\nlink add eth0 type veth peer name eth0 netns {}\naddr add 10.9.0.1/24 dev eth0\n\
         addr add fd00:9::1/64 dev eth0 nodad\nlink set eth0 up\n",
        server.name()
    ))?;
    server.ip(&format!(
        "link set lo up\naddr add {SERVER}/24 dev eth0\naddr add {SERVER_V6}/64 dev eth0 nodad\nlink set eth0 up\n"
    ))?;
    let mut deaf = String::new();
    for port in [IGNORED, WATCHED] {
        deaf += &format!("tcp sport {} tcp flags & (syn | ack) == syn | ack drop\n", port + DEAF);
    }
    client.nft(&format!("table inet bench {{ chain i {{ type filter hook input priority 0\n{deaf} }}\n }}\n"))?;
    // Each datagram to nobody is answered.
    server.sysctl(&[("ipv4/icmp_ratemask", "0")])?;
    for port in [IGNORED, WATCHED].into_iter().flat_map(|port| [port, port + DEAF]) {
        let listener = server.run(|| Ok(TcpListener::bind((SERVER, port))?))?;
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    for port in [IGNORED, DNS] {
        let socket = server.run(|| Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?))?;
        thread::spawn(move || {
            while let Ok((_, client)) = socket.recv_from(&mut [0; 8]) {
                let _ = socket.send_to(b"!", client);
            }
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cheap = {
        let _inside = runtime.enter();
        let _stats = programs::Stats::on()?;
        let ignored = programs::programs(&client, IGNORED)?;
        let watched = programs::programs(&client, WATCHED)?;
        programs::table(&ignored, &watched)
    };
    let fast = {
        let _inside = runtime.enter();
        network::run(&client, &server)?
    };
    drop((client, server));
    let modest = agent::run()?;
    Ok(cheap && fast && modest)
}
