//! Writes events to the ring buffer and counts those that did not fit.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::{bpf_get_smp_processor_id, bpf_ktime_get_ns},
};
use weir_common::{Header, Plain, counter};

use crate::maps::{EVENTS, LAST_LOG, count};

/// `bpf_ringbuf_query`: bytes not yet consumed.
const AVAILABLE: u64 = 0;

/// The agent drains the buffer on a timer; it is woken early only each time that this much more is waiting. A wake-up is an
/// interrupt that a processor sends to itself: dearer than all the rest of an event.
const WAKE_EVERY: u64 = 128 * 1024;

/// Nanoseconds since boot, as every event carries.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The first bytes of an event.
#[inline(always)]
pub fn header(kind: u8, timestamp: u64) -> Header {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    Header { kind, padding: [0; 3], cpu, timestamp }
}

/// Hands an event to the agent; if the buffer is full it is lost and counted.
#[inline(always)]
pub fn emit<T: Plain + 'static>(event: T) {
    // SAFETY: `emit_with` passes memory of one `T`.
    emit_with(|memory: *mut T| unsafe { memory.write(event) });
}

/// As [`emit`], for an event that is written where the agent reads it. `write` must write all of it.
#[inline(always)]
pub fn emit_with<T: Plain + 'static>(write: impl FnOnce(*mut T)) {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        count(counter::LOST_EVENTS);
        return;
    };
    write(entry.as_mut_ptr());
    let waiting = EVENTS.query(AVAILABLE);
    // The kernel puts a header of 8 bytes before each entry (kernel/bpf/ringbuf.c).
    let before = waiting.saturating_sub(size_of::<T>() as u64 + 8);
    let flags = if waiting / WAKE_EVERY != before / WAKE_EVERY { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP };
    entry.submit(u64::from(flags));
    count(counter::EVENTS);
}

/// At most one log line per second and CPU.
#[inline(always)]
pub fn may_log(timestamp: u64) -> bool {
    let Some(last) = LAST_LOG.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's slot; tracing programs do not migrate while they run.
    let last = unsafe { &mut *last };
    if timestamp - *last < 1_000_000_000 {
        return false;
    }
    *last = timestamp;
    true
}
