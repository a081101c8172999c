//! What each rule is needed for: which required flows close when it alone is deleted.
//!
//! Rules only ever add, so deleting one can close only what it alone admits; there is one exception: a policy without
//! policyTypes isolates for egress only as long as it has egress rules. What that leaves is tried out, because a flow may be
//! required only as long as the rule means it, and because of a host outside there may be nothing to say without the rule.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use super::report::{PairReport, Verdict};
use super::{Model, Options, pairs};
use crate::cluster::{Cluster, Object, Origin, Policy};
use crate::policy::lint::RuleKey;
use crate::policy::{Side, Tier};
use crate::snapshot::EndView;
use crate::words::{Direction, Name, Protocol};

/// What each rule is needed for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutation {
    /// Every rule of every NetworkPolicy that has an effect, by policy, direction and index.
    pub rules: Vec<RuleMutation>,
    /// Rules that can be deleted one by one without closing a required flow.
    pub redundant: usize,
}

/// One rule, deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleMutation {
    /// The policy.
    pub policy: Name,
    /// File and line, or resourceVersion.
    pub origin: Origin,
    /// Which list.
    pub direction: Direction,
    /// Index, from 0.
    pub rule: usize,
    /// What deleting it does.
    pub need: Need,
    /// The required flows that close.
    pub breaks: Vec<Broken>,
    /// The required flows of which nothing can be said any longer.
    pub doubts: Vec<Broken>,
    /// Pairs that it admits, alone or with other rules.
    pub admits: usize,
}

/// What deleting a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Required flows close, or nothing can be said of them any longer.
    Needed,
    /// It admits required flows, all of which another rule admits as well.
    Shared,
    /// It admits no required flow.
    Unused,
}

/// A required flow that closes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Broken {
    /// The catalogue's id.
    pub flow: std::sync::Arc<str>,
    /// Who connects.
    pub source: EndView,
    /// To whom.
    pub destination: EndView,
    /// Transport.
    pub protocol: Protocol,
    /// Pod port.
    pub port: u16,
}

pub(super) fn mutate(model: &Model, pairs: &[PairReport]) -> Mutation {
    let cluster = &model.cluster;
    let mut alone: BTreeMap<RuleKey, BTreeSet<Broken>> = BTreeMap::new();
    let mut admits: BTreeMap<RuleKey, BTreeSet<Broken>> = BTreeMap::new();
    for pair in pairs {
        for case in &pair.cases {
            let open = case.denying().next().is_none();
            for (direction, side) in case.sides() {
                let Side::Admitted { by, selecting } = side else { continue };
                let own = by.iter().filter(|r| r.tier == Tier::NetworkPolicy);
                for rule in own {
                    let key = (rule.policy.clone(), direction, rule.rule);
                    if open && by.len() == 1 && (selecting.len() > 1 || !last_isolating(cluster, &key)) {
                        alone.entry(key.clone()).or_default().insert(Broken::of(pair));
                    }
                    admits.entry(key).or_default().insert(Broken::of(pair));
                }
            }
        }
    }
    let doubtful: Vec<Broken> = pairs.iter().filter(|pair| Fate::of(pair).undecidable > 0).map(Broken::of).collect();
    let before = pairs.iter().map(|pair| (Broken::of(pair), Fate::of(pair))).collect();
    let mut trial = Trial { before, model: model.clone() };
    let rules: Vec<RuleMutation> = cluster
        .policies()
        .flat_map(|policy| effective(policy).into_iter().map(move |key| (policy, key)))
        .map(|(policy, key)| {
            let admits = admits.get(&key).map_or(0, BTreeSet::len);
            // What it may admit or not closes too, where it is not admitted without it.
            let touched = alone.remove(&key).unwrap_or_default().into_iter().chain(doubtful.iter().cloned()).collect();
            let (breaks, doubts) = trial.without(&policy.object, &key, &touched);
            let need = match (breaks.len() + doubts.len(), admits) {
                (0, 0) => Need::Unused,
                (0, _) => Need::Shared,
                (_, _) => Need::Needed,
            };
            let (name, direction, rule) = key;
            RuleMutation { policy: name, origin: policy.origin.clone(), direction, rule, need, breaks, doubts, admits }
        })
        .collect();
    let redundant = rules.iter().filter(|r| r.need != Need::Needed).count();
    Mutation { rules, redundant }
}

impl Broken {
    fn of(pair: &PairReport) -> Self {
        Self {
            flow: pair.flow.clone(),
            source: pair.source.clone(),
            destination: pair.destination.clone(),
            protocol: pair.protocol,
            port: pair.port,
        }
    }
}

/// Instances of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fate {
    denied: usize,
    undecidable: usize,
}

impl Fate {
    fn of(pair: &PairReport) -> Self {
        let count = |verdict| pair.cases.iter().filter(|c| c.verdict == verdict).map(|c| c.count).sum();
        Self { denied: count(Verdict::Denied), undecidable: count(Verdict::Undecidable) }
    }
}

/// A copy of everything to delete rules in, one at a time.
struct Trial {
    before: BTreeMap<Broken, Fate>,
    model: Model,
}

impl Trial {
    /// Of the flows that the rule touches, those that close without it, and those that come to be in doubt.
    fn without(
        &mut self,
        policy: &NetworkPolicy,
        (_, direction, rule): &RuleKey,
        touched: &BTreeSet<Broken>,
    ) -> (Vec<Broken>, Vec<Broken>) {
        if touched.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut lesser = policy.clone();
        let spec = lesser.spec.get_or_insert_default();
        match direction {
            Direction::Ingress => drop(spec.ingress.as_mut().map(|rules| rules.remove(*rule))),
            Direction::Egress => drop(spec.egress.as_mut().map(|rules| rules.remove(*rule))),
        }
        self.apply(lesser);
        let ports: BTreeSet<_> = touched.iter().map(|b| (b.protocol, b.port)).collect();
        let options = Options { max_instances: 0, ..Options::default() };
        let still = self.model.pairs();
        let still = still.values().filter(|pair| ports.contains(&(pair.key.protocol, pair.key.port)));
        let still = still.map(|pair| pairs::judge(&self.model, pair, &options));
        let fates = still.map(|pair| (Broken::of(&pair), Fate::of(&pair))).filter(|(key, _)| touched.contains(key));
        let (mut breaks, mut doubts) = (Vec::new(), Vec::new());
        for (flow, fate) in fates.collect::<BTreeMap<_, _>>() {
            match self.before.get(&flow) {
                Some(before) if fate.denied > before.denied => breaks.push(flow),
                Some(before) if fate.undecidable > before.undecidable => doubts.push(flow),
                _ => {}
            }
        }
        self.apply(policy.clone());
        (breaks, doubts)
    }

    fn apply(&mut self, policy: NetworkPolicy) {
        let Model { cluster, resolver, policies, .. } = &mut self.model;
        let change = cluster.apply(Object::NetworkPolicy(Box::new(policy)), Origin::default());
        resolver.update(cluster, &change);
        policies.update(cluster, &change);
    }
}

/// Without this rule the policy no longer isolates in its direction.
fn last_isolating(cluster: &Cluster, (name, direction, _): &RuleKey) -> bool {
    let spec = cluster.policy(name).and_then(|p| p.object.spec.as_ref());
    *direction == Direction::Egress
        && spec.is_some_and(|s| {
            s.policy_types.as_ref().is_none_or(Vec::is_empty) && s.egress.as_ref().is_some_and(|rules| rules.len() == 1)
        })
}

fn effective(policy: &Policy) -> Vec<RuleKey> {
    let meta = &policy.object.metadata;
    let name = Name::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or(""));
    let Some(spec) = &policy.object.spec else { return Vec::new() };
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let has = |kind: &str| types.is_empty() || types.iter().any(|t| t == kind);
    let count = |kind: &str, len: Option<usize>| if has(kind) { len.unwrap_or(0) } else { 0 };
    let ingress = 0..count("Ingress", spec.ingress.as_ref().map(Vec::len));
    let egress = 0..count("Egress", spec.egress.as_ref().map(Vec::len));
    let ingress = ingress.map(|rule| (name.clone(), Direction::Ingress, rule));
    ingress.chain(egress.map(|rule| (name.clone(), Direction::Egress, rule))).collect()
}
