//! Every program that the agent may load: where it is attached and what it needs.

use std::fmt;

use weir_common::Layout;

use super::ProbeSettings;

/// How a program meets the kernel.
pub(super) enum Hook {
    /// A BTF tracepoint: subsystem and name.
    Tracepoint(&'static str, &'static str),
    /// A cgroup hook at the root of the v2 hierarchy, once per socket.
    Socket(&'static str),
    /// A cgroup hook there, once per datagram of a socket that is not connected.
    Datagram(&'static str),
    /// `sock_ops` at the root of the v2 hierarchy.
    Callbacks,
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tracepoint(subsystem, name) => write!(f, "{subsystem}:{name}"),
            Self::Socket(name) | Self::Datagram(name) => write!(f, "cgroup:{name}"),
            Self::Callbacks => f.write_str("cgroup:sock_ops"),
        }
    }
}

pub(super) struct Program {
    pub name: &'static str,
    /// Where events count as lost when the kernel skips the program.
    pub stage: &'static str,
    pub hook: Hook,
    /// Members of [`Layout`] without which the program would read the wrong memory; none: it does without BTF.
    pub needs: Option<fn(&Layout) -> Vec<u32>>,
    /// It tells what these tell, only less: it is attached, and heard of, where the first of them cannot be; then without the
    /// others.
    pub stands_in_for: &'static [&'static str],
    /// Only where it was asked for; else it is as if there were none.
    pub wanted: fn(&ProbeSettings) -> bool,
}

/// What sees TCP attempts.
pub(super) const TCP_STATE: &str = "tcp_state";
/// What stands in for it.
pub(super) const TCP_CALLBACK: &str = "tcp_callback";

pub(super) const PROGRAMS: [Program; 14] = [
    Program {
        name: TCP_STATE,
        stage: "recursion-tcp-state",
        hook: Hook::Tracepoint("sock", "inet_sock_set_state"),
        needs: Some(attempt_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: TCP_CALLBACK,
        stage: "recursion-tcp-callback",
        hook: Hook::Callbacks,
        needs: None,
        stands_in_for: &[TCP_STATE, "syn_retransmit"],
        wanted: always,
    },
    Program {
        name: "syn_retransmit",
        stage: "recursion-syn-retransmit",
        hook: Hook::Tracepoint("tcp", "tcp_retransmit_skb"),
        needs: Some(sock_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "reset_received",
        stage: "recursion-reset-received",
        hook: Hook::Tracepoint("tcp", "tcp_receive_reset"),
        needs: Some(sock_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "packet_drop",
        stage: "drop-recursion",
        hook: Hook::Tracepoint("skb", "kfree_skb"),
        needs: Some(packet_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "socket_error",
        stage: "recursion-socket-error",
        hook: Hook::Tracepoint("sock", "inet_sk_error_report"),
        needs: Some(attempt_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "icmp_sent",
        stage: "recursion-icmp-sent",
        hook: Hook::Tracepoint("icmp", "icmp_send"),
        needs: Some(packet_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "answer_retransmit",
        stage: "recursion-answer-retransmit",
        hook: Hook::Tracepoint("tcp", "tcp_retransmit_synack"),
        needs: Some(sock_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "udp_create",
        stage: "recursion-udp-create",
        hook: Hook::Socket("sock_create"),
        // Of no use without the next.
        needs: Some(datagram_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "udp_release",
        stage: "recursion-udp-release",
        hook: Hook::Socket("sock_release"),
        needs: Some(datagram_members),
        stands_in_for: &[],
        wanted: always,
    },
    Program {
        name: "dns_query4",
        stage: "recursion-dns-query4",
        hook: Hook::Datagram("sendmsg4"),
        needs: Some(query_members),
        stands_in_for: &[],
        wanted: dns_replies,
    },
    Program {
        name: "dns_query6",
        stage: "recursion-dns-query6",
        hook: Hook::Datagram("sendmsg6"),
        needs: Some(query_members),
        stands_in_for: &[],
        wanted: dns_replies,
    },
    Program {
        name: "dns_reply4",
        stage: "recursion-dns-reply4",
        hook: Hook::Datagram("recvmsg4"),
        needs: Some(query_members),
        stands_in_for: &[],
        wanted: dns_replies,
    },
    Program {
        name: "dns_reply6",
        stage: "recursion-dns-reply6",
        hook: Hook::Datagram("recvmsg6"),
        needs: Some(query_members),
        stands_in_for: &[],
        wanted: dns_replies,
    },
];

fn always(_: &ProbeSettings) -> bool {
    true
}

fn dns_replies(settings: &ProbeSettings) -> bool {
    settings.dns_replies
}

fn sock_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    vec![
        l.sock_family,
        l.sock_state,
        l.sock_num,
        l.sock_dport,
        l.sock_daddr,
        l.sock_rcv_saddr,
        l.sock_net,
        l.sock_protocol,
        l.tcp_sport,
        l.net_inum,
    ]
}

fn attempt_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    let own = [l.sock_err, l.sock_err_soft, l.sock_error_tail, l.sock_error_len, l.skb_error];
    [sock_members(layout), own.to_vec()].concat()
}

fn packet_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    vec![
        l.skb_head,
        l.skb_network_header,
        l.skb_tail,
        l.skb_dev,
        l.skb_sock,
        l.skb_dst,
        l.dst_dev,
        l.dev_index,
        l.dev_net,
        l.net_inum,
        l.sock_net,
        l.sock_state,
    ]
}

fn datagram_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    vec![
        l.sock_family,
        l.sock_num,
        l.sock_dport,
        l.sock_daddr,
        l.sock_rcv_saddr,
        l.sock_net,
        l.sock_err,
        l.sock_incoming_cpu,
        l.net_inum,
    ]
}

/// Those of IPv6 may be absent.
fn query_members(layout: &Layout) -> Vec<u32> {
    let l = layout;
    let own = [l.sock_stamp, l.sock_waiting, l.sock_kept];
    let address = [l.net_devices, l.dev_entry, l.dev_v4, l.v4_addresses, l.v4_next, l.v4_local];
    [datagram_members(layout), own.to_vec(), address.to_vec()].concat()
}
