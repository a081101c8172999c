//! What the kernel was seen to do, typed: names instead of numbers, addresses instead of bytes.
//!
//! [`Observation::from_event`] is the edge: it turns a probe's event into an observation with the help of the running kernel's
//! names ([`Symbols`]). A recording keeps observations, so it can be replayed on any machine.

mod decode;
mod drop_class;
mod hook;

use std::net::IpAddr;
use std::sync::Arc;

pub use decode::address;
pub use drop_class::DropClass;
pub use hook::{Hook, Stack};
use serde::{Deserialize, Serialize};

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
    /// UID of its pod, by its cgroup; of a static pod the hash of its manifest. None for what is no pod's, and where the cgroup
    /// cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Arc<str>>,
}

impl Owner {
    /// Envoy, by the names of its threads: the main one and its workers.
    #[must_use]
    pub fn is_proxy(&self) -> bool {
        self.comm == "envoy" || self.comm.starts_with("wrk:")
    }
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
    /// The probe could not read why it failed: `error`, `soft_error` and `queued` say nothing.
    #[serde(default)]
    pub cause_unknown: bool,
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
    /// How the kernel came there, from that function on; `?` for a function without a name. Empty where it was not taken.
    #[serde(default, skip_serializing_if = "<[_]>::is_empty")]
    pub stack: Stack,
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
