//! `icmp:icmp_send(const struct sk_buff *skb, int type, int code)`: this machine answers a packet with an ICMP error.
//!
//! A rule that rejects sends its answer and then drops the packet: with both, the drop of a packet from elsewhere is known to
//! be a rejection. IPv4 only, as the tracepoint is; absent from many kernels. What is not "destination unreachable" is skipped.

use aya_ebpf::programs::BtfTracePointContext;
use weir_common::{IcmpSent, Tuple, counter, kind};

use crate::{
    emit::{emit, header, now},
    kernel::{Packet, bytes},
    limits::{ANSWERS, allow},
    maps::watched,
    packet::parse,
};

/// RFC 792.
const DESTINATION_UNREACHABLE: i32 = 3;

#[inline(always)]
pub fn run(ctx: &BtfTracePointContext) {
    let (error_type, code) = (ctx.arg::<i32>(1), ctx.arg::<i32>(2));
    if error_type != DESTINATION_UNREACHABLE {
        return;
    }
    let packet = Packet(ctx.arg(0));
    let Some(parsed) = parse(packet) else { return };
    if !watched(parsed.destination_port) {
        return;
    }
    let timestamp = now();
    if !allow(ANSWERS, timestamp, counter::SUPPRESSED_ANSWERS) {
        return;
    }
    let (_, netns) = packet.place();
    emit(IcmpSent {
        header: header(kind::ICMP_SENT, timestamp),
        tuple: Tuple {
            source: bytes(parsed.source),
            destination: bytes(parsed.destination),
            source_port: parsed.source_port,
            destination_port: parsed.destination_port,
            protocol: parsed.protocol,
            padding: [0; 3],
        },
        netns,
        error_type: error_type as u8,
        error_code: code as u8,
        padding: [0; 2],
    });
}
