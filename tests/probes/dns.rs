//! DNS queries of UDP sockets that are not connected, which are followed only where that was asked for.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Result;
use weir::probes::ProbeSettings;
use weir_common::{Event, udp_flags};
use weir_engine::observation::Observation;

use super::world::{SERVERS, World, address, inode, is_from_client, udp_ends};

/// An answer is waited for as long as a slow machine takes; where none can come, no longer than a claim takes.
const PATIENCE: [Duration; 2] = [Duration::from_millis(400), Duration::from_secs(10)];

fn world() -> Result<World> {
    let world = World::with(&ProbeSettings { dns_replies: true, ..ProbeSettings::default() })?;
    for probe in ["dns_query4", "dns_query6", "dns_reply4", "dns_reply6"] {
        let status = world.probes.status().iter().find(|status| status.name == probe);
        assert!(status.is_some_and(|status| status.active), "{status:?}");
    }
    Ok(world)
}

/// A socket of the client that can reach this server, and has been sent from to its DNS port.
fn query(server: &str, answered: bool) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(if server.contains(':') { "[::]:0" } else { "0.0.0.0:0" })?;
    socket.set_read_timeout(Some(PATIENCE[usize::from(answered)]))?;
    socket.send_to(b"?", address(server, 53)?)?;
    Ok(socket)
}

/// What is made of it: the servers that are said to have answered, and those that are said not to.
fn said(world: &World, events: &[Event]) -> [Vec<String>; 2] {
    let mut said = [Vec::new(), Vec::new()];
    for observation in events.iter().filter_map(|event| world.decoder.decode(event)) {
        if let Observation::UdpEnd(end) = observation {
            said[usize::from(!end.replied)].push(end.tuple.destination.to_string());
        }
    }
    said
}

#[test]
fn an_unconnected_socket_tells_who_answered_and_that_nobody_did() -> Result<()> {
    let mut world = world()?;
    for answered in [true, false] {
        if !answered {
            world
                .node
                .nft("table inet t { chain f { type filter hook forward priority 0\n udp sport 53 drop\n }\n }\n")?;
        }
        for server in SERVERS {
            let events = world.observe(|world| {
                world.client.run(|| {
                    let socket = query(server, answered)?;
                    assert_eq!(socket.recv_from(&mut [0; 8]).is_ok(), answered, "{server}");
                    Ok(())
                })
            })?;
            let [end] = udp_ends(&events)[..] else { panic!("{server} {answered}: {events:?}") };
            assert_eq!(end.flags & udp_flags::REPLIED != 0, answered, "{end:?}");
            assert!(is_from_client(&end.tuple, server, 53), "{end:?}");
            assert_eq!((end.netns, end.owner.pid), (inode(&world.client)?, std::process::id()));
            let found = said(&world, &events);
            assert_eq!((found[0].len(), found[1].len()), if answered { (1, 0) } else { (0, 1) }, "{found:?}");
        }
    }
    Ok(())
}

#[test]
fn silence_is_told_only_of_a_socket_to_which_nothing_came() -> Result<()> {
    const DEAF: &str = "10.2.0.77";
    let mut world = world()?;
    type Client = fn() -> Result<()>;
    let cases: [(&str, Client, [&[&str]; 2]); 6] = [
        (
            "one of two servers answers",
            || {
                let socket = query("10.2.0.2", true)?;
                socket.send_to(b"?", address(DEAF, 53)?)?;
                socket.recv_from(&mut [0; 8])?;
                socket.set_read_timeout(Some(PATIENCE[0]))?;
                assert!(socket.recv_from(&mut [0; 8]).is_err());
                Ok(())
            },
            [&["10.2.0.2"], &[]],
        ),
        (
            "neither of two answers",
            || {
                let socket = query(DEAF, false)?;
                socket.send_to(b"?", address("10.2.0.78", 53)?)?;
                assert!(socket.recv_from(&mut [0; 8]).is_err());
                Ok(())
            },
            [&[], &["10.2.0.77", "10.2.0.78"]],
        ),
        (
            "the answer is read without asking who sent it",
            || {
                let socket = query("10.2.0.2", true)?;
                socket.recv(&mut [0; 8])?;
                std::thread::sleep(PATIENCE[0]);
                Ok(())
            },
            [&[], &[]],
        ),
        (
            "the answer is there and nobody reads it",
            || {
                let socket = query("10.2.0.2", true)?;
                socket.peek(&mut [0; 8])?;
                std::thread::sleep(PATIENCE[0]);
                Ok(())
            },
            [&[], &[]],
        ),
        ("nobody waits for the answer", || query(DEAF, false).map(drop), [&[], &[]]),
        (
            "a socket that lives on is told of once a second",
            || {
                let socket = query("10.2.0.2", true)?;
                socket.recv_from(&mut [0; 8])?;
                for _ in 0..3 {
                    socket.send_to(b"?", address("10.2.0.2", 53)?)?;
                    socket.recv_from(&mut [0; 8])?;
                }
                std::thread::sleep(Duration::from_millis(1100));
                socket.send_to(b"?", address("10.2.0.2", 53)?)?;
                socket.recv_from(&mut [0; 8])?;
                Ok(())
            },
            [&["10.2.0.2", "10.2.0.2"], &[]],
        ),
    ];
    for (name, client, right) in cases {
        let events = world.observe(|world| world.client.run(client))?;
        let mut found = said(&world, &events);
        found[1].sort();
        // A slow machine takes longer than a second for the four answers of one that lives on.
        found[0].truncate(right[0].len());
        assert_eq!(found, right.map(<[_]>::to_vec), "{name}");
    }
    Ok(())
}

#[test]
fn a_source_that_cannot_be_told_accuses_nobody() -> Result<()> {
    let mut world = world()?;
    world.client.ip("addr add 10.1.0.3/24 dev eth0\n")?;
    let ask = || query("10.2.0.2", true)?.recv_from(&mut [0; 8]).map(drop).map_err(Into::into);
    let events = world.observe(|world| world.client.run(ask))?;
    assert_eq!(udp_ends(&events), [], "either of two addresses");
    // Bound to one of them there is no doubt.
    let bound = || {
        let socket = UdpSocket::bind("10.1.0.2:0")?;
        socket.set_read_timeout(Some(PATIENCE[1]))?;
        socket.send_to(b"?", address("10.2.0.2", 53)?)?;
        Ok(socket.recv_from(&mut [0; 8]).map(drop)?)
    };
    let events = world.observe(|world| world.client.run(bound))?;
    let [end] = udp_ends(&events)[..] else { panic!("{events:?}") };
    assert!(is_from_client(&end.tuple, "10.2.0.2", 53), "{end:?}");
    Ok(())
}

#[test]
fn unless_asked_for_nothing_of_it_is_there() -> Result<()> {
    let mut world = World::new()?;
    assert!(!world.probes.status().iter().any(|status| status.name.starts_with("dns_")));
    let ask = || query("10.2.0.2", true)?.recv_from(&mut [0; 8]).map(drop).map_err(Into::into);
    let events = world.observe(|world| world.client.run(ask))?;
    assert_eq!(udp_ends(&events), []);
    Ok(())
}
