//! From a probe's event to an observation: numbers become names, bytes become addresses.

use std::net::{IpAddr, Ipv6Addr};

use weir_common::{Event, drop_flags, end_flags, udp_flags};

use super::{
    Accepted, AnswerRetransmit, AttemptEnd, AttemptStart, IcmpSent, Observation, Owner, PacketDrop, QueuedError,
    Retransmit, SocketError, Stack, Symbols, Tuple, UdpEnd,
};
use crate::time::Time;
use crate::words::Protocol;

impl Observation {
    /// Types an event. `None` for a transport protocol that is neither TCP nor UDP.
    #[must_use]
    pub fn from_event(event: &Event, symbols: &dyn Symbols) -> Option<Self> {
        let at = Time(event.header().timestamp);
        Some(match event {
            Event::Start(e) => Self::AttemptStart(AttemptStart {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                netns: e.netns,
                owner: owner(&e.owner),
            }),
            Event::Retransmit(e) => Self::Retransmit(Retransmit {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                started: Time(e.started),
                count: e.count,
                netns: e.netns,
            }),
            Event::End(e) => Self::AttemptEnd(AttemptEnd {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                started: Time(e.started),
                established: e.flags & end_flags::ESTABLISHED != 0,
                reset: e.flags & end_flags::RESET != 0,
                cause_unknown: e.flags & end_flags::CAUSE_UNKNOWN != 0,
                error: e.error,
                soft_error: e.soft_error,
                queued: queued(e.flags, e.error_origin, e.error_type, e.error_code),
                retransmits: e.retransmits,
                netns: e.netns,
            }),
            Event::Accepted(e) => Self::Accepted(Accepted { at, tuple: tuple(&e.tuple)?, netns: e.netns }),
            Event::Drop(e) => Self::Drop(dropped(at, e, &[], symbols)?),
            Event::DropStack(e) => Self::Drop(dropped(at, &e.drop, &e.frames, symbols)?),
            Event::UdpEnd(e) => Self::UdpEnd(UdpEnd {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                created: Time(e.created),
                replied: e.flags & udp_flags::REPLIED != 0,
                error: e.error,
                netns: e.netns,
                owner: owner(&e.owner),
            }),
            Event::SocketError(e) => Self::SocketError(SocketError {
                at,
                tuple: tuple(&e.tuple)?,
                socket: e.socket,
                error: e.error,
                soft_error: e.soft_error,
                queued: queued(e.flags, e.error_origin, e.error_type, e.error_code),
                netns: e.netns,
            }),
            Event::IcmpSent(e) => Self::IcmpSent(IcmpSent {
                at,
                tuple: tuple(&e.tuple)?,
                kind: e.error_type,
                code: e.error_code,
                netns: e.netns,
            }),
            Event::AnswerRetransmit(e) => {
                Self::AnswerRetransmit(AnswerRetransmit { at, tuple: tuple(&e.tuple)?, netns: e.netns })
            }
        })
    }
}

fn dropped(at: Time, e: &weir_common::PacketDrop, frames: &[u64], symbols: &dyn Symbols) -> Option<PacketDrop> {
    Some(PacketDrop {
        at,
        tuple: tuple(&e.tuple)?,
        original: if e.flags & drop_flags::ORIGINAL == 0 { None } else { tuple(&e.original) },
        socket: (e.socket != 0).then_some(e.socket),
        reason: if e.flags & drop_flags::REASON == 0 {
            None
        } else {
            Some(symbols.reason(e.reason).map_or_else(|| format!("#{}", e.reason), |name| plain_reason(&name)))
        },
        location: function(e.location, symbols),
        stack: stack(e.location, frames, symbols),
        count: e.count,
        netns: e.netns,
        interface: e.interface,
        tcp_flags: e.tcp_flags,
        reply: e.flags & drop_flags::REPLY != 0,
        untracked: e.flags & drop_flags::UNTRACKED != 0,
    })
}

/// The stack from the drop on: what is above it is the tracing machinery, and differs between kernels.
fn stack(location: u64, frames: &[u64], symbols: &dyn Symbols) -> Stack {
    let frames = frames.iter().take_while(|frame| **frame != 0).skip_while(|frame| **frame != location);
    // A frame is where a call returns to, which behind a function's last call is the next function.
    let name = |frame: &u64| function(frame - 1, symbols).map_or_else(|| "?".into(), Into::into);
    frames.map(name).collect()
}

fn function(address: u64, symbols: &dyn Symbols) -> Option<String> {
    symbols.location(address).map(|name| plain_symbol(&name).to_owned())
}

/// An address in network order, IPv4 as v4-mapped IPv6.
#[must_use]
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

fn tuple(t: &weir_common::Tuple) -> Option<Tuple> {
    let protocol = match t.protocol {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    Some(Tuple {
        source: address(t.source),
        source_port: t.source_port,
        destination: address(t.destination),
        destination_port: t.destination_port,
        protocol,
    })
}

fn owner(o: &weir_common::Owner) -> Owner {
    let length = o.comm.iter().position(|b| *b == 0).unwrap_or(o.comm.len());
    Owner { pid: o.pid, comm: String::from_utf8_lossy(&o.comm[..length]).into_owned(), cgroup: o.cgroup, pod: None }
}

/// The tail of a socket's error queue, where the probe found one.
fn queued(flags: u8, origin: u8, kind: u8, code: u8) -> Option<QueuedError> {
    (flags & end_flags::ERROR_QUEUE != 0).then_some(QueuedError { origin, kind, code })
}

fn plain_reason(name: &str) -> String {
    name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name).to_owned()
}

/// `__netif_receive_skb_core.constprop.0+0x1a` is `__netif_receive_skb_core`.
fn plain_symbol(name: &str) -> &str {
    let end = name.find(['.', '+', ' ']).filter(|end| *end > 0).unwrap_or(name.len());
    &name[..end]
}

#[cfg(test)]
mod tests {
    use weir_common as wire;

    use super::*;
    use crate::observation::DropClass;

    struct Names;

    impl Symbols for Names {
        fn reason(&self, value: u32) -> Option<String> {
            (value == 12).then(|| "SKB_DROP_REASON_NETFILTER_DROP".to_owned())
        }

        fn location(&self, address: u64) -> Option<String> {
            let name = match address {
                6 | 7 => "nft_do_chain.constprop.0+0x1a",
                17 => "nf_hook_slow",
                27 => "ip_forward",
                90 => "sk_skb_reason_drop",
                _ => return None,
            };
            Some(name.to_owned())
        }
    }

    fn wire_tuple(protocol: u8) -> wire::Tuple {
        let mapped = |last| [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last];
        wire::Tuple {
            source: mapped(2),
            destination: mapped(3),
            source_port: 0,
            destination_port: 15012,
            protocol,
            padding: [0; 3],
        }
    }

    fn packet(reason: u32, flags: u8, protocol: u8) -> wire::Event {
        wire::Event::Drop(wire::PacketDrop {
            header: wire::Header { kind: wire::kind::PACKET_DROP, padding: [0; 3], cpu: 0, timestamp: 99 },
            tuple: wire_tuple(protocol),
            original: wire::Tuple::default(),
            socket: 0,
            location: 7,
            count: 1,
            reason,
            netns: 0,
            interface: 0,
            tcp_flags: 2,
            flags,
            padding: [0; 2],
        })
    }

    #[test]
    fn what_conntrack_turns_away_is_no_policy() {
        let at = |location: &str, flags: u8| {
            let seen = Observation::from_event(&packet(12, drop_flags::REASON | flags, 6), &Names);
            let Some(Observation::Drop(drop)) = seen else { panic!("{seen:?}") };
            PacketDrop { location: Some(location.to_owned()), ..drop }.class()
        };
        assert_eq!(at("nf_hook_slow", drop_flags::UNTRACKED), DropClass::Resource);
        assert_eq!(at("nf_hook_slow", 0), DropClass::Netfilter);
        assert_eq!(at("nft_do_chain", drop_flags::UNTRACKED), DropClass::Netfilter, "a rule, whatever conntrack says");
        assert_eq!(at("nf_hook_slow", drop_flags::ORIGINAL), DropClass::Netfilter);
    }

    #[test]
    fn a_stack_begins_at_the_drop() {
        let wire::Event::Drop(drop) = packet(12, drop_flags::REASON, 6) else { panic!("a drop") };
        let stack = |seen: &[u64]| {
            let mut frames = [0; wire::STACK_FRAMES];
            frames[..seen.len()].copy_from_slice(seen);
            let seen = Observation::from_event(&wire::Event::DropStack(wire::DropStack { drop, frames }), &Names);
            let Some(Observation::Drop(drop)) = seen else { panic!("{seen:?}") };
            drop.stack.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(stack(&[80, 91, 7, 18, 28, 99]), ["nft_do_chain", "nf_hook_slow", "ip_forward", "?"]);
        assert!(stack(&[]).is_empty(), "the helper gave none");
        assert!(stack(&[80, 91, 18, 28]).is_empty(), "cut off before the drop, or another's");
    }

    #[test]
    fn numbers_become_names_and_mapped_addresses_ipv4() {
        let seen = Observation::from_event(&packet(12, drop_flags::REASON, 6), &Names);
        let Some(Observation::Drop(drop)) = seen else { panic!("{seen:?}") };
        assert_eq!(drop.tuple.destination.to_string(), "10.0.0.3");
        assert_eq!((drop.reason.as_deref(), drop.location.as_deref()), (Some("NETFILTER_DROP"), Some("nft_do_chain")));
        assert_eq!((drop.original, drop.socket, drop.at), (None, None, Time(99)));

        let Some(Observation::Drop(unnamed)) = Observation::from_event(&packet(77, drop_flags::REASON, 6), &Names)
        else {
            panic!("a drop");
        };
        assert_eq!(unnamed.reason.as_deref(), Some("#77"));
        assert_eq!(unnamed.class(), DropClass::Netfilter, "an unnamed reason leaves it to the location");
        let Some(Observation::Drop(bare)) = Observation::from_event(&packet(0, 0, 17), &Names) else {
            panic!("a drop")
        };
        assert_eq!((bare.reason, bare.tuple.protocol), (None, Protocol::Udp));
        assert_eq!(Observation::from_event(&packet(0, 0, 132), &Names), None);
    }
}
