//! TCP and UDP under rules of the packet filter.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result};
use harness::{Attempt, Outcome, Protocol, Waiting};
use weir_common::{Event, drop_flags, end_flags};

use super::world::{SERVERS, World, address, bytes, dropped, drops, ends, inode, is_from_client};

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
        let [Event::Start(start), second, ..] = &events[..] else { panic!("{server}: {events:?}") };
        let drop = dropped(second).with_context(|| format!("{server}: {events:?}"))?;
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
        // One moment, unless the processor is taken away in between.
        assert!(dropped.header.timestamp - sent.header.timestamp < 500_000_000, "{sent:?} {dropped:?}");
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
                Attempt { timeout: Duration::from_millis(2500), ..Attempt::new(Protocol::Tcp, address(server, 8080)?) };
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
