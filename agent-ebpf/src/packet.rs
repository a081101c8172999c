//! Reads the addresses and ports of a packet that the kernel is about to free.
//!
//! From `network_header` on: `transport_header` is not trustworthy (net/core/dev.c `__netif_receive_skb_core` resets it to the
//! network header before tc ingress), and headers may lie outside the linear part.

use crate::kernel::{Packet, TCP, UDP, copy, mapped};

/// A TCP or UDP packet.
#[derive(Clone, Copy)]
pub struct Parsed {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
    /// 0 for UDP.
    pub tcp_flags: u8,
}

/// IPv6 extension headers walked before giving up.
const EXTENSIONS: usize = 3;

/// `None` for everything but TCP and UDP over IP with readable headers; fragments but the first have none.
#[inline(always)]
pub fn parse(packet: Packet) -> Option<Parsed> {
    let start = packet.network_header();
    // The longest fixed header and what is read of TCP's, at once: a second copy costs as much as all the rest. Reading behind
    // a short packet is harmless: each buffer ends in a `skb_shared_info` of more than 300 bytes.
    let header: [u32; 14] = copy(start)?;
    let first = u32::from_be(header[0]);
    let (source, destination, protocol, transport) = match first >> 28 {
        4 => {
            let fragment = u32::from_be(header[1]) & 0x1fff;
            let length = u64::from(first >> 24 & 0xf) * 4;
            if fragment != 0 || length < 20 {
                return None;
            }
            let protocol = (u32::from_be(header[2]) >> 16) as u8;
            (mapped(header[3]), mapped(header[4]), protocol, start + length)
        }
        6 => {
            let next = (u32::from_be(header[1]) >> 8) as u8;
            let (protocol, transport) = skip_extensions(next, start + 40)?;
            let source = [header[2], header[3], header[4], header[5]];
            let destination = [header[6], header[7], header[8], header[9]];
            (source, destination, protocol, transport)
        }
        _ => return None,
    };
    let length = match protocol {
        TCP => 14,
        UDP => 8,
        _ => return None,
    };
    if transport + length > packet.end() {
        return None;
    }
    let words: [u32; 4] = match transport - start {
        20 => [header[5], header[6], header[7], header[8]],
        40 => [header[10], header[11], header[12], header[13]],
        // Options, or extension headers.
        _ => copy(transport)?,
    };
    let ports = u32::from_be(words[0]);
    Some(Parsed {
        source,
        destination,
        source_port: (ports >> 16) as u16,
        destination_port: ports as u16,
        protocol,
        tcp_flags: if protocol == TCP { (u32::from_be(words[3]) >> 16) as u8 } else { 0 },
    })
}

#[inline(always)]
fn skip_extensions(mut next: u8, mut at: u64) -> Option<(u8, u64)> {
    for _ in 0..EXTENSIONS {
        match next {
            // Hop-by-hop, routing, destination options (RFC 8200): length in 8 bytes, the first not counted.
            0 | 43 | 60 => {
                let bytes: [u8; 2] = copy(at)?;
                next = bytes[0];
                at += (u64::from(bytes[1]) + 1) * 8;
            }
            // Fragment: fixed length.
            44 => {
                let bytes: [u8; 4] = copy(at)?;
                if bytes[2] != 0 || bytes[3] & 0xf8 != 0 {
                    return None;
                }
                next = bytes[0];
                at += 8;
            }
            _ => break,
        }
    }
    Some((next, at))
}
