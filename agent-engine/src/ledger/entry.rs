//! One pair in the ledger: its decision, its evidence, its state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::judged::{Judged, flow};
use super::slot::{Seen, Slot, evidence_of};
use crate::attempt::Attempt;
use crate::cluster::Cluster;
use crate::policy::{Admission, Endpoint, Policies};
use crate::requirement::{Pair, same};
use crate::snapshot::Edit;
use crate::time::Time;
use crate::verdict::{Evidence, Facts, State, verdict};

/// Instances whose evidence is kept, per pair.
const MAX_SLOTS: usize = 8;

/// What holds for all pairs when one is judged.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Now.
    pub now: Time,
    /// How long evidence counts.
    pub window: Duration,
    /// When events were last lost.
    pub lost_at: Option<Time>,
    /// When events of drops, and nothing else, were last lost.
    pub drops_lost_at: Option<Time>,
    /// No drop can be seen on this node.
    pub drops_unseen: bool,
    /// All initial objects are in.
    pub synced: bool,
}

/// A source and a destination as they were seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// Who connected.
    pub source: Endpoint,
    /// To which address: a pod's, or a Service's whose translation was not seen.
    pub destination: Endpoint,
}

/// A pair in the ledger.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The pair.
    pub pair: Pair,
    /// What the policies say.
    pub judged: Judged,
    /// What they would say with the candidates in force, where there are any.
    pub candidate: Option<Judged>,
    /// Since when they say so; evidence from before proves nothing.
    pub decided: Time,
    /// Until when a disagreement is put down to lag.
    pub settled: Time,
    /// The edit that made them say so.
    pub since_edit: Option<Edit>,
    /// Attempts of this pair can be seen at all.
    pub observable: Result<(), String>,
    /// An attempt by its source, on its port, to an address that no object explains.
    pub unattributed: Option<Time>,
    /// Attempts so far.
    pub attempts: u64,
    /// The verdict.
    pub state: State,
    /// Since when.
    pub since: Time,
    slots: BTreeMap<Instance, Slot>,
}

impl Entry {
    /// A pair that has just become known.
    #[must_use]
    pub fn new(pair: Pair, judged: Judged, observable: Result<(), String>, now: Time) -> Self {
        Self {
            pair,
            judged,
            candidate: None,
            decided: Time(0),
            settled: Time(0),
            since_edit: None,
            observable,
            unattributed: None,
            attempts: 0,
            state: State::Unknown,
            since: now,
            slots: BTreeMap::new(),
        }
    }

    /// Takes in an attempt. `settled` is when its pods have been running for long enough.
    pub fn record(
        &mut self,
        cluster: &Cluster,
        policies: &Policies,
        instance: Instance,
        candidates: Vec<Endpoint>,
        attempt: &Arc<Attempt>,
        settled: Time,
    ) {
        if !attempt.provisional {
            self.attempts += 1;
        }
        let Some((evidence, at)) = evidence_of(attempt) else { return };
        if !self.slots.contains_key(&instance) {
            let Some(admission) = self.admission(cluster, policies, &instance.source, &candidates) else { return };
            if self.slots.len() >= MAX_SLOTS {
                let oldest = self.slots.iter().min_by_key(|(_, s)| s.last()).map(|(i, _)| i.clone());
                oldest.map(|i| self.slots.remove(&i));
            }
            let slot = Slot::new(admission, self.decided, self.settled, candidates);
            self.slots.insert(instance.clone(), slot);
        }
        if let Some(slot) = self.slots.get_mut(&instance) {
            slot.settled = slot.settled.max(settled);
            slot.record(evidence, at, attempt.clone());
        }
    }

    /// Takes over a new decision, or new instances. `edited` is when the policies were changed, `grace` how long they may lag.
    pub fn judge_again(
        &mut self,
        cluster: &Cluster,
        policies: &Policies,
        judged: Judged,
        edited: Time,
        grace: Duration,
    ) {
        if !judged.agrees(&self.judged) {
            self.decided = edited;
            self.settled = edited.plus(grace);
        }
        self.judged = judged;
        let pair = &self.pair;
        let still_there = |i: &Instance, s: &Slot| s.candidates.iter().any(|c| has(pair, &i.source, c));
        self.slots.retain(|i, s| still_there(i, s));
        let mut slots = std::mem::take(&mut self.slots);
        slots.retain(|instance, slot| {
            let Some(admission) = self.admission(cluster, policies, &instance.source, &slot.candidates) else {
                return false;
            };
            if admission != slot.admission {
                slot.judge_again(admission, edited, edited.plus(grace));
            }
            true
        });
        self.slots = slots;
    }

    /// What the policies say of one instance; `None` if its possible destinations differ.
    fn admission(
        &self,
        cluster: &Cluster,
        policies: &Policies,
        source: &Endpoint,
        candidates: &[Endpoint],
    ) -> Option<Admission> {
        let mut all = candidates.iter().map(|d| policies.admits(cluster, &flow(&self.pair.key, source, d)));
        let first = all.next()?;
        all.all(|a| a == first).then_some(first)
    }

    /// The state as of now, and the evidence that it stands on.
    #[must_use]
    pub fn judge(&self, c: &Conditions) -> (State, Option<(&Instance, &Seen)>) {
        let oldest = c.now.minus(c.window);
        let lost = c.lost_at.filter(|at| at.plus(c.window) > c.now);
        let drops_lost = c.drops_lost_at.filter(|at| at.plus(c.window) > c.now);
        let seen_all = self.observable.is_ok() && self.unattributed.is_none_or(|at| at < oldest);
        let nothing = Facts {
            admission: self.judged.admission,
            evidence: Evidence::None,
            in_grace: false,
            lost: lost.is_some(),
            drops_lost: c.drops_unseen || drops_lost.is_some(),
            observable: seen_all,
        };
        if !c.synced {
            return (State::Unknown, None);
        }
        let judged = self.slots.iter().filter(|(_, slot)| slot.admission == self.judged.admission);
        let states = judged.filter_map(|(instance, slot)| {
            let (evidence, seen, in_grace) = slot.evidence(c.now, oldest);
            let seen = seen?;
            let lost = lost.is_some_and(|at| seen.attempt.started <= at);
            let drops_lost = c.drops_unseen || drops_lost.is_some_and(|at| seen.attempt.started <= at);
            let facts = Facts { admission: slot.admission, evidence, in_grace, lost, drops_lost, observable: seen_all };
            // What is put down to lag counts as nothing, not as an instance that is fine.
            (!in_grace).then(|| (verdict(&facts), Some((instance, seen))))
        });
        // The worst instance speaks for the pair; of equally bad ones, the newest evidence.
        let worst = states.min_by(|(a, x), (b, y)| a.cmp(b).then_with(|| y.map(|s| s.1.at).cmp(&x.map(|s| s.1.at))));
        worst.unwrap_or_else(|| (verdict(&nothing), None))
    }
}

/// Whether a concrete source and destination are among a pair's instances; "anybody outside" has every address.
fn has(pair: &Pair, source: &Endpoint, destination: &Endpoint) -> bool {
    let anybody = pair.sources.iter().any(|s| matches!(s, Endpoint::External));
    pair.has(source, destination) || anybody && pair.destinations.iter().any(|d| same(d, destination))
}
