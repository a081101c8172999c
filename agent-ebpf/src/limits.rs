//! Token buckets: what a flood can make the probes say is bounded, per CPU and kind of event, and what was held back is counted.

use aya_ebpf::{macros::map, maps::PerCpuArray};

use crate::maps::count;

/// One kind of event.
#[derive(Clone, Copy)]
pub struct Limit {
    bucket: u32,
    /// Per second and CPU, and as many may come at once.
    rate: u64,
}

/// Of `packet_drop`.
pub const DROPS: Limit = Limit { bucket: 0, rate: 1000 };
/// Of `socket_error`.
pub const ERRORS: Limit = Limit { bucket: 1, rate: 1000 };
/// Of `icmp_sent`.
pub const ANSWERS: Limit = Limit { bucket: 2, rate: 1000 };
/// Of `answer_retransmit`.
pub const RETRANSMITS: Limit = Limit { bucket: 3, rate: 1000 };
/// Of the stacks of `packet_drop`: to walk one costs more than all the rest of the event.
pub const STACKS: Limit = Limit { bucket: 4, rate: 50 };

#[map]
static BUCKETS: PerCpuArray<Bucket> = PerCpuArray::with_max_entries(5, 0);

/// Value of [`BUCKETS`].
#[repr(C)]
struct Bucket {
    filled: u64,
    tokens: u64,
}

/// Takes one token unless `reserved` or fewer are left.
#[inline(always)]
pub fn token(limit: Limit, timestamp: u64, reserved: u64) -> bool {
    let Some(bucket) = BUCKETS.get_ptr_mut(limit.bucket) else { return false };
    // SAFETY: this CPU's slot; tracing programs do not migrate while they run.
    let bucket = unsafe { &mut *bucket };
    let earned = (timestamp - bucket.filled) / (1_000_000_000 / limit.rate);
    if earned > 0 {
        bucket.filled = timestamp;
        bucket.tokens = if earned >= limit.rate - bucket.tokens { limit.rate } else { bucket.tokens + earned };
    }
    if bucket.tokens <= reserved {
        return false;
    }
    bucket.tokens -= 1;
    true
}

/// Takes one token, or counts that there was none.
#[inline(always)]
pub fn allow(limit: Limit, timestamp: u64, otherwise: u32) -> bool {
    let allowed = token(limit, timestamp, 0);
    if !allowed {
        count(otherwise);
    }
    allowed
}
