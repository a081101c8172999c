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
