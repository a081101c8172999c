//! Every cause of the matrix, in one table.

use super::Act::{GivesUp, InCgroup, KernelTimesOut, SendsMuch, ThroughProxy, TimesOut, Usual, WaitsLong};
use super::Place::{ClientPod, DestinationNode, FarNode, OneNode, ServerPod, SourceNode};
use super::Truth::{Answer, Fault, Hidden, Policy, Works};
use super::{Cause, Place, conntrack, programs, routes, rules, sockets};
use crate::ipv6::Family;

const BOTH: &[Family] = &[Family::V4, Family::V6];
const NODES: &[Place] = &[SourceNode, DestinationNode, OneNode];
const SENDING: &[Place] = &[SourceNode, OneNode];
const RECEIVING: &[Place] = &[DestinationNode, OneNode];

const DROPPED: &[&str] = &["dropped"];
const REJECTED: &[&str] = &["rejected"];
const REFUSED: &[&str] = &["refused"];
const TIMED_OUT: &[&str] = &["timed-out"];
const NO_REPLY: &[&str] = &["no-reply"];
const UNREACHABLE: &[&str] = &["unreachable"];
const NONE: &[&str] = &[];
const FORWARD: Option<&str> = Some("FORWARD");
const POSTROUTING: Option<&str> = Some("POSTROUTING");
/// A reject that the client's own node sends to a UDP socket is an error of the socket and a drop beside it.
const REJECTED_OR_DROPPED: &[&str] = &["rejected", "dropped"];

/// A rule or program that drops requests where the kernel shows it.
const fn policy(
    id: &'static str,
    about: &'static str,
    class: &'static [&'static str],
    places: &'static [Place],
) -> Cause {
    Cause {
        id,
        about,
        truth: Policy,
        classes: class,
        hook: None,
        tcp: DROPPED,
        udp: DROPPED,
        places,
        families: BOTH,
        setup: sockets::nothing,
        act: Usual,
        needs_reasons: None,
    }
}

/// No policy.
const fn fault(id: &'static str, about: &'static str, places: &'static [Place]) -> Cause {
    Cause {
        id,
        about,
        truth: Fault,
        classes: NONE,
        hook: None,
        tcp: TIMED_OUT,
        udp: NO_REPLY,
        places,
        families: BOTH,
        setup: sockets::nothing,
        act: Usual,
        needs_reasons: None,
    }
}

/// Every cause.
pub const CAUSES: &[Cause] = &[
    Cause { truth: Works, tcp: &["established"], udp: &["established"], ..fault("healthy", "nothing is wrong", NODES) },
    Cause {
        setup: rules::forward,
        hook: FORWARD,
        ..policy("nft-forward", "nftables drop in FORWARD", &["netfilter"], NODES)
    },
    Cause {
        setup: rules::postrouting,
        hook: POSTROUTING,
        ..policy("nft-postrouting", "nftables drop in POSTROUTING", &["netfilter"], NODES)
    },
    Cause {
        setup: rules::output,
        hook: Some("OUTPUT"),
        ..policy("nft-output", "nftables drop in OUTPUT", &["netfilter"], &[ClientPod])
    },
    Cause {
        setup: rules::input,
        hook: Some("INPUT"),
        ..policy("nft-input", "nftables drop in INPUT", &["netfilter"], &[ServerPod])
    },
    Cause {
        setup: rules::iptables_legacy,
        hook: FORWARD,
        ..policy("iptables-legacy", "iptables-legacy drop in FORWARD", &["netfilter"], NODES)
    },
    Cause {
        setup: rules::iptables_nft,
        hook: FORWARD,
        ..policy("iptables-nft", "iptables-nft drop in FORWARD", &["netfilter"], NODES)
    },
    Cause {
        setup: rules::reject_port,
        hook: FORWARD,
        tcp: REJECTED,
        udp: REJECTED_OR_DROPPED,
        ..policy("reject-port", "REJECT with ICMP port unreachable", &["netfilter"], NODES)
    },
    Cause {
        setup: rules::reject_admin,
        hook: FORWARD,
        tcp: REJECTED,
        udp: REJECTED_OR_DROPPED,
        ..policy("reject-admin", "REJECT with ICMP administratively prohibited", &["netfilter"], NODES)
    },
    Cause {
        setup: rules::reject_reset,
        hook: FORWARD,
        tcp: REJECTED,
        udp: NONE,
        ..policy("reject-reset", "REJECT with a TCP reset", &["netfilter"], NODES)
    },
    Cause { setup: rules::nfqueue, ..policy("nfqueue", "NFQUEUE, user space says drop", &["nfqueue"], NODES) },
    Cause {
        setup: rules::nfqueue_unheard,
        hook: POSTROUTING,
        ..policy("nfqueue-unheard", "NFQUEUE, nobody listens", &["nfqueue"], NODES)
    },
    Cause {
        setup: programs::clsact_ingress,
        ..policy("clsact-ingress", "BPF filter at clsact ingress", &["tc"], SENDING)
    },
    Cause {
        setup: programs::clsact_egress,
        ..policy("clsact-egress", "BPF filter at clsact egress", &["tc"], RECEIVING)
    },
    Cause {
        setup: programs::clsact_action,
        ..policy("clsact-action", "filter with action drop at clsact ingress", &["tc"], SENDING)
    },
    Cause { setup: programs::tcx_ingress, ..policy("tcx-ingress", "BPF program at tcx ingress", &["tc"], SENDING) },
    Cause { setup: programs::tcx_egress, ..policy("tcx-egress", "BPF program at tcx egress", &["tc"], RECEIVING) },
    Cause { setup: programs::netkit, ..policy("netkit", "BPF program on a netkit device", &["netkit"], SENDING) },
    Cause {
        setup: programs::cgroup_egress,
        act: InCgroup,
        ..policy("cgroup-egress", "BPF program at the client's cgroup, egress", &["cgroup"], &[ClientPod])
    },
    Cause {
        setup: programs::cgroup_ingress,
        needs_reasons: Some(
            "without drop reasons a BPF program's verdict looks like a full receive buffer or a duplicate",
        ),
        ..policy("cgroup-ingress", "BPF program at the server's cgroup, ingress", &["cgroup"], &[ServerPod])
    },
    Cause {
        truth: Hidden("connect() fails before the kernel has a connection attempt: no event of any probe"),
        setup: programs::cgroup_connect,
        act: InCgroup,
        tcp: NONE_BUT_EXISTS,
        udp: NONE_BUT_EXISTS,
        ..policy("cgroup-connect", "BPF program refuses connect() with EPERM", NONE, &[ClientPod])
    },
    Cause {
        setup: programs::xdp_generic,
        ..policy("xdp-generic", "generic XDP drop", &["xdp"], &[SourceNode, OneNode, ServerPod])
    },
    Cause {
        setup: programs::xdp_native,
        ..policy("xdp-veth", "XDP drop in the veth driver", &["xdp"], &[SourceNode, OneNode, ServerPod])
    },
    Cause {
        truth: Answer,
        setup: rules::answer,
        hook: FORWARD,
        udp: &["dropped", "no-reply"],
        ..policy("answer-dropped", "nftables drop of the answers in FORWARD", &["netfilter"], NODES)
    },
    Cause {
        truth: Hidden("the drop happens in another kernel; only that node's agent sees it"),
        tcp: TIMED_OUT,
        udp: NO_REPLY,
        ..policy("far-drop", "dropped on a node that this kernel is not", NONE, &[FarNode])
    },
    Cause {
        setup: sockets::closed,
        tcp: REFUSED,
        udp: REFUSED,
        classes: &["no-socket"],
        ..fault("no-listener", "nobody listens", NODES)
    },
    Cause {
        setup: sockets::queue_full,
        act: WaitsLong,
        tcp: &["backlog-full"],
        udp: NONE,
        classes: &["resource"],
        ..fault("accept-queue", "the listener's accept queue is full", NODES)
    },
    Cause {
        act: GivesUp,
        tcp: &["cancelled", "timed-out"],
        udp: &["cancelled", "no-reply"],
        ..fault("gives-up", "the application gives up at once", &[FarNode])
    },
    Cause { act: TimesOut, ..fault("times-out", "the application gives up after seconds", &[FarNode]) },
    Cause {
        setup: sockets::few_retries,
        act: KernelTimesOut,
        udp: NONE,
        ..fault("kernel-times-out", "the kernel gives up", &[FarNode])
    },
    Cause {
        setup: routes::no_default,
        tcp: NONE_BUT_EXISTS,
        udp: NONE_BUT_EXISTS,
        ..fault("no-route-local", "the client's namespace has no route", &[ClientPod])
    },
    Cause {
        setup: routes::missing,
        tcp: UNREACHABLE,
        udp: UNREACHABLE,
        classes: &["route"],
        ..fault("no-route", "the node has no route", SENDING)
    },
    Cause {
        setup: routes::blackhole,
        tcp: UNREACHABLE,
        udp: &["no-reply", "unreachable"],
        classes: &["route"],
        ..fault("blackhole", "blackhole route", SENDING)
    },
    Cause {
        setup: routes::prohibit,
        tcp: UNREACHABLE,
        udp: UNREACHABLE,
        classes: &["route"],
        ..fault("prohibit", "prohibit route", SENDING)
    },
    Cause {
        setup: routes::unreachable,
        tcp: UNREACHABLE,
        udp: UNREACHABLE,
        classes: &["route"],
        ..fault("unreachable", "unreachable route", SENDING)
    },
    Cause {
        setup: routes::rp_filter,
        tcp: UNREACHABLE,
        udp: &["no-reply", "unreachable"],
        classes: &["route"],
        families: &[Family::V4],
        ..fault("rp-filter", "reverse path filter", SENDING)
    },
    Cause {
        setup: routes::dead_next_hop,
        tcp: UNREACHABLE,
        udp: &["unreachable", "no-reply"],
        classes: &["neighbour"],
        ..fault("dead-next-hop", "the next hop does not answer", RECEIVING)
    },
    Cause {
        setup: routes::gone,
        tcp: UNREACHABLE,
        udp: &["no-reply", "unreachable"],
        classes: &["route"],
        ..fault("destination-gone", "the server's namespace is gone", RECEIVING)
    },
    Cause {
        setup: conntrack::full,
        tcp: DROPPED,
        udp: &["dropped", "no-reply"],
        classes: &["resource"],
        ..fault("conntrack-full", "the connection table is full", &[ServerPod])
    },
    Cause {
        setup: rules::invalid,
        hook: FORWARD,
        tcp: DROPPED,
        udp: NONE,
        // Where rules drop in the name of `nf_hook_slow`, as conntrack does itself, a packet without a connection is not laid
        // at the door of a rule.
        classes: &["netfilter", "resource"],
        ..fault("conntrack-invalid", "answers are INVALID to conntrack and dropped", &[SourceNode, DestinationNode])
    },
    Cause {
        truth: Works,
        setup: rules::mtu_black_hole,
        act: SendsMuch,
        tcp: &["established"],
        udp: NONE,
        ..fault("mtu-black-hole", "MTU black hole after the handshake", &[DestinationNode])
    },
    Cause {
        setup: sockets::proxy,
        act: ThroughProxy,
        tcp: REFUSED,
        udp: NONE,
        classes: &["no-socket"],
        ..fault("proxy-redirect", "redirected to a local proxy whose own connect fails", &[ClientPod])
    },
];

/// There is such a cell, and no outcome of it is ever seen.
const NONE_BUT_EXISTS: &[&str] = &["none"];
