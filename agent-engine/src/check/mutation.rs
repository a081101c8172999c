//! What each rule is needed for: which required flows close when it alone is deleted.
//!
//! Rules only ever add, so deleting one closes exactly what it alone admits. There is one exception: a policy without
//! policyTypes isolates for egress only as long as it has egress rules.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::report::PairReport;
use crate::cluster::{Cluster, Origin, Policy};
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
    /// Pairs that it admits, alone or with other rules.
    pub admits: usize,
}

/// What deleting a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Required flows close.
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

pub(super) fn mutate(cluster: &Cluster, pairs: &[PairReport]) -> Mutation {
    let mut breaks: BTreeMap<RuleKey, BTreeSet<Broken>> = BTreeMap::new();
    let mut admits: BTreeMap<RuleKey, BTreeSet<Broken>> = BTreeMap::new();
    for pair in pairs {
        let broken = || Broken {
            flow: pair.flow.clone(),
            source: pair.source.clone(),
            destination: pair.destination.clone(),
            protocol: pair.protocol,
            port: pair.port,
        };
        for case in &pair.cases {
            let open = case.denying().next().is_none();
            for (direction, side) in case.sides() {
                let Side::Admitted { by, selecting } = side else { continue };
                let own = by.iter().filter(|r| r.tier == Tier::NetworkPolicy);
                for rule in own {
                    let key = (rule.policy.clone(), direction, rule.rule);
                    let alone = by.len() == 1 && (selecting.len() > 1 || !last_isolating(cluster, &key));
                    if open && alone {
                        breaks.entry(key.clone()).or_default().insert(broken());
                    }
                    admits.entry(key).or_default().insert(broken());
                }
            }
        }
    }
    let rules: Vec<RuleMutation> = cluster
        .policies()
        .flat_map(|policy| effective(policy).into_iter().map(move |key| (policy, key)))
        .map(|(policy, key)| {
            let admits = admits.get(&key).map_or(0, BTreeSet::len);
            let breaks: Vec<Broken> = breaks.remove(&key).into_iter().flatten().collect();
            let need = match (breaks.len(), admits) {
                (0, 0) => Need::Unused,
                (0, _) => Need::Shared,
                (_, _) => Need::Needed,
            };
            let (name, direction, rule) = key;
            RuleMutation { policy: name, origin: policy.origin.clone(), direction, rule, need, breaks, admits }
        })
        .collect();
    let redundant = rules.iter().filter(|r| r.need != Need::Needed).count();
    Mutation { rules, redundant }
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
