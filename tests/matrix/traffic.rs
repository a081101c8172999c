//! Much traffic at a rate: connections that work, and SYNs that nobody waits for.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Netns;

/// SYNs over IPv4 from ever new source ports, at most `rate` a second, until `stop`; `count` tells how many.
pub fn syn_flood(
    client: &Netns,
    from: IpAddr,
    to: SocketAddr,
    rate: u64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<()> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from, to.ip()) else { return Ok(()) };
    client.run(|| {
        // IPPROTO_RAW: the IP header is ours.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let address = SockAddr::from(to);
        let begin = Instant::now();
        let (mut packet, mut own) = (Vec::with_capacity(64), 0);
        while !stop.load(Ordering::Relaxed) {
            let sent = count.fetch_add(1, Ordering::Relaxed);
            own += 1;
            packet.clear();
            let step = PacketBuilder::ipv4(source.octets(), destination.octets(), 64);
            let port = 1024 + (sent % 60_000) as u16;
            step.tcp(port, to.port(), sent as u32, 1000).syn().write(&mut packet, &[])?;
            // A full queue is part of a flood.
            let _ = socket.send_to(&packet, &address);
            pace(begin, own, rate);
        }
        Ok(())
    })
}

/// Connections of several clients at `rate` a second together, each closed by a reset so that none lingers.
pub fn connect(
    client: &Netns,
    to: SocketAddr,
    rate: u64,
    clients: u64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<()> {
    thread::scope(|scope| {
        let running: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(move || {
                    client.run(|| {
                        let begin = Instant::now();
                        let mut own = 0;
                        while !stop.load(Ordering::Relaxed) {
                            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
                            socket.set_linger(Some(Duration::ZERO))?;
                            socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
                            own += 1;
                            count.fetch_add(1, Ordering::Relaxed);
                            pace(begin, own, rate / clients);
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        running.into_iter().try_for_each(|it| it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Sleeps if more was done than the rate allows.
fn pace(begin: Instant, done: u64, rate: u64) {
    let due = Duration::from_micros(done * 1_000_000 / rate);
    let ahead = due.saturating_sub(begin.elapsed());
    if ahead > Duration::from_millis(2) {
        thread::sleep(ahead);
    }
}
