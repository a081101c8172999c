//! Which part of the kernel dropped a packet: one table from the reason's name and the location's symbol.
//!
//! Reason values shift between kernels and many policy engines' drops carry no reason at all, so both are names and a reason
//! that says nothing (`NOT_SPECIFIED`, or none) leaves the decision to the location. A reason that says something wins.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which part of the kernel dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DropClass {
    /// iptables, nftables.
    Netfilter,
    /// A verdict from user space (kindnet, kube-network-policies).
    Nfqueue,
    /// A BPF program or filter at clsact or tcx (Cilium, Calico eBPF, AWS VPC CNI).
    Tc,
    /// A BPF program on a netkit device (Cilium, Calico eBPF).
    Netkit,
    /// An XDP program.
    Xdp,
    /// Open vSwitch (Antrea, OVN-Kubernetes).
    Ovs,
    /// A BPF program on a cgroup, or a socket filter.
    Cgroup,
    /// No route, martian source, reverse path filter, blackhole.
    Route,
    /// ARP or neighbour discovery failed.
    Neighbour,
    /// Nobody listens.
    NoSocket,
    /// Queues and memory.
    Resource,
    /// Freed in the ordinary course of things: no loss.
    Normal,
    /// None of the above.
    Other,
}

/// Reasons, by name without the `SKB_DROP_REASON_` prefix (include/net/dropreason-core.h and net/openvswitch/drop.h of 5.17
/// to 6.18; older kernels lack some).
const REASONS: &[(&str, DropClass)] = &[
    ("NETFILTER_DROP", DropClass::Netfilter),
    ("TC_INGRESS", DropClass::Tc),
    ("TC_EGRESS", DropClass::Tc),
    ("XDP", DropClass::Xdp),
    ("OVS_DROP_LAST_ACTION", DropClass::Ovs),
    ("OVS_DROP_EXPLICIT", DropClass::Ovs),
    ("OVS_DROP_EXPLICIT_WITH_ERROR", DropClass::Ovs),
    ("BPF_CGROUP_EGRESS", DropClass::Cgroup),
    ("IP_OUTNOROUTES", DropClass::Route),
    ("IP_INNOROUTES", DropClass::Route),
    ("IP_INADDRERRORS", DropClass::Route),
    ("IP_INVALID_DEST", DropClass::Route),
    ("IP_INVALID_SOURCE", DropClass::Route),
    ("IP_LOCALNET", DropClass::Route),
    ("IP_LOCAL_SOURCE", DropClass::Route),
    ("IP_RPFILTER", DropClass::Route),
    ("NEIGH_CREATEFAIL", DropClass::Neighbour),
    ("NEIGH_FAILED", DropClass::Neighbour),
    ("NEIGH_QUEUEFULL", DropClass::Neighbour),
    ("NEIGH_DEAD", DropClass::Neighbour),
    ("NEIGH_HH_FILLFAIL", DropClass::Neighbour),
    ("NO_SOCKET", DropClass::NoSocket),
    ("QDISC_DROP", DropClass::Resource),
    ("QDISC_OVERLIMIT", DropClass::Resource),
    ("QDISC_CONGESTED", DropClass::Resource),
    ("FQ_BAND_LIMIT", DropClass::Resource),
    ("FQ_HORIZON_LIMIT", DropClass::Resource),
    ("FQ_FLOW_LIMIT", DropClass::Resource),
    ("CPU_BACKLOG", DropClass::Resource),
    ("SOCKET_RCVBUFF", DropClass::Resource),
    ("SOCKET_BACKLOG", DropClass::Resource),
    ("PROTO_MEM", DropClass::Resource),
    ("NOMEM", DropClass::Resource),
    ("FULL_RING", DropClass::Resource),
    ("DEV_READY", DropClass::Resource),
    ("TCP_LISTEN_OVERFLOW", DropClass::Resource),
    ("QUEUE_PURGE", DropClass::Normal),
    ("SOCKET_CLOSE", DropClass::Normal),
    ("SKB_CONSUMED", DropClass::Normal),
    ("CONSUMED", DropClass::Normal),
    ("OTHERHOST", DropClass::Normal),
    ("UNHANDLED_PROTO", DropClass::Normal),
    ("TCP_OLD_DATA", DropClass::Normal),
    ("TCP_OFOMERGE", DropClass::Normal),
    ("TCP_OFO_DROP", DropClass::Normal),
    ("TCP_OFO_QUEUE_PRUNE", DropClass::Normal),
    ("TCP_RFC7323_PAWS", DropClass::Normal),
    ("TCP_OLD_SEQUENCE", DropClass::Normal),
    ("TCP_INVALID_SEQUENCE", DropClass::Normal),
    ("TCP_INVALID_ACK_SEQUENCE", DropClass::Normal),
    ("TCP_INVALID_SYN", DropClass::Normal),
    ("TCP_OVERWINDOW", DropClass::Normal),
    ("TCP_ZEROWINDOW", DropClass::Normal),
    ("TCP_RESET", DropClass::Normal),
    ("TCP_CLOSE", DropClass::Normal),
    ("TCP_TOO_OLD_ACK", DropClass::Normal),
    ("TCP_ACK_UNSENT_DATA", DropClass::Normal),
    ("TCP_FASTOPEN", DropClass::Normal),
    ("PACKET_SOCK_ERROR", DropClass::Normal),
];

/// Locations, by function, for drops whose reason says nothing.
const LOCATIONS: &[(&str, DropClass)] = &[
    ("nf_hook_slow", DropClass::Netfilter),
    ("nft_do_chain", DropClass::Netfilter),
    ("nf_reinject", DropClass::Nfqueue),
    ("nfqnl_reinject", DropClass::Nfqueue),
    ("nfqnl_recv_verdict", DropClass::Nfqueue),
    ("nfqnl_flush", DropClass::Nfqueue),
    ("nf_queue", DropClass::Nfqueue),
    ("__nf_queue", DropClass::Nfqueue),
    ("__netif_receive_skb_core", DropClass::Tc),
    ("sch_handle_ingress", DropClass::Tc),
    ("sch_handle_egress", DropClass::Tc),
    ("__dev_queue_xmit", DropClass::Tc),
    ("netkit_xmit", DropClass::Netkit),
    ("do_xdp_generic", DropClass::Xdp),
    ("generic_xdp_tx", DropClass::Xdp),
    ("veth_xdp_rcv_skb", DropClass::Xdp),
    // Where the compiler puts the two above on 5.10.
    ("netif_receive_generic_xdp", DropClass::Xdp),
    ("veth_poll", DropClass::Xdp),
    ("ovs_execute_actions", DropClass::Ovs),
    ("do_execute_actions", DropClass::Ovs),
    ("ip_finish_output", DropClass::Cgroup),
    ("ip6_finish_output", DropClass::Cgroup),
    ("ip_mc_finish_output", DropClass::Cgroup),
    ("ip_error", DropClass::Route),
    ("ip6_pkt_drop", DropClass::Route),
    // IPv6 blackhole routes have these as their output and input (net/ipv6/route.c, net/core/dst.c, 6.18).
    ("dst_discard", DropClass::Route),
    ("dst_discard_out", DropClass::Route),
    ("ip_rcv_finish_core", DropClass::Route),
    ("ip_forward", DropClass::Route),
    ("ip6_forward", DropClass::Route),
    ("neigh_invalidate", DropClass::Neighbour),
    ("arp_error_report", DropClass::Neighbour),
    ("ndisc_error_report", DropClass::Neighbour),
    ("__neigh_event_send", DropClass::Neighbour),
    // Freed after the duplicate SYN or the last ACK was dealt with; a closed port says NO_SOCKET here where reasons exist.
    ("tcp_v4_rcv", DropClass::Normal),
    ("tcp_v6_rcv", DropClass::Normal),
    ("tcp_rcv_state_process", DropClass::Normal),
    ("tcp_v4_do_rcv", DropClass::Normal),
    ("tcp_v6_do_rcv", DropClass::Normal),
    ("skb_release_data", DropClass::Normal),
    ("skb_queue_purge", DropClass::Normal),
    ("skb_queue_purge_reason", DropClass::Normal),
    ("inet_sock_destruct", DropClass::Normal),
    // Datagrams that the application left unread.
    ("udp_destruct_common", DropClass::Normal),
    ("udp_destruct_sock", DropClass::Normal),
    ("udpv6_destruct_sock", DropClass::Normal),
    ("packet_rcv", DropClass::Normal),
    ("tpacket_rcv", DropClass::Normal),
];

/// Locations, by function, that say something only where the kernel gives no drop a reason (before 5.17): later kernels name what
/// they mean here, and leave other things unsaid. `udp_queue_rcv_one_skb` and `udpv6_queue_rcv_one_skb` are in neither
/// table on purpose: a BPF program's verdict, a full receive buffer and a bad checksum look the same there.
const LOCATIONS_WITHOUT_REASONS: &[(&str, DropClass)] = &[
    ("__udp4_lib_rcv", DropClass::NoSocket),
    ("__udp6_lib_rcv", DropClass::NoSocket),
    ("udp_rcv", DropClass::NoSocket),
    ("udpv6_rcv", DropClass::NoSocket),
];

/// `SOCKET_FILTER` is a BPF program of the destination's cgroup here, and only a packet socket's own filter elsewhere.
const FILTERED_AT: &[&str] = &[
    "tcp_v4_rcv",
    "tcp_v6_rcv",
    "udp_queue_rcv_one_skb",
    "udpv6_queue_rcv_one_skb",
    "tcp_filter",
    "sk_filter_trim_cap",
];

impl DropClass {
    /// Every class, in the order of the table in the documentation.
    pub const ALL: [Self; 13] = [
        Self::Netfilter,
        Self::Nfqueue,
        Self::Tc,
        Self::Netkit,
        Self::Xdp,
        Self::Ovs,
        Self::Cgroup,
        Self::Route,
        Self::Neighbour,
        Self::NoSocket,
        Self::Resource,
        Self::Normal,
        Self::Other,
    ];

    /// The class of a drop with this reason (without prefix) at this function (without offset).
    #[must_use]
    pub fn of(reason: Option<&str>, location: Option<&str>) -> Self {
        let at = |table: &[(&str, Self)], name: &str| table.iter().find(|(n, _)| *n == name).map(|(_, class)| *class);
        match reason {
            Some("SOCKET_FILTER") if location.is_some_and(|l| FILTERED_AT.contains(&l)) => Self::Cgroup,
            Some("SOCKET_FILTER") => Self::Normal,
            // A value that BTF cannot name (`#123`) says as little as `NOT_SPECIFIED`.
            Some(reason) if reason != "NOT_SPECIFIED" && !reason.starts_with('#') => {
                at(REASONS, reason).unwrap_or(if reason.starts_with("OVS_DROP_") || reason.starts_with("TC_") {
                    // Errors inside the data path (no memory, a recursion limit, an unknown chain): nobody's verdict.
                    Self::Resource
                } else {
                    Self::Other
                })
            }
            Some(_) => location.and_then(|l| at(LOCATIONS, l)).unwrap_or(Self::Other),
            None => {
                let found = location.and_then(|l| at(LOCATIONS, l).or_else(|| at(LOCATIONS_WITHOUT_REASONS, l)));
                found.unwrap_or(Self::Other)
            }
        }
    }

    /// A NetworkPolicy implementation may have done this. Others may as well: conntrack, a firewall, an administrator.
    #[must_use]
    pub fn is_policy_capable(self) -> bool {
        match self {
            Self::Netfilter | Self::Nfqueue | Self::Tc | Self::Netkit | Self::Xdp | Self::Ovs | Self::Cgroup => true,
            Self::Route | Self::Neighbour | Self::NoSocket | Self::Resource | Self::Normal | Self::Other => false,
        }
    }

    /// The word of the documentation and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Netfilter => "netfilter",
            Self::Nfqueue => "nfqueue",
            Self::Tc => "tc",
            Self::Netkit => "netkit",
            Self::Xdp => "xdp",
            Self::Ovs => "ovs",
            Self::Cgroup => "cgroup",
            Self::Route => "route",
            Self::Neighbour => "neighbour",
            Self::NoSocket => "no-socket",
            Self::Resource => "resource",
            Self::Normal => "normal",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for DropClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::DropClass;

    #[test]
    fn drop_classes() {
        use DropClass::{Cgroup, Netfilter, Netkit, Nfqueue, NoSocket, Normal, Other, Ovs, Resource, Route, Tc, Xdp};
        let unsaid = Some("NOT_SPECIFIED");
        let table = [
            (Some("NETFILTER_DROP"), Some("nf_hook_slow"), Netfilter),
            (None, Some("nf_hook_slow"), Netfilter),
            (unsaid, Some("nfqnl_reinject"), Nfqueue),
            (unsaid, Some("nf_queue"), Nfqueue),
            (Some("TC_EGRESS"), Some("__dev_queue_xmit"), Tc),
            (unsaid, Some("__netif_receive_skb_core"), Tc),
            (unsaid, Some("netkit_xmit"), Netkit),
            (unsaid, Some("veth_xdp_rcv_skb"), Xdp),
            (None, Some("netif_receive_generic_xdp"), Xdp),
            (None, Some("veth_poll"), Xdp),
            (None, Some("__udp4_lib_rcv"), NoSocket),
            (unsaid, Some("__udp4_lib_rcv"), Other),
            (None, Some("udp_queue_rcv_one_skb"), Other),
            (Some("OVS_DROP_LAST_ACTION"), Some("do_execute_actions"), Ovs),
            (Some("OVS_DROP_RECURSION_LIMIT"), Some("do_execute_actions"), Resource),
            (Some("SOCKET_FILTER"), Some("tcp_v4_rcv"), Cgroup),
            (Some("SOCKET_FILTER"), Some("packet_rcv"), Normal),
            (Some("IP_RPFILTER"), Some("ip_rcv_finish_core"), Route),
            (unsaid, Some("ip_error"), Route),
            (Some("NEIGH_FAILED"), Some("neigh_invalidate"), DropClass::Neighbour),
            (Some("NO_SOCKET"), Some("tcp_v4_rcv"), NoSocket),
            (unsaid, Some("tcp_v4_rcv"), Normal),
            (unsaid, Some("udp_destruct_common"), Normal),
            (None, Some("udp_destruct_common"), Normal),
            (Some("SOMETHING_NEW"), Some("nf_hook_slow"), Other),
            (None, None, Other),
        ];
        for (reason, location, expected) in table {
            assert_eq!(DropClass::of(reason, location), expected, "{reason:?} at {location:?}");
        }
        let capable: Vec<_> = DropClass::ALL.into_iter().filter(|c| c.is_policy_capable()).collect();
        assert_eq!(capable, [Netfilter, Nfqueue, Tc, Netkit, Xdp, Ovs, Cgroup]);
    }
}
