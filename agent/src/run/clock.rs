//! The one clock: CLOCK_MONOTONIC, which the probes stamp their events with.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;
use weir_engine::time::Time;

/// The wall clock was set, if it is this much further from the monotonic one than before. Slewing, as NTP does it, moves both.
const WALL_CLOCK_SET_NS: u64 = 500_000_000;

/// Reads the clock, and maps the engine's time to the timer's.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    wall_offset_ns: i64,
}

impl Clock {
    /// Notes the distance to the wall clock.
    #[must_use]
    pub fn start() -> Self {
        Self { wall_offset_ns: distance() }
    }

    /// Looks at the wall clock again. Its new distance, if it was set since: a node may boot with a clock that is years off and
    /// be told the time later. Nothing is decided by that clock; times are shown by it.
    pub fn wall_clock_set(&mut self) -> Option<i64> {
        self.moved(distance())
    }

    /// Takes over a distance that differs by more than what reading two clocks one after the other can make.
    fn moved(&mut self, distance: i64) -> Option<i64> {
        let is_set = distance.abs_diff(self.wall_offset_ns) > WALL_CLOCK_SET_NS;
        is_set.then(|| self.wall_offset_ns = distance).map(|()| distance)
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

fn distance() -> i64 {
    nanoseconds(ClockId::Realtime).saturating_sub(nanoseconds(ClockId::Monotonic))
}

fn nanoseconds(id: ClockId) -> i64 {
    let time = clock_gettime(id);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn a_wall_clock_that_is_set_moves_what_is_shown_and_not_what_time_it_is() {
        let mut clock = Clock::start();
        let (before, offset) = (clock.now(), clock.wall_offset_ns());
        let hour = 3_600_000_000_000;
        assert_eq!(clock.moved(offset + 1_000_000), None, "that much passes between two reads of a busy machine");
        for set in [offset + 50 * 365 * 24 * hour, offset - hour, offset] {
            assert_eq!(clock.moved(set), Some(set));
            assert_eq!(clock.moved(set), None, "once");
            let now = clock.now();
            assert!(now >= before && now.since(before).as_secs() < 3_600, "{before} {now}");
        }
    }
}
