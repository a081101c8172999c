//! `sock:inet_sk_error_report(const struct sock *sk)`: an error reached a socket (5.14 and later).
//!
//! An application that reads the refusal of its datagram takes the error off the socket, so the socket's end no longer tells;
//! and an ICMPv6 error leaves nothing in the queue of a connecting TCP socket. Sockets without a peer do not get here: their
//! errors belong to no pair. It fires for established TCP too (each reset), which costs two loads.

use aya_ebpf::programs::BtfTracePointContext;
use weir_common::{SocketError, counter, kind};

use crate::{
    emit::{emit, header, now},
    kernel::{Sock, state},
    limits::{ERRORS, allow},
    maps::watched,
};

#[inline(always)]
pub fn run(ctx: &BtfTracePointContext) {
    let sock = Sock(ctx.arg(0));
    if !watched(sock.remote_port()) {
        return;
    }
    let source_port = if sock.is_udp() {
        sock.local_port()
    } else if sock.is_tcp() && sock.state() == state::SYN_SENT {
        sock.source_port()
    } else {
        return;
    };
    let timestamp = now();
    if !allow(ERRORS, timestamp, counter::SUPPRESSED_ERRORS) {
        return;
    }
    let protocol = if sock.is_udp() { crate::kernel::UDP } else { crate::kernel::TCP };
    let (flags, origin, error_type, code) = match sock.queued_error() {
        Some((origin, error_type, code)) => (weir_common::end_flags::ERROR_QUEUE, origin, error_type, code),
        None => (0, 0, 0, 0),
    };
    emit(SocketError {
        header: header(kind::SOCKET_ERROR, timestamp),
        tuple: weir_common::Tuple { protocol, ..sock.outgoing(source_port) },
        socket: sock.address(),
        error: sock.error(),
        soft_error: sock.soft_error(),
        netns: sock.netns(),
        flags,
        error_origin: origin,
        error_type,
        error_code: code,
    });
}
