//! `tcp:tcp_receive_reset(struct sock *sk)`: an RST answered a SYN.
//!
//! `sk_err` alone cannot tell an RST from an ICMP error that maps to the same errno, above all for IPv6, whose errors reach the
//! error queue only on request. It fires before the state changes; the flag waits in the attempt for its end.

use aya_ebpf::programs::BtfTracePointContext;

use crate::{
    kernel::{Sock, state},
    maps::{ATTEMPTS, watched},
};

#[inline(always)]
pub fn run(ctx: &BtfTracePointContext) {
    let sock = Sock(ctx.arg(0));
    if sock.state() != state::SYN_SENT || !watched(sock.remote_port()) {
        return;
    }
    if let Some(attempt) = ATTEMPTS.get_ptr_mut(sock.address()) {
        // SAFETY: a live map value; the socket's lock keeps its events apart.
        unsafe { (*attempt).reset = 1 };
    }
}
