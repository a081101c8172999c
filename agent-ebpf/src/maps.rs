//! Every map, and the read-only data that the agent fills in before loading.

use aya_ebpf::{
    macros::map,
    maps::{Array, LruHashMap, LruPerCpuHashMap, PerCpuArray, RingBuf},
};
use weir_common::{Layout, counter};

/// Where this kernel keeps what the probes read. Constants to the verifier once loaded.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::UNKNOWN;

/// Addresses of `ipv4_conntrack_in` and `ipv6_conntrack_in` (net/netfilter/nf_conntrack_proto.c), 0 where unknown.
#[unsafe(no_mangle)]
pub static CONNTRACK: [u64; 2] = [0; 2];

/// 1 if `dns_reply` is loaded: what it takes of `udp_release` is no code of it otherwise.
#[unsafe(no_mangle)]
pub static DNS_REPLIES: u8 = 0;

/// The only way out for events. Sized by the agent.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// One bit per port that is watched.
#[map]
static PORTS: Array<u64> = Array::with_max_entries(65536 / 64, 0);

/// TCP attempts between SYN_SENT and their end, by address of `struct sock`. Sized by the agent.
#[map]
pub static ATTEMPTS: LruHashMap<u64, Attempt> = LruHashMap::with_max_entries(16384, 0);

/// Creation times of UDP sockets (`bpf_ktime_get_ns`), by address of `struct sock`.
#[map]
pub static UDP_SOCKETS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(16384, 0);

/// Who was asked through UDP sockets that are not connected, by address of `struct sock`. Sized by the agent: one where
/// nobody asks.
#[map]
pub static QUERIES: LruHashMap<u64, [Query; 3]> = LruHashMap::with_max_entries(4096, 0);

/// What was dropped lately. Per CPU, so that a flood on one CPU neither locks nor delays the others.
#[map]
pub static DROPS: LruPerCpuHashMap<DropKey, Drop> = LruPerCpuHashMap::with_max_entries(4096, 0);

/// Destinations to which a local socket had to retransmit its SYN: their drops are never held back.
#[map]
pub static RETRIED: LruHashMap<Pair, u8> = LruHashMap::with_max_entries(4096, 0);

/// When this CPU last wrote a log line.
#[map]
pub static LAST_LOG: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `weir_common::counter`.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT, 0);

/// Value of [`ATTEMPTS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Attempt {
    /// `bpf_ktime_get_ns` of the start.
    pub started: u64,
    /// SYNs sent again.
    pub retransmits: u32,
    /// 1 after an RST.
    pub reset: u32,
}

/// Value of [`QUERIES`], as many as resolvers have servers (`MAXNS` of glibc and musl).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Query {
    pub server: [u32; 4],
    /// `bpf_ktime_get_ns` of the last query; 0: there was none.
    pub asked: u64,
    /// `bpf_ktime_get_ns` of the last reply that was told; 0: there was none.
    pub told: u64,
}

/// Key of [`DROPS`]. Without the source port: a flood from one place is one key.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DropKey {
    pub pair: Pair,
    pub location: u64,
    pub reason: u32,
    pub netns: u32,
}

/// Who speaks to whom, from the side that opens to the side that listens.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pair {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    pub port: u16,
    pub protocol: u8,
    /// 1 for packets from the listener to the opener.
    pub reply: u8,
    pub padding: u32,
}

/// Value of [`DROPS`].
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Drop {
    /// Start of the present window.
    pub window: u64,
    /// Packets since the last event.
    pub pending: u32,
    /// Events in the present window.
    pub events: u32,
}

/// Is this port (host order) watched?
#[inline(always)]
pub fn watched(port: u16) -> bool {
    PORTS.get(u32::from(port) / 64).is_some_and(|bits| bits & (1 << (port % 64)) != 0)
}

/// Adds one to a counter of `weir_common::counter`.
#[inline(always)]
pub fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: this CPU's slot; tracing programs do not migrate while they run.
        unsafe { *counter += 1 };
    }
}
