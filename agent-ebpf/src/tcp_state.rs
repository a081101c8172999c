//! `sock:inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`: start, end and cause of every TCP
//! connect, and completed handshakes of listeners.
//!
//! Chosen because one hook outside the data path tells all three, and at SYN_SENT → CLOSE `sk_err`, `sk_err_soft` and the
//! error queue are still readable. The owner is only known at CLOSE → SYN_SENT (process context), and the source port only
//! after it (net/ipv4/tcp_ipv4.c `tcp_v4_connect`, 5.10 to 6.18: the state is set before `inet_hash_connect`).

use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::warn;
use weir_common::{Accepted, AttemptEnd, AttemptStart, end_flags, kind};

use crate::{
    attempts::{began, ended},
    emit::{emit, header, may_log, now},
    kernel::{Sock, current, state},
    maps::watched,
};

#[inline(always)]
pub fn run(ctx: &BtfTracePointContext) {
    let old = ctx.arg::<i32>(1) as u8;
    let new = ctx.arg::<i32>(2) as u8;
    match (old, new) {
        (_, state::SYN_SENT) => start(ctx, Sock(ctx.arg(0))),
        (state::SYN_SENT, state::ESTABLISHED | state::CLOSE) => end(Sock(ctx.arg(0)), new),
        (state::SYN_RECV, state::ESTABLISHED) => accepted(Sock(ctx.arg(0))),
        _ => {}
    }
}

#[inline(always)]
fn start(ctx: &BtfTracePointContext, sock: Sock) {
    if !watched(sock.remote_port()) || !sock.is_tcp() {
        return;
    }
    let started = now();
    let socket = sock.address();
    if let Err(errno) = began(socket, started)
        && may_log(started)
    {
        warn!(ctx, "an attempt could not be remembered: errno {}", errno);
    }
    emit(AttemptStart {
        header: header(kind::ATTEMPT_START, started),
        tuple: sock.outgoing(sock.local_port()),
        socket,
        netns: sock.netns(),
        padding: 0,
        owner: current(),
    });
}

#[inline(always)]
fn end(sock: Sock, new: u8) {
    if !watched(sock.remote_port()) || !sock.is_tcp() {
        return;
    }
    let socket = sock.address();
    let attempt = ended(socket);
    let mut event = AttemptEnd {
        header: header(kind::ATTEMPT_END, now()),
        tuple: sock.outgoing(sock.source_port()),
        socket,
        started: attempt.started,
        error: 0,
        soft_error: 0,
        netns: sock.netns(),
        retransmits: attempt.retransmits(),
        flags: 0,
        error_origin: 0,
        error_type: 0,
        error_code: 0,
        padding: [0; 6],
    };
    if new == state::ESTABLISHED {
        event.flags = end_flags::ESTABLISHED;
    } else {
        event.error = sock.error();
        event.soft_error = sock.soft_error();
        if attempt.reset != 0 {
            event.flags |= end_flags::RESET;
        }
        if let Some((origin, kind, code)) = sock.queued_error() {
            event.flags |= end_flags::ERROR_QUEUE;
            event.error_origin = origin;
            event.error_type = kind;
            event.error_code = code;
        }
    }
    emit(event);
}

#[inline(always)]
fn accepted(sock: Sock) {
    // What reaches loopback from elsewhere was redirected to a proxy of the client's own: whom it dialled did not answer.
    if !(watched(sock.local_port()) || sock.redirected()) || !sock.is_tcp() {
        return;
    }
    emit(Accepted { header: header(kind::ACCEPTED, now()), tuple: sock.incoming(), netns: sock.netns(), padding: 0 });
}
