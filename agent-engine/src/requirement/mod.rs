//! What the mesh needs: the catalogue, and its resolution against the objects of a cluster.

mod catalogue;
mod declared;
mod learn;
mod pair;
mod population;
mod resolve;
mod role;
#[cfg(test)]
mod tests;

use std::fmt;

pub use catalogue::{Catalogue, CatalogueError, LearnFrom, PortSource, Requirement};
pub use learn::SeenEnd;
pub use pair::{End, Pair, PairKey, same};
pub use resolve::{FLOWS_LABEL, Resolver};
pub use role::{Role, Roles};
use serde::{Deserialize, Serialize};

/// How bad it is when a flow is blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Control plane, injection or a whole pod or gateway unusable.
    Critical,
    /// User traffic or a feature fails.
    High,
    /// Partial.
    Medium,
    /// Partial, rarely noticed.
    Low,
    /// Benign.
    Info,
}

impl Severity {
    /// Every severity, worst first.
    pub const ALL: [Self; 5] = [Self::Critical, Self::High, Self::Medium, Self::Low, Self::Info];

    /// The word of the documentation and the metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::High => "high",
            Self::Medium => "medium",
            Self::Low => "low",
            Self::Info => "info",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
