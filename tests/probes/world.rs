//! A client, a node that routes and filters, and a server, each in a network namespace, and the probes that see them.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    Attempt, Outcome, Protocol, Waiting,
    netns::{Netns, RunId},
};
use weir::probes::{Decoder, ProbeSettings, Probes};
use weir_common::{AttemptEnd, DropStack, Event, PacketDrop, Tuple, UdpEnd, drop_flags};
use weir_engine::observation::Symbols as _;

pub const REFUSED: i32 = 111;

/// The three ways to the server: IPv4, IPv6, and IPv4 from a socket that speaks IPv6.
pub const SERVERS: [&str; 3] = ["10.2.0.2", "fd00:2::2", "::ffff:10.2.0.2"];

/// Client, node and server, and the probes that see them (and everything else on this machine).
pub struct World {
    pub runtime: tokio::runtime::Runtime,
    pub probes: Probes,
    pub decoder: Decoder,
    pub client: Netns,
    pub node: Netns,
    pub server: Netns,
    pub ours: BTreeSet<u32>,
}

impl World {
    /// With every probe that the kernel can have.
    pub fn new() -> Result<Self> {
        let world = Self::with(&ProbeSettings::default())?;
        for status in world.probes.status() {
            // What an older kernel does not have is no failure, and must be said so.
            let lacks =
                status.reason.as_deref().is_some_and(|reason| reason.starts_with("this kernel has no tracepoint"));
            let optional = matches!(status.name, "socket_error" | "icmp_sent");
            ensure!(status.active || optional && lacks, "{}: {:?}", status.name, status.reason);
        }
        Ok(world)
    }

    /// With what there is under these settings.
    pub fn with(settings: &ProbeSettings) -> Result<Self> {
        let id = RunId::new()?;
        let names = ["client", "node", "server"].map(|name| id.name(name));
        let [client, node, server]: [Netns; 3] =
            Netns::create(&names)?.try_into().map_err(|_| anyhow::anyhow!("three namespaces"))?;
        wire(&client, &node, "10.1.0", "fd00:1")?;
        wire(&server, &node, "10.2.0", "fd00:2")?;
        node.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        serve(&server)?;
        settle(&client)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let probes = {
            let _inside = runtime.enter();
            Probes::load(settings)?
        };
        let decoder = probes.decoder();
        let ours = [&client, &node, &server].into_iter().map(inode).collect::<Result<_>>()?;
        Ok(Self { runtime, probes, decoder, client, node, server, ours })
    }

    /// What the probes said of these namespaces during `action`.
    pub fn observe(&mut self, action: impl FnOnce(&Self) -> Result<()>) -> Result<Vec<Event>> {
        action(self)?;
        // Three of the agent's periods: what happened is in the buffer by now, drained through the public way.
        let mut events = Vec::new();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            self.runtime.block_on(self.probes.next_batch(&mut events))?;
        }
        // An event that does not know its namespace is known by its client.
        let ours = |event: &Event| match netns(event) {
            0 => SERVERS.iter().any(|server| source(event) == bytes(client_of(server))),
            known => self.ours.contains(&known),
        };
        events.retain(ours);
        for event in events.iter().take(50) {
            println!("{event:?}");
        }
        Ok(events)
    }

    pub fn attempt(&self, to: &str, port: u16, waiting: Waiting) -> Result<Outcome> {
        let attempt = Attempt { waiting, ..Attempt::new(Protocol::Tcp, address(to, port)?) };
        Ok(attempt.run(&self.client)?.outcome)
    }

    pub fn attempt_for(&self, to: &str, port: u16, timeout: Duration) -> Result<Outcome> {
        let attempt = Attempt { timeout, ..Attempt::new(Protocol::Tcp, address(to, port)?) };
        Ok(attempt.run(&self.client)?.outcome)
    }

    /// Holds the drop's reason against this name, or against none on a kernel that has none.
    pub fn assert_reason(&self, drop: &PacketDrop, name: &str) {
        if self.probes.types().layout.has_drop_reason == 1 {
            assert_eq!(self.decoder.reason(drop.reason).as_deref(), Some(name), "{drop:?}");
        } else {
            assert_eq!((drop.flags & drop_flags::REASON, drop.reason), (0, 0), "{drop:?}");
        }
    }

    pub fn has(&self, probe: &str) -> bool {
        self.probes.status().iter().any(|status| status.name == probe && status.active)
    }

    pub fn location(&self, drop: &PacketDrop) -> String {
        self.decoder.location(drop.location).unwrap_or_default()
    }
}

pub fn wire(host: &Netns, node: &Netns, v4: &str, v6: &str) -> Result<()> {
    let device = format!("v{}", v4.replace('.', ""));
    host.ip(&format!(
        "link set lo up\nlink add eth0 type veth peer name {device} netns {}\nlink set eth0 up\n\
         addr add {v4}.2/24 dev eth0\naddr add {v6}::2/64 dev eth0 nodad\n",
        node.name()
    ))?;
    node.ip(&format!(
        "link set {device} up\naddr add {v4}.1/24 dev {device}\naddr add {v6}::1/64 dev {device} nodad\n"
    ))?;
    host.ip(&format!("route add default via {v4}.1\nroute add ::/0 via {v6}::1\n"))
}

/// Waits until each way to the server works: IPv6 asks for its neighbours, and asks again only after a second.
pub fn settle(client: &Netns) -> Result<()> {
    let begin = Instant::now();
    for server in SERVERS {
        let attempt = Attempt::new(Protocol::Tcp, address(server, 8443)?);
        while attempt.run(client)?.outcome != Outcome::Established {
            ensure!(begin.elapsed() < Duration::from_secs(60), "no way to {server}");
        }
    }
    Ok(())
}

/// A TCP server that greets on 8080 and 8443, and a UDP server that echoes on 53. Their threads end with the process.
pub fn serve(server: &Netns) -> Result<()> {
    for port in [8080, 8443] {
        let listener = server.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?))?;
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    let socket = server.run(|| Ok(UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 53))?))?;
    thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&bytes[..length], from);
        }
    });
    Ok(())
}

pub fn inode(namespace: &Netns) -> Result<u32> {
    Ok(u32::try_from(fs::metadata(namespace.path())?.ino())?)
}

pub fn address(ip: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse().with_context(|| ip.to_owned())?, port))
}

pub fn bytes(ip: &str) -> [u8; 16] {
    match ip.parse().expect("an address of this test") {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    }
}

pub fn netns(event: &Event) -> u32 {
    match event {
        Event::Start(e) => e.netns,
        Event::Retransmit(e) => e.netns,
        Event::End(e) => e.netns,
        Event::Accepted(e) => e.netns,
        Event::Drop(e) => e.netns,
        Event::DropStack(e) => e.drop.netns,
        Event::UdpEnd(e) => e.netns,
        Event::SocketError(e) => e.netns,
        Event::IcmpSent(e) => e.netns,
        Event::AnswerRetransmit(e) => e.netns,
    }
}

fn source(event: &Event) -> [u8; 16] {
    match event {
        Event::Start(e) => e.tuple.source,
        Event::Retransmit(e) => e.tuple.source,
        Event::End(e) => e.tuple.source,
        Event::Accepted(e) => e.tuple.source,
        Event::Drop(e) => e.tuple.source,
        Event::DropStack(e) => e.drop.tuple.source,
        Event::UdpEnd(e) => e.tuple.source,
        Event::SocketError(e) => e.tuple.source,
        Event::IcmpSent(e) => e.tuple.source,
        Event::AnswerRetransmit(e) => e.tuple.source,
    }
}

pub fn client_of(server: &str) -> &'static str {
    if server.starts_with("fd00") { "fd00:1::2" } else { "10.1.0.2" }
}

pub fn ends(events: &[Event]) -> Vec<AttemptEnd> {
    events.iter().filter_map(|event| if let Event::End(end) = event { Some(*end) } else { None }).collect()
}

pub fn drops(events: &[Event]) -> Vec<PacketDrop> {
    events.iter().filter_map(dropped).collect()
}

/// The drop of an event, with or without its stack.
pub fn dropped(event: &Event) -> Option<PacketDrop> {
    match event {
        Event::Drop(drop) => Some(*drop),
        Event::DropStack(stack) => Some(stack.drop),
        _ => None,
    }
}

pub fn stacks(events: &[Event]) -> Vec<DropStack> {
    events.iter().filter_map(|event| if let Event::DropStack(stack) = event { Some(*stack) } else { None }).collect()
}

pub fn udp_ends(events: &[Event]) -> Vec<UdpEnd> {
    events.iter().filter_map(|event| if let Event::UdpEnd(end) = event { Some(*end) } else { None }).collect()
}

/// The tuple of an attempt from the client, whatever its source port, which must be known.
pub fn is_from_client(tuple: &Tuple, server: &str, port: u16) -> bool {
    tuple.source == bytes(client_of(server))
        && tuple.destination == bytes(server)
        && tuple.destination_port == port
        && tuple.source_port != 0
}
