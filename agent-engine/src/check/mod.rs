//! Pre-flight: every required flow of the pods at hand, judged by the policies at hand. No traffic, no clock, no files.
//!
//! The same resolution and the same evaluator as the agent's, so that a check of manifests and the agent in the cluster cannot
//! disagree.

mod compare;
mod mutation;
mod pairs;
mod repair;
mod report;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use compare::{Changed, Comparison, compare};
pub use mutation::{Mutation, Need, RuleMutation};
pub use pairs::judge_all;
pub use repair::{Left, Repair, Repaired, repair, repair_flows};
pub use report::{
    Brief, Case, Counts, Finding, InstanceView, PairReport, Report, SeverityCount, SideKind, VERSION, Verdict, instance,
};
pub use traffic::{Connection, Party, connections};

use crate::cluster::{Change, Cluster, Key, Kind, Object, Origin};
use crate::identity::Identity;
use crate::policy::lint::{Level, Lint, LintId, RuleKey, Usage, lint};
use crate::policy::{Miss, Policies, Profile, Side, Tier, Why};
use crate::requirement::{Catalogue, Pair, PairKey, Resolver};
use crate::snapshot::ObjectCount;
use crate::time::Time;

/// Pairs that given traffic may tell of.
const MAX_LEARNT: usize = 20_000;

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
        let mut resolver = Resolver::new(catalogue, MAX_LEARNT, &[]);
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
    let findings = findings(lint(&model.cluster, &usage(&pairs)), &pairs);
    let mutation = options.mutate.then(|| mutation::mutate(model, &pairs));
    Report {
        version: VERSION,
        engine: options.profile,
        verdict: Verdict::of(&pairs),
        counts: Counts::of(&pairs),
        pairs,
        lints: findings,
        mutation,
        objects: model.objects.iter().map(|(kind, count)| ObjectCount { kind: *kind, count: *count }).collect(),
        simulated: model.cluster.pods().filter(|p| p.simulated).map(|p| p.workload.to_string()).collect(),
    }
}

/// What required flows make of the policies.
fn usage(pairs: &[PairReport]) -> Usage {
    let mut usage = Usage::default();
    for pair in pairs {
        for (direction, side) in pair.cases.iter().flat_map(Case::sides) {
            match side {
                Side::Admitted { by, .. } => {
                    let by = by.iter().filter(|r| r.tier == Tier::NetworkPolicy);
                    usage.rules.extend(by.map(|r| (r.policy.clone(), direction, r.rule)));
                }
                Side::NodeLocal => {
                    usage.node_local.insert((pair.destination.namespace.clone(), pair.protocol, pair.port));
                }
                Side::NotIsolated
                | Side::NotAdmitted { .. }
                | Side::DeniedBy { .. }
                | Side::NotApplicable
                | Side::Undecidable { .. } => {}
            }
        }
    }
    usage
}

/// Lints, each with the required flows that it stands in the way of. What is merely unusual, and blocks one, is a warning.
fn findings(lints: Vec<Lint>, pairs: &[PairReport]) -> Vec<Finding> {
    let mut near: BTreeMap<RuleKey, Vec<(&Miss, &Arc<str>)>> = BTreeMap::new();
    for pair in pairs.iter().filter(|p| p.verdict == Verdict::Denied) {
        for (direction, side) in pair.cases.iter().flat_map(Case::sides) {
            let Side::NotAdmitted { selecting } = side else { continue };
            for selecting in selecting {
                for miss in &selecting.misses {
                    let rule = (selecting.policy.clone(), direction, miss.rule);
                    near.entry(rule).or_default().push((miss, &pair.flow));
                }
            }
        }
    }
    let mut found: Vec<Finding> = lints
        .into_iter()
        .map(|mut lint| {
            let rule = lint.direction.zip(lint.rule).map(|(direction, rule)| (lint.policy.clone(), direction, rule));
            let misses = rule.and_then(|rule| near.get(&rule)).into_iter().flatten();
            let here = misses.filter(|(miss, _)| lint.peer.is_none() || miss.peer == lint.peer);
            let blocks: BTreeSet<&Arc<str>> =
                here.filter(|(m, _)| explains(lint.id, m)).map(|(_, flow)| *flow).collect();
            if !blocks.is_empty() {
                lint.level = lint.level.min(Level::Warning);
            }
            let blocks = blocks.into_iter().cloned().collect();
            Finding { lint, blocks }
        })
        .collect();
    found.sort_by(|a, b| {
        (a.lint.level, a.blocks.is_empty(), &a.lint).cmp(&(b.lint.level, b.blocks.is_empty(), &b.lint))
    });
    found
}

/// Whether the lint is why the rule misses: without it the rule would admit.
fn explains(id: LintId, miss: &Miss) -> bool {
    match (id, &miss.why) {
        (LintId::ServicePort, Why::ServicePort { .. })
        | (LintId::PortNameUnknown, Why::PortName { .. })
        | (LintId::Invalid, Why::Invalid { .. }) => true,
        (LintId::NamespaceLabelUnknown | LintId::PeerNoNamespace, Why::NamespaceLabel { .. })
        | (LintId::PeerOwnNamespace, Why::OtherNamespace { .. })
        | (LintId::PeerNoPod, Why::PodLabel { .. })
        | (LintId::PeerHostNetwork, Why::NotAPod { .. }) => miss.port_matches,
        _ => false,
    }
}
