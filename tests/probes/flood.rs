//! Floods are bounded and hide nothing else.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use harness::matrix::traffic;
use harness::{Attempt, Protocol, Waiting};

use super::world::{World, address, drops, is_from_client};

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
    // Strict reverse path filtering would drop what is sent from addresses that are nobody's.
    world.node.ip("route add 10.50.0.0/16 via 10.1.0.2\n")?;
    world.node.nft(
        "table inet t { chain f { type filter hook forward priority 0\n udp dport 8443 drop\n tcp dport 15012 drop\n }\n }\n",
    )?;
    let before = world.probes.counters();
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    let events = world.observe(|world| {
        let (stop, sent, client) = (&stop, &sent, &world.client);
        thread::scope(|scope| {
            let sources = (Ipv4Addr::new(10, 50, 0, 0), 0x4000);
            let to = SocketAddrV4::new(Ipv4Addr::new(10, 2, 0, 2), 8443);
            let flood = scope.spawn(move || traffic::udp_flood(client, sources, to, 20_000, stop, sent));
            // In full flow first.
            while sent.load(Ordering::Relaxed) < 4_000 && !flood.is_finished() {
                thread::sleep(Duration::from_millis(10));
            }
            let attempt = Attempt {
                timeout: Duration::from_millis(2500),
                ..Attempt::new(Protocol::Tcp, address("10.2.0.2", 15012)?)
            };
            let outcome = attempt.run(client);
            stop.store(true, Ordering::Relaxed);
            flood.join().expect("the flood's thread")?;
            outcome.map(drop)
        })
    })?;
    let elapsed = started.elapsed();
    let (flood, real): (Vec<_>, Vec<_>) = drops(&events).into_iter().partition(|drop| drop.tuple.protocol == 17);
    assert!(real.iter().any(|drop| is_from_client(&drop.tuple, "10.2.0.2", 15012)), "{real:?}");
    let cpus = thread::available_parallelism()?.get() as u128;
    let bound = (elapsed.as_millis() + 1000) * cpus;
    assert!((flood.len() as u128) <= bound, "{} events in {elapsed:?}", flood.len());
    let after = world.probes.counters();
    println!("{} events of the flood, {} of the attempt, {after:?}", flood.len(), real.len());
    assert!(after.suppressed_drops > before.suppressed_drops, "no flood was made: {sent:?}, {after:?}");
    Ok(())
}
