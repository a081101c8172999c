//! Connected UDP sockets.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;
use weir_common::{Event, udp_flags};
use weir_engine::observation::{DropClass, Observation};

use super::world::{REFUSED, SERVERS, World, address, drops, inode, is_from_client, udp_ends};

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
                    // An answer is waited for as long as a slow machine takes; where none can come, not long.
                    let patience = if answered { 10_000 } else { 150 };
                    socket.set_read_timeout(Some(Duration::from_millis(patience)))?;
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
                socket.set_read_timeout(Some(Duration::from_secs(10)))?;
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

/// In a socket's queue a datagram's interface is overwritten: who follows it faults.
#[test]
fn answers_that_nobody_reads_are_no_drop_and_have_no_place_made_up() -> Result<()> {
    const SOCKETS: usize = 20;
    let mut world = World::new()?;
    for server in SERVERS {
        let events = world.observe(|world| {
            world.client.run(|| {
                for _ in 0..SOCKETS {
                    let any = if server.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
                    let socket = UdpSocket::bind(any)?;
                    socket.connect(address(server, 53)?)?;
                    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
                    socket.send(b"?")?;
                    socket.peek(&mut [0; 8])?;
                }
                Ok(())
            })
        })?;
        let ends = udp_ends(&events);
        assert_eq!(ends.len(), SOCKETS, "{events:?}");
        assert!(ends.iter().all(|end| end.flags & udp_flags::REPLIED != 0), "{ends:?}");
        let seen = drops(&events);
        assert_ne!(seen.len(), 0, "no kernel so far frees them otherwise");
        for event in &events {
            let Some(Observation::Drop(drop)) = world.decoder.decode(event) else { continue };
            assert_eq!(drop.class(), DropClass::Normal, "{drop:?}");
        }
        for drop in seen {
            assert_eq!(drop.interface, 0, "{drop:?}");
            assert!(drop.netns == 0 || drop.netns == inode(&world.client)?, "{drop:?}");
        }
    }
    Ok(())
}
