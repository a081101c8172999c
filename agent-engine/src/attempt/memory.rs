//! What was seen apart from any attempt, and may explain one that ends later; bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use super::JoinedDrop;
use super::open::{FlowKey, key};
use super::table::ANSWER;
use crate::observation::{PacketDrop, Tuple};
use crate::time::Time;

/// How long a drop is remembered for attempts that end without one of their own.
const REMEMBER: Duration = Duration::from_secs(150);
/// How often what is old is looked for.
const SWEEP: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Drops that were reported on their own, by full tuple, so that a retransmit is not counted as a new attempt.
    pub seen: BTreeMap<(FlowKey, u16), Time>,
    /// The newest policy-class drop of each flow.
    pub drops: BTreeMap<FlowKey, (JoinedDrop, Option<Tuple>)>,
    /// Errors that reached connected UDP sockets, which their application may have read since.
    pub errors: BTreeMap<u64, (Time, i32)>,
    /// Packets that this machine answered with "destination unreachable", by full tuple as they were.
    pub unreachable: BTreeMap<(FlowKey, u16), Time>,
    swept: Time,
}

impl Memory {
    /// Did this machine answer the very packet with an ICMP error?
    pub fn was_answered(&self, e: &PacketDrop) -> bool {
        let sent = self.unreachable.get(&(key(&e.tuple), e.tuple.source_port));
        sent.is_some_and(|at| at.distance(e.at) <= ANSWER)
    }

    /// Forgets what is more than `max` of a kind, and now and then what is old. Called with every event: looking through all
    /// of it each time would make a flood of drops from everywhere cost its square.
    pub fn forget(&mut self, now: Time, max: usize) {
        if now >= self.swept.plus(SWEEP) {
            self.swept = now;
            let old = |at: Time| at.plus(REMEMBER) < now;
            self.seen.retain(|_, at| !old(*at));
            self.drops.retain(|_, (d, _)| !old(d.at));
            self.errors.retain(|_, (at, _)| !old(*at));
            self.unreachable.retain(|_, at| at.plus(ANSWER) >= now);
        }
        bound(&mut self.seen, max);
        bound(&mut self.drops, max);
        bound(&mut self.errors, max);
        bound(&mut self.unreachable, max);
    }
}

fn bound<K: Ord, V>(map: &mut BTreeMap<K, V>, max: usize) {
    while map.len() > max {
        map.pop_first();
    }
}
