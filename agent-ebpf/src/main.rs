//! Weir's probes: entry points only. Each hook has a file of its own that says what it sees and why it was chosen.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod answer_retransmit;
#[cfg(target_arch = "bpf")]
mod attempts;
#[cfg(target_arch = "bpf")]
mod dns_reply;
#[cfg(target_arch = "bpf")]
mod emit;
#[cfg(target_arch = "bpf")]
mod icmp_sent;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod limits;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod namespace;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod packet_drop;
#[cfg(target_arch = "bpf")]
mod reset_received;
#[cfg(target_arch = "bpf")]
mod socket_error;
#[cfg(target_arch = "bpf")]
mod syn_retransmit;
#[cfg(target_arch = "bpf")]
mod tcp_callback;
#[cfg(target_arch = "bpf")]
mod tcp_state;
#[cfg(target_arch = "bpf")]
mod udp_socket;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{
        macros::{btf_tracepoint, cgroup_sock, cgroup_sock_addr, sock_ops},
        programs::{BtfTracePointContext, SockAddrContext, SockContext, SockOpsContext},
    };

    use super::{
        answer_retransmit, dns_reply, icmp_sent, packet_drop, reset_received, socket_error, syn_retransmit,
        tcp_callback, tcp_state, udp_socket,
    };

    #[btf_tracepoint(function = "inet_sock_set_state")]
    fn tcp_state(ctx: BtfTracePointContext) -> i32 {
        tcp_state::run(&ctx);
        0
    }

    #[btf_tracepoint(function = "tcp_retransmit_skb")]
    fn syn_retransmit(ctx: BtfTracePointContext) -> i32 {
        syn_retransmit::run(&ctx);
        0
    }

    #[btf_tracepoint(function = "tcp_receive_reset")]
    fn reset_received(ctx: BtfTracePointContext) -> i32 {
        reset_received::run(&ctx);
        0
    }

    #[btf_tracepoint(function = "kfree_skb")]
    fn packet_drop(ctx: BtfTracePointContext) -> i32 {
        packet_drop::run(&ctx);
        0
    }

    #[btf_tracepoint(function = "inet_sk_error_report")]
    fn socket_error(ctx: BtfTracePointContext) -> i32 {
        socket_error::run(&ctx);
        0
    }

    #[btf_tracepoint(function = "icmp_send")]
    fn icmp_sent(ctx: BtfTracePointContext) -> i32 {
        icmp_sent::run(&ctx);
        0
    }

    #[btf_tracepoint(function = "tcp_retransmit_synack")]
    fn answer_retransmit(ctx: BtfTracePointContext) -> i32 {
        answer_retransmit::run(&ctx);
        0
    }

    /// Never attached by the agent, as all others that are empty: what a hook costs by itself, for `cargo xtask bench probes`.
    #[btf_tracepoint(function = "kfree_skb")]
    fn empty(_ctx: BtfTracePointContext) -> i32 {
        0
    }

    #[cgroup_sock(sock_create)]
    fn empty_create(_ctx: SockContext) -> i32 {
        1
    }

    #[cgroup_sock(sock_release)]
    fn empty_release(_ctx: SockContext) -> i32 {
        1
    }

    #[cgroup_sock_addr(sendmsg4)]
    fn empty_sendmsg4(_ctx: SockAddrContext) -> i32 {
        1
    }

    #[cgroup_sock_addr(sendmsg6)]
    fn empty_sendmsg6(_ctx: SockAddrContext) -> i32 {
        1
    }

    #[cgroup_sock_addr(recvmsg4)]
    fn empty_recvmsg4(_ctx: SockAddrContext) -> i32 {
        1
    }

    #[cgroup_sock_addr(recvmsg6)]
    fn empty_recvmsg6(_ctx: SockAddrContext) -> i32 {
        1
    }

    #[sock_ops]
    fn empty_callback(_ctx: SockOpsContext) -> u32 {
        1
    }

    /// 0 would be an error to those who ask the hook for a value; 1 leaves them what the other programs of the hook said.
    #[sock_ops]
    fn tcp_callback(ctx: SockOpsContext) -> u32 {
        tcp_callback::run(&ctx);
        1
    }

    /// Any other value than 1 would refuse the socket.
    #[cgroup_sock(sock_create)]
    fn udp_create(ctx: SockContext) -> i32 {
        udp_socket::created(&ctx);
        1
    }

    /// Any other value than 1 is an error of the kernel's making.
    #[cgroup_sock(sock_release)]
    fn udp_release(ctx: SockContext) -> i32 {
        udp_socket::released(&ctx);
        1
    }

    /// Any other value than 1 would refuse the datagram, as with the next; the kernel takes no other from the two after it.
    #[cgroup_sock_addr(sendmsg4)]
    fn dns_query4(ctx: SockAddrContext) -> i32 {
        dns_reply::query(&ctx, true);
        1
    }

    #[cgroup_sock_addr(sendmsg6)]
    fn dns_query6(ctx: SockAddrContext) -> i32 {
        dns_reply::query(&ctx, false);
        1
    }

    #[cgroup_sock_addr(recvmsg4)]
    fn dns_reply4(ctx: SockAddrContext) -> i32 {
        dns_reply::reply(&ctx, true);
        1
    }

    #[cgroup_sock_addr(recvmsg6)]
    fn dns_reply6(ctx: SockAddrContext) -> i32 {
        dns_reply::reply(&ctx, false);
        1
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers such as `bpf_skc_to_tcp_sock` are offered to programs under a GPL-compatible licence only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
