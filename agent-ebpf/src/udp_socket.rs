//! `cgroup/sock_create` and `cgroup/sock_release` at the root of the cgroup v2 hierarchy: did a connected UDP socket get an
//! answer during its life?
//!
//! No tracepoint marks a UDP send or receive, and a hook per datagram would be paid by all traffic. The kernel itself leaves a
//! trace: `sk_incoming_cpu` is -1 from `sock_init_data` on until the first datagram reaches the *connected* socket
//! (net/ipv4/udp.c `__udp_queue_rcv_skb` and net/ipv6/udp.c `__udpv6_queue_rcv_skb`: `sk_incoming_cpu_update` if there is a peer
//! address). So one look when the socket is released answers, and nothing runs per packet. Both hooks run for all
//! sockets of address families IPv4 and IPv6, in process context; others than UDP cost one load.
//!
//! Sockets that are not connected leave no such trace; see `dns_reply`.
//!
//! The context is the socket itself, but typed as the UAPI's `struct bpf_sock`; kernel members are copied from it.

use core::ptr::read_volatile;

use aya_ebpf::{EbpfContext as _, programs::SockContext};
use weir_common::{ABSENT, Tuple, UdpEnd, counter, kind, udp_flags};

use crate::{
    dns_reply,
    emit::{emit, header, now},
    kernel::{AF_INET6, UDP, bytes, copy, current, mapped, offset},
    maps::{DNS_REPLIES, UDP_SOCKETS, count, watched},
};

#[inline(always)]
pub fn created(ctx: &SockContext) {
    if is_udp(ctx) {
        let socket = ctx.as_ptr() as u64;
        if UDP_SOCKETS.insert(socket, now(), 0).is_err() {
            count(counter::LOST_SOCKETS);
        }
    }
}

#[inline(always)]
pub fn released(ctx: &SockContext) {
    if is_udp(ctx) {
        let _ = end(ctx.as_ptr() as u64);
    }
}

#[inline(always)]
fn is_udp(ctx: &SockContext) -> bool {
    // SAFETY: a member of the context, which the verifier translates.
    unsafe { (*ctx.sock).protocol == u32::from(UDP) }
}

#[inline(always)]
fn end(socket: u64) -> Option<()> {
    // SAFETY: copied at once; the socket is being released, nobody else has it.
    let created = unsafe { UDP_SOCKETS.get(socket) }.copied().unwrap_or(0);
    let _ = UDP_SOCKETS.remove(socket);
    let at = |offset: u32| socket + u64::from(offset);
    let port = u16::from_be(copy::<u16>(at(offset!(sock_dport)))?);
    if port == 0 && dns_replies() {
        return dns_reply::released(socket, created);
    }
    if port == 0 || !watched(port) {
        return None;
    }
    let (mut local, mut remote) = (mapped(copy(at(offset!(sock_rcv_saddr)))?), mapped(copy(at(offset!(sock_daddr)))?));
    if offset!(sock_v6_daddr) != ABSENT && copy::<u16>(at(offset!(sock_family)))? == AF_INET6 {
        (local, remote) = (copy(at(offset!(sock_v6_rcv_saddr)))?, copy(at(offset!(sock_v6_daddr)))?);
    }
    let replied = copy::<i32>(at(offset!(sock_incoming_cpu)))? != -1;
    let exchange = Exchange {
        source: local,
        destination: remote,
        destination_port: port,
        error: copy(at(offset!(sock_err)))?,
        flags: if replied { udp_flags::REPLIED } else { 0 },
        created,
    };
    exchange.tell(socket)
}

/// What a UDP socket and its peer had to do with one another.
pub struct Exchange {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub destination_port: u16,
    pub error: i32,
    pub flags: u8,
    pub created: u64,
}

impl Exchange {
    #[inline(always)]
    pub fn tell(self, socket: u64) -> Option<()> {
        let at = |offset: u32| socket + u64::from(offset);
        let net: u64 = copy(at(offset!(sock_net)))?;
        emit(UdpEnd {
            header: header(kind::UDP_END, now()),
            tuple: Tuple {
                source: bytes(self.source),
                destination: bytes(self.destination),
                source_port: copy(at(offset!(sock_num)))?,
                destination_port: self.destination_port,
                protocol: UDP,
                padding: [0; 3],
            },
            socket,
            netns: copy(net + u64::from(offset!(net_inum)))?,
            error: self.error,
            flags: self.flags,
            padding: [0; 7],
            created: self.created,
            owner: current(),
        });
        Some(())
    }
}

/// Constant to the verifier.
#[inline(always)]
fn dns_replies() -> bool {
    // SAFETY: a plain static; volatile because the agent replaces it after compilation.
    unsafe { read_volatile(&raw const DNS_REPLIES) != 0 }
}
