//! `tcp:tcp_retransmit_synack(const struct sock *sk, const struct request_sock *req)`: a listener answers again.
//!
//! The client's SYN arrived, and the answer or the client's acknowledgement did not, or the listener has no room for one
//! more connection. Either way no rule dropped the SYN. A `request_sock` begins with the same `sock_common` as a socket
//! (include/net/request_sock.h, 5.10 to 7.2), so it is read as one.

use aya_ebpf::programs::BtfTracePointContext;
use weir_common::{AnswerRetransmit, counter, kind};

use crate::{
    emit::{emit, header, now},
    kernel::Sock,
    limits::{RETRANSMITS, allow},
    maps::watched,
};

#[inline(always)]
pub fn run(ctx: &BtfTracePointContext) {
    let (listener, request) = (Sock(ctx.arg(0)), Sock(ctx.arg(1)));
    if !watched(request.local_port()) {
        return;
    }
    let timestamp = now();
    if !allow(RETRANSMITS, timestamp, counter::SUPPRESSED_ANSWERS) {
        return;
    }
    emit(AnswerRetransmit {
        header: header(kind::ANSWER_RETRANSMIT, timestamp),
        tuple: request.incoming(),
        netns: listener.netns(),
        padding: 0,
    });
}
