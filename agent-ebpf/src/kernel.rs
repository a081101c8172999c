//! The only reader of kernel structs.
//!
//! Offsets come from `maps::LAYOUT`, which is constant to the verifier: a load through an argument of a BTF tracepoint is
//! checked against the kernel's own types and needs no helper; where the memory is gone it faults, and the kernel lets it read
//! zero. Memory that has no type (packet bytes, conntrack's tuple, the context of cgroup programs) goes through
//! `bpf_probe_read_kernel`.

use core::{mem::MaybeUninit, ptr::read_volatile};

use aya_ebpf::{
    cty::c_void,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_probe_read_kernel, bpf_skc_to_tcp_sock,
    },
};
use weir_common::{ABSENT, Owner, Tuple};

/// `TCP_ESTABLISHED` … of include/net/tcp_states.h, the part of the UAPI that the probes need.
pub mod state {
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const CLOSE: u8 = 7;
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Functions of one hook that are looked at.
const MAX_HOOKS: u16 = 16;

const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const MAPPED: u32 = u32::from_be(0x0000_ffff);

/// The offset of a member on this kernel.
macro_rules! offset {
    ($member:ident) => {{
        // SAFETY: a plain static; volatile because the agent replaces it after compilation.
        unsafe { core::ptr::read_volatile(&raw const crate::maps::LAYOUT.$member) }
    }};
}
pub(crate) use offset;

/// Loads a member through a pointer that the verifier has a type for.
macro_rules! load {
    ($base:expr, $member:ident as $type:ty) => {{
        let offset = offset!($member) as usize;
        // SAFETY: the verifier accepts the load only inside the struct that the pointer is typed as, and the kernel
        // handles a fault of a stale pointer by reading zero.
        unsafe { read_volatile($base.byte_add(offset).cast::<$type>()) }
    }};
}

/// Copies untyped kernel memory; `None` where it is not mapped.
#[inline(always)]
pub fn copy<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes `size_of::<T>()` bytes into `value`, or zeroes and an error.
    let failed =
        unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const c_void) };
    if failed != 0 {
        return None;
    }
    // SAFETY: written in full; `T` is an integer or an array of integers everywhere in this crate.
    Some(unsafe { value.assume_init() })
}

/// `::ffff:a.b.c.d` from network order.
#[inline(always)]
pub fn mapped(address: u32) -> [u32; 4] {
    [0, 0, MAPPED, address]
}

/// Is it an IPv4 address?
#[inline(always)]
pub fn is_mapped(address: [u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED
}

/// 127.0.0.0/8 or ::1.
#[inline(always)]
fn loopback(address: [u32; 4]) -> bool {
    let last = u32::from_be(address[3]);
    address[0] == 0 && address[1] == 0 && (address[2] == MAPPED && last >> 24 == 127 || address[2] == 0 && last == 1)
}

/// The local end is a loopback address and the remote end is not.
#[inline(always)]
pub fn redirected(local: [u32; 4], remote: [u32; 4]) -> bool {
    loopback(local) && !loopback(remote)
}

/// Network-order words as bytes.
#[inline(always)]
pub fn bytes(address: [u32; 4]) -> [u8; 16] {
    // SAFETY: same size, no invalid bit patterns.
    unsafe { core::mem::transmute(address) }
}

/// A `struct sock` that the verifier knows as one (argument of a tracepoint, or reached from one).
#[derive(Clone, Copy)]
pub struct Sock(pub *const c_void);

impl Sock {
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline(always)]
    pub fn state(self) -> u8 {
        load!(self.0, sock_state as u8)
    }

    /// `IPPROTO_MPTCP` (262) shares the tracepoint with TCP, hence 16 bits.
    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        load!(self.0, sock_protocol as u16) == u16::from(TCP)
    }

    #[inline(always)]
    pub fn is_udp(self) -> bool {
        load!(self.0, sock_protocol as u16) == u16::from(UDP)
    }

    /// Remote port, host order.
    #[inline(always)]
    pub fn remote_port(self) -> u16 {
        u16::from_be(load!(self.0, sock_dport as u16))
    }

    /// Local port, host order; 0 once the socket is closed.
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        load!(self.0, sock_num as u16)
    }

    /// Local port, host order, also of a closed socket; 0 if the socket is not TCP's.
    #[inline(always)]
    pub fn source_port(self) -> u16 {
        // SAFETY: the helper checks what kind of socket it was given and returns null for others.
        let tcp: *const c_void = unsafe { bpf_skc_to_tcp_sock(self.0.cast_mut()) }.cast();
        if tcp.is_null() { 0 } else { u16::from_be(load!(tcp, tcp_sport as u16)) }
    }

    #[inline(always)]
    pub fn netns(self) -> u32 {
        let net = load!(self.0, sock_net as *const c_void);
        load!(net, net_inum as u32)
    }

    /// Pending error, positive errno.
    #[inline(always)]
    pub fn error(self) -> i32 {
        load!(self.0, sock_err as i32)
    }

    /// Error that would have been reported had the socket not been busy, positive errno.
    #[inline(always)]
    pub fn soft_error(self) -> i32 {
        load!(self.0, sock_err_soft as i32)
    }

    /// Origin, type and code of the newest entry of the error queue.
    #[inline(always)]
    pub fn queued_error(self) -> Option<(u8, u8, u8)> {
        if load!(self.0, sock_error_len as u32) == 0 {
            return None;
        }
        let tail = load!(self.0, sock_error_tail as *const c_void);
        // include/uapi/linux/errqueue.h: struct sock_extended_err { u32 ee_errno; u8 ee_origin, ee_type, ee_code, … }.
        let byte = |index: usize| {
            let offset = offset!(skb_error) as usize + 4 + index;
            // SAFETY: as in `load!`: inside `sk_buff.cb` of the queue's last packet.
            unsafe { read_volatile(tail.byte_add(offset).cast::<u8>()) }
        };
        Some((byte(0), byte(1), byte(2)))
    }

    /// Local and remote address. IPv4 as v4-mapped IPv6.
    #[inline(always)]
    pub fn addresses(self) -> ([u32; 4], [u32; 4]) {
        let v6 = offset!(sock_v6_daddr) != ABSENT && load!(self.0, sock_family as u16) != AF_INET;
        if v6 {
            let remote = words(self.0, offset!(sock_v6_daddr));
            if !is_mapped(remote) {
                return (words(self.0, offset!(sock_v6_rcv_saddr)), remote);
            }
        }
        (mapped(load!(self.0, sock_rcv_saddr as u32)), mapped(load!(self.0, sock_daddr as u32)))
    }

    /// The local end is a loopback address and the remote end is not.
    #[inline(always)]
    pub fn redirected(self) -> bool {
        let (local, remote) = self.addresses();
        redirected(local, remote)
    }

    /// The connection as the side sees it that opened it, which is this one.
    #[inline(always)]
    pub fn outgoing(self, source_port: u16) -> Tuple {
        let (local, remote) = self.addresses();
        Tuple {
            source: bytes(local),
            destination: bytes(remote),
            source_port,
            destination_port: self.remote_port(),
            protocol: TCP,
            padding: [0; 3],
        }
    }

    /// The connection as the side sees it that opened it, which is the other one.
    #[inline(always)]
    pub fn incoming(self) -> Tuple {
        let (local, remote) = self.addresses();
        Tuple {
            source: bytes(remote),
            destination: bytes(local),
            source_port: self.remote_port(),
            destination_port: self.local_port(),
            protocol: TCP,
            padding: [0; 3],
        }
    }
}

#[inline(always)]
fn words(base: *const c_void, offset: u32) -> [u32; 4] {
    let word = |index: usize| {
        // SAFETY: as in `load!`: a 16-byte member at `offset`.
        unsafe { read_volatile(base.byte_add(offset as usize + index * 4).cast::<u32>()) }
    };
    [word(0), word(1), word(2), word(3)]
}

/// A `struct sk_buff` that the verifier knows as one.
#[derive(Clone, Copy)]
pub struct Packet(pub *const c_void);

impl Packet {
    /// Address of the network header.
    #[inline(always)]
    pub fn network_header(self) -> u64 {
        load!(self.0, skb_head as u64) + u64::from(load!(self.0, skb_network_header as u16))
    }

    /// Address of the first byte behind the linear part.
    #[inline(always)]
    pub fn end(self) -> u64 {
        load!(self.0, skb_head as u64) + u64::from(load!(self.0, skb_tail as u32))
    }

    /// The socket that sent or shall receive the packet, where there still is one.
    #[inline(always)]
    pub fn sock(self) -> Option<Sock> {
        let sock = load!(self.0, skb_sock as *const c_void);
        if sock.is_null() { None } else { Some(Sock(sock)) }
    }

    /// The interface it is on. While a datagram is in its socket's queue the member holds something else (`dev_scratch` in
    /// include/linux/skbuff.h and net/ipv4/udp.c), whose highest bit is never set: that of the kernel's addresses always is.
    #[inline(always)]
    fn device(self) -> Option<*const c_void> {
        let dev = load!(self.0, skb_dev as *const c_void);
        if (dev as i64) < 0 { Some(dev) } else { None }
    }

    /// Interface index and network namespace (inode number); 0 for what cannot be told.
    ///
    /// `skb->dev` is null in the OUTPUT hook, where the socket and the route still tell the namespace.
    #[inline(always)]
    pub fn place(self) -> (u32, u32) {
        if let Some(dev) = self.device() {
            let net = load!(dev, dev_net as *const c_void);
            return (load!(dev, dev_index as u32), load!(net, net_inum as u32));
        }
        if let Some(sock) = self.sock() {
            return (0, sock.netns());
        }
        (0, self.route_netns().unwrap_or(0))
    }

    #[inline(always)]
    fn route_netns(self) -> Option<u32> {
        let dst = load!(self.0, skb_dst as u64) & !1;
        if dst == 0 {
            return None;
        }
        let dev: u64 = copy(dst + u64::from(offset!(dst_dev)))?;
        let net: u64 = copy(dev + u64::from(offset!(dev_net)))?;
        copy(net + u64::from(offset!(net_inum)))
    }

    /// Does its namespace track connections while it belongs to none? Not so for packets that a rule exempts, whose `_nfct`
    /// says so. That a namespace tracks shows in its first hook (include/linux/netfilter.h `struct nf_hook_entries`).
    #[inline(always)]
    pub fn untracked(self, v4: bool) -> bool {
        self.tracker(v4).is_some()
    }

    #[inline(always)]
    fn tracker(self, v4: bool) -> Option<()> {
        let (hooks, family) = if v4 { (offset!(net_hooks_v4), 0) } else { (offset!(net_hooks_v6), 1) };
        if offset!(skb_nfct) == ABSENT || hooks == ABSENT || offset!(hook_entries) == ABSENT {
            return None;
        }
        // SAFETY: a plain static; volatile because the agent replaces it after compilation.
        let function = unsafe { read_volatile(&raw const crate::maps::CONNTRACK[family]) };
        if function == 0 || load!(self.0, skb_nfct as u64) != 0 {
            return None;
        }
        let net = match (self.device(), self.sock()) {
            (Some(dev), _) => load!(dev, dev_net as u64),
            (None, Some(sock)) => load!(sock.0, sock_net as u64),
            (None, None) => return None,
        };
        let entries: u64 = copy(net + u64::from(hooks))?;
        if entries == 0 {
            return None;
        }
        let count: u16 = copy(entries)?;
        for index in 0..MAX_HOOKS {
            if index >= count {
                return None;
            }
            let hook: u64 = copy(entries + u64::from(offset!(hook_entries)) + u64::from(index) * 16)?;
            if hook == function {
                return Some(());
            }
        }
        None
    }

    /// `struct nf_conntrack_tuple` of the original direction; see `weir_common::CONNTRACK_TUPLE`.
    #[inline(always)]
    pub fn original(self) -> Option<[u8; 40]> {
        if offset!(skb_nfct) == ABSENT || offset!(conn_original) == ABSENT {
            return None;
        }
        let conn = load!(self.0, skb_nfct as u64) & !7;
        if conn == 0 {
            return None;
        }
        copy(conn + u64::from(offset!(conn_original)))
    }
}

/// The task that runs now: only meaningful in process context.
#[inline(always)]
pub fn current() -> Owner {
    // SAFETY: helpers without arguments.
    let (cgroup, pid) = unsafe { (bpf_get_current_cgroup_id(), bpf_get_current_pid_tgid() >> 32) };
    let comm = aya_ebpf::helpers::bpf_get_current_comm().unwrap_or([0; 16]);
    Owner { cgroup, pid: pid as u32, padding: 0, comm }
}
