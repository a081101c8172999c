//! Synthetic clusters: namespaces with workloads, their pods, Services and the policies that people write around them.

use serde_json::{Value, json};
use weir_engine::cluster::{Cluster, Object, Origin};

/// A small deterministic generator (SplitMix64): benches and their clusters are the same on every run.
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).expect("below a usize")
    }
}

/// How large.
#[derive(Clone, Copy)]
pub struct Size {
    /// Pods in all.
    pub pods: usize,
    /// Namespaces they are spread over.
    pub namespaces: usize,
    /// NetworkPolicies in all.
    pub policies: usize,
}

/// Pods per workload.
const REPLICAS: usize = 10;
/// Pods per node.
const PER_NODE: usize = 50;

/// Name of a namespace.
pub fn namespace(n: usize) -> String {
    format!("team-{n:03}")
}

/// All objects of a cluster, as the API gives them.
pub fn objects(size: Size) -> Vec<Value> {
    let mut random = Random::new(7);
    let mut all = Vec::new();
    for n in 0..size.namespaces {
        all.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(n), "labels": {
            "kubernetes.io/metadata.name": namespace(n), "team": format!("t{}", n % 40), "env": (["prod", "stage"][n % 2]),
            "istio-injection": "enabled", "pod-security.kubernetes.io/enforce": "restricted"}}}));
    }
    let nodes = size.pods.div_ceil(PER_NODE);
    for n in 0..nodes {
        all.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node(n)},
            "spec": {"podCIDRs": [format!("10.{}.{}.0/24", 128 + n / 256, n % 256)]},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.168.{}.{}", n / 250, 2 + n % 250)}]}}));
    }
    let workloads = size.pods.div_ceil(REPLICAS);
    for w in 0..workloads {
        all.push(service(w, size));
    }
    for p in 0..size.pods {
        all.push(pod(p, size, &mut random));
    }
    for p in 0..size.policies {
        all.push(policy(p, size, &mut random));
    }
    all
}

/// Loads objects into a cluster.
pub fn cluster(objects: Vec<Value>) -> Cluster {
    let mut cluster = Cluster::default();
    for object in objects {
        cluster.apply(Object::from_value(object).expect("synthetic objects are valid"), Origin::default());
    }
    cluster
}

fn node(n: usize) -> String {
    format!("worker-{n:04}.example.internal")
}

fn workload(w: usize, size: Size) -> (String, String) {
    (namespace(w % size.namespaces), format!("app-{:02}", w / size.namespaces))
}

fn service(w: usize, size: Size) -> Value {
    let (namespace, app) = workload(w, size);
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": app, "namespace": namespace},
        "spec": {"clusterIP": format!("10.{}.{}.{}", 96 + w / 62500, w / 250 % 250, 1 + w % 250),
            "selector": {"app": app},
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "metrics", "port": 9090, "targetPort": 15090}]}})
}

/// The `p`th pod.
pub fn pod(p: usize, size: Size, random: &mut Random) -> Value {
    let w = p / REPLICAS;
    let (namespace, app) = workload(w, size);
    let hash = format!("{:x}", 0x7d9f_8c6bu64.wrapping_mul(w as u64 + 1) & 0xffff_ffff);
    let set = format!("{app}-{hash}");
    let suffix: String = (0..5).map(|_| b"bcdfghjklmnpqrstvwxz2456789"[random.below(27)] as char).collect();
    let n = p / PER_NODE;
    let ip = format!("10.{}.{}.{}", 128 + n / 256, n % 256, 2 + p % PER_NODE);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": format!("{set}-{suffix}-{p}"), "namespace": namespace,
        "labels": {"app": app, "app.kubernetes.io/name": app, "app.kubernetes.io/part-of": format!("part-{}", w % 30),
            "app.kubernetes.io/managed-by": "Helm", "tier": (["front", "back", "data"][w % 3]), "version": "v1",
            "pod-template-hash": hash, "security.istio.io/tlsMode": "istio",
            "service.istio.io/canonical-name": app, "service.istio.io/canonical-revision": "v1"},
        "annotations": {"sidecar.istio.io/status": "{\"containers\":[\"istio-proxy\"]}", "prometheus.io/scrape": "true",
            "prometheus.io/port": "15020"},
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": "u", "controller": true}]},
        "spec": {"nodeName": node(n), "containers": [
            {"name": "app", "ports": [{"name": "http", "containerPort": 8080}, {"name": "grpc", "containerPort": 9000}]},
            {"name": "istio-proxy", "ports": [{"name": "http-envoy-prom", "containerPort": 15090}]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "startTime": "2026-01-01T00:00:00Z"}})
}

/// The `p`th policy: a namespace's first ones isolate and open the basics, the others are about single workloads.
pub fn policy(p: usize, size: Size, random: &mut Random) -> Value {
    let (own, number) = (p % size.namespaces, p / size.namespaces);
    let named = |name: &str| json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}});
    let app = |n: usize| json!({"matchLabels": {"app": format!("app-{n:02}")}});
    let apps = (size.pods / REPLICAS / size.namespaces).max(1);
    let mut pick = || random.below(apps);
    let (name, spec) = match number {
        0 => ("default-deny".to_owned(), json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
        1 => (
            "allow-dns".to_owned(),
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [
            {"to": [named("kube-system")], "ports": [{"protocol": "UDP", "port": 53}, {"port": 53}]},
            {"to": [named("istio-system")], "ports": [{"port": 15012}]}]}),
        ),
        2 => (
            "same-team".to_owned(),
            json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": format!("t{}", own % 40)}},
                "podSelector": {"matchExpressions": [{"key": "tier", "operator": "In", "values": ["front", "back"]}]}}]}],
            "egress": [{"to": [{"podSelector": {}}]}]}),
        ),
        3 => (
            "scrape".to_owned(),
            json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
            {"from": [named("monitoring"), named("team-000")], "ports": [{"port": "http-envoy-prom"}, {"port": 15020, "endPort": 15021}]}]}),
        ),
        4 => (
            "out".to_owned(),
            json!({"podSelector": {"matchLabels": {"tier": "front"}}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8", "192.168.0.0/16"]}}], "ports": [{"port": 443}]}]}),
        ),
        n => {
            let peers = json!([{"podSelector": app(pick())}, {"podSelector": app(pick())},
                {"namespaceSelector": {"matchLabels": {"env": "prod"}}, "podSelector": app(pick())}]);
            let rules = json!([{"from": peers, "ports": [{"port": 8080}, {"port": "grpc"}]}]);
            (format!("workload-{n}"), json!({"podSelector": app(n - 5), "policyTypes": ["Ingress"], "ingress": rules}))
        }
    };
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace(own)}, "spec": spec})
}
