//! Far nodes: behind a TUN device, where this kernel sees a packet leave and nothing of what becomes of it.

use std::fmt::Write;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{
    Icmpv4Type, Icmpv6Type, IpHeaders, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpSlice, TransportSlice,
    UdpSlice, icmpv6,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::dns;
use crate::topology::Topology;
use crate::topology::plan::Host;
use crate::topology::wiring::{host_prefix, source};

/// How often a reader looks whether it should end, in milliseconds.
const LOOK: u16 = 50;
const TTL: u8 = 64;
/// Bytes of a packet that an ICMP error carries at most: leaves room for its headers in 576 and in 1280 bytes
/// (RFC 1812 section 4.3.2.3, RFC 4443 section 2.4).
const QUOTE: usize = 528;

/// What becomes of packets on a far node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FarAnswer {
    /// Nothing comes back: dropped there, or lost on the way.
    Discard,
    /// The port is closed: TCP reset, or ICMP "port unreachable" for UDP.
    Closed,
    /// ICMP "host unreachable" comes back.
    Unreachable,
    /// ICMP "administratively prohibited" comes back.
    Prohibited,
    /// TCP connects, DNS queries are answered.
    Serve,
}

/// The TUN devices of a mesh and their readers. Dropping it ends them.
#[derive(Debug, Default)]
pub struct FarLinks {
    stop: Arc<AtomicBool>,
    packets: Arc<AtomicU64>,
    readers: Vec<JoinHandle<()>>,
}

impl FarLinks {
    /// Gives every host that has a link to nodes a device towards each far node.
    pub fn attach(topology: &Topology, answers: &[(String, FarAnswer)]) -> Result<Self> {
        let mut links = Self::default();
        for (name, answer) in answers {
            let node = topology.plan.node(name).with_context(|| format!("there is no node {name}"))?;
            for (host, _) in topology.hosts().filter(|(host, _)| !matches!(host, Host::Pod(_))) {
                links.attach_one(topology, host, node, *answer)?;
            }
        }
        Ok(links)
    }

    /// Packets that far nodes have taken in.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    fn attach_one(&mut self, topology: &Topology, host: Host, node: usize, answer: FarAnswer) -> Result<()> {
        let namespace = topology.namespace(host).context("a far host has no device")?;
        let name = format!("far{node}");
        let device = namespace.run(|| {
            let device = DeviceBuilder::new().name(&name).build_sync();
            device.with_context(|| format!("cannot make the TUN device {name}"))
        })?;
        let mut batch = format!("link set {name} addrgenmode none up\n");
        let plan = &topology.plan;
        let pods = plan.pods_of(node).flat_map(|pod| &pod.addresses);
        for address in plan.nodes[node].addresses.iter().chain(pods) {
            let source = source(topology, host, crate::ipv6::Family::of(*address));
            let _ = writeln!(batch, "route add {} dev {name}{source}", host_prefix(*address));
        }
        namespace.ip(&batch)?;
        let (stop, packets) = (self.stop.clone(), self.packets.clone());
        self.readers.push(std::thread::spawn(move || read(&device, answer, &stop, &packets)));
        Ok(())
    }
}

impl Drop for FarLinks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for reader in self.readers.drain(..) {
            // A reader that panicked has ended as well.
            let _ = reader.join();
        }
    }
}

fn read(device: &SyncDevice, answer: FarAnswer, stop: &AtomicBool, packets: &AtomicU64) {
    // SAFETY: the device stays open for as long as this function borrows it.
    let fd = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    let mut buffer = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(LOOK)) {
            Ok(1) => {}
            Ok(_) | Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return,
        }
        let Ok(length) = device.recv(&mut buffer) else { return };
        let packet = &buffer[..length];
        if !is_transport(packet) {
            continue;
        }
        packets.fetch_add(1, Ordering::Relaxed);
        if let Some(reply) = reply(packet, answer) {
            // An answer that cannot be sent is lost, as on any network.
            let _ = device.send(&reply);
        }
    }
}

/// Whether this is TCP or UDP: IPv6 devices also send multicast reports.
fn is_transport(packet: &[u8]) -> bool {
    let transport = SlicedPacket::from_ip(packet).ok().and_then(|packet| packet.transport);
    matches!(transport, Some(TransportSlice::Tcp(_) | TransportSlice::Udp(_)))
}

/// What a far node sends back for a packet; none if nothing.
fn reply(packet: &[u8], answer: FarAnswer) -> Option<Vec<u8>> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let (headers, _) = IpHeaders::from_slice(packet).ok()?;
    let back = Back::new(&headers);
    let transport = sliced.transport?;
    match (answer, transport) {
        (FarAnswer::Discard, _) => None,
        (FarAnswer::Unreachable, TransportSlice::Tcp(_) | TransportSlice::Udp(_)) => {
            back.icmp(packet, DestUnreachableHeader::Host, icmpv6::DestUnreachableCode::Address)
        }
        (FarAnswer::Prohibited, TransportSlice::Tcp(_) | TransportSlice::Udp(_)) => {
            back.icmp(packet, DestUnreachableHeader::FilterProhibited, icmpv6::DestUnreachableCode::Prohibited)
        }
        (FarAnswer::Closed, TransportSlice::Udp(_)) => {
            back.icmp(packet, DestUnreachableHeader::Port, icmpv6::DestUnreachableCode::Port)
        }
        (FarAnswer::Closed, TransportSlice::Tcp(tcp)) => back.tcp(&tcp, false),
        (FarAnswer::Serve, TransportSlice::Tcp(tcp)) => back.tcp(&tcp, true),
        (FarAnswer::Serve, TransportSlice::Udp(udp)) => back.dns(&udp),
        (_, TransportSlice::Icmpv4(_) | TransportSlice::Icmpv6(_) | TransportSlice::Igmp(_)) => None,
    }
}

/// The way back: addresses turned round.
struct Back {
    from: IpAddr,
    to: IpAddr,
}

impl Back {
    fn new(headers: &IpHeaders) -> Self {
        match headers {
            IpHeaders::Ipv4(header, _) => Self { from: header.destination.into(), to: header.source.into() },
            IpHeaders::Ipv6(header, _) => Self { from: header.destination.into(), to: header.source.into() },
        }
    }

    /// The headers up to IP; none if the families differ, which no packet does.
    fn ip(&self) -> Option<PacketBuilderStep<IpHeaders>> {
        let step = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL),
            _ => return None,
        };
        Some(step)
    }

    fn icmp(&self, packet: &[u8], v4: DestUnreachableHeader, v6: icmpv6::DestUnreachableCode) -> Option<Vec<u8>> {
        let quote = &packet[..packet.len().min(QUOTE)];
        let mut reply = Vec::new();
        let written = match self.from {
            IpAddr::V4(_) => self.ip()?.icmpv4(Icmpv4Type::DestinationUnreachable(v4)).write(&mut reply, quote),
            IpAddr::V6(_) => self.ip()?.icmpv6(Icmpv6Type::DestinationUnreachable(v6)).write(&mut reply, quote),
        };
        written.is_ok().then_some(reply)
    }

    /// An open port answers a SYN with a SYN-ACK and the end of a connection with a reset; a closed one resets.
    fn tcp(&self, tcp: &TcpSlice<'_>, open: bool) -> Option<Vec<u8>> {
        let ends = tcp.syn() || tcp.fin();
        if tcp.rst() || (open && !ends) {
            return None;
        }
        let builder = self.ip()?.tcp(tcp.destination_port(), tcp.source_port(), tcp.acknowledgment_number(), 65535);
        let acknowledged = tcp.sequence_number().wrapping_add(u32::from(ends));
        let builder = builder.ack(acknowledged);
        let builder = if open && tcp.syn() { builder.syn() } else { builder.rst() };
        let mut reply = Vec::new();
        builder.write(&mut reply, &[]).is_ok().then_some(reply)
    }

    fn dns(&self, udp: &UdpSlice<'_>) -> Option<Vec<u8>> {
        let answer = dns::answer(udp.payload(), self.from)?;
        let mut reply = Vec::new();
        let builder = self.ip()?.udp(udp.destination_port(), udp.source_port());
        builder.write(&mut reply, &answer).is_ok().then_some(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(v6: bool) -> Vec<u8> {
        let step = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], TTL)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], TTL)
        };
        let mut packet = Vec::new();
        step.tcp(40000, 15012, 99, 1000).syn().write(&mut packet, &[]).unwrap();
        packet
    }

    #[test]
    fn a_closed_port_resets_and_an_open_one_accepts() {
        for v6 in [false, true] {
            for (answer, syn_back) in [(FarAnswer::Closed, false), (FarAnswer::Serve, true)] {
                let reply = reply(&syn(v6), answer).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ip(&reply).unwrap().transport else { panic!() };
                assert_eq!((tcp.source_port(), tcp.destination_port()), (15012, 40000));
                assert_eq!((tcp.acknowledgment_number(), tcp.ack()), (100, true));
                assert_eq!((tcp.syn(), tcp.rst()), (syn_back, !syn_back));
            }
        }
    }

    #[test]
    fn nothing_answers_a_discarded_packet_or_a_reset() {
        assert_eq!(reply(&syn(false), FarAnswer::Discard), None);
        let reset = reply(&syn(false), FarAnswer::Closed).unwrap();
        assert_eq!(reply(&reset, FarAnswer::Closed), None);
        let error = reply(&syn(false), FarAnswer::Unreachable).unwrap();
        assert_eq!(reply(&error, FarAnswer::Unreachable), None, "an ICMP error is never answered by another");
    }
}
