//! Named engine profiles: where engines differ by specification, what each of them does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whose reading of the specification decides. Under `Spec` what depends on the engine is undecidable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// networking.k8s.io/v1 as documented; no engine assumed.
    #[default]
    Spec,
    /// Calico (felix).
    Calico,
    /// Cilium, and GKE Dataplane V2.
    Cilium,
    /// OVN-Kubernetes.
    Ovn,
}

impl Profile {
    /// All profiles.
    pub const ALL: [Self; 4] = [Self::Spec, Self::Calico, Self::Cilium, Self::Ovn];

    /// Whether ipBlock is compared with addresses of pods and nodes. The specification has it so for what reaches the pod
    /// unrewritten; Cilium matches pods and nodes by identity and CIDRs only with what is neither
    /// (`policy-cidr-match-mode`, off by default).
    pub(super) fn blocks_match_cluster(self) -> bool {
        match self {
            Self::Spec | Self::Calico | Self::Ovn => true,
            Self::Cilium => false,
        }
    }

    /// Whether host networks match a peer that selects every pod of every namespace: OVN-Kubernetes counts them in.
    pub(super) fn host_matches_everyone(self) -> bool {
        match self {
            Self::Ovn => true,
            Self::Spec | Self::Calico | Self::Cilium => false,
        }
    }

    /// Whether a pod may reach its own node whatever the policies say. The documentation says so; Calico evaluates workload
    /// egress first (felix, `filterWorkloadToHostChain`), Cilium has no exemption for egress to `host`.
    pub(super) fn own_node_is_open(self) -> bool {
        match self {
            Self::Spec | Self::Ovn => true,
            Self::Calico | Self::Cilium => false,
        }
    }

    /// Whether a kubelet probe under ambient's source address counts as the pod's own node: `None` where it depends.
    pub(super) fn ambient_probe(self) -> Option<bool> {
        match self {
            Self::Spec | Self::Ovn => None,
            Self::Calico => Some(true),
            Self::Cilium => Some(false),
        }
    }

    /// As the command line names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Spec => "spec",
            Self::Calico => "calico",
            Self::Cilium => "cilium",
            Self::Ovn => "ovn",
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No engine of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no engine profile {0:?}; there are spec, calico, cilium and ovn")]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(text: &str) -> Result<Self, UnknownProfile> {
        Self::ALL.into_iter().find(|p| p.as_str() == text).ok_or_else(|| UnknownProfile(text.to_owned()))
    }
}
