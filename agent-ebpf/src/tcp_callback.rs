//! `sock_ops` at the root of the cgroup v2 hierarchy: TCP attempts where the kernel has no BTF.
//!
//! Stands in for `tcp_state` and `syn_retransmit`, with their events. All that it reads is the UAPI's `struct bpf_sock_ops`
//! (include/uapi/linux/bpf.h), the same on every kernel since 4.17, in every network namespace. What that context does not
//! hold stays open: the cause of a failure (`sk_err`, the error queue: [`end_flags::CAUSE_UNKNOWN`]), who connects, and in
//! which network namespace. Sockets are told apart by their cookie in place of their address.
//!
//! What the kernel calls, and when (net/ipv4/tcp_output.c, tcp_input.c, tcp.c; 5.10 to 7.2): `TCP_CONNECT_CB` from
//! `tcp_connect` in SYN_SENT, when addresses and ports are chosen and nothing is sent yet; `RETRANS_CB` after each SYN that is
//! sent again; `ACTIVE_ESTABLISHED_CB` and `PASSIVE_ESTABLISHED_CB` when a handshake completes; `STATE_CB` before the new state
//! is stored, so the local port is still there. `RETRANS_CB` and `STATE_CB` come only to sockets that asked for them: those
//! of watched ports. Their flags are one word per socket that all programs of the hook share, hence added and never taken back;
//! an established connection then costs one load per retransmit and per change of state.

use core::ptr::read_volatile;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RETRANS_CB,
        BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
    },
    helpers::generated::bpf_get_socket_cookie,
    programs::SockOpsContext,
};
use weir_common::{Accepted, AttemptEnd, AttemptRetransmit, AttemptStart, Owner, Tuple, end_flags, kind};

use crate::{
    attempts::{began, ended, sent_again},
    emit::{emit, header, now},
    kernel::{AF_INET6, TCP, bytes, is_mapped, mapped, redirected, state},
    maps::watched,
};

/// Loads a member of the context. Volatile: the verifier takes loads of whole members at constant offsets only.
macro_rules! load {
    ($ctx:expr, $($member:tt)+) => {{
        // SAFETY: a member of the context, which the verifier translates.
        unsafe { read_volatile(&raw const (*$ctx.ops).$($member)+) }
    }};
}

#[inline(always)]
pub fn run(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => start(ctx),
        BPF_SOCK_OPS_RETRANS_CB => retransmit(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => end(ctx, end_flags::ESTABLISHED),
        BPF_SOCK_OPS_STATE_CB => {
            let (old, new) = (load!(ctx, __bindgen_anon_1.args[0]), load!(ctx, __bindgen_anon_1.args[1]));
            if old == u32::from(state::SYN_SENT) && new == u32::from(state::CLOSE) {
                // The peer sent a segment, and the socket closed: an RST. An ICMP error is no segment.
                let answered = load!(ctx, segs_in) != 0;
                end(ctx, if answered { end_flags::RESET } else { 0 } | end_flags::CAUSE_UNKNOWN);
            }
        }
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ctx),
        _ => {}
    }
}

#[inline(always)]
fn start(ctx: &SockOpsContext) {
    if !watched(remote_port(ctx)) {
        return;
    }
    let flags = ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
    let (started, socket) = (now(), cookie(ctx));
    let _ = began(socket, started);
    emit(AttemptStart {
        header: header(kind::ATTEMPT_START, started),
        tuple: outgoing(ctx),
        socket,
        netns: 0,
        padding: 0,
        owner: Owner { cgroup: 0, pid: 0, padding: 0, comm: [0; 16] },
    });
}

#[inline(always)]
fn retransmit(ctx: &SockOpsContext) {
    if load!(ctx, state) != u32::from(state::SYN_SENT) || !watched(remote_port(ctx)) {
        return;
    }
    let socket = cookie(ctx);
    let (started, retransmits) = sent_again(socket);
    emit(AttemptRetransmit {
        header: header(kind::ATTEMPT_RETRANSMIT, now()),
        tuple: outgoing(ctx),
        socket,
        started,
        count: retransmits,
        netns: 0,
    });
}

#[inline(always)]
fn end(ctx: &SockOpsContext, flags: u8) {
    if !watched(remote_port(ctx)) {
        return;
    }
    let socket = cookie(ctx);
    let attempt = ended(socket);
    emit(AttemptEnd {
        header: header(kind::ATTEMPT_END, now()),
        tuple: outgoing(ctx),
        socket,
        started: attempt.started,
        error: 0,
        soft_error: 0,
        netns: 0,
        retransmits: attempt.retransmits(),
        flags,
        error_origin: 0,
        error_type: 0,
        error_code: 0,
        padding: [0; 6],
    });
}

#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let (local, remote) = addresses(ctx);
    if !(watched(local_port(ctx)) || redirected(local, remote)) {
        return;
    }
    let tuple = Tuple {
        source: bytes(remote),
        destination: bytes(local),
        source_port: remote_port(ctx),
        destination_port: local_port(ctx),
        protocol: TCP,
        padding: [0; 3],
    };
    emit(Accepted { header: header(kind::ACCEPTED, now()), tuple, netns: 0, padding: 0 });
}

/// Never given to another socket of this machine, and never 0.
#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// Host order. The context has `skc_dport` in the first two of the member's four bytes, in network order
/// (net/core/filter.c `sock_ops_convert_ctx_access`).
#[inline(always)]
fn remote_port(ctx: &SockOpsContext) -> u16 {
    u32::from_be(load!(ctx, remote_port)) as u16
}

/// Host order, as the context has it.
#[inline(always)]
fn local_port(ctx: &SockOpsContext) -> u16 {
    load!(ctx, local_port) as u16
}

/// Local and remote address. IPv4 as v4-mapped IPv6.
#[inline(always)]
fn addresses(ctx: &SockOpsContext) -> ([u32; 4], [u32; 4]) {
    if load!(ctx, family) == u32::from(AF_INET6) {
        let remote = [
            load!(ctx, remote_ip6[0]),
            load!(ctx, remote_ip6[1]),
            load!(ctx, remote_ip6[2]),
            load!(ctx, remote_ip6[3]),
        ];
        if !is_mapped(remote) {
            let local = [
                load!(ctx, local_ip6[0]),
                load!(ctx, local_ip6[1]),
                load!(ctx, local_ip6[2]),
                load!(ctx, local_ip6[3]),
            ];
            return (local, remote);
        }
    }
    (mapped(load!(ctx, local_ip4)), mapped(load!(ctx, remote_ip4)))
}

/// The connection as the side sees it that opened it, which is this one.
#[inline(always)]
fn outgoing(ctx: &SockOpsContext) -> Tuple {
    let (local, remote) = addresses(ctx);
    Tuple {
        source: bytes(local),
        destination: bytes(remote),
        source_port: local_port(ctx),
        destination_port: remote_port(ctx),
        protocol: TCP,
        padding: [0; 3],
    }
}
