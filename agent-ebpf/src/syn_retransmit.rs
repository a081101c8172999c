//! `tcp:tcp_retransmit_skb(const struct sock *sk, const struct sk_buff *skb, …)`: a SYN went unanswered.
//!
//! Tells that an attempt hangs long before it fails, and its source port. It fires after the transmission, so a local drop of
//! the same packet comes first (net/ipv4/tcp_output.c `__tcp_retransmit_skb`). Data retransmits cost one load.

use aya_ebpf::programs::BtfTracePointContext;
use weir_common::{AttemptRetransmit, kind};

use crate::{
    attempts::sent_again,
    emit::{emit, header, now},
    kernel::{Sock, TCP, state},
    maps::{Pair, RETRIED, watched},
};

#[inline(always)]
pub fn run(ctx: &BtfTracePointContext) {
    let sock = Sock(ctx.arg(0));
    if sock.state() != state::SYN_SENT || !watched(sock.remote_port()) || !sock.is_tcp() {
        return;
    }
    let socket = sock.address();
    let (started, retransmits) = sent_again(socket);
    let (source, destination) = sock.addresses();
    let pair = Pair { source, destination, port: sock.remote_port(), protocol: TCP, reply: 0, padding: 0 };
    let _ = RETRIED.insert(pair, 1, 0);
    emit(AttemptRetransmit {
        header: header(kind::ATTEMPT_RETRANSMIT, now()),
        tuple: sock.outgoing(sock.source_port()),
        socket,
        started,
        count: retransmits,
        netns: sock.netns(),
    });
}
