//! What a source of cluster objects says: the same for the API server and for manifests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weir_engine::cluster::{Key, Kind, Object, Origin};

use super::manifests::Problem;

/// One step of a cluster source. Applied in order, they make the engine's cluster what the source last knew.
#[derive(Clone, Debug)]
pub enum Change {
    /// An object was added or replaced.
    Apply {
        /// The object, reduced to what Weir reads.
        object: Object,
        /// Where it came from.
        origin: Origin,
    },
    /// An object is gone, or no longer this node's concern.
    Delete(Key),
    /// The API server was asked who has an address; the objects found have been applied before. Until then the identity of an
    /// address that no object has is unknown. Only for addresses that were asked for.
    Answered {
        /// Which one.
        address: IpAddr,
        /// A running pod or a node has it; else whoever sends from it is outside of the cluster.
        somebody: bool,
    },
    /// Everything that decisions rest on has been said once. Comes at most once.
    Synced,
    /// A part of the source changed its state.
    Health(Health),
    /// Manifests were read.
    Read(Reading),
    /// All candidates of one source: policies that are not enforced.
    Candidates(Candidates),
}

/// What manifests hold besides objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What is wrong with them: all problems there are now, not only new ones.
    pub problems: Vec<Problem>,
    /// Objects that Weir does not read, by `apiVersion kind`.
    pub ignored: BTreeMap<String, usize>,
    /// Files known.
    pub files: usize,
}

/// What a source of candidates holds.
#[derive(Clone, Debug)]
pub struct Candidates {
    /// The file, or the ConfigMap; what it held before is forgotten.
    pub source: Arc<str>,
    /// The policies.
    pub policies: Vec<NetworkPolicy>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// An object as Kubernetes writes it, as far as it was kept; what a recording holds.
///
/// # Errors
/// Never for objects that were decoded; serde's signature has one.
pub fn to_value(object: &Object) -> serde_json::Result<serde_json::Value> {
    match object {
        Object::Namespace(o) => serde_json::to_value(o),
        Object::Node(o) => serde_json::to_value(o),
        Object::Pod(o) => serde_json::to_value(o),
        Object::Service(o) => serde_json::to_value(o),
        Object::EndpointSlice(o) => serde_json::to_value(o),
        Object::NetworkPolicy(o) => serde_json::to_value(o),
        Object::AdminPolicy(_, o) => serde_json::to_value(o),
        Object::Raw(_, o) => Ok(serde_json::Value::clone(o)),
        Object::Template(kind, o) => template(*kind, o),
    }
}

/// A workload around its pod template.
fn template(kind: Kind, pod: &Pod) -> serde_json::Result<serde_json::Value> {
    let own = &pod.metadata;
    let inner = serde_json::json!({
        "metadata": {"labels": own.labels, "annotations": own.annotations},
        "spec": pod.spec,
    });
    let group = if matches!(kind, Kind::Job | Kind::CronJob) { "batch/v1" } else { "apps/v1" };
    let spec = if kind == Kind::CronJob {
        serde_json::json!({"jobTemplate": {"spec": {"template": inner}}})
    } else {
        serde_json::json!({"template": inner})
    };
    let metadata = ObjectMeta { labels: None, annotations: None, ..own.clone() };
    let metadata = serde_json::to_value(metadata)?;
    Ok(serde_json::json!({"apiVersion": group, "kind": kind.as_str(), "metadata": metadata, "spec": spec}))
}

/// How well one part of the source is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Which part, for people: `pods (spec.nodeName=worker-1)`. Stable and unique.
    pub part: Arc<str>,
    /// The kind that it brings; none for discovery.
    pub kind: Option<Kind>,
    /// Whether decisions can't be trusted without it.
    pub essential: bool,
    /// How it is doing.
    pub state: State,
    /// Why, where it is not current, or which objects it had to skip.
    pub reason: Option<Arc<str>>,
    /// When the API server last confirmed what is known; none before the first time.
    pub confirmed: Option<Instant>,
    /// Objects of the part that could not be decoded; their last good versions stay in force.
    pub undecodable: u32,
}

impl Health {
    /// How old what this part says may be: zero while it is current, none where nothing is known.
    #[must_use]
    pub fn age(&self, now: Instant) -> Option<Duration> {
        match self.state {
            State::Current => Some(Duration::ZERO),
            State::Starting | State::Stale | State::Refused | State::Absent => {
                self.confirmed.map(|t| now.saturating_duration_since(t))
            }
        }
    }
}

/// How a part of the source is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Not everything has been said yet.
    Starting,
    /// Everything is known and a watch is open.
    Current,
    /// The API server can't be reached or answers with errors: what is known stays in force and ages.
    Stale,
    /// The API server refuses access (401 or 403): what is known stays in force and ages.
    Refused,
    /// The API server does not serve this kind. No fault: a CRD that is not installed.
    Absent,
}

impl State {
    /// As a word, for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Current => "current",
            Self::Stale => "stale",
            Self::Refused => "refused",
            Self::Absent => "absent",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_engine::cluster::{Cluster, Object};

    use super::to_value;
    use crate::cluster::manifests;

    /// Every fixture of this repository, and the larger ones beside it where they are.
    fn fixtures() -> Vec<std::path::PathBuf> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let shared = std::env::var_os("WEIR_SHARED").map_or_else(|| root.join("../shared"), Into::into);
        let scenarios = std::fs::read_dir(root.join("tests/fixtures/scenarios")).unwrap();
        let mut found: Vec<_> = scenarios.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
        let beside = ["istio-upstream", "kyma-managed"].map(|name| shared.join("fixtures").join(name));
        found.extend(beside.into_iter().filter(|p| p.is_dir()));
        found.sort();
        found
    }

    #[test]
    fn a_cluster_that_is_told_what_another_knows_knows_the_same() {
        let mut objects = 0;
        for folder in fixtures() {
            let read = manifests::load(std::slice::from_ref(&folder)).unwrap();
            let mut cluster = Cluster::default();
            for object in read.objects {
                cluster.apply(object.object, object.origin);
            }
            let mut again = Cluster::default();
            for (object, origin) in cluster.objects() {
                let object = Object::from_value(to_value(&object).unwrap()).unwrap();
                again.apply(object, origin);
                objects += 1;
            }
            let of = |c: &Cluster| {
                let namespaces = c.namespaces().cloned().collect::<Vec<_>>();
                let nodes = c.nodes().cloned().collect::<Vec<_>>();
                let pods = c.pods().cloned().collect::<Vec<_>>();
                let services = c.services().cloned().collect::<Vec<_>>();
                let slices = c.slices().cloned().collect::<Vec<_>>();
                let policies = c.policies().cloned().collect::<Vec<_>>();
                let wide = c.cluster_policies().cloned().collect::<Vec<_>>();
                (namespaces, nodes, pods, services, slices, policies, wide)
            };
            assert_eq!(of(&cluster), of(&again), "{}", folder.display());
            let values = |c: &Cluster| -> Vec<_> {
                c.objects().iter().map(|(object, origin)| (to_value(object).unwrap(), origin.clone())).collect()
            };
            assert_eq!(values(&cluster), values(&again), "{}", folder.display());
        }
        assert!(objects > 50, "{objects} objects compared");
    }
}
