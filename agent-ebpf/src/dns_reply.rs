//! `cgroup/sendmsg4|6` and `cgroup/recvmsg4|6` at the root of the cgroup v2 hierarchy: were DNS queries answered that a UDP
//! socket sent without being connected? Only loaded where the agent is told to: it is the one probe that runs per datagram.
//!
//! Resolvers that ask all their servers from one socket (musl, dnsmasq) do not connect it, and the kernel leaves no trace of
//! who answered. The first two hooks run for each datagram with a destination of its own, the other two for each receive that asks
//! for the sender; both in process context, with the socket locked. Datagrams of other ports than DNS's cost them one load.
//!
//! A reply is told when the application reads one from a server that it had asked. That a query got none is told when the
//! socket is released, and only if nothing at all has come to it: not even a datagram that was read without asking for its sender
//! (`recv`), or whose sender another program of the hook has translated. So of two servers of which one answered, nothing is said
//! of the other.

use core::ptr::read_volatile;

use aya_ebpf::{EbpfContext as _, programs::SockAddrContext};
use weir_common::{counter, udp_flags};

use crate::{
    emit::now,
    kernel::{UDP, copy, is_mapped, mapped, offset},
    maps::{QUERIES, Query, count, watched},
    namespace::only_address,
    udp_socket::Exchange,
};

const DNS: u16 = 53;
/// A socket that lives on is told of so often at most, nanoseconds.
const AGAIN: u64 = 1_000_000_000;
const NONE: Query = Query { server: [0; 4], asked: 0, told: 0 };

/// Loads a member of the context. Volatile: the verifier takes loads of whole members only.
macro_rules! load {
    ($ctx:expr, $($member:tt)+) => {{
        // SAFETY: a member of the context, which the verifier translates.
        unsafe { read_volatile(&raw const (*$ctx.sock_addr).$($member)+) }
    }};
}

/// The socket asks a server, whose address is IPv4's as the hook has it, or IPv6's.
#[inline(always)]
pub fn query(ctx: &SockAddrContext, v4: bool) {
    if is_dns(ctx) {
        let _ = asked(ctx, peer(ctx, v4));
    }
}

/// Its application reads a datagram of a server.
#[inline(always)]
pub fn reply(ctx: &SockAddrContext, v4: bool) {
    if is_dns(ctx) {
        let _ = answered(ctx, peer(ctx, v4));
    }
}

/// An unconnected socket is being released.
#[inline(always)]
pub fn released(socket: u64, created: u64) -> Option<()> {
    let queries = QUERIES.get_ptr_mut(socket)?;
    let at = |offset: u32| socket + u64::from(offset);
    let silent = copy::<i64>(at(offset!(sock_stamp)))? < 0
        && copy::<i32>(at(offset!(sock_waiting)))? == 0
        && copy::<i32>(at(offset!(sock_kept)))? == 0;
    // SAFETY: a value of the map; the socket is being released, nobody else has it.
    let queries = unsafe { &mut *queries };
    for query in queries.iter() {
        // Older than the socket: of another one at its address, whose release was not seen.
        if silent && query.asked > created && query.told == 0 {
            let _ = tell(socket, query, 0);
        }
    }
    let _ = QUERIES.remove(socket);
    Some(())
}

#[inline(always)]
fn is_dns(ctx: &SockAddrContext) -> bool {
    u16::from_be(load!(ctx, user_port) as u16) == DNS && watched(DNS) && load!(ctx, protocol) == u32::from(UDP)
}

/// Each family's hooks may load their own members only.
#[inline(always)]
fn peer(ctx: &SockAddrContext, v4: bool) -> [u32; 4] {
    if v4 {
        return mapped(load!(ctx, user_ip4));
    }
    [load!(ctx, user_ip6[0]), load!(ctx, user_ip6[1]), load!(ctx, user_ip6[2]), load!(ctx, user_ip6[3])]
}

/// The first member of the kernel's own context (include/linux/filter.h `struct bpf_sock_addr_kern`): as a number, which a typed
/// pointer is not.
#[inline(always)]
fn socket(ctx: &SockAddrContext) -> Option<u64> {
    copy(ctx.as_ptr() as u64)
}

#[inline(always)]
fn asked(ctx: &SockAddrContext, server: [u32; 4]) -> Option<()> {
    let socket = socket(ctx)?;
    if QUERIES.get_ptr(socket).is_none() && QUERIES.insert(socket, [NONE; 3], 0).is_err() {
        count(counter::LOST_SOCKETS);
    }
    // SAFETY: a value of the map; the socket is locked.
    let queries = unsafe { &mut *QUERIES.get_ptr_mut(socket)? };
    for query in queries.iter_mut() {
        if query.asked == 0 {
            query.server = server;
        }
        if same(query.server, server) {
            query.asked = now();
            return Some(());
        }
    }
    None
}

#[inline(always)]
fn answered(ctx: &SockAddrContext, server: [u32; 4]) -> Option<()> {
    let socket = socket(ctx)?;
    // SAFETY: as in `asked`.
    let queries = unsafe { &mut *QUERIES.get_ptr_mut(socket)? };
    for query in queries.iter_mut() {
        if query.asked != 0 && same(query.server, server) {
            let now = now();
            if query.told == 0 || now - query.told >= AGAIN {
                query.told = now;
                return tell(socket, query, udp_flags::REPLIED);
            }
            return None;
        }
    }
    None
}

/// As of a connected socket: to this server, created when it was asked.
#[inline(always)]
fn tell(socket: u64, query: &Query, flags: u8) -> Option<()> {
    let at = |offset: u32| socket + u64::from(offset);
    let v4 = is_mapped(query.server);
    let bound: [u32; 4] =
        if v4 { mapped(copy(at(offset!(sock_rcv_saddr)))?) } else { copy(at(offset!(sock_v6_rcv_saddr)))? };
    let source =
        if bound[0] | bound[1] | bound[3] == 0 { only_address(copy(at(offset!(sock_net)))?, v4)? } else { bound };
    let exchange =
        Exchange { source, destination: query.server, destination_port: DNS, error: 0, flags, created: query.asked };
    exchange.tell(socket)
}

#[inline(always)]
fn same(a: [u32; 4], b: [u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}
