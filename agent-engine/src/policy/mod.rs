//! What the NetworkPolicies say of a flow, and why.
//!
//! A [`Flow`] is judged per side: egress at the source pod, ingress at the destination pod, after service translation.
//! NetworkPolicies only allow: no single policy is "the denier". A side that is not admitted names every policy that selects
//! its pod and, per rule, the first thing that did not match.

mod decision;
mod explain;
mod profile;

pub use decision::*;
pub use profile::Profile;

use crate::cluster::{Change, Cluster};

/// The policies of a cluster, indexed. Follows the cluster change by change.
#[derive(Clone, Debug, Default)]
pub struct Policies {
    profile: Profile,
}

impl Policies {
    /// No policies yet, judged as the named engine does.
    #[must_use]
    pub fn new(profile: Profile) -> Self {
        Self { profile }
    }

    /// Whose reading of the specification this is.
    #[must_use]
    pub fn profile(&self) -> Profile {
        self.profile
    }

    /// Takes in one change of the cluster.
    pub fn update(&mut self, _cluster: &Cluster, _change: &Change) {}

    /// Judges a flow, with reasons.
    #[must_use]
    pub fn decide(&self, _cluster: &Cluster, _flow: &Flow) -> Decision {
        Decision { egress: Side::NotIsolated, ingress: Side::NotIsolated }
    }

    /// Judges a flow without reasons: the same answer as [`decide`](Self::decide), and no allocation.
    #[must_use]
    pub fn admits(&self, cluster: &Cluster, flow: &Flow) -> Admission {
        self.decide(cluster, flow).admission()
    }
}
