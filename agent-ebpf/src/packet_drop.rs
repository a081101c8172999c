//! `skb:kfree_skb(struct sk_buff *skb, void *location[, enum skb_drop_reason reason[, struct sock *rx_sk]])`: the kernel dropped a
//! packet that opens a connection.
//!
//! Chosen because every software drop ends here, whoever decided it, and traffic that flows does not. `rx_sk` may be null where
//! the verifier believes it is not (6.11 and 6.12): it is never touched. What counts as a drop by policy is not decided here.
//!
//! What one place drops again and again is told at once, then up to [`WINDOW_EVENTS`] times per [`WINDOW`], the rest as a count
//! in the next event; a per-CPU token bucket bounds everything, except for destinations that a local socket is known to retry.
//! An event carries the kernel's stack as long as the stacks' own bucket allows it: where the packet was on its way is in none
//! of the tracepoint's arguments.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_get_stack, programs::BtfTracePointContext};
use weir_common::{DropStack, PacketDrop, STACK_FRAMES, Tuple, counter, drop_flags, kind};

use crate::{
    emit::{emit_with, header, now},
    kernel::{Packet, TCP, UDP, bytes, is_mapped, mapped, offset, state},
    limits::{self, token},
    maps::{DROPS, Drop, DropKey, Pair, RETRIED, count, watched},
    packet::{Parsed, parse},
};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Nanoseconds during which a key has at most [`WINDOW_EVENTS`] events.
const WINDOW: u64 = 200_000_000;
const WINDOW_EVENTS: u32 = 8;

/// Keys already told leave this many tokens to new ones.
const RESERVED: u64 = 500;
/// Likewise of the stacks' tokens.
const RESERVED_STACKS: u64 = 25;

#[inline(always)]
pub fn run(ctx: &BtfTracePointContext) {
    let packet = Packet(ctx.arg(0));
    let Some(parsed) = parse(packet) else { return };
    let Some(reply) = direction(&parsed) else { return };
    let (interface, netns) = packet.place();
    let (reason, reason_flag) =
        if offset!(has_drop_reason) == 1 { (ctx.arg::<u32>(2), drop_flags::REASON) } else { (0, 0) };
    let key = DropKey { pair: pair(&parsed, reply), location: ctx.arg::<u64>(1), reason, netns };
    let timestamp = now();
    let Some(Admitted { packets, known }) = admit(&key, packet, timestamp) else { return };
    let seen = Seen { packet, parsed, reply, interface, reason_flag, key, packets, timestamp };
    if token(limits::STACKS, timestamp, if known { RESERVED_STACKS } else { 0 }) {
        emit_with(|event: *mut DropStack| {
            // SAFETY: memory of one `DropStack`, reserved in the ring buffer; all of it is written.
            unsafe {
                seen.write(&raw mut (*event).drop, kind::DROP_STACK);
                let frames = &raw mut (*event).frames;
                // The helper writes as many as there are, and none where it fails.
                frames.write([0; STACK_FRAMES]);
                bpf_get_stack(ctx.as_ptr(), frames.cast(), size_of::<[u64; STACK_FRAMES]>() as u32, 0);
            }
        });
    } else {
        count(counter::SUPPRESSED_STACKS);
        // SAFETY: memory of one `PacketDrop`, reserved in the ring buffer.
        emit_with(|event: *mut PacketDrop| unsafe { seen.write(event, kind::PACKET_DROP) });
    }
}

/// What an event is written from.
struct Seen {
    packet: Packet,
    parsed: Parsed,
    reply: bool,
    interface: u32,
    reason_flag: u8,
    key: DropKey,
    packets: u32,
    timestamp: u64,
}

impl Seen {
    /// Writes the event in place: together with the key it would not fit the 512 bytes of stack.
    ///
    /// # Safety
    /// `event` is memory of one `PacketDrop`, of which all is written.
    #[inline(always)]
    unsafe fn write(&self, event: *mut PacketDrop, kind: u8) {
        let Self { packet, ref parsed, reply, interface, reason_flag, ref key, packets, timestamp } = *self;
        let (source_port, destination_port) = match reply {
            true => (parsed.destination_port, parsed.source_port),
            false => (parsed.source_port, parsed.destination_port),
        };
        let mut flags = if reply { reason_flag | drop_flags::REPLY } else { reason_flag };
        // SAFETY: the caller's; each field is written exactly once.
        unsafe {
            (&raw mut (*event).header).write(header(kind, timestamp));
            let tuple = &raw mut (*event).tuple;
            (&raw mut (*tuple).source).write(bytes(key.pair.source));
            (&raw mut (*tuple).destination).write(bytes(key.pair.destination));
            (&raw mut (*tuple).source_port).write(source_port);
            (&raw mut (*tuple).destination_port).write(destination_port);
            (&raw mut (*tuple).protocol).write(parsed.protocol);
            (&raw mut (*tuple).padding).write([0; 3]);
            if let Some(original) = original(packet, parsed.protocol) {
                flags |= drop_flags::ORIGINAL;
                (&raw mut (*event).original).write(original);
            } else {
                (&raw mut (*event).original).write(Tuple::default());
            }
            if packet.untracked(is_mapped(key.pair.source)) {
                flags |= drop_flags::UNTRACKED;
            }
            (&raw mut (*event).socket).write(opener(packet, parsed.protocol, reply));
            (&raw mut (*event).location).write(key.location);
            (&raw mut (*event).count).write(u64::from(packets));
            (&raw mut (*event).reason).write(key.reason);
            (&raw mut (*event).netns).write(key.netns);
            (&raw mut (*event).interface).write(interface);
            (&raw mut (*event).tcp_flags).write(parsed.tcp_flags);
            (&raw mut (*event).flags).write(flags);
            (&raw mut (*event).padding).write([0; 2]);
        }
    }
}

/// Is it a packet of interest, and does it travel from the listener to the opener?
#[inline(always)]
fn direction(packet: &Parsed) -> Option<bool> {
    if packet.protocol == TCP {
        return match packet.tcp_flags & (SYN | ACK | RST) {
            SYN if watched(packet.destination_port) => Some(false),
            flags if flags == SYN | ACK && watched(packet.source_port) => Some(true),
            _ => None,
        };
    }
    if watched(packet.destination_port) {
        Some(false)
    } else if packet.protocol == UDP && watched(packet.source_port) {
        Some(true)
    } else {
        None
    }
}

#[inline(always)]
fn pair(packet: &Parsed, reply: bool) -> Pair {
    let (source, destination, port) = match reply {
        true => (packet.destination, packet.source, packet.source_port),
        false => (packet.source, packet.destination, packet.destination_port),
    };
    Pair { source, destination, port, protocol: packet.protocol, reply: u8::from(reply), padding: 0 }
}

/// The socket that opens the connection, if the packet still belongs to it.
#[inline(always)]
fn opener(packet: Packet, protocol: u8, reply: bool) -> u64 {
    match packet.sock() {
        Some(sock) if !reply && (protocol == UDP || sock.state() == state::SYN_SENT) => sock.address(),
        _ => 0,
    }
}

/// Conntrack's tuple as the opener dialled it. The address family is conntrack's own (`src.l3num`, 2 for IPv4).
#[inline(always)]
fn original(packet: Packet, protocol: u8) -> Option<Tuple> {
    let tuple = packet.original()?;
    // Templates and untracked entries are zero.
    if tuple[38] != protocol {
        return None;
    }
    let word = |at: usize| u32::from_ne_bytes([tuple[at], tuple[at + 1], tuple[at + 2], tuple[at + 3]]);
    let v4 = u16::from_ne_bytes([tuple[18], tuple[19]]) == 2;
    let address = |at: usize| match v4 {
        true => mapped(word(at)),
        false => [word(at), word(at + 4), word(at + 8), word(at + 12)],
    };
    Some(Tuple {
        source: bytes(address(0)),
        destination: bytes(address(20)),
        source_port: u16::from_be_bytes([tuple[16], tuple[17]]),
        destination_port: u16::from_be_bytes([tuple[36], tuple[37]]),
        protocol,
        padding: [0; 3],
    })
}

/// An event that there shall be.
struct Admitted {
    /// How many packets it speaks for.
    packets: u32,
    /// It is not the first of its key.
    known: bool,
}

#[inline(always)]
fn admit(key: &DropKey, packet: Packet, timestamp: u64) -> Option<Admitted> {
    if let Some(known) = DROPS.get_ptr_mut(key) {
        // SAFETY: this CPU's slot of a live map value; tracing programs do not migrate while they run.
        let known = unsafe { &mut *known };
        known.pending += 1;
        if timestamp - known.window >= WINDOW {
            known.window = timestamp;
            known.events = 0;
        }
        if known.events >= WINDOW_EVENTS || !token(limits::DROPS, timestamp, RESERVED) {
            count(counter::AGGREGATED_DROPS);
            return None;
        }
        known.events += 1;
        let packets = known.pending;
        known.pending = 0;
        return Some(Admitted { packets, known: true });
    }
    if !token(limits::DROPS, timestamp, 0) && !retried(key, packet) {
        count(counter::SUPPRESSED_DROPS);
        return None;
    }
    let _ = DROPS.insert(key, Drop { window: timestamp, pending: 0, events: 1 }, 0);
    Some(Admitted { packets: 1, known: false })
}

/// Does a local socket wait for this destination, as dropped or as dialled?
#[inline(always)]
fn retried(key: &DropKey, packet: Packet) -> bool {
    if key.pair.protocol != TCP {
        return false;
    }
    let mut pair = Pair { reply: 0, ..key.pair };
    // SAFETY: only presence is asked for.
    if unsafe { RETRIED.get(pair) }.is_some() {
        return true;
    }
    let Some(original) = original(packet, TCP) else { return false };
    // SAFETY: same size, no invalid bit patterns.
    pair.destination = unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(original.destination) };
    pair.port = original.destination_port;
    // SAFETY: only presence is asked for.
    unsafe { RETRIED.get(pair) }.is_some()
}
