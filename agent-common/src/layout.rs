//! Where the running kernel keeps what the probes read.
//!
//! The agent fills a [`Layout`] from the kernel's BTF and places it in the probes' read-only data before they are loaded; to
//! the verifier each field is then a constant, so a load through it is checked against the kernel's own types.

/// A field of [`Layout`] that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// Byte offsets of struct members (from the start of the struct named first), and facts about the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `sock.__sk_common.skc_family`, u16.
    pub sock_family: u32,
    /// `sock.__sk_common.skc_state`, u8.
    pub sock_state: u32,
    /// `sock.__sk_common.skc_num`: local port, host order, u16.
    pub sock_num: u32,
    /// `sock.__sk_common.skc_dport`: remote port, network order, u16.
    pub sock_dport: u32,
    /// `sock.__sk_common.skc_daddr`, network order, u32.
    pub sock_daddr: u32,
    /// `sock.__sk_common.skc_rcv_saddr`, network order, u32.
    pub sock_rcv_saddr: u32,
    /// `sock.__sk_common.skc_v6_daddr`, 16 bytes; [`ABSENT`] without IPv6.
    pub sock_v6_daddr: u32,
    /// `sock.__sk_common.skc_v6_rcv_saddr`, 16 bytes; [`ABSENT`] without IPv6.
    pub sock_v6_rcv_saddr: u32,
    /// `sock.__sk_common.skc_net.net`, pointer to `struct net`.
    pub sock_net: u32,
    /// `sock.sk_protocol`, u16.
    pub sock_protocol: u32,
    /// `sock.sk_err`, i32.
    pub sock_err: u32,
    /// `sock.sk_err_soft`, i32.
    pub sock_err_soft: u32,
    /// `sock.sk_error_queue.prev`: tail of the error queue, pointer to `struct sk_buff`.
    pub sock_error_tail: u32,
    /// `sock.sk_error_queue.qlen`, u32.
    pub sock_error_len: u32,
    /// `sock.__sk_common.skc_incoming_cpu`, i32: -1 until the first datagram reached a connected UDP socket.
    pub sock_incoming_cpu: u32,
    /// `tcp_sock.inet_conn.icsk_inet.inet_sport`: local port, network order, u16.
    pub tcp_sport: u32,
    /// `net.ns.inum`, u32.
    pub net_inum: u32,
    /// `sk_buff.cb` + `sock_exterr_skb.ee`: start of `struct sock_extended_err` in an error queue's packet.
    pub skb_error: u32,
    /// `sk_buff.head`, pointer to the packet's buffer.
    pub skb_head: u32,
    /// `sk_buff.network_header`: offset into the buffer, u16.
    pub skb_network_header: u32,
    /// `sk_buff.tail`: offset into the buffer, u32.
    pub skb_tail: u32,
    /// `sk_buff.dev`, pointer to `struct net_device`, may be null.
    pub skb_dev: u32,
    /// `sk_buff.sk`, pointer to `struct sock`, may be null.
    pub skb_sock: u32,
    /// `sk_buff._nfct`, u64: pointer to `struct nf_conn` with three bits of state; [`ABSENT`] without conntrack.
    pub skb_nfct: u32,
    /// `net.nf.hooks_ipv4`: one pointer to `struct nf_hook_entries` per hook; [`ABSENT`] without netfilter.
    pub net_hooks_v4: u32,
    /// `net.nf.hooks_ipv6`, likewise.
    pub net_hooks_v6: u32,
    /// `nf_hook_entries.hooks`: `struct nf_hook_entry` of 16 bytes, the function first; the count is the u16 at 0.
    pub hook_entries: u32,
    /// `sk_buff._skb_refdst`, u64: pointer to `struct dst_entry` with one bit of state.
    pub skb_dst: u32,
    /// `dst_entry.dev`, pointer to `struct net_device`.
    pub dst_dev: u32,
    /// `nf_conn.tuplehash[0].tuple`: conntrack's tuple of the original direction, [`CONNTRACK_TUPLE`]; [`ABSENT`] without
    /// conntrack or where its layout is another.
    pub conn_original: u32,
    /// `net_device.ifindex`, i32.
    pub dev_index: u32,
    /// `net_device.nd_net.net`, pointer to `struct net`.
    pub dev_net: u32,
    /// `sock.sk_stamp`, i64: negative until the application has read a datagram.
    pub sock_stamp: u32,
    /// `sock.sk_backlog.rmem_alloc`, i32: bytes that wait to be read.
    pub sock_waiting: u32,
    /// `sock.sk_forward_alloc`, i32: memory kept from datagrams that were received; 0 until the first.
    pub sock_kept: u32,
    /// `net.dev_base_head`: `struct list_head` of the namespace's devices.
    pub net_devices: u32,
    /// `net_device.dev_list`, its entry there.
    pub dev_entry: u32,
    /// `net_device.ip_ptr`, pointer to `struct in_device`, may be null.
    pub dev_v4: u32,
    /// `in_device.ifa_list`, pointer to the first `struct in_ifaddr`, may be null.
    pub v4_addresses: u32,
    /// `in_ifaddr.ifa_next`, pointer to the next, may be null.
    pub v4_next: u32,
    /// `in_ifaddr.ifa_local`, network order, u32.
    pub v4_local: u32,
    /// `net_device.ip6_ptr`, pointer to `struct inet6_dev`, may be null.
    pub dev_v6: u32,
    /// `inet6_dev.addr_list`: `struct list_head` of its addresses.
    pub v6_addresses: u32,
    /// `inet6_ifaddr.if_list`, its entry there.
    pub v6_entry: u32,
    /// `inet6_ifaddr.addr`, 16 bytes.
    pub v6_local: u32,
    /// 1 if tracepoint `kfree_skb` has the argument `reason`, else 0.
    pub has_drop_reason: u32,
}

impl Layout {
    /// Nothing known: what the probes hold until the agent has read the kernel's BTF.
    pub const UNKNOWN: Self = Self {
        sock_family: ABSENT,
        sock_state: ABSENT,
        sock_num: ABSENT,
        sock_dport: ABSENT,
        sock_daddr: ABSENT,
        sock_rcv_saddr: ABSENT,
        sock_v6_daddr: ABSENT,
        sock_v6_rcv_saddr: ABSENT,
        sock_net: ABSENT,
        sock_protocol: ABSENT,
        sock_err: ABSENT,
        sock_err_soft: ABSENT,
        sock_error_tail: ABSENT,
        sock_error_len: ABSENT,
        sock_incoming_cpu: ABSENT,
        tcp_sport: ABSENT,
        net_inum: ABSENT,
        skb_error: ABSENT,
        skb_head: ABSENT,
        skb_network_header: ABSENT,
        skb_tail: ABSENT,
        skb_dev: ABSENT,
        skb_sock: ABSENT,
        skb_nfct: ABSENT,
        net_hooks_v4: ABSENT,
        net_hooks_v6: ABSENT,
        hook_entries: ABSENT,
        skb_dst: ABSENT,
        dst_dev: ABSENT,
        conn_original: ABSENT,
        dev_index: ABSENT,
        dev_net: ABSENT,
        sock_stamp: ABSENT,
        sock_waiting: ABSENT,
        sock_kept: ABSENT,
        net_devices: ABSENT,
        dev_entry: ABSENT,
        dev_v4: ABSENT,
        v4_addresses: ABSENT,
        v4_next: ABSENT,
        v4_local: ABSENT,
        dev_v6: ABSENT,
        v6_addresses: ABSENT,
        v6_entry: ABSENT,
        v6_local: ABSENT,
        has_drop_reason: 0,
    };
}

/// Members of `struct nf_conntrack_tuple` as the probes read them: name, byte offset. The agent compares them with the
/// kernel's BTF before it sets [`Layout::conn_original`].
pub const CONNTRACK_TUPLE: [(&str, u32); 5] =
    [("src.u3", 0), ("src.u", 16), ("dst.u3", 20), ("dst.u", 36), ("dst.protonum", 38)];
