//! Who an address is: pod, node, API server, Service, or somebody outside.
//!
//! Follows the cluster change by change. A pod's address stays its own for a while after the pod is gone, because what the
//! kernel saw can be older than what the API said, and addresses are reused.

mod local;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::attempt::Attempt;
use crate::cluster::{Change, Cluster, Kind, Pod};
use crate::time::Time;
use crate::words::{Name, Protocol, Workload};
use local::Local;

/// How long the address of a pod that is gone is still taken for that pod's.
pub const TOMBSTONE: Duration = Duration::from_secs(60);
/// Tombstones kept at most.
const MAX_TOMBSTONES: usize = 8_192;

/// How long the answer to a lookup holds for an address that is not met any more; one that is met is looked up again earlier.
pub const ANSWER: Duration = Duration::from_secs(900);
/// Answers kept at most.
const MAX_ANSWERS: usize = 16_384;

/// NodeLocal DNSCache's link-local address (its documentation's default).
pub const NODE_LOCAL_DNS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
/// Source of the kubelet's probes to ambient pods, after istio-cni's SNAT (`HOST_PROBE_SNAT_IP`, `HOST_PROBE_SNAT_IPV6`).
pub const AMBIENT_PROBES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127)),
    IpAddr::V6(Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff)),
];

/// Who an address is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "peer", rename_all = "kebab-case")]
pub enum Peer {
    /// A pod with an address of its own.
    Pod {
        /// Which one.
        name: Name,
        /// Its workload.
        workload: Workload,
    },
    /// A pod that is gone: its objects can no longer be judged.
    GonePod {
        /// Which one it was.
        name: Name,
        /// Its workload.
        workload: Workload,
    },
    /// A node's host network: the kubelet, hostNetwork pods, traffic translated to the node's address.
    Node {
        /// Which one.
        name: Arc<str>,
        /// The address is an endpoint of the API server as well.
        api_server: bool,
    },
    /// An endpoint of the API server that is no node.
    ApiServer {
        /// Its address.
        address: IpAddr,
    },
    /// A Service's address: not translated yet.
    Service {
        /// Which one.
        name: Name,
    },
    /// The kubelet of the other end's node, probing an ambient pod.
    Kubelet,
    /// The node's DNS cache at its link-local address.
    NodeLocalDns,
    /// Loopback: never leaves its network namespace.
    Loopback,
    /// Outside the cluster.
    External {
        /// Its address.
        address: IpAddr,
    },
    /// Should be a pod by its address, and no object says which.
    Unknown {
        /// Its address.
        address: IpAddr,
    },
}

#[derive(Clone, Debug)]
struct Claim {
    pod: Name,
    since: Time,
}

#[derive(Clone, Debug)]
struct Tombstone {
    pod: Name,
    workload: Workload,
    gone: Time,
}

/// Addresses and whose they are.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Oldest claim first; the newest is believed.
    pods: BTreeMap<IpAddr, Vec<Claim>>,
    addresses: BTreeMap<Name, (Vec<IpAddr>, Workload)>,
    gone: BTreeMap<IpAddr, Tombstone>,
    api_server: BTreeSet<(IpAddr, u16)>,
    pod_cidrs: Vec<ipnet::IpNet>,
    /// What lookups said of an address, and when; none where all objects are known.
    answers: Option<BTreeMap<IpAddr, Answer>>,
    local: Local,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    at: Time,
    somebody: bool,
}

impl Identity {
    /// Where not all objects are known: an address that none has is unknown until [`answered`](Self::answered).
    #[must_use]
    pub fn with_lookups() -> Self {
        Self { answers: Some(BTreeMap::new()), ..Self::default() }
    }

    /// A lookup found somebody with the address (whose object was applied before), or nobody.
    pub fn answered(&mut self, address: IpAddr, somebody: bool, now: Time) {
        let Some(answers) = &mut self.answers else { return };
        answers.insert(address, Answer { at: now, somebody });
        if answers.len() > MAX_ANSWERS {
            let oldest = answers.iter().min_by_key(|(_, a)| a.at).map(|(address, _)| *address);
            oldest.map(|address| answers.remove(&address));
        }
    }

    /// Every answer of a lookup that is remembered, with its time, oldest first.
    #[must_use]
    pub fn answers(&self) -> Vec<(Time, IpAddr, bool)> {
        let mut all: Vec<_> =
            self.answers.iter().flatten().map(|(address, answer)| (answer.at, *address, answer.somebody)).collect();
        all.sort_unstable();
        all
    }

    /// When a lookup last told who has the address; none where it was never looked up.
    #[must_use]
    pub fn answered_at(&self, address: IpAddr) -> Option<Time> {
        self.answers.as_ref()?.get(&address).map(|a| a.at)
    }
    /// Takes in one change of the cluster.
    pub fn update(&mut self, cluster: &Cluster, change: &Change, now: Time) {
        let (Change::Applied(key) | Change::Deleted(key)) = change else { return };
        match key.kind {
            Kind::Pod => {
                self.pod(cluster, &key.name, now);
                self.local.pod(cluster, &key.name);
            }
            Kind::Node => {
                self.pod_cidrs = cluster.nodes().flat_map(|n| n.pod_cidrs.iter().copied()).collect();
                self.pod_cidrs.sort_unstable();
                self.pod_cidrs.dedup();
            }
            // Only `default/kubernetes` has the API server's endpoints.
            Kind::EndpointSlice if &*key.name.namespace == "default" => self.api_server = api_server(cluster),
            _ => {}
        }
    }

    /// Whose address this is, as of `at`.
    #[must_use]
    pub fn peer(&self, cluster: &Cluster, address: IpAddr, at: Time) -> Peer {
        if address.is_loopback() || address.is_unspecified() {
            return Peer::Loopback;
        }
        if AMBIENT_PROBES.contains(&address) {
            return Peer::Kubelet;
        }
        let tombstone = self.gone.get(&address).filter(|t| at <= t.gone.plus(TOMBSTONE));
        let claim = self.pods.get(&address).and_then(|claims| claims.last());
        match (claim, tombstone) {
            // The attempt is older than the new owner's claim: it was the old owner's.
            (Some(claim), Some(t)) if at < claim.since => {
                return Peer::GonePod { name: t.pod.clone(), workload: t.workload.clone() };
            }
            (Some(claim), _) => {
                if let Some((_, workload)) = self.addresses.get(&claim.pod) {
                    return Peer::Pod { name: claim.pod.clone(), workload: workload.clone() };
                }
            }
            (None, Some(t)) => return Peer::GonePod { name: t.pod.clone(), workload: t.workload.clone() },
            (None, None) => {}
        }
        let is_api_server = self.api_server.iter().any(|(a, _)| *a == address);
        if let Some(node) = cluster.node_by_address(address) {
            return Peer::Node { name: node.name.clone(), api_server: is_api_server };
        }
        if is_api_server {
            return Peer::ApiServer { address };
        }
        if let Some(service) = cluster.service_by_address(address) {
            return Peer::Service { name: service.name.clone() };
        }
        if address == NODE_LOCAL_DNS {
            return Peer::NodeLocalDns;
        }
        if self.pod_cidrs.iter().any(|cidr| cidr.contains(&address)) {
            return Peer::Unknown { address };
        }
        // Of somebody it is said who it is by an object; without one it could not be read.
        let is_open = |answers: &BTreeMap<IpAddr, Answer>| answers.get(&address).is_none_or(|a| a.somebody);
        if self.answers.as_ref().is_some_and(is_open) {
            return Peer::Unknown { address };
        }
        Peer::External { address }
    }

    /// Who dialled: by the address, else by the socket's network namespace, else by its task's cgroup. Both are exact and known
    /// of sockets of this node only; they tell pods whose address no object has yet, and the node behind addresses that its
    /// object does not name (its bridge's).
    #[must_use]
    pub fn dialler(&self, cluster: &Cluster, attempt: &Attempt) -> Peer {
        let peer = self.peer(cluster, attempt.dialled.source, attempt.started);
        let known = match &peer {
            Peer::Unknown { .. } | Peer::GonePod { .. } => {
                self.local.by_namespace(cluster, attempt.netns).or_else(|| self.by_cgroup(cluster, attempt))
            }
            // A second network's address: no policy has a say there. But a node's is its own, whatever network it is in.
            Peer::External { .. } => {
                self.local.by_namespace(cluster, attempt.netns).filter(|peer| matches!(peer, Peer::Node { .. }))
            }
            _ => None,
        };
        known.unwrap_or(peer)
    }

    /// The pod in whose cgroup an attempt's task was.
    #[must_use]
    pub fn pod_of_task<'a>(&self, cluster: &'a Cluster, attempt: &Attempt) -> Option<&'a Pod> {
        let uid = attempt.owner.as_ref()?.pod.as_ref()?;
        cluster.pod(self.local.uids.get(uid)?)
    }

    fn by_cgroup(&self, cluster: &Cluster, attempt: &Attempt) -> Option<Peer> {
        let pod = self.pod_of_task(cluster, attempt).filter(|pod| !pod.host_network)?;
        Some(Peer::Pod { name: pod.name.clone(), workload: pod.workload.clone() })
    }

    /// Remembers whose the network namespace is that an attempt came from; it must have come from this node.
    pub fn learn(&mut self, cluster: &Cluster, attempt: &Attempt) {
        if attempt.netns != 0 && attempt.owner.is_some() && !self.local.knows(attempt) {
            let peer = self.peer(cluster, attempt.dialled.source, attempt.started);
            self.local.learn(attempt, peer);
        }
    }

    /// The API server's endpoints: address and port, from the EndpointSlices of `default/kubernetes`.
    pub fn api_server(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.api_server.iter().copied()
    }

    /// Where a dialled Service address leads; empty if it is none, or has no endpoints.
    #[must_use]
    pub fn translate(cluster: &Cluster, address: IpAddr, protocol: Protocol, port: u16) -> Vec<(IpAddr, u16)> {
        let Some(service) = cluster.service_by_address(address) else { return Vec::new() };
        let mut found = cluster.endpoints(&service.name, protocol, port);
        found.retain(|(a, _)| a.is_ipv4() == address.is_ipv4());
        found
    }

    /// Forgets pods that have been gone for long.
    pub fn expire(&mut self, now: Time) {
        self.gone.retain(|_, t| t.gone.plus(TOMBSTONE.saturating_mul(2)) >= now);
        if let Some(answers) = &mut self.answers {
            answers.retain(|_, a| a.at.plus(ANSWER) >= now);
        }
    }

    fn pod(&mut self, cluster: &Cluster, name: &Name, now: Time) {
        // hostNetwork pods share their node's address; pods that ended have given theirs back.
        let live = cluster.pod(name).filter(|p| !p.host_network && !p.finished());
        let new: Vec<IpAddr> = live.map(|p| p.addresses.to_vec()).unwrap_or_default();
        let old = self.addresses.remove(name);
        if let Some((addresses, workload)) = &old {
            for address in addresses.iter().filter(|a| !new.contains(a)) {
                if let Some(claims) = self.pods.get_mut(address) {
                    claims.retain(|c| c.pod != *name);
                    if claims.is_empty() {
                        self.pods.remove(address);
                    }
                }
                let tombstone = Tombstone { pod: name.clone(), workload: workload.clone(), gone: now };
                self.gone.insert(*address, tombstone);
            }
        }
        while self.gone.len() > MAX_TOMBSTONES {
            let Some(oldest) = self.gone.iter().min_by_key(|(_, t)| t.gone).map(|(a, _)| *a) else { break };
            self.gone.remove(&oldest);
        }
        for address in &new {
            // Whatever was said before: once this pod is gone, it has to be asked again.
            if let Some(answer) = self.answers.as_mut().and_then(|answers| answers.get_mut(address)) {
                answer.somebody = true;
            }
            let claims = self.pods.entry(*address).or_default();
            if !claims.iter().any(|c| c.pod == *name) {
                claims.push(Claim { pod: name.clone(), since: now });
            }
        }
        if let Some(pod) = live {
            self.addresses.insert(name.clone(), (new, pod.workload.clone()));
        }
    }
}

/// The Service `default/kubernetes` and its EndpointSlices are the API server's own; their names are fixed by Kubernetes.
fn api_server(cluster: &Cluster) -> BTreeSet<(IpAddr, u16)> {
    cluster
        .slices()
        .filter(|s| s.service.as_ref().is_some_and(|n| &*n.namespace == "default" && &*n.name == "kubernetes"))
        .flat_map(|s| {
            let ports: Vec<u16> = s
                .ports
                .iter()
                .filter(|(_, _, protocol)| *protocol == Protocol::Tcp)
                .map(|(_, port, _)| *port)
                .collect();
            s.addresses.iter().flat_map(move |a| ports.clone().into_iter().map(move |port| (*a, port)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::{Key, Object, Origin};

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a test address")
    }

    fn at(seconds: u64) -> Time {
        Time(seconds * 1_000_000_000)
    }

    struct World(Cluster, Identity);

    impl World {
        fn apply(&mut self, seconds: u64, object: serde_json::Value) {
            let change = self.0.apply(Object::from_value(object).expect("a test object"), Origin::default());
            self.1.update(&self.0, &change, at(seconds));
        }

        fn pod(&mut self, seconds: u64, name: &str, address: &str, phase: &str) {
            self.apply(
                seconds,
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "app"},
                       "spec": {"containers": [{"name": "c"}]}, "status": {"phase": phase, "podIP": address}}),
            );
        }

        fn delete(&mut self, seconds: u64, name: &str) {
            let change = self.0.delete(&Key { kind: Kind::Pod, name: Name::new("app", name) });
            self.1.update(&self.0, &change, at(seconds));
        }

        fn who(&self, address: &str, seconds: u64) -> String {
            match self.1.peer(&self.0, ip(address), at(seconds)) {
                Peer::Pod { name, .. } => format!("pod {name}"),
                Peer::GonePod { name, .. } => format!("gone {name}"),
                Peer::Node { name, api_server: false } => format!("node {name}"),
                Peer::Node { name, api_server: true } => format!("node {name} with API server"),
                Peer::ApiServer { .. } => "API server".into(),
                Peer::Service { name } => format!("service {name}"),
                Peer::Kubelet => "kubelet".into(),
                Peer::NodeLocalDns => "node-local DNS".into(),
                Peer::Loopback => "loopback".into(),
                Peer::External { .. } => "external".into(),
                Peer::Unknown { .. } => "unknown".into(),
            }
        }
    }

    fn world() -> World {
        let mut world = World(Cluster::default(), Identity::default());
        world.apply(
            0,
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.1.0.0/24"},
                   "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]}}),
        );
        world.apply(
            0,
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"},
                   "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]}}),
        );
        world.apply(
            0,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kubernetes", "namespace": "default"},
                   "spec": {"clusterIP": "10.2.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 6443}]}}),
        );
        world.apply(
            0,
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                   "metadata": {"name": "kubernetes", "namespace": "default",
                                "labels": {"kubernetes.io/service-name": "kubernetes"}},
                   "endpoints": [{"addresses": ["192.168.0.2"]}, {"addresses": ["198.51.100.10"]}],
                   "ports": [{"name": "https", "port": 6443}]}),
        );
        world.pod(0, "web", "10.1.0.5", "Running");
        world.pod(0, "job", "10.1.0.6", "Succeeded");
        world.apply(
            0,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "host", "namespace": "app"},
                   "spec": {"hostNetwork": true, "containers": [{"name": "c"}]},
                   "status": {"phase": "Running", "podIP": "192.168.0.1"}}),
        );
        world
    }

    #[test]
    fn addresses_have_owners() {
        let world = world();
        for (address, expected) in [
            ("10.1.0.5", "pod app/web"),
            ("192.168.0.1", "node n1"),
            ("192.168.0.2", "node n2 with API server"),
            ("198.51.100.10", "API server"),
            ("10.2.0.1", "service default/kubernetes"),
            ("10.1.0.6", "unknown"),
            ("10.1.0.77", "unknown"),
            ("203.0.113.9", "external"),
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("169.254.20.10", "node-local DNS"),
            ("169.254.7.127", "kubelet"),
            ("fd16:9254:7127:1337:ffff:ffff:ffff:ffff", "kubelet"),
        ] {
            assert_eq!(world.who(address, 1), expected, "{address}");
        }
        assert_eq!(Identity::translate(&world.0, ip("10.2.0.1"), Protocol::Tcp, 443).len(), 2);
        assert_eq!(Identity::translate(&world.0, ip("10.1.0.5"), Protocol::Tcp, 443), []);
    }

    #[test]
    fn a_reused_address_is_the_old_pods_for_what_came_before() {
        let mut world = world();
        world.delete(100, "web");
        assert_eq!(world.who("10.1.0.5", 99), "gone app/web");
        assert_eq!(world.who("10.1.0.5", 160), "gone app/web");
        assert_eq!(world.who("10.1.0.5", 161), "unknown", "after a minute nobody knows");
        world.pod(120, "next", "10.1.0.5", "Running");
        assert_eq!(world.who("10.1.0.5", 119), "gone app/web");
        assert_eq!(world.who("10.1.0.5", 121), "pod app/next");
    }

    #[test]
    fn the_new_owner_may_be_seen_before_the_old_one_is_deleted() {
        let mut world = world();
        world.pod(100, "next", "10.1.0.5", "Pending");
        assert_eq!(world.who("10.1.0.5", 101), "pod app/next");
        world.delete(102, "web");
        assert_eq!(world.who("10.1.0.5", 103), "pod app/next");
        world.pod(104, "next", "10.1.0.5", "Failed");
        assert_eq!(world.who("10.1.0.5", 105), "gone app/next", "a pod that ended has given its address back");
    }

    #[test]
    fn with_lookups_an_address_is_outside_only_when_the_answer_says_so() {
        let mut world = world();
        world.1.answers = Some(BTreeMap::new());
        let outside = ip("203.0.113.9");
        assert_eq!(world.who("203.0.113.9", 1), "unknown");
        assert_eq!(world.who("10.1.0.5", 1), "pod app/web");
        world.1.answered(outside, false, at(2));
        assert_eq!(world.who("203.0.113.9", 3), "external");
        assert_eq!((world.1.answered_at(outside), world.1.answered_at(ip("10.1.0.5"))), (Some(at(2)), None));
        world.pod(10, "late", "203.0.113.9", "Running");
        assert_eq!(world.who("203.0.113.9", 11), "pod app/late");
        world.delete(20, "late");
        assert_eq!(world.who("203.0.113.9", 100), "unknown", "an answer from before the pod is worth nothing");
        world.1.answered(outside, false, at(100));
        world.1.expire(at(1_001));
        assert_eq!(world.who("203.0.113.9", 1_001), "unknown", "answers age");
    }

    #[test]
    fn memory_is_bounded() {
        let mut world = world();
        world.delete(100, "web");
        world.1.expire(at(400));
        assert!(world.1.gone.is_empty());
    }
}
