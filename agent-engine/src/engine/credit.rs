//! What an attempt says of which pairs: counted, recorded in the ledger, learnt from.

use std::sync::Arc;

use super::attribute::{Attribution, Target, World};
use super::held::Waiting;
use super::{DEBOUNCE, Engine, MAX_RECENT};
use crate::attempt::{Attempt, Outcome};
use crate::identity::Peer;
use crate::ledger::NO_FLOW;
use crate::policy::{Admission, Endpoint, Flow};
use crate::requirement::{End, PortSource, Role};
use crate::time::Time;

impl Engine {
    /// Credits one attempt, or lets it wait for what it takes to know whose it is.
    pub(super) fn attribute(&mut self, now: Time, waiting: Waiting) {
        let Some(waiting) = self.hold(now, waiting) else { return };
        let Waiting { attempt, until } = waiting;
        if self.recent.len() >= MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(attempt.clone());
        let world = World { cluster: &self.cluster, identity: &self.identity, ledger: &self.ledger };
        let established = attempt.outcome == Outcome::Established;
        let mut flow: Arc<str> = NO_FLOW.into();
        match world.attribute(&attempt) {
            Attribution::Local => {}
            Attribution::Unknown { source, protocol, port } => {
                self.ledger.counters.unattributed += u64::from(!attempt.provisional);
                if let Some(source) = source {
                    self.ledger.unattributed(now, &source, protocol, port);
                }
            }
            Attribution::NoPair { source, destination, protocol, port } => {
                let ends = (&source, &destination);
                if self.resolver.learn(&self.cluster, ends, protocol, port, established, now) {
                    // The pair that it belongs to comes with the next judgement.
                    self.dirty.topology = true;
                    self.judge_at = self.judge_at.or(Some(now.plus(DEBOUNCE)));
                    self.queue.push_front(Waiting { attempt, until });
                    return;
                }
                self.traffic.record(now, (&source, &destination), protocol, port, &attempt);
            }
            Attribution::Pairs(targets) => {
                if let Some(first) = targets.first() {
                    flow = first.key.flow.clone();
                }
                let attempt = Arc::new(attempt.clone());
                let denied = matches!(attempt.outcome, Outcome::Dropped | Outcome::Rejected);
                let masked = established && self.is_masked(&attempt);
                let grown = targets
                    .iter()
                    .filter(|t| t.key.destination == End::External)
                    .any(|t| self.resolver.learn_address(&t.key, attempt.judged().destination, now));
                if grown {
                    self.dirty.topology = true;
                    self.judge_at = self.judge_at.or(Some(now.plus(DEBOUNCE)));
                    self.queue.push_front(Waiting { attempt: Arc::unwrap_or_clone(attempt), until });
                    return;
                }
                // That one of several backends fails says nothing about the others.
                let believed = self.believed(targets, established, denied);
                for target in believed {
                    if masked && self.is_application(&target.key.flow) {
                        continue;
                    }
                    self.resolver.seen(&target.key, now);
                    let settled = self.settled(&target.instance.source, &target.candidates);
                    let (cluster, policies) = (&self.cluster, &self.policies);
                    let (key, candidates) = (&target.key, target.candidates);
                    self.ledger.record(now, cluster, policies, key, target.instance, candidates, &attempt, settled);
                }
            }
        }
        if !attempt.provisional {
            self.ledger.counters.attempt(&flow, attempt.outcome, attempt.latency);
        }
    }

    /// An attempt may have led to one pair's destination as well as to another's. Then it is an attempt of those pairs whose
    /// decision explains what became of it; only if none does, it contradicts them all.
    fn believed(&self, targets: Vec<Target>, established: bool, denied: bool) -> Vec<Target> {
        let wanted = if established { Admission::Admitted } else { Admission::NotAdmitted };
        let explains = |t: &Target| {
            t.candidates.iter().any(|candidate| {
                let flow = Flow {
                    source: t.instance.source.clone(),
                    destination: candidate.clone(),
                    protocol: t.key.protocol,
                    port: t.key.port,
                    dialled: None,
                };
                self.policies.admits(&self.cluster, &flow) == wanted
            })
        };
        let some_do = targets.iter().any(|t| t.ambiguous && explains(t));
        let fits = |t: &Target| !t.ambiguous || (established || denied) && (!some_do || explains(t));
        targets.into_iter().filter(fits).collect()
    }

    /// A pod with a sidecar is connected to its own proxy, whatever it dialled (Istio's REDIRECT in the pod's OUTPUT chain): its
    /// "established" says nothing about the destination. What does is a connection of the proxy itself (Envoy's threads are
    /// `envoy` and `wrk:…`), or the destination's listener.
    fn is_masked(&self, attempt: &Attempt) -> bool {
        let is_proxy = attempt.owner.as_ref().is_none_or(|o| o.comm == "envoy" || o.comm.starts_with("wrk:"));
        if attempt.accepted || is_proxy {
            return false;
        }
        match self.identity.peer(&self.cluster, attempt.dialled.source, attempt.started) {
            Peer::Pod { name, .. } => self.resolver.roles(&name).contains(Role::Sidecar),
            _ => false,
        }
    }

    /// Whether a flow carries what applications dial.
    fn is_application(&self, flow: &str) -> bool {
        let from = self.resolver.catalogue().flow(flow).and_then(|r| r.port_from);
        matches!(from, Some(PortSource::Application | PortSource::Service))
    }

    /// Until when the pods of an instance are too young for a disagreement to mean anything.
    fn settled(&self, source: &Endpoint, destinations: &[Endpoint]) -> Time {
        if self.settings.wall_offset_ns == 0 {
            return Time(0);
        }
        let started = std::iter::once(source).chain(destinations).filter_map(|e| match e {
            Endpoint::Pod { name, .. } => self.cluster.pod(name)?.started,
            Endpoint::Node { .. } | Endpoint::Address(_) | Endpoint::External => None,
        });
        let youngest =
            started.max().and_then(|s| s.checked_mul(1_000_000_000)?.checked_sub(self.settings.wall_offset_ns));
        youngest.and_then(|ns| u64::try_from(ns).ok()).map_or(Time(0), |ns| Time(ns).plus(self.settings.grace))
    }
}
