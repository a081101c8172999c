//! Much traffic at a rate: connections that work, and SYNs that nobody waits for.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, sendmmsg};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netns::Netns;

/// Source ports of a flood.
const PORTS: usize = 8192;
/// Packets of one system call.
const BATCH: usize = 64;

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
    let packets = (0..PORTS as u16).map(|n| {
        let step = PacketBuilder::ipv4(source.octets(), destination.octets(), 64);
        let mut packet = Vec::with_capacity(64);
        step.tcp(1024 + n, to.port(), u32::from(n), 1000).syn().write(&mut packet, &[])?;
        Ok(packet)
    });
    let packets: Vec<Vec<u8>> = packets.collect::<Result<_>>()?;
    flood(client, &packets, to, rate, stop, count)
}

/// UDP packets over IPv4, each from the next of `sources` addresses beginning with `first`, at most `rate` a second, until
/// `stop`; `count` tells how many.
pub fn udp_flood(
    client: &Netns,
    (first, sources): (Ipv4Addr, u32),
    to: SocketAddrV4,
    rate: u64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<()> {
    let packets = (0..sources).map(|n| {
        let source = Ipv4Addr::from(u32::from(first) + n);
        let mut packet = Vec::with_capacity(64);
        PacketBuilder::ipv4(source.octets(), to.ip().octets(), 64).udp(4000, to.port()).write(&mut packet, b"!")?;
        Ok(packet)
    });
    let packets: Vec<Vec<u8>> = packets.collect::<Result<_>>()?;
    flood(client, &packets, to.into(), rate, stop, count)
}

/// Sends these packets over and over.
fn flood(
    client: &Netns,
    packets: &[Vec<u8>],
    to: SocketAddr,
    rate: u64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<()> {
    client.run(|| {
        // IPPROTO_RAW: the IP header is ours.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        socket.connect(&SockAddr::from(to))?;
        let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet)]).collect();
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
        let (begin, mut own) = (Instant::now(), 0);
        for batch in slices.chunks(BATCH).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let connected = [None; BATCH];
            let sent = sendmmsg(socket.as_raw_fd(), &mut headers, batch, connected, [], MsgFlags::empty());
            let sent = match sent {
                Ok(sent) => sent.count(),
                // A full queue is part of a flood.
                Err(Errno::ENOBUFS | Errno::EAGAIN) => 0,
                Err(error) => return Err(error).context("cannot send a flood's packets"),
            };
            count.fetch_add(sent as u64, Ordering::Relaxed);
            own += BATCH as u64;
            pace(begin, own, rate);
        }
        Ok(())
    })
}

/// A server that takes connections as fast as they come and closes them at once; it ends some time after `stop`.
pub fn sink(server: &Netns, port: u16, stop: &AtomicBool) -> Result<()> {
    server.run(|| {
        let listener = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        listener.set_only_v6(false)?;
        listener.set_reuse_address(true)?;
        listener.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
        listener.listen(4096)?;
        listener.set_read_timeout(Some(Duration::from_millis(100)))?;
        while !stop.load(Ordering::Relaxed) {
            // Nobody there yet, or gone again.
            let _ = listener.accept();
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
