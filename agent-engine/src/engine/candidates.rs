//! Policies that are not enforced yet: everything is judged a second time as if they were.
//!
//! A candidate is added to the enforced policies. It takes the place of the enforced policy of its own name, and of those that
//! its annotation [`REPLACES`] names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::cluster::{Change, Cluster, Object, ObjectError};
use crate::ledger::{Judged, MAX_POLICIES, endpoint};
use crate::policy::{Admission, Decision, Policies, Profile};
use crate::snapshot::{CandidatePolicy, CandidateView, CandidatesView, Effect, InstanceView, PairView, TrafficView};
use crate::words::Name;

/// Annotation of a candidate: enforced policies of its namespace that it takes the place of, by name, with commas between; `*`
/// for all of them.
pub const REPLACES: &str = "weir.io/replaces";

/// One policy that is not enforced.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    name: Name,
    policy: Arc<NetworkPolicy>,
    replaces: Vec<Arc<str>>,
}

impl Candidate {
    /// A policy as a candidate.
    #[must_use]
    pub fn new(policy: NetworkPolicy) -> Self {
        let object = Object::NetworkPolicy(Box::new(policy));
        let name = object.key().name;
        let Object::NetworkPolicy(policy) = object else { unreachable!("it was made one line above") };
        let annotation = policy.metadata.annotations.as_ref().and_then(|a| a.get(REPLACES));
        let names = annotation.into_iter().flat_map(|text| text.split(','));
        let replaces = names.map(str::trim).filter(|n| !n.is_empty()).map(Arc::from).collect();
        Self { name, policy: Arc::from(policy), replaces }
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`ObjectError`] for what is no NetworkPolicy.
    pub fn from_value(value: serde_json::Value) -> Result<Self, ObjectError> {
        match Object::from_value(value)? {
            Object::NetworkPolicy(policy) => Ok(Self::new(*policy)),
            other => Err(ObjectError::Ignored {
                api_version: "a candidate that is a".to_owned(),
                kind: other.key().kind.as_str().to_owned(),
            }),
        }
    }

    /// The object.
    #[must_use]
    pub fn policy(&self) -> &NetworkPolicy {
        &self.policy
    }

    /// Namespace and name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The enforced policies that it takes the place of.
    fn replaced<'a>(&'a self, cluster: &'a Cluster) -> impl Iterator<Item = &'a Name> {
        let every = self.replaces.iter().any(|r| &**r == "*");
        cluster.policies_by_name().filter(move |name| {
            name.namespace == self.name.namespace
                && (every || name.name == self.name.name || self.replaces.contains(&name.name))
        })
    }
}

/// The candidates of all sources, and the policies as they would be with them.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    sources: BTreeMap<Arc<str>, Vec<Candidate>>,
    policies: Option<Box<Policies>>,
}

impl Candidates {
    /// The policies with the candidates in force; none where there are no candidates.
    pub fn policies(&self) -> Option<&Policies> {
        self.policies.as_deref()
    }

    /// All candidates, by source.
    pub fn sources(&self) -> impl Iterator<Item = (&str, &[Candidate])> {
        self.sources.iter().map(|(source, all)| (&**source, all.as_slice()))
    }

    /// Takes over all candidates of one source; says whether that is news.
    pub fn set(&mut self, cluster: &Cluster, profile: Profile, source: &str, candidates: Vec<Candidate>) -> bool {
        if self.sources.get(source).map_or(&[][..], Vec::as_slice) == candidates {
            return false;
        }
        if candidates.is_empty() {
            self.sources.remove(source);
        } else {
            self.sources.insert(source.into(), candidates);
        }
        if self.sources.is_empty() {
            self.policies = None;
            return true;
        }
        let mut policies = self.policies.take().unwrap_or_else(|| Box::new(Policies::of(cluster, profile)));
        policies.overlay(cluster, self.overlay(cluster));
        self.policies = Some(policies);
        true
    }

    /// Follows the cluster, in all but NetworkPolicies.
    pub fn update(&mut self, cluster: &Cluster, change: &Change) {
        if let Some(policies) = &mut self.policies {
            policies.update(cluster, change);
        }
    }

    /// These NetworkPolicies were written or deleted.
    pub fn update_policies(&mut self, cluster: &Cluster, names: &BTreeSet<Name>) {
        let Some(mut policies) = self.policies.take() else { return };
        policies.update_policies(cluster, names);
        // Which policies `*` takes away depends on which there are.
        policies.overlay(cluster, self.overlay(cluster));
        self.policies = Some(policies);
    }

    fn overlay(&self, cluster: &Cluster) -> BTreeMap<Name, Option<Arc<NetworkPolicy>>> {
        let all = || self.sources.values().flatten();
        let mut overlay: BTreeMap<Name, Option<Arc<NetworkPolicy>>> =
            all().flat_map(|c| c.replaced(cluster)).map(|name| (name.clone(), None)).collect();
        overlay.extend(all().map(|c| (c.name.clone(), Some(c.policy.clone()))));
        overlay
    }

    /// What enforcing them would change.
    pub fn view(&self, cluster: &Cluster, pairs: &[PairView], traffic: &[TrafficView]) -> Option<CandidatesView> {
        self.policies.as_ref()?;
        let pairs = || pairs.iter().filter_map(|p| p.candidate.as_ref());
        let traffic = traffic.iter().filter_map(|t| t.candidate.as_ref());
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        let policies = self.sources.iter().flat_map(|(source, all)| {
            all.iter().map(|c| CandidatePolicy {
                policy: c.name.to_string(),
                replaces: c.replaced(cluster).map(ToString::to_string).collect(),
                source: source.to_string(),
            })
        });
        let mut policies: Vec<CandidatePolicy> = policies.collect();
        policies.sort_by(|a, b| a.policy.cmp(&b.policy));
        Some(CandidatesView {
            policies,
            breaks: count(pairs().filter(|c| c.effect == Effect::Breaks).count()),
            opens: count(pairs().filter(|c| c.effect == Effect::Opens).count()),
            traffic_breaks: count(traffic.filter(|c| c.effect == Effect::Breaks).count()),
        })
    }
}

/// What the candidates would change for a pair.
pub(super) fn view(enforced: &Judged, candidate: &Judged) -> CandidateView {
    let news = candidate.not_admitted.iter().any(|i| !enforced.not_admitted.contains(i));
    let effect = match (enforced.admission, candidate.admission) {
        // Of more pods than are kept by name, the number still tells.
        (_, Admission::NotAdmitted) if candidate.not_admitted_count > enforced.not_admitted_count => Effect::Breaks,
        (_, Admission::NotAdmitted) if news && enforced.not_admitted_count <= enforced.not_admitted.len() => {
            Effect::Breaks
        }
        (Admission::NotAdmitted, Admission::Admitted) => Effect::Opens,
        _ => Effect::Same,
    };
    CandidateView {
        not_admitted: candidate
            .not_admitted
            .iter()
            .map(|(s, d)| InstanceView { source: endpoint(s), destination: endpoint(d) })
            .collect(),
        not_admitted_count: candidate.not_admitted_count,
        ..of_decision(effect, &candidate.decision)
    }
}

/// A decision as it is shown, without instances.
pub(super) fn of_decision(effect: Effect, decision: &Decision) -> CandidateView {
    let (policies, policies_left_out) = decision.some_denying(MAX_POLICIES);
    CandidateView {
        effect,
        admission: decision.admission(),
        directions: decision.denying().map(|(direction, _)| direction).collect(),
        policies,
        policies_left_out,
        egress: decision.egress.clone(),
        ingress: decision.ingress.clone(),
        not_admitted: Vec::new(),
        not_admitted_count: 0,
    }
}
