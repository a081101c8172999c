//! A required flow between two ends, and the pods behind it.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalogue::Requirement;
use crate::policy::Endpoint;
use crate::words::{Protocol, Workload};

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The pods of a workload.
    Workload(Workload),
    /// The API server's endpoints.
    ApiServer,
    /// The kubelet of the other end's node.
    Kubelet,
    /// Other nodes than the other end's.
    Node,
    /// Outside the cluster.
    External,
    /// The node's DNS cache.
    NodeLocalDns,
}

impl End {
    /// The word for its kind.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Workload(_) => "workload",
            Self::ApiServer => "api-server",
            Self::Kubelet => "kubelet",
            Self::Node => "node",
            Self::External => "external",
            Self::NodeLocalDns => "node-local-dns",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(w) => w.fmt(f),
            Self::ApiServer | Self::Kubelet | Self::Node | Self::External | Self::NodeLocalDns => {
                f.write_str(self.kind())
            }
        }
    }
}

/// What identifies a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PairKey {
    /// The catalogue's id.
    pub flow: Arc<str>,
    /// Who connects.
    pub source: End,
    /// To whom.
    pub destination: End,
    /// Transport.
    pub protocol: Protocol,
    /// Pod port.
    pub port: u16,
}

/// A pair and its instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// What identifies it.
    pub key: PairKey,
    /// The catalogue's entry.
    pub requirement: Arc<Requirement>,
    /// Concrete sources; for a kubelet none: each destination has its own.
    pub sources: Arc<[Endpoint]>,
    /// Concrete destinations.
    pub destinations: Arc<[Endpoint]>,
    /// Node of each destination, in the same order, where the source is the kubelet.
    pub kubelets: Arc<[Endpoint]>,
}

impl Pair {
    /// Every concrete source and destination, without those whose ends are one and the same.
    pub fn instances(&self) -> impl Iterator<Item = (&Endpoint, &Endpoint)> {
        let own = self.kubelets.iter().zip(self.destinations.iter());
        let product = self.sources.iter().flat_map(|s| self.destinations.iter().map(move |d| (s, d)));
        own.chain(product).filter(|(s, d)| !same(s, d))
    }

    /// Whether this source and destination belong to it.
    #[must_use]
    pub fn has(&self, source: &Endpoint, destination: &Endpoint) -> bool {
        let is = |list: &[Endpoint], e: &Endpoint| list.iter().any(|l| same(l, e));
        is(&self.destinations, destination) && (is(&self.sources, source) || is(&self.kubelets, source))
    }
}

/// One and the same pod, node or address, whichever of its addresses is used.
#[must_use]
pub fn same(a: &Endpoint, b: &Endpoint) -> bool {
    match (a, b) {
        (Endpoint::Pod { name: a, .. }, Endpoint::Pod { name: b, .. }) => a == b,
        (Endpoint::Node { name: a, .. }, Endpoint::Node { name: b, .. }) => a == b,
        (Endpoint::Address(a), Endpoint::Address(b)) => a == b,
        _ => false,
    }
}
