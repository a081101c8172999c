//! Each probe on the running kernel: real packets between a client, a node that routes and filters, and a server, each in a
//! network namespace. Needs root and the built probes.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use harness::{
    Attempt, Outcome, Protocol, Waiting,
    netns::{Netns, RunId},
};
use weir::probes::{Decoder, ProbeSettings, Probes};
use weir_common::{AttemptEnd, Event, PacketDrop, Tuple, UdpEnd, drop_flags, end_flags, udp_flags};
use weir_engine::observation::{Observation, Symbols as _};

const REFUSED: i32 = 111;

/// The three ways to the server: IPv4, IPv6, and IPv4 from a socket that speaks IPv6.
const SERVERS: [&str; 3] = ["10.2.0.2", "fd00:2::2", "::ffff:10.2.0.2"];

/// Client, node and server, and the probes that see them (and everything else on this machine).
struct World {
    runtime: tokio::runtime::Runtime,
    probes: Probes,
    decoder: Decoder,
    client: Netns,
    node: Netns,
    server: Netns,
    ours: BTreeSet<u32>,
}

impl World {
    fn new() -> Result<Self> {
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
            Probes::load(&ProbeSettings::default())?
        };
        for status in probes.status() {
            // What an older kernel does not have is no failure, and must be said so.
            let lacks =
                status.reason.as_deref().is_some_and(|reason| reason.starts_with("this kernel has no tracepoint"));
            let optional = matches!(status.name, "socket_error" | "icmp_sent");
            ensure!(status.active || optional && lacks, "{}: {:?}", status.name, status.reason);
        }
        let decoder = probes.decoder();
        let ours = [&client, &node, &server].into_iter().map(inode).collect::<Result<_>>()?;
        Ok(Self { runtime, probes, decoder, client, node, server, ours })
    }

    /// What the probes said of these namespaces during `action`.
    fn observe(&mut self, action: impl FnOnce(&Self) -> Result<()>) -> Result<Vec<Event>> {
        action(self)?;
        // Three of the agent's periods: what happened is in the buffer by now, drained through the public way.
        let mut events = Vec::new();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            self.runtime.block_on(self.probes.next_batch(&mut events))?;
        }
        events.retain(|event| self.ours.contains(&netns(event)));
        for event in events.iter().take(50) {
            println!("{event:?}");
        }
        Ok(events)
    }

    fn attempt(&self, to: &str, port: u16, waiting: Waiting) -> Result<Outcome> {
        let attempt = Attempt { waiting, ..Attempt::new(Protocol::Tcp, address(to, port)?) };
        Ok(attempt.run(&self.client)?.outcome)
    }

    /// Holds the drop's reason against this name, or against none on a kernel that has none.
    fn assert_reason(&self, drop: &PacketDrop, name: &str) {
        if self.probes.types().layout.has_drop_reason == 1 {
            assert_eq!(self.decoder.reason(drop.reason).as_deref(), Some(name), "{drop:?}");
        } else {
            assert_eq!((drop.flags & drop_flags::REASON, drop.reason), (0, 0), "{drop:?}");
        }
    }

    fn has(&self, probe: &str) -> bool {
        self.probes.status().iter().any(|status| status.name == probe && status.active)
    }

    fn location(&self, drop: &PacketDrop) -> String {
        self.decoder.location(drop.location).unwrap_or_default()
    }
}

fn wire(host: &Netns, node: &Netns, v4: &str, v6: &str) -> Result<()> {
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
fn settle(client: &Netns) -> Result<()> {
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
fn serve(server: &Netns) -> Result<()> {
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

fn inode(namespace: &Netns) -> Result<u32> {
    Ok(u32::try_from(fs::metadata(namespace.path())?.ino())?)
}

fn address(ip: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(ip.parse().with_context(|| ip.to_owned())?, port))
}

fn bytes(ip: &str) -> [u8; 16] {
    match ip.parse().expect("an address of this test") {
        std::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(v6) => v6.octets(),
    }
}

fn netns(event: &Event) -> u32 {
    match event {
        Event::Start(e) => e.netns,
        Event::Retransmit(e) => e.netns,
        Event::End(e) => e.netns,
        Event::Accepted(e) => e.netns,
        Event::Drop(e) => e.netns,
        Event::UdpEnd(e) => e.netns,
        Event::SocketError(e) => e.netns,
        Event::IcmpSent(e) => e.netns,
        Event::AnswerRetransmit(e) => e.netns,
    }
}

fn client_of(server: &str) -> &'static str {
    if server.starts_with("fd00") { "fd00:1::2" } else { "10.1.0.2" }
}

fn ends(events: &[Event]) -> Vec<AttemptEnd> {
    events.iter().filter_map(|event| if let Event::End(end) = event { Some(*end) } else { None }).collect()
}

fn drops(events: &[Event]) -> Vec<PacketDrop> {
    events.iter().filter_map(|event| if let Event::Drop(drop) = event { Some(*drop) } else { None }).collect()
}

fn udp_ends(events: &[Event]) -> Vec<UdpEnd> {
    events.iter().filter_map(|event| if let Event::UdpEnd(end) = event { Some(*end) } else { None }).collect()
}

/// The tuple of an attempt from the client, whatever its source port, which must be known.
fn is_from_client(tuple: &Tuple, server: &str, port: u16) -> bool {
    tuple.source == bytes(client_of(server))
        && tuple.destination == bytes(server)
        && tuple.destination_port == port
        && tuple.source_port != 0
}

#[test]
fn an_established_connection_is_seen_from_both_ends() -> Result<()> {
    let mut world = World::new()?;
    for server in SERVERS {
        let events = world.observe(|world| world.attempt(server, 8080, Waiting::NonBlocking).map(drop))?;
        let [Event::Start(start), Event::End(end), Event::Accepted(accepted)] = events[..] else {
            panic!("{server}: {events:?}");
        };
        assert_eq!(start.tuple.source_port, 0, "the kernel has not chosen one yet");
        assert_eq!(start.netns, inode(&world.client)?);
        assert_eq!(start.owner.pid, std::process::id());
        assert_eq!((end.flags, end.error, end.retransmits), (end_flags::ESTABLISHED, 0, 0));
        assert_eq!((end.socket, end.started), (start.socket, start.header.timestamp));
        assert!(is_from_client(&end.tuple, server, 8080), "{end:?}");
        assert_eq!(accepted.tuple, end.tuple);
        assert_eq!(accepted.netns, inode(&world.server)?);
    }
    Ok(())
}

#[test]
fn a_closed_port_is_refused_by_reset_and_says_no_socket() -> Result<()> {
    let mut world = World::new()?;
    for server in SERVERS {
        for waiting in [Waiting::NonBlocking, Waiting::Blocking] {
            let events = world.observe(|world| world.attempt(server, 15012, waiting).map(drop))?;
            let [end] = ends(&events)[..] else { panic!("{server}: {events:?}") };
            assert_eq!((end.flags, end.error), (end_flags::RESET, REFUSED), "{end:?}");
            let [drop] = drops(&events)[..] else { panic!("{server}: {events:?}") };
            world.assert_reason(&drop, "NO_SOCKET");
            assert_eq!(drop.netns, inode(&world.server)?);
            assert_eq!(drop.tuple, end.tuple);
        }
    }
    Ok(())
}

#[test]
fn a_packet_filter_drop_is_seen_where_it_happens_and_again_with_each_retransmit() -> Result<()> {
    let mut world = World::new()?;
    world.node.nft("table inet t { chain f { type filter hook forward priority 0\n tcp dport 15012 drop\n }\n }\n")?;
    for server in SERVERS {
        let events = world.observe(|world| {
            let attempt = Attempt {
                timeout: Duration::from_millis(1300),
                ..Attempt::new(Protocol::Tcp, address(server, 15012)?)
            };
            assert_eq!(attempt.run(&world.client)?.outcome, Outcome::GaveUp);
            Ok(())
        })?;
        let [end] = ends(&events)[..] else { panic!("{server}: {events:?}") };
        assert_eq!((end.flags, end.error, end.soft_error, end.retransmits), (0, 0, 0, 1), "{end:?}");
        let seen = drops(&events);
        assert_eq!(seen.len(), 2, "{events:?}");
        for drop in seen {
            world.assert_reason(&drop, "NETFILTER_DROP");
            let location = world.location(&drop);
            assert!(matches!(location.as_str(), "nft_do_chain" | "nf_hook_slow"), "{location}");
            assert_eq!((drop.netns, drop.tuple), (inode(&world.node)?, end.tuple));
            assert_eq!((drop.tcp_flags & 0x12, drop.count), (0x02, 1));
            assert_eq!(drop.flags & drop_flags::REPLY, 0);
        }
        let retransmits: Vec<_> = events
            .iter()
            .filter_map(|event| if let Event::Retransmit(retransmit) = event { Some(*retransmit) } else { None })
            .collect();
        let [retransmit] = retransmits[..] else { panic!("{server}: {events:?}") };
        assert_eq!((retransmit.count, retransmit.tuple, retransmit.started), (1, end.tuple, end.started));
    }
    Ok(())
}

#[test]
fn a_reject_leaves_its_icmp_error_or_its_reset_and_its_drop() -> Result<()> {
    let mut world = World::new()?;
    world.node.nft(
        "table inet t { chain f { type filter hook forward priority 0\n tcp dport 15012 reject\n\
         tcp dport 15017 reject with icmpx admin-prohibited\n tcp dport 15014 reject with tcp reset\n }\n }\n",
    )?;
    for server in SERVERS {
        for waiting in [Waiting::NonBlocking, Waiting::Blocking] {
            for (port, icmp) in [(15012, Some((3, 3))), (15017, Some((3, 13))), (15014, None)] {
                let events = world.observe(|world| world.attempt(server, port, waiting).map(drop))?;
                let [end] = ends(&events)[..] else { panic!("{server}:{port} {events:?}") };
                // A blocking connect() owns the socket while the first ICMP error comes: only the second counts then.
                let seen = drops(&events);
                assert_eq!(seen.len(), 1 + usize::from(end.retransmits), "{server}:{port} {events:?}");
                for drop in seen {
                    world.assert_reason(&drop, "NETFILTER_DROP");
                    assert_eq!((drop.tuple, drop.netns), (end.tuple, inode(&world.node)?));
                }
                match icmp {
                    None => assert_eq!(end.flags, end_flags::RESET, "{end:?}"),
                    // IPv6 queues errors only for applications that ask for them.
                    Some(_) if server.starts_with("fd00") => assert_eq!(end.flags, 0, "{end:?}"),
                    Some(icmp) => {
                        assert_eq!(end.flags, end_flags::ERROR_QUEUE, "{end:?}");
                        assert_eq!((end.error_origin, (end.error_type, end.error_code)), (2, icmp));
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_dropped_answer_is_a_reply_of_the_same_tuple() -> Result<()> {
    let mut world = World::new()?;
    world.node.nft("table inet t { chain f { type filter hook forward priority 0\n tcp sport 8080 drop\n }\n }\n")?;
    for server in SERVERS {
        let events = world.observe(|world| world.attempt(server, 8080, Waiting::NonBlocking).map(drop))?;
        let [end, ..] = ends(&events)[..] else { panic!("{server}: {events:?}") };
        // The server also answers the attempts before this one again, and frees what it got twice.
        let seen: Vec<_> = drops(&events)
            .into_iter()
            .filter(|drop| drop.tuple == end.tuple && drop.netns != inode(&world.server).unwrap_or(0))
            .collect();
        assert!(!seen.is_empty(), "{events:?}");
        for drop in seen {
            assert_eq!(drop.socket, 0);
            world.assert_reason(&drop, "NETFILTER_DROP");
            assert_eq!((drop.flags & drop_flags::REPLY, drop.tcp_flags & 0x12), (drop_flags::REPLY, 0x12));
        }
    }
    Ok(())
}

#[test]
fn a_drop_before_the_device_still_knows_its_namespace_and_socket() -> Result<()> {
    let mut world = World::new()?;
    world.client.nft("table inet t { chain o { type filter hook output priority 0\n tcp dport 8080 drop\n }\n }\n")?;
    for server in SERVERS {
        let events = world.observe(|world| world.attempt(server, 8080, Waiting::NonBlocking).map(drop))?;
        let [Event::Start(start), Event::Drop(drop), ..] = events[..] else { panic!("{server}: {events:?}") };
        assert_eq!((drop.netns, drop.socket), (inode(&world.client)?, start.socket));
    }
    Ok(())
}

#[test]
fn behind_a_service_the_drop_keeps_what_was_dialled() -> Result<()> {
    let mut world = World::new()?;
    world.node.nft(
        "table inet t { chain d { type nat hook prerouting priority -100\n\
         ip daddr 10.96.0.9 tcp dport 443 dnat ip to 10.2.0.2:8443\n\
         ip6 daddr fd00:96::9 tcp dport 443 dnat ip6 to [fd00:2::2]:8443\n }\n\
         chain f { type filter hook forward priority 0\n tcp dport 8443 drop\n }\n }\n",
    )?;
    for (service, backend) in [("10.96.0.9", "10.2.0.2"), ("fd00:96::9", "fd00:2::2")] {
        let events = world.observe(|world| world.attempt(service, 443, Waiting::NonBlocking).map(drop))?;
        let [end] = ends(&events)[..] else { panic!("{service}: {events:?}") };
        assert_eq!((end.tuple.destination, end.tuple.destination_port), (bytes(service), 443));
        let [drop, ..] = drops(&events)[..] else { panic!("{service}: {events:?}") };
        assert_eq!((drop.tuple.destination, drop.tuple.destination_port), (bytes(backend), 8443));
        // Without the layout of conntrack's entries, which lies in a module's BTF, nothing is guessed.
        if world.probes.types().layout.conn_original == weir_common::ABSENT {
            assert_eq!(drop.flags & drop_flags::ORIGINAL, 0);
            continue;
        }
        assert_eq!(drop.flags & drop_flags::ORIGINAL, drop_flags::ORIGINAL);
        assert_eq!(drop.original, end.tuple);
    }
    Ok(())
}

#[test]
fn a_connected_udp_socket_tells_at_its_end_whether_it_was_answered() -> Result<()> {
    let mut world = World::new()?;
    world.node.nft("table inet t { chain f { type filter hook forward priority 0\n udp dport 8443 drop\n }\n }\n")?;
    for server in SERVERS {
        for (port, answered, reason) in
            [(53, true, None), (8443, false, Some("NETFILTER_DROP")), (443, false, Some("NO_SOCKET"))]
        {
            let events = world.observe(|world| {
                world.client.run(|| {
                    let any = if server.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                    let socket = UdpSocket::bind(any)?;
                    socket.connect(address(server, port)?)?;
                    socket.set_read_timeout(Some(Duration::from_millis(150)))?;
                    socket.send(b"?")?;
                    assert_eq!(socket.recv(&mut [0; 8]).is_ok(), answered, "{server}:{port}");
                    Ok(())
                })
            })?;
            let [end] = udp_ends(&events)[..] else { panic!("{server}:{port} {events:?}") };
            assert_eq!(end.flags & udp_flags::REPLIED != 0, answered, "{end:?}");
            assert!(is_from_client(&end.tuple, server, port), "{end:?}");
            assert_eq!((end.netns, end.owner.pid), (inode(&world.client)?, std::process::id()));
            assert!(end.created != 0 && end.created < end.header.timestamp);
            let seen = drops(&events);
            assert_eq!(seen.len(), reason.iter().count(), "{events:?}");
            for (drop, reason) in seen.iter().zip(reason) {
                world.assert_reason(drop, reason);
                assert_eq!(drop.tuple, end.tuple);
            }
        }
    }
    // Asking for a route is not asking a question.
    let events = world.observe(|world| {
        world.client.run(|| {
            UdpSocket::bind("0.0.0.0:0")?.connect("10.2.0.2:53")?;
            Ok(())
        })
    })?;
    let said: Vec<_> = events.iter().filter_map(|event| world.decoder.decode(event)).collect();
    assert!(!said.iter().any(|said| matches!(said, Observation::UdpEnd(_))), "{said:?}");
    Ok(())
}

#[test]
fn a_refused_datagram_is_told_though_its_application_read_the_error() -> Result<()> {
    let mut world = World::new()?;
    if !world.has("socket_error") {
        println!("SKIPPED: this kernel has no tracepoint sock:inet_sk_error_report");
        return Ok(());
    }
    for server in SERVERS {
        let events = world.observe(|world| {
            world.client.run(|| {
                let any = if server.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address(server, 443)?)?;
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.send(b"?")?;
                let error = socket.recv(&mut [0; 8]).expect_err("nobody listens");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{server}");
                Ok(())
            })
        })?;
        let errors: Vec<_> = events
            .iter()
            .filter_map(|event| if let Event::SocketError(error) = event { Some(*error) } else { None })
            .collect();
        let [error] = errors[..] else { panic!("{server}: {events:?}") };
        let [end] = udp_ends(&events)[..] else { panic!("{server}: {events:?}") };
        assert_eq!((error.error, error.netns), (REFUSED, inode(&world.client)?));
        assert_eq!((error.socket, error.tuple), (end.socket, end.tuple));
        assert_eq!(end.error, 0, "the application has read it");
    }
    Ok(())
}

#[test]
fn a_rejecting_rule_answers_before_it_drops() -> Result<()> {
    let mut world = World::new()?;
    if !world.has("icmp_sent") {
        println!("SKIPPED: this kernel has no tracepoint icmp:icmp_send");
        return Ok(());
    }
    world.node.nft(
        "table inet t { chain f { type filter hook forward priority 0\n tcp dport 15017 reject with icmpx admin-prohibited\n\
         udp dport 8443 reject\n }\n }\n",
    )?;
    let events = world.observe(|world| {
        world.attempt("10.2.0.2", 15017, Waiting::NonBlocking)?;
        world.client.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"?", "10.2.0.2:8443").map(drop)?))
    })?;
    for (port, code) in [(15017, 13), (8443, 3)] {
        let sent: Vec<_> = events
            .iter()
            .filter_map(|event| if let Event::IcmpSent(sent) = event { Some(*sent) } else { None })
            .filter(|sent| sent.tuple.destination_port == port)
            .collect();
        let [sent, ..] = sent[..] else { panic!("{port}: {events:?}") };
        assert_eq!((sent.error_type, sent.error_code, sent.netns), (3, code, inode(&world.node)?));
        assert!(is_from_client(&sent.tuple, "10.2.0.2", port), "{sent:?}");
        let dropped = drops(&events).into_iter().find(|drop| drop.tuple == sent.tuple);
        let dropped = dropped.with_context(|| format!("{port}: {events:?}"))?;
        assert!(dropped.header.timestamp - sent.header.timestamp < 50_000_000, "the rule's two acts are one moment");
    }
    Ok(())
}

#[test]
fn a_listener_that_answers_again_shows_that_the_way_back_is_blocked() -> Result<()> {
    let mut world = World::new()?;
    world.node.nft("table inet t { chain f { type filter hook forward priority 0\n tcp sport 8080 drop\n }\n }\n")?;
    for server in SERVERS {
        let events = world.observe(|world| {
            let attempt =
                Attempt { timeout: Duration::from_millis(1500), ..Attempt::new(Protocol::Tcp, address(server, 8080)?) };
            assert_eq!(attempt.run(&world.client)?.outcome, Outcome::GaveUp);
            Ok(())
        })?;
        let [end, ..] = ends(&events)[..] else { panic!("{server}: {events:?}") };
        let again: Vec<_> = events
            .iter()
            .filter_map(|event| if let Event::AnswerRetransmit(again) = event { Some(*again) } else { None })
            .filter(|again| again.tuple == end.tuple)
            .collect();
        let [again, ..] = again[..] else { panic!("{server}: {events:?}") };
        assert_eq!(again.netns, inode(&world.server)?);
    }
    Ok(())
}

#[test]
fn a_flood_is_counted_and_does_not_hide_another_pair() -> Result<()> {
    const PACKETS: u64 = 20_000;
    let mut world = World::new()?;
    world.node.nft(
        "table inet t { chain f { type filter hook forward priority 0\n udp dport 8443 drop\n tcp dport 15012 drop\n }\n }\n",
    )?;
    let before = world.probes.counters();
    let started = Instant::now();
    let events = world.observe(|world| {
        let flood = world.client.spawn(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..PACKETS {
                socket.send_to(b"!", "10.2.0.2:8443")?;
            }
            Ok(())
        });
        world.attempt("10.2.0.2", 15012, Waiting::NonBlocking)?;
        flood.join().expect("the flood's thread")
    })?;
    let elapsed = started.elapsed();
    let (flood, real): (Vec<_>, Vec<_>) = drops(&events).into_iter().partition(|drop| drop.tuple.protocol == 17);
    assert!(real.iter().any(|drop| is_from_client(&drop.tuple, "10.2.0.2", 15012)), "{real:?}");
    // Eight events per key, CPU and fifth of a second.
    let cpus = thread::available_parallelism()?.get() as u128;
    let bound = (elapsed.as_millis() / 200 + 2) * 8 * cpus;
    assert!((flood.len() as u128) <= bound, "{} events in {elapsed:?}", flood.len());
    let after = world.probes.counters();
    assert_eq!(after.lost_events, before.lost_events);
    let told: u64 = flood.iter().map(|drop| drop.count).sum();
    let held_back = after.aggregated_drops - before.aggregated_drops;
    assert!(told <= PACKETS && flood.len() as u64 + held_back >= PACKETS, "told {told}, held back {held_back}");
    Ok(())
}

/// Each packet from another address is a new key: the token bucket bounds them, and a local attempt that goes on is told.
#[test]
fn a_flood_from_everywhere_is_bounded_and_a_retried_attempt_still_seen() -> Result<()> {
    let mut world = World::new()?;
    world.client.ip("route add local 10.50.0.0/16 dev lo\n")?;
    world.node.ip("route add 10.50.0.0/16 via 10.1.0.2\n")?;
    world.node.nft(
        "table inet t { chain f { type filter hook forward priority 0\n udp dport 8443 drop\n tcp dport 15012 drop\n }\n }\n",
    )?;
    let before = world.probes.counters();
    let started = Instant::now();
    let events = world.observe(|world| {
        let flood = world.client.spawn(move || {
            for n in (0..0x4000).cycle() {
                let source = std::net::Ipv4Addr::from(0x0a32_0000 + n);
                UdpSocket::bind((source, 0))?.send_to(b"!", "10.2.0.2:8443")?;
                if started.elapsed() >= Duration::from_secs(4) {
                    break;
                }
            }
            Ok(())
        });
        thread::sleep(Duration::from_millis(800));
        let attempt = Attempt {
            timeout: Duration::from_millis(2500),
            ..Attempt::new(Protocol::Tcp, address("10.2.0.2", 15012)?)
        };
        attempt.run(&world.client)?;
        flood.join().expect("the flood's thread")
    })?;
    let elapsed = started.elapsed();
    let (flood, real): (Vec<_>, Vec<_>) = drops(&events).into_iter().partition(|drop| drop.tuple.protocol == 17);
    assert!(real.iter().any(|drop| is_from_client(&drop.tuple, "10.2.0.2", 15012)), "{real:?}");
    let cpus = thread::available_parallelism()?.get() as u128;
    let bound = (elapsed.as_millis() + 1000) * cpus;
    assert!((flood.len() as u128) <= bound, "{} events in {elapsed:?}", flood.len());
    let after = world.probes.counters();
    println!("{} events of the flood, {} of the attempt, {after:?}", flood.len(), real.len());
    assert!(after.suppressed_drops > before.suppressed_drops, "no flood was made: {after:?}");
    Ok(())
}

/// In a process of its own, which is then killed: see below. Without its variable it is no test.
#[test]
fn child_that_holds_the_probes() -> Result<()> {
    if std::env::var_os("WEIR_TEST_HOLD_PROBES").is_none() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let _probes = Probes::load(&ProbeSettings::default())?;
    println!("loaded");
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

#[test]
fn a_killed_agent_leaves_nothing_attached() -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", "child_that_holds_the_probes", "--nocapture"])
        .env("WEIR_TEST_HOLD_PROBES", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("no pipe")?;
    let loaded = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.contains("loaded"));
    let programs = program_ids(child.id())?;
    child.kill()?;
    child.wait()?;
    assert!(loaded && programs.len() >= 6, "{programs:?}");
    // The kernel frees programs after a grace period.
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let living: BTreeSet<_> = aya::programs::loaded_programs().flatten().map(|program| program.id()).collect();
        let left: Vec<_> = programs.intersection(&living).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < until, "still loaded: {left:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Ids of the programs that a process holds, from its descriptors' `fdinfo`.
fn program_ids(pid: u32) -> Result<BTreeSet<u32>> {
    let mut ids = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    Ok(ids)
}
