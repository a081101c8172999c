//! Pre-flight: every required flow of the pods at hand, judged by the policies at hand. No traffic, no clock, no files.
//!
//! The same resolution and the same evaluator as the agent's, so that a check of manifests and the agent in the cluster cannot
//! disagree.

mod mutation;
mod pairs;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use mutation::{Mutation, Need, RuleMutation};
pub use report::{
    Brief, Case, Counts, Finding, InstanceView, PairReport, Report, SeverityCount, SideKind, VERSION, Verdict, instance,
};

use crate::cluster::{Change, Cluster, Key, Kind, Object, Origin};
use crate::identity::Identity;
use crate::policy::lint::{Level, Lint, LintId, RuleKey, lint};
use crate::policy::{Policies, Profile, Side, Tier};
use crate::requirement::{Catalogue, Pair, PairKey, Resolver};
use crate::snapshot::ObjectCount;
use crate::time::Time;

/// What a check is told beside the objects.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whose reading of the specification decides.
    pub profile: Profile,
    /// Concrete sources and destinations kept per case; how many there are is always told.
    pub max_instances: usize,
    /// Find out what each rule is needed for.
    pub mutate: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { profile: Profile::Spec, max_instances: 20, mutate: false }
    }
}

/// Objects with everything that is derived from them.
#[derive(Clone, Debug)]
pub struct Model {
    /// The objects.
    pub cluster: Cluster,
    /// Whose address is whose.
    pub identity: Identity,
    /// Who needs what.
    pub resolver: Resolver,
    /// What is admitted.
    pub policies: Policies,
    /// Objects by kind.
    pub objects: BTreeMap<Kind, u64>,
}

impl Model {
    /// Takes in all objects at once.
    #[must_use]
    pub fn new(objects: impl IntoIterator<Item = (Object, Origin)>, catalogue: Catalogue, profile: Profile) -> Self {
        let mut cluster = Cluster::default();
        let mut keys: BTreeSet<Key> = BTreeSet::new();
        for (object, origin) in objects {
            keys.insert(object.key());
            cluster.apply(object, origin);
        }
        let mut identity = Identity::default();
        let mut resolver = Resolver::new(catalogue, 0);
        let mut objects = BTreeMap::new();
        for key in keys {
            *objects.entry(key.kind).or_default() += 1;
            let namespace = key.kind == Kind::Namespace;
            let change = Change::Applied(key);
            identity.update(&cluster, &change, Time::default());
            // All labels are known already: a namespace would only have its pods looked at twice.
            if !namespace {
                resolver.update(&cluster, &change);
            }
        }
        let policies = Policies::of(&cluster, profile);
        Self { cluster, identity, resolver, policies, objects }
    }

    /// Every required flow between the workloads that exist.
    #[must_use]
    pub fn pairs(&self) -> BTreeMap<PairKey, Pair> {
        self.resolver.resolve(&self.cluster, &self.identity)
    }
}

/// Judges every required flow.
#[must_use]
pub fn check(model: &Model, options: &Options) -> Report {
    let mut pairs: Vec<PairReport> = model.pairs().values().map(|p| pairs::judge(model, p, options)).collect();
    pairs.sort_by(|a, b| a.rank().cmp(&b.rank()));
    let findings = findings(lint(&model.cluster, &used(&pairs)), &pairs);
    let mutation = options.mutate.then(|| mutation::mutate(&model.cluster, &pairs));
    Report {
        version: VERSION,
        engine: options.profile,
        verdict: Verdict::of(&pairs),
        counts: Counts::of(&pairs),
        pairs,
        lints: findings,
        mutation,
        objects: model.objects.iter().map(|(kind, count)| ObjectCount { kind: *kind, count: *count }).collect(),
    }
}

/// The NetworkPolicy rules that admit a required flow.
fn used(pairs: &[PairReport]) -> BTreeSet<RuleKey> {
    let mut used = BTreeSet::new();
    for case in pairs.iter().flat_map(|p| &p.cases) {
        for (direction, side) in case.sides() {
            if let Side::Admitted { by, .. } = side {
                let by = by.iter().filter(|r| r.tier == Tier::NetworkPolicy);
                used.extend(by.map(|r| (r.policy.clone(), direction, r.rule)));
            }
        }
    }
    used
}

/// Lints, each with the required flows that it stands in the way of. What is merely unusual, and blocks one, is a warning.
fn findings(lints: Vec<Lint>, pairs: &[PairReport]) -> Vec<Finding> {
    let mut near: BTreeMap<RuleKey, BTreeMap<Option<usize>, BTreeSet<Arc<str>>>> = BTreeMap::new();
    for pair in pairs.iter().filter(|p| p.verdict == Verdict::Denied) {
        for (direction, side) in pair.cases.iter().flat_map(Case::sides) {
            let Side::NotAdmitted { selecting } = side else { continue };
            for selecting in selecting {
                for miss in selecting.misses.iter().filter(|m| m.port_matches || m.peer.is_none()) {
                    let rule = (selecting.policy.clone(), direction, miss.rule);
                    near.entry(rule).or_default().entry(miss.peer).or_default().insert(pair.flow.clone());
                }
            }
        }
    }
    let mut found: Vec<Finding> = lints
        .into_iter()
        .map(|mut lint| {
            let blocks: BTreeSet<Arc<str>> = match (lint.direction, lint.rule) {
                (Some(direction), Some(rule)) => {
                    let rules = near.get(&(lint.policy.clone(), direction, rule)).into_iter().flatten();
                    let here = rules.filter(|(peer, _)| lint.peer.is_none() || **peer == lint.peer);
                    here.flat_map(|(_, flows)| flows.iter().cloned()).collect()
                }
                _ => BTreeSet::new(),
            };
            let explains = explains(lint.id) && !blocks.is_empty();
            if explains {
                lint.level = lint.level.min(Level::Warning);
            }
            Finding { lint, blocks: if explains { blocks.into_iter().collect() } else { Vec::new() } }
        })
        .collect();
    found.sort_by(|a, b| {
        (a.lint.level, a.blocks.is_empty(), &a.lint).cmp(&(b.lint.level, b.blocks.is_empty(), &b.lint))
    });
    found
}

/// Lints that tell why a rule does not admit, as opposed to how it is written.
fn explains(id: LintId) -> bool {
    match id {
        LintId::Invalid
        | LintId::NamespaceLabelUnknown
        | LintId::PeerNoNamespace
        | LintId::PeerOwnNamespace
        | LintId::PeerNoPod
        | LintId::PeerHostNetwork
        | LintId::ServicePort
        | LintId::PortNameUnknown => true,
        LintId::RulesIgnored
        | LintId::PolicyTypesIngress
        | LintId::PolicyTypesEgress
        | LintId::SelectsNothing
        | LintId::SelectsHostNetwork
        | LintId::OrNotAnd
        | LintId::SplitRule
        | LintId::PortsOnly
        | LintId::EmptyPeerList
        | LintId::IsolatesAlone
        | LintId::RuleUnused => false,
    }
}
