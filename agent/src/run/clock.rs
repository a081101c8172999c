//! The one clock: CLOCK_MONOTONIC, which the probes stamp their events with.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use weir_engine::time::Time;

/// Reads the clock, and maps the engine's time to the timer's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall_offset_ns: i64,
}

impl Clock {
    /// Notes the distance to the wall clock, once: a wall clock that jumps later does not move what was already seen.
    #[must_use]
    pub fn start() -> Self {
        let monotonic = nanoseconds(ClockId::Monotonic);
        let wall = nanoseconds(ClockId::Realtime);
        Self { wall_offset_ns: wall.saturating_sub(monotonic) }
    }

    /// Nanoseconds from the monotonic to the wall clock.
    #[must_use]
    pub fn wall_offset_ns(&self) -> i64 {
        self.wall_offset_ns
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Time {
        Time(u64::try_from(nanoseconds(ClockId::Monotonic)).unwrap_or(0))
    }

    /// When the timer has to go off for `time`. A moment late rather than early: the engine is asked at or after its time.
    #[must_use]
    pub fn instant(&self, time: Time) -> Instant {
        Instant::now() + time.since(self.now()) + Duration::from_micros(100)
    }
}

fn nanoseconds(id: ClockId) -> i64 {
    let time = clock_gettime(id);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}
