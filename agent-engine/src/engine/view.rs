//! The snapshot, made from the ledger.

use std::collections::BTreeMap;

use super::{Engine, candidates};
use crate::attempt::JoinedDrop;
use crate::cluster::Kind;
use crate::ledger::{Conditions, Entry, Instance, Seen, end_view, endpoint, evidence_line, unix_ns};
use crate::snapshot::{
    Edit, EvidenceView, InstanceView, ObjectCount, Overflow, PairView, Snapshot, StateCount, Transition, VERSION,
};
use crate::time::Time;
use crate::words::Name;

impl Engine {
    /// ConfigMaps of flows that are no catalogue, each with what is wrong; the others hold.
    #[must_use]
    pub fn refused_flows(&self) -> &[(Name, String)] {
        self.resolver.refused()
    }

    /// Everything, as of `now`.
    #[must_use]
    pub fn snapshot(&self, now: Time) -> Snapshot {
        let conditions = self.ledger.conditions(now);
        let mut pairs: Vec<PairView> = self.ledger.entries().map(|entry| self.pair(entry, &conditions)).collect();
        let mut counts = BTreeMap::new();
        for pair in &pairs {
            *counts.entry((pair.flow.clone(), pair.severity, pair.state)).or_insert(0_u64) += 1;
        }
        // Stable: entries come by flow, source, destination, protocol and port.
        pairs.sort_by_key(|p| p.state);
        let counters = &self.ledger.counters;
        let traffic =
            self.traffic.view(&self.cluster, &self.policies, self.candidates.policies(), self.settings.wall_offset_ns);
        let candidates = self.candidates.view(&self.cluster, &pairs, &traffic);
        Snapshot {
            version: VERSION,
            at: now,
            at_unix_ns: unix_ns(now, self.settings.wall_offset_ns),
            synced: self.synced,
            pairs,
            counts: counts
                .into_iter()
                .map(|((flow, severity, state), count)| StateCount { flow, severity, state, count })
                .collect(),
            attempts: counters.attempts(),
            drops: counters.drops(),
            latencies: counters.latencies(),
            lost: counters.losses(),
            objects: self.objects(),
            overflow: Overflow {
                pairs: self.ledger.overflow(),
                attempts: self.attempts.evicted() + self.queue_overflow,
                drop_series: counters.drop_overflow(),
                transitions: self.ledger.lost_transitions(),
                learnt: self.resolver.learnt_overflow(),
            },
            pending_attempts: self.attempts.len(),
            unattributed_attempts: counters.unattributed,
            transitions: self.ledger.recent().map(|t| self.dated(t)).collect(),
            candidates,
            traffic,
        }
    }

    /// Objects known, by kind.
    #[must_use]
    pub fn objects(&self) -> Vec<ObjectCount> {
        let count = |kind, count: usize| ObjectCount { kind, count: u64::try_from(count).unwrap_or(u64::MAX) };
        let c = &self.cluster;
        vec![
            count(Kind::Namespace, c.namespaces().count()),
            count(Kind::Node, c.nodes().count()),
            count(Kind::Pod, c.pods().count()),
            count(Kind::Service, c.services().count()),
            count(Kind::EndpointSlice, c.slices().count()),
            count(Kind::NetworkPolicy, c.policies().len()),
        ]
    }

    /// With wall-clock times as they are known by now: the clock may have been set since.
    fn dated(&self, transition: &Transition) -> Transition {
        let wall = |at| unix_ns(at, self.settings.wall_offset_ns);
        let mut transition = transition.clone();
        transition.at_unix_ns = wall(transition.at);
        if let Some(edit) = &mut transition.since_edit {
            edit.at_unix_ns = wall(edit.at);
        }
        transition
    }

    fn pair(&self, entry: &Entry, conditions: &Conditions) -> PairView {
        let wall = |at| unix_ns(at, self.settings.wall_offset_ns);
        let (state, seen) = entry.judge(conditions);
        let since = if state == entry.state { entry.since } else { conditions.now };
        let (key, r) = (&entry.pair.key, &entry.pair.requirement);
        PairView {
            flow: key.flow.clone(),
            code: r.code.clone(),
            profile: r.profile.clone(),
            severity: r.severity,
            purpose: r.purpose.clone(),
            symptom: r.symptom.clone(),
            source: end_view(&key.source),
            destination: end_view(&key.destination),
            protocol: key.protocol,
            port: key.port,
            service_port: r.service_port.filter(|port| *port != key.port),
            state,
            why: evidence_line(entry, conditions, state, seen),
            since,
            since_unix_ns: wall(since),
            directions: entry.judged.decision.denying().map(|(direction, _)| direction).collect(),
            policies: entry.judged.policies().0.clone(),
            policies_left_out: entry.judged.policies().1,
            egress: entry.judged.decision.egress.clone(),
            ingress: entry.judged.decision.ingress.clone(),
            instances: entry.judged.instances,
            not_admitted: entry.judged.not_admitted.iter().map(|(s, d)| instance(s, d)).collect(),
            not_admitted_count: entry.judged.not_admitted_count,
            evidence: seen.map(|(i, seen)| evidence(i, seen, wall(seen.attempt.at))),
            since_edit: entry.since_edit.clone().map(|edit| Edit { at_unix_ns: wall(edit.at), ..edit }),
            attempts: entry.attempts,
            candidate: entry.candidate.as_ref().map(|c| candidates::view(&entry.judged, c)),
        }
    }
}

fn instance(source: &crate::policy::Endpoint, destination: &crate::policy::Endpoint) -> InstanceView {
    InstanceView { source: endpoint(source), destination: endpoint(destination) }
}

fn evidence(at: &Instance, seen: &Seen, at_unix_ns: i64) -> EvidenceView {
    let attempt = &seen.attempt;
    let dropped = attempt.dropped.as_ref();
    EvidenceView {
        at: attempt.at,
        at_unix_ns,
        outcome: attempt.outcome,
        provisional: attempt.provisional,
        class: dropped.map(|d| d.class),
        reason: dropped.and_then(|d| d.reason.clone()),
        location: dropped.and_then(|d| d.location.clone()),
        hook: dropped.and_then(JoinedDrop::hook),
        stack: dropped.map(|d| d.stack.clone()).unwrap_or_default(),
        reply: dropped.is_some_and(|d| d.reply),
        icmp: attempt.icmp,
        dialled: attempt.dialled,
        translated: attempt.translated,
        retransmits: attempt.retransmits,
        latency_ns: attempt.latency.map(|l| u64::try_from(l.as_nanos()).unwrap_or(u64::MAX)),
        owner: attempt.owner.clone(),
        instance: instance(&at.source, &at.destination),
    }
}
