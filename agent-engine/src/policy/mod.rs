//! What the NetworkPolicies say of a flow, and why.
//!
//! A [`Flow`] is judged per side: egress at the source pod, ingress at the destination pod, after service translation.
//! NetworkPolicies only allow: no single policy is "the denier". A side that is not admitted names every policy that selects
//! its pod and, per rule, the first thing that did not match.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cluster::{Change, Cluster};
use crate::words::{Direction, Name, Protocol};

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// A pod (or pod template) of the cluster, hostNetwork pods included; the address says which one of a dual-stack pod.
    Pod {
        /// Which pod.
        name: Name,
        /// The address used; `None` means any of the pod's.
        address: Option<IpAddr>,
    },
    /// The host network of a node: kubelet, hostNetwork processes, SNATed traffic.
    Node {
        /// Which node.
        name: Arc<str>,
        /// The source address; `None` means the node's own addresses.
        address: Option<IpAddr>,
    },
    /// An address that is no pod's and no node's.
    Address(IpAddr),
    /// Any address outside the cluster: a client nobody has seen yet.
    External,
}

/// A connection to judge. The port is the destination pod's, after service translation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// Who connects.
    pub source: Endpoint,
    /// To whom.
    pub destination: Endpoint,
    /// Transport.
    pub protocol: Protocol,
    /// Pod port.
    pub port: u16,
    /// What the client dialled, where that was something else: kept for the report, never judged.
    pub dialled: Option<(IpAddr, u16)>,
}

/// A rule of a policy that admits a flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RuleRef {
    /// `namespace/name`, or the bare name of a cluster-scoped policy.
    pub policy: Name,
    /// Index in `spec.ingress` or `spec.egress`, from 0.
    pub rule: usize,
}

/// What the policies say of one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Side {
    /// No policy of this direction selects the pod.
    NotIsolated,
    /// Selected, and at least one rule admits.
    Admitted {
        /// Every rule that admits.
        by: Vec<RuleRef>,
        /// Every policy that selects the pod for this direction.
        selecting: Vec<Name>,
    },
    /// Selected, and no rule admits.
    NotAdmitted {
        /// Every policy that selects the pod for this direction, nearest miss first.
        selecting: Vec<Selecting>,
    },
    /// Source and destination are one node's pod and that node: always admitted by the specification.
    NodeLocal,
    /// This end is not subject to NetworkPolicies: host network, an address outside the cluster.
    NotApplicable,
    /// Cannot be decided.
    Undecidable {
        /// Why, in one sentence.
        why: String,
    },
}

/// A policy that selects the pod, and why none of its rules admits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selecting {
    /// `namespace/name`.
    pub policy: Name,
    /// One entry per rule; empty for a policy without rules of this direction.
    pub misses: Vec<Miss>,
}

/// Why a rule does not admit: the first thing that did not match, of the peer that came nearest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Miss {
    /// Index of the rule.
    pub rule: usize,
    /// One sentence.
    pub why: String,
}

/// Both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// At the source.
    pub egress: Side,
    /// At the destination.
    pub ingress: Side,
}

/// What both sides together mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// Both sides let it pass.
    Admitted,
    /// At least one side does not admit.
    NotAdmitted,
    /// One side cannot be decided and the other does not forbid.
    Undecidable,
}

impl Side {
    /// What this side means on its own.
    #[must_use]
    pub fn admission(&self) -> Admission {
        match self {
            Self::NotIsolated | Self::Admitted { .. } | Self::NodeLocal | Self::NotApplicable => Admission::Admitted,
            Self::NotAdmitted { .. } => Admission::NotAdmitted,
            Self::Undecidable { .. } => Admission::Undecidable,
        }
    }

    /// The policies that select the pod on this side.
    #[must_use]
    pub fn selecting(&self) -> Vec<&Name> {
        match self {
            Self::NotAdmitted { selecting } => selecting.iter().map(|s| &s.policy).collect(),
            Self::Admitted { selecting, .. } => selecting.iter().collect(),
            Self::NotIsolated | Self::NodeLocal | Self::NotApplicable | Self::Undecidable { .. } => Vec::new(),
        }
    }
}

impl Decision {
    /// Both sides together: not admitted by one is not admitted.
    #[must_use]
    pub fn admission(&self) -> Admission {
        match (self.egress.admission(), self.ingress.admission()) {
            (Admission::NotAdmitted, _) | (_, Admission::NotAdmitted) => Admission::NotAdmitted,
            (Admission::Undecidable, _) | (_, Admission::Undecidable) => Admission::Undecidable,
            (Admission::Admitted, Admission::Admitted) => Admission::Admitted,
        }
    }

    /// The sides that do not admit.
    pub fn denying(&self) -> impl Iterator<Item = (Direction, &Side)> {
        let sides = [(Direction::Egress, &self.egress), (Direction::Ingress, &self.ingress)];
        sides.into_iter().filter(|(_, side)| side.admission() == Admission::NotAdmitted)
    }
}

/// The policies of a cluster, indexed. Follows the cluster change by change.
#[derive(Clone, Debug, Default)]
pub struct Policies {}

impl Policies {
    /// Takes in one change of the cluster.
    pub fn update(&mut self, _cluster: &Cluster, _change: &Change) {}

    /// Judges a flow.
    #[must_use]
    pub fn decide(&self, _cluster: &Cluster, _flow: &Flow) -> Decision {
        Decision { egress: Side::NotIsolated, ingress: Side::NotIsolated }
    }
}
