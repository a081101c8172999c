//! What the kernel was seen to do, typed: names instead of numbers, addresses instead of bytes.
//!
//! [`Observation::from_event`] is the edge: it turns a probe's event into an observation with the help of the running kernel's
//! names ([`Symbols`]). A recording keeps observations, so it can be replayed on any machine.

mod drop_class;

use std::net::{IpAddr, Ipv6Addr};

pub use drop_class::DropClass;
use serde::{Deserialize, Serialize};
use weir_common::{Event, drop_flags, end_flags, udp_flags};

use crate::time::Time;
use crate::words::Protocol;

/// The running kernel's names for what events carry as numbers.
pub trait Symbols {
    /// Name of an `enum skb_drop_reason` value, with or without the `SKB_DROP_REASON_` prefix; `None` if the kernel's BTF
    /// does not know the value.
    fn reason(&self, value: u32) -> Option<String>;

    /// Name of the function that contains a kernel address; `None` where kallsyms does not tell.
    fn location(&self, address: u64) -> Option<String>;
}

/// Addresses and ports, from the side that opens a connection to the side that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Of the opener; v4-mapped addresses are IPv4.
    pub source: IpAddr,
    /// 0 while not known.
    pub source_port: u16,
    /// Of the listener.
    pub destination: IpAddr,
    /// Of the listener.
    pub destination_port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

/// The task that opened the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Command name.
    pub comm: String,
    /// cgroup v2 id, 1 where the host has none for its pods.
    pub cgroup: u64,
}

/// A TCP socket went CLOSE → SYN_SENT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptStart {
    /// When.
    pub at: Time,
    /// As dialled; the source port is usually not chosen yet (0).
    pub tuple: Tuple,
    /// Address of the socket: identifies the attempt together with `at`.
    pub socket: u64,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Who connects.
    pub owner: Owner,
}

/// A SYN was sent again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retransmit {
    /// When.
    pub at: Time,
    /// As dialled, with the source port.
    pub tuple: Tuple,
    /// As in [`AttemptStart`].
    pub socket: u64,
    /// `at` of the start; 0 if that was not seen.
    pub started: Time,
    /// Retransmits so far, this one included.
    pub count: u32,
    /// Inode of the network namespace.
    pub netns: u32,
}

/// An entry of the socket's error queue: an ICMP answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedError {
    /// `sock_extended_err.ee_origin`: 2 ICMP, 3 ICMPv6.
    pub origin: u8,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
}

/// A TCP socket left SYN_SENT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptEnd {
    /// When.
    pub at: Time,
    /// As dialled, with the source port.
    pub tuple: Tuple,
    /// As in [`AttemptStart`].
    pub socket: u64,
    /// `at` of the start; 0 if that was not seen.
    pub started: Time,
    /// The socket became ESTABLISHED.
    pub established: bool,
    /// An RST was received in SYN_SENT.
    pub reset: bool,
    /// `sk_err`, a positive errno or 0.
    pub error: i32,
    /// `sk_err_soft`, a positive errno or 0.
    pub soft_error: i32,
    /// Tail of the error queue.
    pub queued: Option<QueuedError>,
    /// Retransmits of the SYN.
    pub retransmits: u16,
    /// Inode of the network namespace.
    pub netns: u32,
}

/// A listener on this machine completed a handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// When.
    pub at: Time,
    /// As the listener sees it: after translation.
    pub tuple: Tuple,
    /// Inode of the listener's network namespace.
    pub netns: u32,
}

/// The kernel dropped a packet of a connection attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketDrop {
    /// When.
    pub at: Time,
    /// As the packet carried it at the drop; already turned round if `reply`.
    pub tuple: Tuple,
    /// As the client dialled it, by conntrack.
    pub original: Option<Tuple>,
    /// Address of the client's socket where the packet still had it.
    pub socket: Option<u64>,
    /// Name of the drop reason without the `SKB_DROP_REASON_` prefix; `None` where the kernel has no reasons.
    pub reason: Option<String>,
    /// Function in which the packet was dropped, without offset or compiler suffix.
    pub location: Option<String>,
    /// Packets with the same key since the last event of that key, this one included.
    pub count: u64,
    /// Inode of the network namespace; 0 where unknown.
    pub netns: u32,
    /// `ifindex` of the device; 0 where there was none.
    pub interface: u32,
    /// TCP flags byte; 0 for UDP.
    pub tcp_flags: u8,
    /// The packet travelled from the listener to the opener.
    pub reply: bool,
    /// Its namespace tracks connections and it belongs to none: conntrack would not have it, or comes later.
    #[serde(default)]
    pub untracked: bool,
}

/// A connected UDP socket was released.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpEnd {
    /// When.
    pub at: Time,
    /// From the local socket to its peer.
    pub tuple: Tuple,
    /// Address of the socket.
    pub socket: u64,
    /// When the socket was created; 0 if that was not seen.
    pub created: Time,
    /// At least one datagram was delivered to the socket after it was connected.
    pub replied: bool,
    /// `sk_err`, a positive errno or 0.
    pub error: i32,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Who released the socket.
    pub owner: Owner,
}

/// An error reached a connected UDP socket, or a TCP socket in SYN_SENT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketError {
    /// When.
    pub at: Time,
    /// From the local socket to its peer.
    pub tuple: Tuple,
    /// Address of the socket.
    pub socket: u64,
    /// `sk_err`, a positive errno or 0.
    pub error: i32,
    /// `sk_err_soft`, a positive errno or 0.
    pub soft_error: i32,
    /// Tail of the error queue.
    pub queued: Option<QueuedError>,
    /// Inode of the network namespace.
    pub netns: u32,
}

/// This machine answered a packet with "destination unreachable".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpSent {
    /// When.
    pub at: Time,
    /// Of the packet that was answered.
    pub tuple: Tuple,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
    /// Inode of the network namespace; 0 where unknown.
    pub netns: u32,
}

/// A listener on this machine sent its SYN-ACK again: the SYN came through; the way back is blocked, or the listener is full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerRetransmit {
    /// When.
    pub at: Time,
    /// As the listener sees it: after translation.
    pub tuple: Tuple,
    /// Inode of the listener's network namespace.
    pub netns: u32,
}

/// Everything that probes report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "observation", rename_all = "kebab-case")]
pub enum Observation {
    /// See [`AttemptStart`].
    AttemptStart(AttemptStart),
    /// See [`Retransmit`].
    Retransmit(Retransmit),
    /// See [`AttemptEnd`].
    AttemptEnd(AttemptEnd),
    /// See [`Accepted`].
    Accepted(Accepted),
    /// See [`PacketDrop`].
    Drop(PacketDrop),
    /// See [`UdpEnd`].
    UdpEnd(UdpEnd),
    /// See [`SocketError`].
    SocketError(SocketError),
    /// See [`IcmpSent`].
    IcmpSent(IcmpSent),
    /// See [`AnswerRetransmit`].
    AnswerRetransmit(AnswerRetransmit),
}

impl Observation {
    /// Addresses and ports as the event has them.
    #[must_use]
    pub fn tuple(&self) -> &Tuple {
        match self {
            Self::AttemptStart(o) => &o.tuple,
            Self::Retransmit(o) => &o.tuple,
            Self::AttemptEnd(o) => &o.tuple,
            Self::Accepted(o) => &o.tuple,
            Self::Drop(o) => &o.tuple,
            Self::UdpEnd(o) => &o.tuple,
            Self::SocketError(o) => &o.tuple,
            Self::IcmpSent(o) => &o.tuple,
            Self::AnswerRetransmit(o) => &o.tuple,
        }
    }

    /// Types an event. `None` for a transport protocol that is neither TCP nor UDP.
    #[must_use]
    pub fn from_event(event: &Event, symbols: &dyn Symbols) -> Option<Self> {
        let at = Time(event.header().timestamp);
        Some(match event {
            Event::Start(e) => Self::AttemptStart(AttemptStart {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                netns: e.netns,
                owner: owner(&e.owner),
            }),
            Event::Retransmit(e) => Self::Retransmit(Retransmit {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                started: Time(e.started),
                count: e.count,
                netns: e.netns,
            }),
            Event::End(e) => Self::AttemptEnd(AttemptEnd {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                started: Time(e.started),
                established: e.flags & end_flags::ESTABLISHED != 0,
                reset: e.flags & end_flags::RESET != 0,
                error: e.error,
                soft_error: e.soft_error,
                queued: (e.flags & end_flags::ERROR_QUEUE != 0).then_some(QueuedError {
                    origin: e.error_origin,
                    kind: e.error_type,
                    code: e.error_code,
                }),
                retransmits: e.retransmits,
                netns: e.netns,
            }),
            Event::Accepted(e) => Self::Accepted(Accepted { at, tuple: tuple(&e.tuple)?, netns: e.netns }),
            Event::Drop(e) => Self::Drop(PacketDrop {
                at,
                tuple: tuple(&e.tuple)?,
                original: if e.flags & drop_flags::ORIGINAL == 0 { None } else { tuple(&e.original) },
                socket: (e.socket != 0).then_some(e.socket),
                reason: if e.flags & drop_flags::REASON == 0 {
                    None
                } else {
                    Some(symbols.reason(e.reason).map_or_else(|| format!("#{}", e.reason), |name| plain_reason(&name)))
                },
                location: symbols.location(e.location).map(|name| plain_symbol(&name).to_owned()),
                count: e.count,
                netns: e.netns,
                interface: e.interface,
                tcp_flags: e.tcp_flags,
                reply: e.flags & drop_flags::REPLY != 0,
                untracked: e.flags & drop_flags::UNTRACKED != 0,
            }),
            Event::UdpEnd(e) => Self::UdpEnd(UdpEnd {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                created: Time(e.created),
                replied: e.flags & udp_flags::REPLIED != 0,
                error: e.error,
                netns: e.netns,
                owner: owner(&e.owner),
            }),
            Event::SocketError(e) => Self::SocketError(SocketError {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                error: e.error,
                soft_error: e.soft_error,
                queued: (e.flags & end_flags::ERROR_QUEUE != 0).then_some(QueuedError {
                    origin: e.error_origin,
                    kind: e.error_type,
                    code: e.error_code,
                }),
                netns: e.netns,
            }),
            Event::IcmpSent(e) => Self::IcmpSent(IcmpSent {
                at,
                tuple: tuple(&e.tuple)?,
                kind: e.error_type,
                code: e.error_code,
                netns: e.netns,
            }),
            Event::AnswerRetransmit(e) => {
                Self::AnswerRetransmit(AnswerRetransmit { at, tuple: tuple(&e.tuple)?, netns: e.netns })
            }
        })
    }

    /// When the kernel did it.
    #[must_use]
    pub fn at(&self) -> Time {
        match self {
            Self::AttemptStart(o) => o.at,
            Self::Retransmit(o) => o.at,
            Self::AttemptEnd(o) => o.at,
            Self::Accepted(o) => o.at,
            Self::Drop(o) => o.at,
            Self::UdpEnd(o) => o.at,
            Self::SocketError(o) => o.at,
            Self::IcmpSent(o) => o.at,
            Self::AnswerRetransmit(o) => o.at,
        }
    }
}

impl PacketDrop {
    /// Which part of the kernel dropped it.
    #[must_use]
    pub fn class(&self) -> DropClass {
        // Policies' rules come after conntrack, which gives each packet that it takes a connection. One without was turned
        // away by conntrack itself (table full: `nf_conntrack_in` returns NF_DROP) or for being INVALID. `nft_do_chain`
        // drops in its own name, so there it is known to be a rule.
        if self.untracked && self.location.as_deref() == Some("nf_hook_slow") {
            return DropClass::Resource;
        }
        DropClass::of(self.reason.as_deref(), self.location.as_deref())
    }
}

/// An address in network order, IPv4 as v4-mapped IPv6.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

fn tuple(t: &weir_common::Tuple) -> Option<Tuple> {
    let protocol = match t.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some(Tuple {
        source: address(t.source),
        source_port: t.source_port,
        destination: address(t.destination),
        destination_port: t.destination_port,
        protocol,
    })
}

fn owner(o: &weir_common::Owner) -> Owner {
    let length = o.comm.iter().position(|b| *b == 0).unwrap_or(o.comm.len());
    Owner { pid: o.pid, comm: String::from_utf8_lossy(&o.comm[..length]).into_owned(), cgroup: o.cgroup }
}

fn plain_reason(name: &str) -> String {
    name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name).to_owned()
}

/// `__netif_receive_skb_core.constprop.0+0x1a` is `__netif_receive_skb_core`.
fn plain_symbol(name: &str) -> &str {
    let end = name.find(['.', '+', ' ']).filter(|end| *end > 0).unwrap_or(name.len());
    &name[..end]
}

#[cfg(test)]
mod tests {
    use weir_common as wire;

    use super::*;

    struct Names;

    impl Symbols for Names {
        fn reason(&self, value: u32) -> Option<String> {
            (value == 12).then(|| "SKB_DROP_REASON_NETFILTER_DROP".to_owned())
        }

        fn location(&self, address: u64) -> Option<String> {
            (address == 7).then(|| "nft_do_chain.constprop.0+0x1a".to_owned())
        }
    }

    fn wire_tuple(protocol: u8) -> wire::Tuple {
        let mapped = |last| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last];
        wire::Tuple {
            source: mapped(2),
            destination: mapped(3),
            source_port: 0,
            destination_port: 15012,
            protocol,
            padding: [0; 3],
        }
    }

    fn packet(reason: u32, flags: u8, protocol: u8) -> wire::Event {
        wire::Event::Drop(wire::PacketDrop {
            header: wire::Header { kind: wire::kind::PACKET_DROP, padding: [0; 3], cpu: 0, timestamp: 99 },
            tuple: wire_tuple(protocol),
            original: wire::Tuple::default(),
            socket: 0,
            location: 7,
            count: 1,
            reason,
            netns: 0,
            interface: 0,
            tcp_flags: 2,
            flags,
            padding: [0; 2],
        })
    }

    #[test]
    fn what_conntrack_turns_away_is_no_policy() {
        let at = |location: &str, flags: u8| {
            let seen = Observation::from_event(&packet(12, drop_flags::REASON | flags, 6), &Names);
            let Some(Observation::Drop(drop)) = seen else { panic!("{seen:?}") };
            PacketDrop { location: Some(location.to_owned()), ..drop }.class()
        };
        assert_eq!(at("nf_hook_slow", drop_flags::UNTRACKED), DropClass::Resource);
        assert_eq!(at("nf_hook_slow", 0), DropClass::Netfilter);
        assert_eq!(at("nft_do_chain", drop_flags::UNTRACKED), DropClass::Netfilter, "a rule, whatever conntrack says");
        assert_eq!(at("nf_hook_slow", drop_flags::ORIGINAL), DropClass::Netfilter);
    }

    #[test]
    fn numbers_become_names_and_mapped_addresses_ipv4() {
        let seen = Observation::from_event(&packet(12, drop_flags::REASON, 6), &Names);
        let Some(Observation::Drop(drop)) = seen else { panic!("{seen:?}") };
        assert_eq!(drop.tuple.destination.to_string(), "10.0.0.3");
        assert_eq!((drop.reason.as_deref(), drop.location.as_deref()), (Some("NETFILTER_DROP"), Some("nft_do_chain")));
        assert_eq!((drop.original, drop.socket, drop.at), (None, None, Time(99)));

        let Some(Observation::Drop(unnamed)) = Observation::from_event(&packet(77, drop_flags::REASON, 6), &Names)
        else {
            panic!("a drop");
        };
        assert_eq!(unnamed.reason.as_deref(), Some("#77"));
        assert_eq!(unnamed.class(), DropClass::Netfilter, "an unnamed reason leaves it to the location");
        let Some(Observation::Drop(bare)) = Observation::from_event(&packet(0, 0, 17), &Names) else {
            panic!("a drop")
        };
        assert_eq!((bare.reason, bare.tuple.protocol), (None, Protocol::Udp));
        assert_eq!(Observation::from_event(&packet(0, 0, 132), &Names), None);
    }

    #[test]
    fn drop_classes() {
        use DropClass::{Cgroup, Netfilter, Netkit, Nfqueue, NoSocket, Normal, Other, Ovs, Resource, Route, Tc, Xdp};
        let unsaid = Some("NOT_SPECIFIED");
        let table = [
            (Some("NETFILTER_DROP"), Some("nf_hook_slow"), Netfilter),
            (None, Some("nf_hook_slow"), Netfilter),
            (unsaid, Some("nfqnl_reinject"), Nfqueue),
            (unsaid, Some("nf_queue"), Nfqueue),
            (Some("TC_EGRESS"), Some("__dev_queue_xmit"), Tc),
            (unsaid, Some("__netif_receive_skb_core"), Tc),
            (unsaid, Some("netkit_xmit"), Netkit),
            (unsaid, Some("veth_xdp_rcv_skb"), Xdp),
            (None, Some("netif_receive_generic_xdp"), Xdp),
            (None, Some("veth_poll"), Xdp),
            (None, Some("__udp4_lib_rcv"), NoSocket),
            (unsaid, Some("__udp4_lib_rcv"), Other),
            (None, Some("udp_queue_rcv_one_skb"), Other),
            (Some("OVS_DROP_LAST_ACTION"), Some("do_execute_actions"), Ovs),
            (Some("OVS_DROP_RECURSION_LIMIT"), Some("do_execute_actions"), Resource),
            (Some("SOCKET_FILTER"), Some("tcp_v4_rcv"), Cgroup),
            (Some("SOCKET_FILTER"), Some("packet_rcv"), Normal),
            (Some("IP_RPFILTER"), Some("ip_rcv_finish_core"), Route),
            (unsaid, Some("ip_error"), Route),
            (Some("NEIGH_FAILED"), Some("neigh_invalidate"), DropClass::Neighbour),
            (Some("NO_SOCKET"), Some("tcp_v4_rcv"), NoSocket),
            (unsaid, Some("tcp_v4_rcv"), Normal),
            (Some("SOMETHING_NEW"), Some("nf_hook_slow"), Other),
            (None, None, Other),
        ];
        for (reason, location, expected) in table {
            assert_eq!(DropClass::of(reason, location), expected, "{reason:?} at {location:?}");
        }
        let capable: Vec<_> = DropClass::ALL.into_iter().filter(|c| c.is_policy_capable()).collect();
        assert_eq!(capable, [Netfilter, Nfqueue, Tc, Netkit, Xdp, Ovs, Cgroup]);
    }
}
