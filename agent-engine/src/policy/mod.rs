//! What the NetworkPolicies say of a flow, and why.
//!
//! A [`Flow`] is judged per side: egress at the source pod, ingress at the destination pod, after service translation.
//! NetworkPolicies only allow: no single policy is "the denier". A side that is not admitted names every policy that selects
//! its pod and, per rule, the first thing that did not match.

mod admin;
mod decide;
mod decision;
pub mod diff;
mod explain;
pub mod fix;
mod group;
mod index;
pub mod lint;
mod lower;
mod miss;
mod patch;
mod peer;
mod profile;
mod program;
mod reach;
mod reasons;
mod selector;
mod service;

pub use decision::*;
pub use profile::{Profile, UnknownProfile};
pub use reach::{Class, Reachability};
pub use reasons::Reasons;
pub(crate) use selector::selects;
pub use service::{Backend, ServiceDecision};

use decide::Judge;
use index::Index;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::networking::v1::NetworkPolicy;

use crate::cluster::{Change, Cluster};
use crate::words::Name;

/// The policies of a cluster, indexed. Follows the cluster change by change.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    profile: Profile,
    loopback: bool,
    index: Index,
}

impl Policies {
    /// No policies yet, judged as the named engine does.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self { profile, ..Self::default() }
    }

    /// The policies of a cluster as it stands.
    #[must_use]
    pub fn of(cluster: &Cluster, profile: Profile) -> Self {
        let mut policies = Self::new(profile);
        policies.index.load(cluster);
        policies
    }

    /// Judges a pod's connection to itself like any other. It never leaves the pod, so policies have no say in it; evaluators
    /// that know no network answer all the same.
    #[must_use]
    pub fn with_loopback(self) -> Self {
        Self { loopback: true, ..self }
    }

    /// Whose reading of the specification this is.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Takes in one change of the cluster.
    pub fn update(&mut self, cluster: &Cluster, change: &Change) {
        self.index.update(cluster, change);
    }

    /// Takes in that these NetworkPolicies were written or deleted: the same as one [`update`](Self::update) for each, and
    /// much cheaper for many of one namespace, next to one another.
    pub fn update_policies<'a>(&mut self, cluster: &Cluster, names: impl IntoIterator<Item = &'a Name>) {
        self.index.sync_policies(cluster, names);
    }

    /// Judges from now on as if these policies stood in the cluster in place of those of the same name; with none, as if there
    /// were none of that name. Replaces what was put there before.
    pub fn overlay(&mut self, cluster: &Cluster, policies: BTreeMap<Name, Option<Arc<NetworkPolicy>>>) {
        self.index.overlay(cluster, policies);
    }

    /// How many NetworkPolicies of a namespace have been taken in.
    #[must_use]
    pub fn count_in(&self, namespace: &str) -> usize {
        self.index.count_in(namespace)
    }

    /// Judges a flow, with reasons.
    #[must_use]
    pub fn decide(&self, cluster: &Cluster, flow: &Flow) -> Decision {
        self.judge(cluster).decide::<true>(flow)
    }

    /// Judges a flow without reasons: the same answer as [`decide`](Self::decide), and nothing is allocated.
    #[must_use]
    pub fn admits(&self, cluster: &Cluster, flow: &Flow) -> Admission {
        self.judge(cluster).admission(flow, None)
    }

    fn judge<'a>(&'a self, cluster: &'a Cluster) -> Judge<'a> {
        Judge { index: &self.index, cluster, profile: self.profile, loopback: self.loopback }
    }
}
