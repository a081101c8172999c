//! The smallest change that opens a flow: one more rule in a policy of the user's own, or a policy of its own.
//!
//! Every proposal is tried out before it is made: the flow is judged again, and every other flow that fares differently is
//! listed. Of several that open the flow the one that changes least is taken. Objects that somebody else manages are never
//! edited: their owner would undo it.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use super::Policies;
use super::decision::{Admission, Decision, Endpoint, Flow, RuleRef, Side, Undecided};
use super::diff::{Difference, Ends, diff, diff_of};
use super::patch::{self, Draft};
use crate::cluster::{Change, Cluster, Object, Origin};
use crate::words::{Direction, Name, Workload};

/// A change that opens a flow, with all that it changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fix {
    /// The policies to apply: one per side that did not admit.
    pub patches: Vec<Patch>,
    /// Every flow that fares differently with them, the one asked for included.
    pub changes: Vec<Difference>,
}

/// One policy to apply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Patch {
    /// The whole object, ready for `kubectl apply`.
    pub policy: NetworkPolicy,
    /// Which side it opens.
    pub direction: Direction,
    /// What is new about it.
    pub kind: PatchKind,
    /// Policies that select the pod and are left alone, each with who manages it.
    pub managed: Vec<(Name, String)>,
}

/// How a patch opens the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PatchKind {
    /// A rule at the end of a policy that exists: its index.
    Rule(usize),
    /// A policy that did not exist.
    Policy,
}

/// Why there is no fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfixable {
    /// Nothing to do.
    #[error("the policies admit this flow already")]
    Admitted,
    /// It is not known to be denied.
    #[error("not known to be denied: {0}")]
    Undecided(Undecided),
    /// NetworkPolicies are not asked.
    #[error("{0} of a cluster-wide policy denies it; no NetworkPolicy can open it, its owner has to change it")]
    DeniedBy(RuleRef),
    /// No rule of a NetworkPolicy can name this end.
    #[error("no NetworkPolicy rule can name the other end here; a policy of the engine's own kind is needed")]
    NotExpressible,
}

impl Fix {
    /// What changes besides the flows that were asked for: other workloads, other ports.
    pub fn beyond<'a>(&'a self, cluster: &'a Cluster, flow: &'a Flow) -> impl Iterator<Item = &'a Difference> {
        let same = |ends: &Ends, end: &Endpoint| match (ends, end) {
            (Ends::Pods(names), Endpoint::Pod { name, .. }) => {
                let asked = workload(cluster, name);
                asked.is_some() && names.iter().all(|n| workload(cluster, n) == asked)
            }
            (Ends::Outside, Endpoint::External) => true,
            (Ends::Pods(_) | Ends::Outside, _) => false,
        };
        self.changes.iter().filter(move |d| {
            let one_port = d.ports.iter().all(|p| p.first == flow.port && p.last == flow.port);
            let asked = one_port && d.protocol == flow.protocol && d.after == Admission::Admitted;
            !(asked && same(&d.sources, &flow.source) && same(&d.destinations, &flow.destination))
        })
    }
}

fn workload<'a>(cluster: &'a Cluster, pod: &Name) -> Option<&'a Workload> {
    cluster.pod(pod).map(|p| &p.workload)
}

impl Policies {
    /// The smallest change that opens a flow.
    ///
    /// # Errors
    /// [`Unfixable`] where there is nothing to open or NetworkPolicies cannot open it.
    pub fn fix(&self, cluster: &Cluster, flow: &Flow) -> Result<Fix, Unfixable> {
        let decision = self.decide(cluster, flow);
        let mut world = World { cluster: cluster.clone(), policies: self.clone() };
        let mut patches = Vec::new();
        for direction in [Direction::Egress, Direction::Ingress] {
            let Some(selecting) = denied(&decision, direction)? else { continue };
            patches.push(world.open(flow, direction, &selecting)?);
        }
        if patches.is_empty() {
            return Err(Unfixable::Admitted);
        }
        let changes = diff((cluster, self), (&world.cluster, &world.policies));
        Ok(Fix { patches, changes })
    }
}

/// The policies that select the pod on this side and do not admit; none where the side is open.
fn denied(decision: &Decision, direction: Direction) -> Result<Option<Vec<Name>>, Unfixable> {
    let side = side(decision, direction);
    match side {
        Side::NotAdmitted { .. } => Ok(Some(side.selecting().into_iter().cloned().collect())),
        Side::DeniedBy { by } => Err(Unfixable::DeniedBy(by.clone())),
        // One side may be open to doubt; what is known to be denied on the other can still be opened.
        Side::Undecidable { why } if decision.admission() != Admission::NotAdmitted => {
            Err(Unfixable::Undecided(why.clone()))
        }
        Side::Undecidable { .. }
        | Side::NotIsolated
        | Side::Admitted { .. }
        | Side::NodeLocal
        | Side::NotApplicable => Ok(None),
    }
}

fn side(decision: &Decision, direction: Direction) -> &Side {
    match direction {
        Direction::Egress => &decision.egress,
        Direction::Ingress => &decision.ingress,
    }
}

/// A copy of the cluster to try patches on.
struct World {
    cluster: Cluster,
    policies: Policies,
}

impl World {
    fn apply(&mut self, policy: &NetworkPolicy) {
        let change: Change = self.cluster.apply(Object::NetworkPolicy(Box::new(policy.clone())), Origin::default());
        self.policies.update(&self.cluster, &change);
    }

    /// Puts an object back as it was, or takes it away.
    fn restore(&mut self, name: &Name, before: Option<NetworkPolicy>, applied: &NetworkPolicy) {
        match before {
            Some(before) => self.apply(&before),
            None => {
                let key = Object::NetworkPolicy(Box::new(applied.clone())).key();
                debug_assert_eq!(key.name, *name);
                let change = self.cluster.delete(&key);
                self.policies.update(&self.cluster, &change);
            }
        }
    }

    /// Opens one side with the draft that changes least, and keeps it applied.
    fn open(&mut self, flow: &Flow, direction: Direction, selecting: &[Name]) -> Result<Patch, Unfixable> {
        let managed: Vec<(Name, String)> = selecting
            .iter()
            .filter_map(|name| Some((name.clone(), patch::managed_by(&self.cluster.policy(name)?.object)?)))
            .collect();
        let own = selecting.iter().filter(|name| !managed.iter().any(|(m, _)| m == *name));
        let drafts = patch::drafts(&self.cluster, flow, direction, own);
        let mut best: Option<(Cost, Draft)> = None;
        let before = (self.cluster.clone(), self.policies.clone());
        for draft in drafts {
            let name = Object::NetworkPolicy(Box::new(draft.policy.clone())).key().name;
            let old = self.cluster.policy(&name).map(|p| (*p.object).clone());
            self.apply(&draft.policy);
            let decision = self.policies.decide(&self.cluster, flow);
            if side(&decision, direction).admission() == Admission::Admitted {
                // This side alone: what the other side happens to deny today is opened all the same.
                let changes = diff_of((&before.0, &before.1), (&self.cluster, &self.policies), Some(direction));
                let cost = Cost::of(&changes, &draft);
                if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                    best = Some((cost, draft.clone()));
                }
            }
            self.restore(&name, old, &draft.policy);
        }
        let (_, draft) = best.ok_or(Unfixable::NotExpressible)?;
        self.apply(&draft.policy);
        Ok(Patch { policy: draft.policy, direction, kind: draft.kind, managed })
    }
}

/// What a draft costs: closing anything is worst, then opening much, then more text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cost {
    closed: usize,
    opened: usize,
    rank: usize,
}

impl Cost {
    fn of(changes: &[Difference], draft: &Draft) -> Self {
        let count = |ends: &Ends| match ends {
            Ends::Pods(names) => names.len(),
            // The outside is larger than any cluster.
            Ends::Outside => 1 << 20,
        };
        let triples = |d: &Difference| {
            let ports: usize = d.ports.iter().map(|p| usize::from(p.last - p.first) + 1).sum();
            count(&d.sources).saturating_mul(count(&d.destinations)).saturating_mul(ports)
        };
        let sum = |closes: bool| {
            let matching = changes.iter().filter(|d| (d.after == Admission::NotAdmitted) == closes);
            matching.map(triples).fold(0, usize::saturating_add)
        };
        Self { closed: sum(true), opened: sum(false), rank: draft.rank }
    }
}
