//! The bytes that cross the boundary between the probes and the agent, and nothing else.
//!
//! Events travel through one ring buffer. Each begins with a [`Header`] whose `kind` says which struct follows;
//! [`Event::from_bytes`] is the only reader. All integers are native-endian (both ends are one machine); addresses are in
//! network order, IPv4 as v4-mapped IPv6; ports are in host order. Padding is explicit and zero, so that a recording of the
//! bytes is reproducible.
#![cfg_attr(target_arch = "bpf", no_std)]

mod layout;

pub use layout::{ABSENT, CONNTRACK_TUPLE, Layout};

/// Which struct follows the header.
pub mod kind {
    /// [`super::AttemptStart`]: a TCP socket went CLOSE → SYN_SENT.
    pub const ATTEMPT_START: u8 = 1;
    /// [`super::AttemptRetransmit`]: a SYN was sent again; the source port is known from here on.
    pub const ATTEMPT_RETRANSMIT: u8 = 2;
    /// [`super::AttemptEnd`]: a TCP socket left SYN_SENT.
    pub const ATTEMPT_END: u8 = 3;
    /// [`super::Accepted`]: a listener's child went SYN_RECV → ESTABLISHED.
    pub const ACCEPTED: u8 = 4;
    /// [`super::PacketDrop`]: the kernel freed a SYN, SYN-ACK or UDP datagram as dropped.
    pub const PACKET_DROP: u8 = 5;
    /// [`super::UdpEnd`]: a connected UDP socket was released.
    pub const UDP_END: u8 = 6;
    /// [`super::SocketError`]: an error reached a connected UDP socket or a TCP socket in SYN_SENT.
    pub const SOCKET_ERROR: u8 = 7;
    /// [`super::IcmpSent`]: this machine answered a packet with "destination unreachable".
    pub const ICMP_SENT: u8 = 8;
    /// [`super::AnswerRetransmit`]: a listener on this machine sent its SYN-ACK again.
    pub const ANSWER_RETRANSMIT: u8 = 9;
    /// [`super::DropStack`]: as [`PACKET_DROP`], with the stack.
    pub const DROP_STACK: u8 = 10;
}

/// First bytes of every event.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u8,
    /// Zero.
    pub padding: [u8; 3],
    /// The CPU that wrote the event.
    pub cpu: u32,
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC), nanoseconds.
    pub timestamp: u64,
}

/// Addresses and ports of a connection, from the side that opens it to the side that listens.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    /// Network order; IPv4 as `::ffff:a.b.c.d`.
    pub source: [u8; 16],
    /// Network order; IPv4 as `::ffff:a.b.c.d`.
    pub destination: [u8; 16],
    /// Host order. 0 where not known yet (`inet_sock_set_state` at CLOSE → SYN_SENT comes before the port is chosen).
    pub source_port: u16,
    /// Host order.
    pub destination_port: u16,
    /// IANA number: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Zero.
    pub padding: [u8; 3],
}

/// The task that called `connect()`. Only known in process context.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// cgroup v2 id (inode of the directory), 1 on a host without cgroup v2 for its pods.
    pub cgroup: u64,
    /// Process id in the initial pid namespace.
    pub pid: u32,
    /// Zero.
    pub padding: u32,
    /// NUL-padded command name.
    pub comm: [u8; 16],
}

/// A TCP connection attempt began.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptStart {
    /// `kind::ATTEMPT_START`.
    pub header: Header,
    /// `source_port` is 0 unless the application bound one, or the kernel has no BTF.
    pub tuple: Tuple,
    /// Address of `struct sock`, or its cookie where the kernel has no BTF: with `header.timestamp` it identifies the attempt.
    pub socket: u64,
    /// Inode number of the socket's network namespace; 0 where the kernel has no BTF, as in all events of TCP attempts.
    pub netns: u32,
    /// Zero.
    pub padding: u32,
    /// Who connects; all zero where the kernel has no BTF.
    pub owner: Owner,
}

/// A SYN was retransmitted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptRetransmit {
    /// `kind::ATTEMPT_RETRANSMIT`.
    pub header: Header,
    /// With the source port.
    pub tuple: Tuple,
    /// As in [`AttemptStart`].
    pub socket: u64,
    /// `header.timestamp` of the start; 0 if the start was not seen.
    pub started: u64,
    /// Retransmits of this attempt so far, this one included.
    pub count: u32,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
}

/// Bits of [`AttemptEnd::flags`].
pub mod end_flags {
    /// The socket became ESTABLISHED.
    pub const ESTABLISHED: u8 = 1;
    /// An RST was received in SYN_SENT (`tcp_receive_reset`; without BTF: the peer sent a segment before the end).
    pub const RESET: u8 = 2;
    /// `error_origin`, `error_type` and `error_code` hold an entry of the socket's error queue.
    pub const ERROR_QUEUE: u8 = 4;
    /// The probe could not read why: `error` and `soft_error` are 0 for that, and not because nothing answered.
    pub const CAUSE_UNKNOWN: u8 = 8;
}

/// A TCP connection attempt ended.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptEnd {
    /// `kind::ATTEMPT_END`.
    pub header: Header,
    /// With the source port.
    pub tuple: Tuple,
    /// As in [`AttemptStart`].
    pub socket: u64,
    /// `header.timestamp` of the start; 0 if the start was not seen.
    pub started: u64,
    /// `sk_err` (positive errno) at the transition.
    pub error: i32,
    /// `sk_err_soft` at the transition.
    pub soft_error: i32,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// Retransmits of the SYN, capped at 65535.
    pub retransmits: u16,
    /// [`end_flags`].
    pub flags: u8,
    /// `sock_extended_err.ee_origin`: 2 ICMP, 3 ICMPv6.
    pub error_origin: u8,
    /// ICMP type.
    pub error_type: u8,
    /// ICMP code.
    pub error_code: u8,
    /// Zero.
    pub padding: [u8; 6],
}

/// A listener on this machine completed a handshake.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// `kind::ACCEPTED`.
    pub header: Header,
    /// From the client to the listener.
    pub tuple: Tuple,
    /// Inode number of the listener's network namespace.
    pub netns: u32,
    /// Zero.
    pub padding: u32,
}

/// Bits of [`PacketDrop::flags`].
pub mod drop_flags {
    /// `original` holds conntrack's tuple before translation.
    pub const ORIGINAL: u8 = 1;
    /// The packet travelled from the listener to the opener: `tuple` is already turned round.
    pub const REPLY: u8 = 2;
    /// `reason` holds a value of `enum skb_drop_reason`.
    pub const REASON: u8 = 4;
    /// The namespace tracks connections of this family, and the packet belongs to none: conntrack has not seen it yet, or
    /// would not have it (table full, INVALID).
    pub const UNTRACKED: u8 = 8;
}

/// The kernel dropped a packet of a connection attempt.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketDrop {
    /// `kind::PACKET_DROP`, or `kind::DROP_STACK` within a [`DropStack`].
    pub header: Header,
    /// As the packet carried it at the drop (after destination translation where that had happened).
    pub tuple: Tuple,
    /// As the client dialled it, by conntrack; see [`drop_flags::ORIGINAL`].
    pub original: Tuple,
    /// Address of the client's `struct sock` where the packet still had one, else 0.
    pub socket: u64,
    /// Kernel address of the drop.
    pub location: u64,
    /// Packets dropped with the same key (everything here but the source port) since the last event of that key on this
    /// CPU, this one included.
    pub count: u64,
    /// `enum skb_drop_reason` of the running kernel, subsystem in the high 16 bits; see [`drop_flags::REASON`].
    pub reason: u32,
    /// Inode number of the network namespace; 0 where neither device nor socket told.
    pub netns: u32,
    /// `ifindex` of `skb->dev`, 0 where there was none.
    pub interface: u32,
    /// TCP flags byte; 0 for UDP.
    pub tcp_flags: u8,
    /// [`drop_flags`].
    pub flags: u8,
    /// Zero.
    pub padding: [u8; 2],
}

/// Kernel stack frames that a [`DropStack`] has room for: the tracing machinery, the way from the hook to the drop (five in
/// netfilter), and who called that.
pub const STACK_FRAMES: usize = 16;

/// A dropped packet and how the kernel came to drop it. An event of its own, so that those without are not twice as large.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropStack {
    /// The drop.
    pub drop: PacketDrop,
    /// Return addresses, innermost first, from the probe itself on; 0 where there are no more.
    pub frames: [u64; STACK_FRAMES],
}

/// Bits of [`UdpEnd::flags`].
pub mod udp_flags {
    /// At least one datagram was delivered to the socket after it was connected.
    pub const REPLIED: u8 = 1;
}

/// A connected UDP socket was released: the peer either answered or it did not.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpEnd {
    /// `kind::UDP_END`.
    pub header: Header,
    /// From the local socket to its connected peer.
    pub tuple: Tuple,
    /// Address of `struct sock`.
    pub socket: u64,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// `sk_err` (positive errno) at the release.
    pub error: i32,
    /// [`udp_flags`].
    pub flags: u8,
    /// Zero.
    pub padding: [u8; 7],
    /// `bpf_ktime_get_ns` when the socket was created, nanoseconds; 0 if that was not seen. A socket that lived for an
    /// instant was only asked for a route and says nothing about replies.
    pub created: u64,
    /// Who released the socket.
    pub owner: Owner,
}

/// An error reached a connected UDP socket, or a TCP socket that waits for the answer to its SYN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketError {
    /// `kind::SOCKET_ERROR`.
    pub header: Header,
    /// From the local socket to its peer, with the source port.
    pub tuple: Tuple,
    /// Address of `struct sock`.
    pub socket: u64,
    /// `sk_err` (positive errno); 0 where the error only entered the error queue.
    pub error: i32,
    /// `sk_err_soft` (positive errno).
    pub soft_error: i32,
    /// Inode number of the socket's network namespace.
    pub netns: u32,
    /// [`end_flags::ERROR_QUEUE`] or 0.
    pub flags: u8,
    /// `sock_extended_err.ee_origin`: 2 ICMP, 3 ICMPv6.
    pub error_origin: u8,
    /// ICMP type.
    pub error_type: u8,
    /// ICMP code.
    pub error_code: u8,
}

/// This machine answered a packet with an ICMP error.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpSent {
    /// `kind::ICMP_SENT`.
    pub header: Header,
    /// Of the packet that was answered.
    pub tuple: Tuple,
    /// Inode number of the network namespace; 0 where neither device nor socket told.
    pub netns: u32,
    /// ICMP type: 3.
    pub error_type: u8,
    /// ICMP code.
    pub error_code: u8,
    /// Zero.
    pub padding: [u8; 2],
}

/// A listener on this machine sent its SYN-ACK again: the SYN came through, the way back is blocked or the listener is full.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerRetransmit {
    /// `kind::ANSWER_RETRANSMIT`.
    pub header: Header,
    /// From the client to the listener.
    pub tuple: Tuple,
    /// Inode number of the listener's network namespace.
    pub netns: u32,
    /// Zero.
    pub padding: u32,
}

/// Indices of the per-CPU `COUNTERS` array, `u64` each.
pub mod counter {
    /// Ring buffer reservations that failed, by nothing but the buffer being full.
    pub const LOST_EVENTS: u32 = 0;
    /// Events written.
    pub const EVENTS: u32 = 1;
    /// Drops counted into a later event of their key instead of having one of their own: nothing is lost but time.
    pub const AGGREGATED_DROPS: u32 = 2;
    /// Attempts that could not be remembered because the map was full.
    pub const LOST_ATTEMPTS: u32 = 3;
    /// Drops with a new key that the per-CPU token bucket held back: a pair may have gone unseen.
    pub const SUPPRESSED_DROPS: u32 = 4;
    /// Socket errors that the token bucket held back.
    pub const SUPPRESSED_ERRORS: u32 = 5;
    /// ICMP answers and repeated SYN-ACKs that the token bucket held back.
    pub const SUPPRESSED_ANSWERS: u32 = 6;
    /// UDP sockets whose creation could not be remembered because the map was full.
    pub const LOST_SOCKETS: u32 = 7;
    /// Drops told without their stack because the token bucket held it back: no drop goes unseen by that.
    pub const SUPPRESSED_STACKS: u32 = 8;
    /// Number of counters.
    pub const COUNT: u32 = 9;
}

/// An event read back from its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// See [`AttemptStart`].
    Start(AttemptStart),
    /// See [`AttemptRetransmit`].
    Retransmit(AttemptRetransmit),
    /// See [`AttemptEnd`].
    End(AttemptEnd),
    /// See [`Accepted`].
    Accepted(Accepted),
    /// See [`PacketDrop`].
    Drop(PacketDrop),
    /// See [`DropStack`].
    DropStack(DropStack),
    /// See [`UdpEnd`].
    UdpEnd(UdpEnd),
    /// See [`SocketError`].
    SocketError(SocketError),
    /// See [`IcmpSent`].
    IcmpSent(IcmpSent),
    /// See [`AnswerRetransmit`].
    AnswerRetransmit(AnswerRetransmit),
}

/// Why bytes are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter or longer than the struct of its kind.
    Length {
        /// `Header::kind`.
        kind: u8,
        /// Bytes received.
        length: usize,
    },
    /// Not one of [`kind`].
    Kind(u8),
    /// No header.
    Empty,
}

impl Event {
    /// Reads one event as the ring buffer delivered it.
    ///
    /// # Errors
    /// [`Malformed`] when the length does not fit the kind or the kind is unknown.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let kind = *bytes.first().ok_or(Malformed::Empty)?;
        match kind {
            kind::ATTEMPT_START => read(bytes).map(Self::Start),
            kind::ATTEMPT_RETRANSMIT => read(bytes).map(Self::Retransmit),
            kind::ATTEMPT_END => read(bytes).map(Self::End),
            kind::ACCEPTED => read(bytes).map(Self::Accepted),
            kind::PACKET_DROP => read(bytes).map(Self::Drop),
            kind::DROP_STACK => read(bytes).map(Self::DropStack),
            kind::UDP_END => read(bytes).map(Self::UdpEnd),
            kind::SOCKET_ERROR => read(bytes).map(Self::SocketError),
            kind::ICMP_SENT => read(bytes).map(Self::IcmpSent),
            kind::ANSWER_RETRANSMIT => read(bytes).map(Self::AnswerRetransmit),
            other => Err(Malformed::Kind(other)),
        }
    }

    /// The header, whatever the kind.
    #[must_use]
    pub fn header(&self) -> &Header {
        match self {
            Self::Start(e) => &e.header,
            Self::Retransmit(e) => &e.header,
            Self::End(e) => &e.header,
            Self::Accepted(e) => &e.header,
            Self::Drop(e) => &e.header,
            Self::DropStack(e) => &e.drop.header,
            Self::UdpEnd(e) => &e.header,
            Self::SocketError(e) => &e.header,
            Self::IcmpSent(e) => &e.header,
            Self::AnswerRetransmit(e) => &e.header,
        }
    }
}

/// A struct of this crate that is plain bytes: `repr(C)`, no padding of the compiler's, every bit pattern valid.
///
/// # Safety
/// Implemented below only for types whose size is asserted to be the sum of their fields.
pub unsafe trait Plain: Copy {}

macro_rules! plain {
    ($($type:ty = $size:expr),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size);
        const _: () = assert!(align_of::<$type>() <= 8);
        // SAFETY: integers and arrays of integers only; the size is the sum of the fields (asserted above).
        unsafe impl Plain for $type {}
    )+};
}

plain! {
    Header = 16,
    Tuple = 40,
    Owner = 32,
    AttemptStart = 16 + 40 + 8 + 8 + 32,
    AttemptRetransmit = 16 + 40 + 8 + 8 + 8,
    AttemptEnd = 16 + 40 + 8 + 8 + 8 + 4 + 2 + 4 + 6,
    Accepted = 16 + 40 + 8,
    PacketDrop = 16 + 40 + 40 + 8 + 8 + 8 + 12 + 4,
    DropStack = 16 + 40 + 40 + 8 + 8 + 8 + 12 + 4 + 8 * STACK_FRAMES,
    UdpEnd = 16 + 40 + 8 + 8 + 8 + 8 + 32,
    SocketError = 16 + 40 + 8 + 8 + 4 + 4,
    IcmpSent = 16 + 40 + 4 + 4,
    AnswerRetransmit = 16 + 40 + 8,
    Layout = 46 * 4,
}

/// The bytes of a plain struct, for recordings and tests.
#[must_use]
pub fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `Plain` types have no padding, so all of their bytes are initialised.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

fn read<T: Plain>(bytes: &[u8]) -> Result<T, Malformed> {
    if bytes.len() != size_of::<T>() {
        return Err(Malformed::Length { kind: bytes[0], length: bytes.len() });
    }
    // SAFETY: the length fits and every bit pattern is a valid `T`.
    Ok(unsafe { core::ptr::read_unaligned(bytes.as_ptr().cast()) })
}
