//! Token buckets: what a flood can make the probes say is bounded, per CPU and kind of event, and what was held back is counted.

use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::maps::count;

/// Bucket of `packet_drop`.
pub const DROPS: u32 = 0;
/// Bucket of `socket_error`.
pub const ERRORS: u32 = 1;
/// Bucket of `icmp_sent`.
pub const ANSWERS: u32 = 2;
/// Bucket of `answer_retransmit`.
pub const RETRANSMITS: u32 = 3;

/// Events per second, CPU and bucket, and how many may come at once.
const RATE: u64 = 1000;
const BURST: u64 = 1000;

#[map]
static BUCKETS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(4, 0);

/// Value of [`BUCKETS`].
#[repr(C)]
struct Bucket {
    filled: u64,
    tokens: u64,
}

/// Takes one token unless `reserved` or fewer are left.
#[inline(always)]
pub fn token(bucket: u32, timestamp: u64, reserved: u64) -> bool {
    let Some(bucket) = BUCKETS.get_ptr_mut(bucket) else { return false };
    // SAFETY: this CPU's slot; tracing programs do not migrate while they run.
    let bucket = unsafe { &mut *bucket };
    let earned = (timestamp - bucket.filled) / (1_000_000_000 / RATE);
    if earned > 0 {
        bucket.filled = timestamp;
        bucket.tokens = if earned >= BURST - bucket.tokens { BURST } else { bucket.tokens + earned };
    }
    if bucket.tokens <= reserved {
        return false;
    }
    bucket.tokens -= 1;
    true
}

/// Takes one token, or counts that there was none.
#[inline(always)]
pub fn allow(bucket: u32, timestamp: u64, otherwise: u32) -> bool {
    let allowed = token(bucket, timestamp, 0);
    if !allowed {
        count(otherwise);
    }
    allowed
}
