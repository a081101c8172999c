//! Attempts between known ends that belong to no required flow: what candidates are judged on besides the catalogue.

use std::collections::BTreeMap;
use std::time::Duration;

use super::candidates::of_decision;
use crate::attempt::{Attempt, Outcome};
use crate::cluster::Cluster;
use crate::ledger::{end_view, endpoint, unix_ns};
use crate::policy::{Admission, Endpoint, Flow, Policies};
use crate::requirement::{End, SeenEnd};
use crate::snapshot::{Effect, InstanceView, TrafficView};
use crate::time::Time;
use crate::words::Protocol;

/// What was seen between two ends on one port.
#[derive(Clone, Debug)]
struct Seen {
    source: Endpoint,
    destination: Endpoint,
    attempts: u64,
    established: u64,
    last: Time,
}

/// Everything seen, by ends, protocol and port.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    seen: BTreeMap<(End, End, Protocol, u16), Seen>,
    capacity: usize,
}

impl Traffic {
    pub fn new(capacity: usize) -> Self {
        Self { seen: BTreeMap::new(), capacity }
    }

    /// Takes in an attempt.
    pub fn record(&mut self, now: Time, ends: (&SeenEnd, &SeenEnd), protocol: Protocol, port: u16, attempt: &Attempt) {
        let (source, destination) = ends;
        if attempt.provisional {
            return;
        }
        let (Some(from), Some(to)) = (source.end(), destination.end()) else { return };
        let (Some(source), Some(destination)) = (source.endpoint(), destination.endpoint()) else { return };
        let key = (from, to, protocol, port);
        if self.seen.len() >= self.capacity && !self.seen.contains_key(&key) {
            let oldest = self.seen.iter().min_by_key(|(_, s)| s.last).map(|(key, _)| key.clone());
            oldest.map(|key| self.seen.remove(&key));
        }
        let fresh =
            Seen { source: source.clone(), destination: destination.clone(), attempts: 0, established: 0, last: now };
        let seen = self.seen.entry(key).or_insert(fresh);
        (seen.source, seen.destination, seen.last) = (source, destination, now);
        seen.attempts += 1;
        seen.established += u64::from(attempt.outcome == Outcome::Established);
    }

    /// Forgets what was not seen for `unused`.
    pub fn expire(&mut self, now: Time, unused: Duration) {
        self.seen.retain(|_, seen| seen.last.plus(unused) >= now);
    }

    pub fn view(
        &self,
        cluster: &Cluster,
        policies: &Policies,
        candidates: Option<&Policies>,
        wall_offset_ns: i64,
    ) -> Vec<TrafficView> {
        let view = |((from, to, protocol, port), seen): (&(End, End, Protocol, u16), &Seen)| {
            let flow = Flow {
                source: seen.source.clone(),
                destination: seen.destination.clone(),
                protocol: *protocol,
                port: *port,
                dialled: None,
            };
            let admission = policies.admits(cluster, &flow);
            let candidate = candidates.map(|candidates| {
                let decision = candidates.decide(cluster, &flow);
                let effect = match (admission, decision.admission()) {
                    (Admission::Admitted | Admission::Undecidable, Admission::NotAdmitted) => Effect::Breaks,
                    (Admission::NotAdmitted, Admission::Admitted) => Effect::Opens,
                    _ => Effect::Same,
                };
                of_decision(effect, &decision)
            });
            TrafficView {
                source: end_view(from),
                destination: end_view(to),
                protocol: *protocol,
                port: *port,
                instance: InstanceView { source: endpoint(&seen.source), destination: endpoint(&seen.destination) },
                attempts: seen.attempts,
                established: seen.established,
                last: seen.last,
                last_unix_ns: unix_ns(seen.last, wall_offset_ns),
                admission,
                candidate,
            }
        };
        self.seen.iter().map(view).collect()
    }
}
