//! Without BTF: TCP as `sock_ops` sees it, by addresses alone, and nothing else.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use harness::matrix::bpf::{self, instruction};
use harness::{Outcome, Waiting};
use weir::probes::{ProbeError, ProbeSettings, Probes, root_cgroup};
use weir_common::{AttemptRetransmit, Event, end_flags};

use super::world::{SERVERS, World, ends, is_from_client};

/// More than the kernel waits until it sends a SYN again.
const SECOND: Duration = Duration::from_secs(2);

fn blind() -> ProbeSettings {
    ProbeSettings { btf: "/nowhere/vmlinux".into(), ..ProbeSettings::default() }
}

#[test]
fn without_btf_the_stand_in_is_on_and_the_others_say_why_they_are_not() -> Result<()> {
    let junk = tempfile::NamedTempFile::new()?;
    std::fs::write(junk.path(), [0x9f, 0xeb, 1, 0, 0, 0, 0, 0])?;
    for btf in [PathBuf::from("/nowhere/vmlinux"), junk.path().to_owned()] {
        let (probes, types) = weir::probes::try_all(&ProbeSettings { btf: btf.clone(), ..ProbeSettings::default() })?;
        let why = types.unreadable.context("it was read")?;
        assert!(why.to_string().starts_with(&format!("{}: ", btf.display())), "{why}");
        let active: Vec<_> = probes.iter().filter(|probe| probe.active).map(|probe| probe.name).collect();
        assert_eq!(active, ["tcp_callback"], "{probes:?}");
        for probe in probes.iter().filter(|probe| !probe.active) {
            let reason = probe.reason.as_deref().unwrap_or_default();
            let stood_in_for = probe.name == "syn_retransmit";
            let expected = if stood_in_for { "tcp_callback stands in for it" } else { "it needs the kernel's BTF" };
            assert_eq!(reason, expected, "{probe:?}");
        }
        assert_eq!(probes.len(), 10, "every program is accounted for");
    }
    let (probes, types) = weir::probes::try_all(&ProbeSettings::default())?;
    assert!(types.unreadable.is_none());
    assert!(probes.iter().all(|probe| probe.name != "tcp_callback"), "not wanted, and no word of it: {probes:?}");
    Ok(())
}

#[test]
fn where_nothing_can_stand_in_the_error_says_what_to_do() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _inside = runtime.enter();
    let error = Probes::load(&ProbeSettings { cgroup: Some("/nowhere/cgroup".into()), ..blind() });
    let error = error.err().context("nothing can be seen")?;
    assert!(matches!(error, ProbeError::NoBtf { .. }), "{error}");
    let text = error.to_string();
    for part in ["/nowhere/vmlinux: ", "CONFIG_DEBUG_INFO_BTF=y", "tcp_callback", "/nowhere/cgroup: "] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains('\n'), "{text}");
    Ok(())
}

#[test]
fn connections_are_seen_from_both_ends() -> Result<()> {
    let mut world = World::with(&blind())?;
    for server in SERVERS {
        let events = world.observe(|world| world.attempt(server, 8080, Waiting::NonBlocking).map(drop))?;
        let [Event::Start(start), Event::End(end), Event::Accepted(accepted)] = events[..] else {
            panic!("{server}: {events:?}");
        };
        assert!(is_from_client(&start.tuple, server, 8080), "the port is chosen by now: {start:?}");
        assert_eq!((end.tuple, accepted.tuple), (start.tuple, start.tuple));
        assert_eq!((end.flags, end.error, end.retransmits), (end_flags::ESTABLISHED, 0, 0));
        assert_eq!((end.socket, end.started), (start.socket, start.header.timestamp));
        assert!(start.socket != 0 && end.header.timestamp > end.started);
        assert_eq!((start.netns, end.netns, accepted.netns), (0, 0, 0), "which namespace is not known");
        assert_eq!((start.owner.pid, start.owner.cgroup, start.owner.comm), (0, 0, [0; 16]), "nor is the task");
    }
    Ok(())
}

#[test]
fn what_fails_ends_without_a_cause() -> Result<()> {
    let mut world = World::with(&blind())?;
    for server in SERVERS {
        for waiting in [Waiting::NonBlocking, Waiting::Blocking] {
            let events = world.observe(|world| world.attempt(server, 15012, waiting).map(drop))?;
            let [Event::Start(start), Event::End(end)] = events[..] else { panic!("{server}: {events:?}") };
            assert_eq!(end.flags, end_flags::RESET | end_flags::CAUSE_UNKNOWN, "the peer answered: {end:?}");
            assert_eq!((end.error, end.tuple, end.socket), (0, start.tuple, start.socket));
            assert!(is_from_client(&end.tuple, server, 15012), "{end:?}");
        }
    }
    world.node.nft(
        "table inet t { chain f { type filter hook forward priority 0\n tcp dport 15012 drop\n\
         tcp dport 15010 reject with icmpx admin-prohibited\n }\n }\n",
    )?;
    for server in SERVERS {
        let events = world.observe(|world| world.attempt(server, 15010, Waiting::NonBlocking).map(drop))?;
        let [end] = ends(&events)[..] else { panic!("{server}: {events:?}") };
        assert_eq!((end.flags, end.retransmits), (end_flags::CAUSE_UNKNOWN, 0), "an ICMP error is no segment: {end:?}");
        // Dropped: sent again, then given up by its owner.
        let events = world.observe(|world| {
            let begin = Instant::now();
            let outcome = world.attempt_for(server, 15012, SECOND)?;
            ensure!(outcome != Outcome::Established && begin.elapsed() >= Duration::from_secs(1), "{outcome:?}");
            Ok(())
        })?;
        let again: Vec<AttemptRetransmit> =
            events.iter().filter_map(|e| if let Event::Retransmit(e) = e { Some(*e) } else { None }).collect();
        let [end] = ends(&events)[..] else { panic!("{server}: {events:?}") };
        assert!(!again.is_empty(), "{events:?}");
        for (count, retransmit) in (1..).zip(&again) {
            assert_eq!((retransmit.count, retransmit.socket), (count, end.socket));
            assert_eq!((retransmit.started, retransmit.tuple), (end.started, end.tuple));
        }
        assert_eq!(end.flags, end_flags::CAUSE_UNKNOWN, "nobody answered: {end:?}");
        assert_eq!(usize::from(end.retransmits), again.len());
        assert!(is_from_client(&end.tuple, server, 15012) && end.started != 0, "{end:?}");
    }
    Ok(())
}

/// Callback flags are one word per socket. Another program of the hook asks for its own, and then marks the socket with the word.
#[test]
fn other_programs_keep_their_flags_and_other_ports_get_none() -> Result<()> {
    const RTT: u32 = 1 << 3;
    const OURS: u32 = 1 << 2 | 1 << 1;
    let root = File::open(root_cgroup().context("no root of cgroup v2")?)?;
    let program = bpf::program(bpf::SOCK_OPS, &marks_with_flags(RTT))?;
    let _other = bpf::link(&program, bpf::SOCK_OPS, u32::try_from(root.as_raw_fd())?, 0)?;
    let mut world = World::with(&ProbeSettings { ports: [8443].into(), ..blind() })?;
    for (port, events, flags) in [(8080, 0, RTT), (8443, 3, RTT | OURS)] {
        let mut mark = 0;
        let seen = world.observe(|world| {
            let connect = || Ok(TcpStream::connect(("10.2.0.2", port))?);
            mark = socket2::SockRef::from(&world.client.run(connect)?).mark()?;
            Ok(())
        })?;
        assert_eq!((seen.len(), mark), (events, flags), "port {port}: {seen:?}");
    }
    Ok(())
}

/// At `TCP_CONNECT_CB` adds a flag to the socket's; at `ACTIVE_ESTABLISHED_CB` makes the flags the socket's mark.
fn marks_with_flags(flag: u32) -> [u64; 20] {
    /// Of `bpf_sock_ops_cb_flags` in `struct bpf_sock_ops`.
    const FLAGS: i16 = 84;
    [
        instruction(0xbf, 0x16, 0, 0),             // r6 = r1
        instruction(0x61, 0x62, 0, 0),             // r2 = op
        instruction(0x15, 0x02, 11, 3),            // if r2 == TCP_CONNECT_CB goto connect
        instruction(0x55, 0x02, 14, 4),            // if r2 != ACTIVE_ESTABLISHED_CB goto exit
        instruction(0x61, 0x62, FLAGS, 0),         // r2 = flags
        instruction(0x63, 0x2a, -4, 0),            // *(r10 - 4) = r2
        instruction(0xbf, 0x61, 0, 0),             // r1 = r6
        instruction(0xb7, 0x02, 0, 1),             // r2 = SOL_SOCKET
        instruction(0xb7, 0x03, 0, 36),            // r3 = SO_MARK
        instruction(0xbf, 0xa4, 0, 0),             // r4 = r10
        instruction(0x07, 0x04, 0, -4_i32 as u32), // r4 -= 4
        instruction(0xb7, 0x05, 0, 4),             // r5 = 4
        instruction(0x85, 0x00, 0, 49),            // bpf_setsockopt
        instruction(0x05, 0x00, 4, 0),             // goto exit
        instruction(0x61, 0x62, FLAGS, 0),         // connect: r2 = flags
        instruction(0x47, 0x02, 0, flag),          // r2 |= flag
        instruction(0xbf, 0x61, 0, 0),             // r1 = r6
        instruction(0x85, 0x00, 0, 59),            // bpf_sock_ops_cb_flags_set
        instruction(0xb7, 0x00, 0, 1),             // exit: r0 = 1
        instruction(0x95, 0x00, 0, 0),
    ]
}
